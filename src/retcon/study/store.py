"""Write a cell's folder: batch by batch while it runs, as a whole when it is done.

A batch is one file, written whole, synced, and named by its own hash, so that a run which dies at
any moment leaves finished batches and nothing else. What they hold is enough to go on: factors and
the metric's memory where edits are carried, and the rows and records taken so far.
"""

import hashlib
import json
import platform
import subprocess
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from retcon.algebra.delta import LowRankDelta
from retcon.editing.session import Past
from retcon.editing.trial import Seen, StepRecord
from retcon.edits import Edit
from retcon.evaluation.fluency import Generation
from retcon.evaluation.rows import Row
from retcon.methods.base import Update
from retcon.storage import make_folder, storing, write_whole
from retcon.study.cells import Cell
from retcon.study.reading import CELL, DONE, EXAMPLES, GENERATIONS, ROWS, STEPS

ROW_SCHEMA = pl.Schema(
    {
        "case": pl.String,
        "relation": pl.String,
        "kind": pl.String,
        "index": pl.Int32,
        "when": pl.String,
        "step": pl.Int32,
        "nll_new": pl.Float64,
        "n_new": pl.Int32,
        "hits_new": pl.Int32,
        "nll_old": pl.Float64,
        "n_old": pl.Int32,
        "hits_old": pl.Int32,
        "exact": pl.Boolean,
    }
)

GENERATION_SCHEMA = pl.Schema(
    {
        "case": pl.String,
        "relation": pl.String,
        "when": pl.String,
        "step": pl.Int32,
        "index": pl.Int32,
        "text": pl.String,
        "entropy": pl.Float64,
    }
)


class End(NamedTuple):
    """What is kept of a model that holds all edits of a cell.

    weights: sha256 of the edited matrices. examples: facts, with what it says before and after.
    generations: the fields of each `Generation`, where texts were asked for.
    """

    weights: str
    examples: list[dict[str, str | None]]
    generations: list[list[object]]


class Part(NamedTuple):
    """What one file holds: steps that were solved together, and what was seen of them.

    past: as it takes to write the steps again. end: in the last part, where edits are carried.
    """

    past: list[Past]
    records: list[StepRecord]
    rows: pl.DataFrame
    end: End | None


