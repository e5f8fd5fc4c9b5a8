"""What a try is: a command, the harm that is done to it, and what may become of it.

A fault is a wrong result with no word about it, finished work that is lost, a traceback or an
error without a word, and a command that does not end. Everything else is as it should be.
"""

import hashlib
import json
import random
import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from retcon.cache import ENTRIES
from torture import damage
from torture.running import CALM, HANG, Disturbance, Ending, SmallDisk, command
from torture.world import EDIT, restore

# exact: a result is the right one, or there is none. told: it may be another one with a line that
# says so. verify: damage is found. free: what is damaged is the user's own; any result is right.
Policy = Literal["exact", "told", "verify", "free"]
_TIMES = re.compile(r"second|time|cached|memory|peak|commit|took|warnings|s/edit", re.I)
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "BF16": "<u2"}
# Of what is made anew: what float32 loses on the way through a few steps of an optimiser.
_ROUNDING = 1e-3
_TEMPORARY = re.compile(r"^\..+-[0-9a-f]{12}$")


# What a command has made, by file.
Made = Mapping[str, Any]


class Tried(NamedTuple):
    """A try and what came of it. fault: None, or what was wrong. detail: what was said."""

    kind: str
    what: str
    outcome: str
    fault: str | None = None
    detail: str = ""
    seed: str = ""


@dataclass(frozen=True)
class Command:
    """A command on the world. of: files it reads, of which one is damaged.

    makes: its result. then: a command that shows what it has done to its folder, and makes it.
    """

    name: str
    words: Sequence[str]
    of: Sequence[str]
    policy: Policy = "exact"
    makes: str | None = None
    then: Sequence[str] | None = None


def _study(folder: str) -> list[str]:
    return [f"{folder}/study.json", f"{folder}/tuned.json", f"{folder}/study.yaml",
            f"{folder}/cells/*/*.*"]  # fmt: skip


_PATCH, _LEDGER, _CACHE = ["p.safetensors"], ["ledger/**/*.*"], ["cache/**/*.*"]
_MODEL = ["model/*"]
_OUT = "out.safetensors"
_EDIT = [*EDIT, "--facts", "facts.jsonl", "-o", _OUT]
_EVAL = ["eval", "model", "--cases", "facts.jsonl", "--json", "out.json"]
_METHOD = ["--method", "memit", "--layer", "1", "--schedule", "batch:8", *EDIT[6:]]
_EXPORT = ["study", "export", "done", "-o", "out.parquet"]
_STACK = ["patch", "stack", "ledger", "-o", _OUT]

COMMANDS = (
    Command("patch show", ["patch", "show", "p.safetensors"], _PATCH),
    Command("patch verify", ["patch", "verify", "p.safetensors"], _PATCH, "verify"),
    Command("patch diff", ["patch", "diff", "p.safetensors", "q.safetensors"], _PATCH),
    Command("patch stack", ["patch", "stack", "p.safetensors", "q.safetensors", "-o", _OUT],
            _PATCH, makes=_OUT),
    Command("patch export", ["patch", "export", "p.safetensors", "--to", "peft", "-o", "out",
                             "--model", "model"], _PATCH, makes="out"),
    Command("patch merged", ["patch", "export", "p.safetensors", "--to", "merged", "-o", "out",
                             "--model", "model", "--no-check"], _PATCH, makes="out"),
    Command("eval --patch", [*_EVAL, "--patch", "p.safetensors"], _PATCH, makes="out.json"),
    Command("ledger list", ["patch", "list", "ledger"], _LEDGER),
    Command("ledger history", ["patch", "list", "ledger", "--history"], _LEDGER),
    Command("ledger verify", ["patch", "verify", "ledger"], _LEDGER, "verify"),
    Command("ledger stack", _STACK, _LEDGER, makes=_OUT),
    Command("ledger undo", ["patch", "undo", "ledger", "f2"], _LEDGER, makes=_OUT, then=_STACK),
    Command("ledger add", ["patch", "add", "ledger", "p.safetensors"], _LEDGER, makes=_OUT,
            then=_STACK),
    Command("edit, cache", _EDIT, _CACHE, makes=_OUT),
    Command("eval, cache", [*_EVAL, *_METHOD], _CACHE, makes="out.json"),
    Command("cache verify", ["cache", "verify"], _CACHE, "verify"),
    Command("study status", ["study", "status", "done"], _study("done"), "told"),
    Command("study report", ["study", "report", "done"], _study("done"), "told"),
    Command("study export", _EXPORT, _study("done"), "told", makes="out.parquet"),
    Command("study verify", ["study", "verify", "done"], _study("done"), "verify"),
    Command("study run, done", ["study", "run", "s.yaml", "--out", "done"], _study("done"),
            makes="out.parquet", then=_EXPORT),
    Command("study run, half", ["study", "run", "s.yaml", "--out", "half"], _study("half"),
            makes="out.parquet", then=["study", "export", "half", "-o", "out.parquet"]),
    Command("edit, facts", _EDIT, ["facts.jsonl"], "free"),
    Command("edit, model", _EDIT, _MODEL, "free"),
    Command("probe", ["probe", "model"], _MODEL, "free"),
    Command("patch on a model", [*_EVAL, "--patch", "p.safetensors"], _MODEL, "free"),
    Command("import", ["patch", "import", "model", "adapter", "-o", _OUT], ["adapter/*"], "free"),
    Command("study validate", ["study", "validate", "s.yaml"], ["s.yaml"], "free"),
    Command("study plan", ["study", "plan", "s.yaml"], ["s.yaml"], "free"),
)  # fmt: skip
# Those that are interrupted, and that may find a disk full: all that write.
_NEW_STUDY = Command(
    "study run, new", ["study", "run", "s.yaml", "--out", "new"], (), makes="out.parquet",
    then=["study", "export", "new", "-o", "out.parquet"],
)  # fmt: skip
_FRESH = Command("edit, no cache", _EDIT, (), makes=_OUT)
_FIRST = Command("ledger, first", ["patch", "add", "fresh", "p.safetensors"], (), makes=_OUT,
                 then=["patch", "stack", "fresh", "-o", _OUT])  # fmt: skip
