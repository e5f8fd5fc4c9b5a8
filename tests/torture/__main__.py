"""Do harm to everything that Retcon reads, writes and runs, and count what is wrong without a word.

    python -m torture [--minutes 15] [--tries N] [--seed 0] [--page FILE]     (from `tests/`)

Each try is made again by its seed. Exit code 1 if there was a fault.
"""

import argparse
import os
import pickle
import random
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from torture import world
from torture.running import SmallDisk, preload
from torture.tries import Tried, World, disks, files, signals

_KINDS = {"files": files, "signals": signals, "disks": disks}
# How often each is tried: files cost least and can go wrong in most ways.
_WEIGHTS = {"files": 6, "signals": 3, "disks": 1}


def main() -> int:
    parser = argparse.ArgumentParser(prog="torture", description=__doc__)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--tries", type=int, default=None, help="of each job")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", choices=[*_KINDS], default=None)
    parser.add_argument("--page", type=Path, default=None)
    asked = parser.parse_args()
    preload()
    with tempfile.TemporaryDirectory(prefix="torture-") as name:
        jobs = [_fork(Path(name), job, asked) for job in range(asked.jobs)]
        found = [_join(child, told) for child, told in jobs]
    tried = [one for each, _ in found for one in each]
    page = _page(tried, asked.seed, all(disk for _, disk in found))
    print(page)
    if asked.page is not None:
        asked.page.write_text(page, encoding="utf-8")
    return int(any(one.fault for one in tried))


def _fork(folder: Path, job: int, asked: argparse.Namespace) -> tuple[int, Path]:
    """A process with a world of its own; where it will leave what it has tried."""
    told = folder / f"{job}.pickle"
    child = os.fork()
    if child == 0:
        code = 1
        try:
            told.write_bytes(pickle.dumps(_job(folder / str(job), job, asked)))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return child, told


def _join(child: int, told: Path) -> tuple[list[Tried], bool]:
    _, status = os.waitpid(child, 0)
    if status != 0:
        raise SystemExit("A job has failed: see above.")
    return pickle.loads(told.read_bytes())


def _job(folder: Path, job: int, asked: argparse.Namespace) -> tuple[list[Tried], bool]:
    """Build a world and try; whether it was on a disk that could be made full."""
    until = time.monotonic() + 60 * asked.minutes
    good, work = folder / "good", folder / "disk" / "work"
    good.mkdir(parents=True)
    disk = SmallDisk.at(work.parent)
    work.mkdir(parents=True)
    try:
        world.build(work)
        world.restore(work, good)
        made = World.look(good, work, disk)
        return _try(made, asked, job, until), disk is not None
    finally:
        if disk is not None:
            disk.remove()


def _try(made: World, asked: argparse.Namespace, job: int, until: float) -> list[Tried]:
    tried: list[Tried] = []
    number = 0
    while time.monotonic() < until and (asked.tries is None or len(tried) < asked.tries):
        seed, number = f"{asked.seed}:{job}:{number}", number + 1
        chance = random.Random(seed)
        kind = asked.only or chance.choices([*_WEIGHTS], [*_WEIGHTS.values()])[0]
        one = _KINDS[kind](made, chance)
        if one is None:
            continue
        tried.append(one._replace(seed=seed))
        if one.fault:
            print(f"FAULT {seed} {one.kind}: {one.what}: {one.fault}\n{one.detail}\n", flush=True)
    return tried


def _page(tried: list[Tried], seed: int, disk: bool) -> str:
    """What was tried and what came of it, as a page."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for one in tried:
        counts[one.kind][one.outcome] += 1
    columns = ("same", "told", "refused", "interrupted", "fault")
    lines = [
        "# Harm, and what came of it",
        "",
        f"`make torture` (seed {seed}): **{len(tried):,} tries, "
        f"{sum(1 for one in tried if one.fault)} faults**"
        f"{'' if disk else ', no small disk (that takes the right to mount)'}. A try damages a "
        "copy "
        "of a world in which everything exists that Retcon writes, or a command on its way, and "
        "then looks for a wrong result without a word, for finished work that is lost, for a "
        "traceback, and for a command that does not end.",
        "",
        "*same*: the result is what it would have been. *told*: it is not, and a line says why. "
        "*refused*: an error that names the file. *interrupted*: it ended early and went on to the "
        "same result when it was run again.",
        "",
        f"| what | tries | {' | '.join(columns)} |",
        f"|---|---:|{'---:|' * len(columns)}",
    ]
    for kind, found in sorted(counts.items()):
        row = " | ".join(str(found[column]) for column in columns)
        lines.append(f"| {kind} | {sum(found.values())} | {row} |")
    faults = [one for one in tried if one.fault]
    if faults:
        lines += ["", "## Faults", ""]
        lines += [f"* `{one.seed}` {one.kind}: {one.what}: {one.fault}" for one in faults]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
