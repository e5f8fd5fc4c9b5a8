"""What is kept of a batch while its cell runs: enough to go on from there, in one file.

The factors of its change and what later batches must know of it where edits are carried, and the
rows and records that were taken; sealed as a part of its cell.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import torch
from pydantic import TypeAdapter
from torch import Tensor

from retcon.algebra.delta import LowRankDelta
from retcon.edits import Edit
from retcon.errors import Damaged
from retcon.method.base import Update
from retcon.run.signals import Signals
from retcon.run.steps import Past, Step
from retcon.run.trial import Seen, StepRecord
from retcon.scoring.readings import Checkpoint
from retcon.scoring.rows import Row
from retcon.sealed import Owner
from retcon.sealed_tensors import Tensors, open_tensors, save_tensors

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
    reading: of the model as a whole, where one was due.
    """

    past: list[Past]
    records: list[StepRecord]
    rows: pl.DataFrame
    end: End | None
    reading: Checkpoint | None = None


def write_part(
    target: Path,
    owner: Owner,
    seen: Seen,
    *,
    carried: bool,
    end: End | None,
    reading: Checkpoint | None = None,
) -> Part:
    """Keep steps and what was seen of them, whole or not at all. owner: see `part_of`.

    Raises:
        StorageError: no space, or no permission.
    """
    tensors = {"rows": _bytes_of(frame(seen.rows))}
    for i, step in enumerate(seen.steps):
        kept = step.update if carried else _scored(step.update)
        tensors |= {f"{i}.{k}": v for k, v in _tensors(kept).items()}
    about = {
        "first": owner["first"],
        "records": [record._asdict() for record in seen.records],
        "updates": [_said(step) for step in seen.steps],
        "end": end,
        "reading": reading,
    }
    save_tensors(target, tensors, owner, about, sync=True)
    # What it takes to write them again is on the disk, and need not be in memory.
    return Part([], seen.records, frame(seen.rows), end, reading)


def frame(rows: Sequence[Row]) -> pl.DataFrame:
    """Rows as they are kept."""
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


def _said(step: Step) -> dict[str, Any]:
    """What is kept of a step beside its tensors."""
    update = step.update
    return {
        "ids": update.ids, "ridge": update.ridge, "refreshed": step.refreshed,
        "facts": update.facts, "energy": dict(update.energy), "anchor": update.anchor,
        "shared": any(delta.shared for delta in update.deltas.values()),
        "kept": [asdict(edit) for edit in update.kept],
        "signals": step.signals, "next_size": step.next_size,
    }  # fmt: skip


def _tensors(update: Update) -> dict[str, Tensor]:
    found = {"novelty": update.novelty, "reached": update.reached}
    for layer, delta in update.deltas.items():
        found |= {f"left.{layer}": delta.left, f"right.{layer}": delta.right}
    for name in _BY_LAYER:
        found |= {f"{name}.{layer}": rows for layer, rows in getattr(update, name).items()}
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in found.items()}


def part_of(cell: str, first: int) -> Owner:
    """Whose a part is: of which cell, and the index of its first step."""
    return {"kind": "part", "cell": cell, "first": first}


def load_part(path: Path, cell: str) -> tuple[int, Part]:
    """The index of a part's first step, and the part.

    Raises:
        Damaged: it is not what was written, or another cell's.
    """
    with open_tensors(path, {"kind": "part", "cell": cell}) as opened:
        tensors = opened.read_all()
        about = opened.about if opened.sealed else _unsealed(opened, tensors)
        return about["first"], _part(about, tensors)


def _unsealed(opened: Tensors, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a part says that has a checksum of an earlier kind."""
    about = json.loads(opened.metadata["about"])
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in opened.names:
        digest.update(name.encode())
        digest.update(tensors[name].view(torch.uint8).numpy().tobytes())
    if digest.hexdigest() != opened.metadata["sha256"]:
        raise Damaged(f"{opened.path} is not what was written: its digest does not match.")
    return about


def _part(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Part:
    rows = pl.read_parquet(BytesIO(tensors["rows"].numpy().tobytes()))
    records = [_record(said) for said in about["records"]]
    end = None if about["end"] is None else End(*about["end"])
    said = about.get("reading")
    reading = None if said is None else TypeAdapter(Checkpoint).validate_python(said)
    return Part(list(_past(about, tensors)), records, rows, end, reading)


def _past(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Iterator[Past]:
    for i, said in enumerate(about["updates"]):
        own = {k.removeprefix(f"{i}."): v for k, v in tensors.items() if k.startswith(f"{i}.")}
        layers = sorted(int(k.removeprefix("left.")) for k in own if k.startswith("left."))
        shared = bool(said["shared"])
        deltas = {
            n: LowRankDelta(left=own[f"left.{n}"], right=own[f"right.{n}"], shared=shared)
            for n in layers
        }
        groups: dict[str, Any] = {
            name: {n: own[f"{name}.{n}"] for n in layers if f"{name}.{n}" in own}
            for name in _BY_LAYER
        }
        update = Update(
            ids=tuple(said["ids"]), deltas=deltas, ridge=said["ridge"], novelty=own["novelty"],
            reached=own["reached"], facts=tuple(said["facts"]), anchor=said["anchor"],
            energy={int(k): v for k, v in said["energy"].items()},
            kept=tuple(Edit(**edit) for edit in said["kept"]), **groups,
        )  # fmt: skip
        signals = None if said["signals"] is None else Signals(*said["signals"])
        yield Past(update, bool(said["refreshed"]), signals, int(said["next_size"]))


def _record(said: Mapping[str, Any]) -> StepRecord:
    """A record as it was: JSON turns the layers that are keys into text."""
    layered = ("delta_norm", "total_norm", "weight_norm", "energy", "directions")
    by_layer = {name: said[name] and {int(k): v for k, v in said[name].items()} for name in layered}
    values: dict[str, Any] = {**said, **by_layer}
    return StepRecord(**values)