_REPORT = Command("study report", ["study", "report", "done"], ())
WRITERS = (
    _NEW_STUDY, _NEW_STUDY, _FRESH, _FRESH, _FIRST, _REPORT,
    *(c for c in COMMANDS if c.makes and c.policy == "exact"),
)  # fmt: skip


class Right(NamedTuple):
    """What a command comes to on the world as it was built."""

    out: str
    said: str
    made: Made
    seconds: float


@dataclass(frozen=True)
class World:
    """Where the world is, and what every command comes to in it."""

    good: Path
    work: Path
    disk: SmallDisk | None
    right: Mapping[str, Right]
    files: Mapping[str, str]

    @classmethod
    def look(cls, good: Path, work: Path, disk: SmallDisk | None) -> "World":
        """Run every command once, undisturbed.

        Raises:
            RuntimeError: one of them fails, so that nothing could be seen of what harm does to it.
        """
        right: dict[str, Right] = {}
        for one in {c.name: c for c in (*COMMANDS, *WRITERS)}.values():
            restore(good, work)
            _prepare(one, work)
            ended = command(one.words, work)
            if ended.code != 0:
                raise RuntimeError(f"{one.name}, undisturbed: exit {ended.code}: {ended.err}")
            made = _made(one, work)
            right[one.name] = Right(_plain(ended.out), ended.said, made, ended.seconds)
        return cls(good, work, disk, right, _digests(good))


def files(world: World, chance: random.Random) -> Tried | None:
    """Damage a file, or a folder of a study or ledger, and run a command that reads it."""
    one = chance.choice([c for c in COMMANDS if c.name in world.right])
    restore(world.good, world.work)
    found = sorted({p for glob in one.of for p in world.work.glob(glob) if p.is_file()})
    file = chance.choice([p for p in found if not p.name.startswith(".") and p.suffix != ".lock"])
    name = file.relative_to(world.work)
    deep = len(name.parts) > 2 and chance.random() < 0.1
    harm = chance.choice(damage.FOLDERS if deep else damage.FILES)
    if len(name.parts) == 1 and harm in (damage.swap, damage.copy):
        return None  # a whole patch under another name is what its user calls it
    done = harm(file, chance)
    if done is None:
        return None
    before = _digests(world.work)
    ended = command(one.words, world.work)
    outcome, fault = _judged(one, world, ended, file)
    fault = fault or _lost(world, before)
    told = f"{name.as_posix()}, {done}"
    kind = "your own files" if one.policy == "free" else one.name
    return Tried(kind, f"{one.name}: {told}", "fault" if fault else outcome, fault, _detail(ended))