@dataclass(frozen=True)
class CellFolder:
    """The folder of one cell."""

    path: Path

    @property
    def done(self) -> bool:
        """Whether the cell has been finished."""
        return (self.path / DONE).exists()

    @contextmanager
    def claimed(self) -> Generator[bool, None, None]:
        """Keep other processes off the cell; false where one is at work on it.

        The lock goes with the process that holds it, however that ends.
        """
        make_folder(self.path.parent)
        lock = FileLock(self.path.with_name(f".{self.path.name}.lock"))
        with storing(self.path):
            try:
                lock.acquire(blocking=False)
            except Timeout:
                held = False
            else:
                held = True
        try:
            yield held
        finally:
            if held:
                lock.release()

    def begin(self, cell: Cell) -> None:
        """Say what will be in here."""
        make_folder(self.path)
        if not (self.path / CELL).exists():
            self._write(CELL, cell.model_dump_json(indent=2))

    def commit(self, first: int, seen: Seen, *, carried: bool, end: End | None) -> Part:
        """Keep steps and what was seen of them. first: the index of the first of them.

        Raises:
            StorageError: no space; what was committed before is as it was.
        """
        tensors = {"rows": _bytes_of(_frame(seen.rows))}
        for i, step in enumerate(seen.steps):
            kept = step.update if carried else _scored(step.update)
            tensors |= {f"{i}.{k}": v for k, v in _tensors(kept).items()}
        about = {
            "first": first,
            "records": [record._asdict() for record in seen.records],
            "updates": [_said(step.update, step.refreshed) for step in seen.steps],
            "end": end,
        }
        target = self.path / f"step-{first:06d}.safetensors"
        # As it will be read back: the layers that are keys become text.
        said = json.loads(json.dumps(about))
        write_whole(target, lambda work: _save(tensors, said, work), sync=True)
        # What it takes to write them again is on the disk, and need not be in memory.
        return Part([], seen.records, _frame(seen.rows), end)

    def parts(self) -> tuple[list[Part], str | None]:
        """The parts of an unfinished run, and what is wrong with the first one that is damaged.

        That one and those behind it are removed: their batches will be run again.
        """
        found: list[Part] = []
        expected = 0
        files = sorted(self.path.glob("step-*.safetensors"))
        for number, path in enumerate(files):
            try:
                first, part = _load(path)
                if first != expected:
                    raise ValueError(f"batch {expected} is missing before it")
            except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
                for later in files[number:]:
                    later.unlink()
                return found, f"{path} is damaged ({error}): run again from its first batch."
            expected += len(part.records)
            found.append(part)
        return found, None

    def finish(
        self, parts: Sequence[Part], pre: Sequence[Row], before: Sequence[Generation], device: str
    ) -> None:
        """Put the parts together, and mark the cell as done. device: the model was on."""
        rows = pl.concat([_frame(pre), *(part.rows for part in parts)])
        write_whole(self.path / ROWS, rows.write_parquet, sync=True)
        lines = [json.dumps(r._asdict()) for part in parts for r in part.records]
        self._write(STEPS, "\n".join(lines) + "\n")
        self._write("environment.json", json.dumps({**environment(), "device": device}, indent=2))
        names = [CELL, ROWS, STEPS, "environment.json"]
        end = parts[-1].end
        if end is not None:
            self._write(EXAMPLES, json.dumps(end.examples, indent=2, ensure_ascii=False))
            names.append(EXAMPLES)
        texts = [*map(list, before), *(end.generations if end is not None else [])]
        if texts:
            frame = pl.DataFrame(texts, schema=GENERATION_SCHEMA, orient="row")
            write_whole(self.path / GENERATIONS, frame.write_parquet, sync=True)
            names.append(GENERATIONS)
        files = {name: _sha256(self.path / name) for name in names}
        done = {"files": files, "weights": None if end is None else end.weights}
        self._write(DONE, json.dumps(done, indent=2))
        self.clear_parts()

    def note_failure(self, message: str) -> None:
        """Keep why the cell could not be finished; what it has seen so far stays in its parts."""
        self._write("failed.json", json.dumps({"error": message}))

    def set_aside(self) -> Path:
        """Move a damaged cell out of the way; nothing of it is lost."""
        aside = (self.path.with_name(f"{self.path.name}.damaged-{n}") for n in count(1))
        target = next(path for path in aside if not path.exists())
        with storing(target):
            return self.path.rename(target)

    def clear_parts(self) -> None:
        """Remove what a finished cell no longer needs."""
        for path in self.path.glob("step-*.safetensors"):
            path.unlink(missing_ok=True)  # another process may be about it too
        (self.path / "failed.json").unlink(missing_ok=True)

    def _write(self, name: str, text: str) -> None:
        target = self.path / name
        write_whole(target, lambda work: work.write_text(text, encoding="utf-8"), sync=True)


def environment() -> dict[str, object]:
    """What made a cell: versions that can change a number, threads, and the machine's kind."""
    packages = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "polars")
    commit = _commit()
    return {
        "retcon": version("retcon-llm"),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        **({"commit": commit} if commit else {}),
    }


@cache
def _commit() -> str | None:
    """The commit of the code, where it is run from a checkout; `-dirty` where it was changed."""
    checkout = Path(__file__).parents[3]
    if not (checkout / ".git").exists():
        return None
    ask = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _frame(rows: Sequence[Row]) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema=ROW_SCHEMA, orient="row")


def _bytes_of(frame: pl.DataFrame) -> Tensor:
    stream = BytesIO()
    frame.write_parquet(stream)
    return torch.frombuffer(bytearray(stream.getvalue()), dtype=torch.uint8)


