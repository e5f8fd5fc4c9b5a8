"""Malformed files in large numbers: what becomes of each, and how long the longest takes.

    python benchmarks/malformed.py [--files 10000] [--seed 0]

Equal shares of patches, ledgers, adapters, checkpoints and files of scores, each made wrong as in
`tests/hostile.py`. Any end but success or a `RetconError`, a file that takes over ten seconds, and
any code that runs, end this script with an error and the seed that shows it.
"""

import argparse
import faulthandler
import random
import tempfile
import time
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path

import torch

from machine import tests_on_path
from retcon.model.structure import Outline

with tests_on_path():
    from hostile import KINDS, attempt, files, make_good, spoilt

_SECONDS = 10
# Of the process, whatever stands in the place of sys.stderr.
_STDERR = 2


def check(kind: str, folder: Path, outline: Outline, seeds: Sequence[str]) -> tuple[int, float]:
    """Spoil a file of a kind for each seed: how many were refused, and the longest in seconds."""
    refused, longest = 0, 0.0
    for seed in seeds:
        chance = random.Random(seed)
        file = chance.choice(files(kind, folder))
        whole = file.read_bytes()
        file.write_bytes(spoilt(whole, chance))
        faulthandler.dump_traceback_later(_SECONDS, exit=True, file=_STDERR)
        started = time.perf_counter()
        try:
            refusal = attempt(kind, folder, outline)
        except BaseException:
            print(f"seed {seed!r}, file {file.name}")
            raise
        longest = max(longest, time.perf_counter() - started)
        faulthandler.cancel_dump_traceback_later()
        file.write_bytes(whole)
        refused += refusal is not None
        assert not (folder / "executed").exists(), seed
    return refused, longest


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    total = chosen.files // len(KINDS)
    with tempfile.TemporaryDirectory() as name, chdir(name):
        folder = Path(name)
        outline = make_good(folder)
        for kind in KINDS:
            seeds = [f"{chosen.seed}:{kind}:{number}" for number in range(total)]
            refused, longest = check(kind, folder, outline, seeds)
            print(
                f"{kind:11} {total} files: {refused} refused with one error each, "
                f"{total - refused} taken for good; longest {1000 * longest:.0f} ms"
            )


if __name__ == "__main__":
    main()