def signals(world: World, chance: random.Random) -> Tried | None:
    """Stop a command at any moment, look at what is left, and run it again."""
    one = chance.choice([c for c in WRITERS if c.name in world.right])
    which = chance.choice([signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGKILL])
    after = chance.uniform(0, 1.1 * world.right[one.name].seconds)
    restore(world.good, world.work)
    _prepare(one, world.work)
    before = _digests(world.work)
    ended = command(one.words, world.work, Disturbance(which, after))
    fault = _ended_badly(ended, which) or _lost(world, before)
    if not fault and which != signal.SIGKILL and ended.code != 0:
        left = [p.name for p in world.work.rglob(".*") if _TEMPORARY.match(p.name)]
        fault = f"left behind: {', '.join(left)}" if left else None
    fault = fault or _again(one, world)
    told = f"{one.name}: {which.name} after {after:.2f} s"
    outcome = "fault" if fault else "same" if ended.code == 0 else "interrupted"
    return Tried(f"signals: {one.name}", told, outcome, fault, _detail(ended))


def disks(world: World, chance: random.Random) -> Tried | None:
    """Run a command on a disk that is full or cannot be written; make room, and run it again."""
    one = chance.choice([c for c in WRITERS if c.name in world.right])
    restore(world.good, world.work)
    _prepare(one, world.work)
    before = _digests(world.work)
    left = int(2 ** chance.uniform(6, 18))
    way = chance.choice(
        ["full", "full", "small files", "read only"] if world.disk else ["small files"]
    )
    try:
        if world.disk and way == "full":
            world.disk.fill(left)
        if world.disk and way == "read only":
            world.disk.read_only(True)
        how = Disturbance(largest_file=left) if way == "small files" else CALM
        ended = command(one.words, world.work, how)
    finally:
        if world.disk:
            world.disk.read_only(False)
            world.disk.empty()
    fault = _ended_badly(ended, None) or _lost(world, before) or _again(one, world)
    outcome = "fault" if fault else "same" if ended.code == 0 else "interrupted"
    what = f"{one.name}: {way}, {left} bytes"
    return Tried(f"disks: {way}", what, outcome, fault, _detail(ended))


def _prepare(one: Command, work: Path) -> None:
    """Take away what the command is to make anew."""
    if one.name in (_FRESH.name,):
        for kind in (*ENTRIES, "moments", "corpora"):
            for path in (work / "cache" / kind).rglob("*"):
                if path.is_file():
                    path.unlink()


def _judged(one: Command, world: World, ended: Ending, file: Path) -> tuple[str, str | None]:
    """What became of a command whose file was damaged, and what is wrong with that."""
    fault = _ended_badly(ended, None)
    if fault:
        return "fault", fault
    if ended.code != 0:
        return "refused", None
    right = world.right[one.name]
    same = _plain(ended.out) == right.out
    if one.policy == "verify" and same and _damaged(file, world):
        return "fault", "verify finds nothing"
    if one.policy in ("free", "verify"):
        return ("same" if same else "told"), None
    return _compared(one, right, ended, _made(one, world.work))


def _compared(one: Command, right: Right, ended: Ending, made: Made) -> tuple[str, str | None]:
    """What a command that succeeded has made and said, beside what it should."""
    same = _plain(ended.out) == right.out
    if _alike(made, right.made) and same:
        return "same", None
    warned = ended.said != right.said
    if not _alike(made, right.made) and (one.policy == "exact" or not (warned or not same)):
        return "fault", "another result, exit 0" + (", with a word" if warned else ", and no word")
    if one.policy == "exact" and one.makes is None and not warned:
        return "fault", "says something else, exit 0"
    return "told", None


def _damaged(file: Path, world: World) -> bool:
    """Whether damage changed what the file says. A cache entry that is gone is made anew."""
    if not file.exists() and file.is_relative_to(world.work / "cache"):
        return False
    return _means(file) != _means(world.good / file.relative_to(world.work))


def _ended_badly(ended: Ending, sent: int | None) -> str | None:
    """A traceback, an exit code of no meaning, an error without a word, no end."""
    if ended.code == HANG:
        return "does not end"
    if "Traceback (most recent call last)" in ended.out + ended.err:
        return "traceback"
    allowed = {0, 2, -(sent or 0), *({130, 143} if sent else ())}
    if ended.code not in allowed:
        return f"exit code {ended.code}"
    if ended.code == 2 and not ended.said and not ended.out.strip():
        return "exit 2 without a word"
    return None