def _scored(update: Update) -> Update:
    """What is kept of an update that no other builds on."""
    return Update(update.ids, {}, {}, update.ridge, update.novelty, update.reached)


# What an update holds by layer, beside the factors of its change.
_BY_LAYER = ("memory", "keys", "values", "errors", "running")


def _said(update: Update, refreshed: bool) -> dict[str, Any]:
    """What is kept of an update beside its tensors."""
    return {
        "ids": update.ids, "ridge": update.ridge, "refreshed": refreshed, "facts": update.facts,
        "energy": dict(update.energy), "anchor": update.anchor,
        "shared": any(delta.shared for delta in update.deltas.values()),
        "kept": [asdict(edit) for edit in update.kept],
    }  # fmt: skip


def _tensors(update: Update) -> dict[str, Tensor]:
    found = {"novelty": update.novelty, "reached": update.reached}
    for layer, delta in update.deltas.items():
        found |= {f"left.{layer}": delta.left, f"right.{layer}": delta.right}
    for name in _BY_LAYER:
        found |= {f"{name}.{layer}": rows for layer, rows in getattr(update, name).items()}
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in found.items()}


def _save(tensors: dict[str, Tensor], about: Mapping[str, Any], path: Path) -> None:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].view(torch.uint8).numpy().tobytes())
    save_file(tensors, path, {"about": json.dumps(about), "sha256": digest.hexdigest()})


def _load(path: Path) -> tuple[int, Part]:
    """The index of a part's first step, and the part.

    Raises:
        ValueError, KeyError, SafetensorError: it is not what was written.
    """
    with safe_open(path, framework="pt") as stream:
        header = stream.metadata() or {}
        names = sorted(stream.keys())
        tensors = {name: stream.get_tensor(name) for name in names}
    about = json.loads(header["about"])
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in names:
        digest.update(name.encode())
        digest.update(tensors[name].view(torch.uint8).numpy().tobytes())
    if digest.hexdigest() != header["sha256"]:
        raise ValueError("its checksum is another")
    rows = pl.read_parquet(BytesIO(tensors["rows"].numpy().tobytes()))
    records = [_record(said) for said in about["records"]]
    end = None if about["end"] is None else End(*about["end"])
    return about["first"], Part(list(_past(about, tensors)), records, rows, end)


def _past(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Iterator[Past]:
    for i, said in enumerate(about["updates"]):
        own = {k.removeprefix(f"{i}."): v for k, v in tensors.items() if k.startswith(f"{i}.")}
        layers = sorted(int(k.removeprefix("left.")) for k in own if k.startswith("left."))
        pairs, shared = [(own[f"left.{n}"], own[f"right.{n}"]) for n in layers], said.get("shared")
        deltas = [LowRankDelta(left=x, right=y, shared=bool(shared)) for x, y in pairs]
        groups: dict[str, Any] = {
            name: {n: own[f"{name}.{n}"] for n in layers if f"{name}.{n}" in own}
            for name in _BY_LAYER
        }
        update = Update(
            ids=tuple(said["ids"]), deltas=dict(zip(layers, deltas, strict=True)),
            ridge=said["ridge"], novelty=own["novelty"], reached=own["reached"],
            facts=tuple(said["facts"]), energy={int(k): v for k, v in said["energy"].items()},
            anchor=said["anchor"], kept=tuple(Edit(**edit) for edit in said.get("kept", ())),
            **groups,
        )  # fmt: skip
        yield Past(update, bool(said["refreshed"]))


def _record(said: Mapping[str, Any]) -> StepRecord:
    """A record as it was: JSON turns the layers that are keys into text."""
    norms = ("delta_norm", "total_norm", "weight_norm")
    by_layer = {name: {int(k): v for k, v in said[name].items()} for name in norms}
    values: dict[str, Any] = {**said, **by_layer}
    return StepRecord(**values)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