def _again(one: Command, world: World) -> str | None:
    """What is wrong when an interrupted command is run once more, undisturbed."""
    right = world.right[one.name]
    if one.then is not None and _alike(_made(one, world.work), right.made):
        return None  # it was done already, and some things can be done twice
    ended = command(one.words, world.work)
    fault = _ended_badly(ended, None)
    if fault:
        return f"again: {fault}: {_detail(ended)}"
    # What was finished before the interruption cannot be done twice, and says so.
    done = ended.code == 2 and "exists already" in ended.said
    if ended.code != 0 and not done:
        return f"again: exit {ended.code}: {ended.said[-300:]}"
    if not _alike(_made(one, world.work), right.made):
        return "again: another result"
    return None


def _made(one: Command, work: Path) -> Made:
    """What a command has made, by file, as numbers and words without times."""
    if one.then is not None:
        ended = command(one.then, work)
        if ended.code != 0:
            return {"none": ended.said[-200:]}
    if one.makes is None:
        return {}
    path = work / one.makes
    if path.is_dir():
        found = [p for p in sorted(path.rglob("*")) if p.suffix in (".safetensors", ".json")]
        return {p.relative_to(path).as_posix(): _content(p) for p in found}
    return {one.makes: _content(path) if path.is_file() else None}


def _content(path: Path) -> Any:
    if path.suffix == ".json":
        return _timeless(json.loads(path.read_text(encoding="utf-8")))
    data = path.read_bytes()
    if path.suffix != ".safetensors":
        return hashlib.sha256(data).hexdigest()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    body = data[8 + size :]
    return {
        name: np.frombuffer(body[slice(*told["data_offsets"])], dtype=_DTYPES[told["dtype"]])
        for name, told in header.items()
    }


def _alike(one: Any, other: Any) -> bool:
    """Whether two results are one, up to rounding: a target that is made anew, in a batch of other
    size, differs in its last digits."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        gap = np.linalg.norm(one.astype(float) - other.astype(float))
        return bool(gap <= _ROUNDING * (1e-30 + np.linalg.norm(one.astype(float))))
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= _ROUNDING * (1 + abs(one))
    return bool(one == other)


def _means(path: Path) -> str:
    """What a file says, however it is laid out; for other files than JSON, its bytes."""
    try:
        if path.suffix == ".json":
            return json.dumps(json.loads(path.read_bytes()), sort_keys=True)
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, ValueError):
        return "none"


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if not _TIMES.search(str(k))}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


def _plain(text: str) -> str:
    """What was printed, without spinning numbers: seconds, and paths of temporary folders."""
    text = re.sub(r"\d+(\.\d+)? ?(s|ms|min|h|MB|GiB|MiB|kB)\b", "N", text)
    return re.sub(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d)?\S*", "T", text)


def _digests(folder: Path) -> dict[str, str]:
    """sha256 of every file, by its path."""
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not p.is_symlink()
    }


def _lost(world: World, before: Mapping[str, str]) -> str | None:
    """A finished file that was whole before the command and is nowhere afterwards."""
    after = {*_digests(world.work).values()}
    gone = [
        name
        for name, digest in before.items()
        if _is_finished(name, before) and world.files.get(name) == digest and digest not in after
    ]
    return f"lost: {', '.join(gone[:3])}" if gone else None


def _is_finished(name: str, files: Mapping[str, str]) -> bool:
    """Whether a file is work that must not be lost: not a lock, nor of a cell that is not done."""
    parts = Path(name).parts
    if parts[-1].startswith(".") or parts[-1] == "ledger.json":
        return False
    if len(parts) > 2 and parts[1] == "cells":
        return "/".join((*parts[:3], "done.json")) in files
    return name.startswith((
        "p.safetensors", "q.safetensors", "facts.jsonl", "more.jsonl", "s.yaml", "model/",
        "ledger/", "adapter/",
    ))  # fmt: skip


def _detail(ended: Ending) -> str:
    out = ended.out.strip().splitlines()[-3:]
    return "\n".join(
        [
            f"    exit {ended.code}",
            *(f"    {t}" for t in out),
            *(f"    ! {t[:300]}" for t in ended.err.strip().splitlines()[-12:]),
        ]
    )
