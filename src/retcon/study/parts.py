"""Store a batch while its cell runs: enough to go on from there, in one file.

The factors of its change and what later batches must know of it where edits are carried, and the
rows and records that were taken; sealed as a part of its cell.
"""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import torch
from torch import Tensor

from retcon.algebra.delta import LowRankDelta
from retcon.errors import Damaged
from retcon.method.base import Update
from retcon.run.looks import Stage
from retcon.run.signals import Signals
from retcon.run.steps import Past, Step
from retcon.scoring.observations import table
from retcon.sealed import Owner
from retcon.sealed_tensors import open_tensors, save_tensors
from retcon.study.increments import decode, encode


class End(NamedTuple):
    """Outcome of a cell whose model holds all edits.

    Attributes:
        weights: sha256 of the edited matrices.
        examples: facts, with the model's continuations before and after.
    """

    weights: str
    examples: list[dict[str, str | None]]


class Part(NamedTuple):
    """Content of one file: steps that were solved together, and what was seen of them.

    Attributes:
        past: what it takes to write the steps again.
        records: of the steps, as JSON.
        rows: observations.
        end: in the last part, where edits are carried.
    """

    past: list[Past]
    records: list[dict[str, Any]]
    rows: pl.DataFrame
    end: End | None


def write_part(
    target: Path,
    owner: Owner,
    seen: Stage,
    *,
    carried: bool,
    end: End | None,
) -> Part:
    """Store steps and what was seen of them, whole or not at all.

    Args:
        target: the file.
        owner: see `part_of`.
        seen: the steps, with rows and records.
        carried: False where later batches meet the untouched model, so that no step is needed
            again.
        end: in the last part, where edits are carried.

    Raises:
        StorageError: no space, or no permission.
    """
    rows = table(seen.rows)
    tensors = {"rows": _bytes_of(rows)}
    records = [record.as_json() for record in seen.records]
    about = {
        "first": owner["first"],
        "records": records,
        "steps": [_encoded(i, step, tensors, carried=carried) for i, step in enumerate(seen.steps)],
        "end": end,
    }
    save_tensors(target, tensors, owner, about, sync=True)
    # What it takes to write them again is on the disk, and need not be in memory.
    return Part([], records, rows, end)


def _bytes_of(frame: pl.DataFrame) -> Tensor:
    stream = BytesIO()
    frame.write_parquet(stream)
    return torch.frombuffer(bytearray(stream.getvalue()), dtype=torch.uint8)


def _encoded(
    number: int, step: Step, tensors: dict[str, Tensor], *, carried: bool
) -> dict[str, Any]:
    """Encode what it takes to write a step again; of one that is not carried, only its ids."""
    update = step.update
    kept = Past(update if carried else Update(update.ids, {}, None), step.refreshed)
    about: dict[str, Any] = {"ids": update.ids, "refreshed": step.refreshed, "layers": {}}
    for layer, delta in kept.update.deltas.items():
        names = {side: f"{number}.{side}.{layer}" for side in ("left", "right")}
        tensors |= {name: getattr(delta, side).cpu().contiguous() for side, name in names.items()}
        about["layers"][layer] = {**names, "shared": delta.shared}
    about["increment"] = encode(kept.update.increment, tensors, f"{number}.increment")
    return {**about, "signals": step.signals, "next_size": step.next_size}


def part_of(cell: str, first: int) -> Owner:
    """Owner of a part: its cell, and the index of its first step."""
    return {"kind": "part", "cell": cell, "first": first}


def load_part(path: Path, cell: str, device: str = "cpu") -> tuple[int, Part]:
    """Load a part, its updates on a device.

    Returns:
        The index of its first step, and the part.

    Raises:
        Damaged: it is not what was written, or another cell's.
    """
    with open_tensors(path, {"kind": "part", "cell": cell}) as opened:
        tensors = opened.read_all()
        about = opened.about
        if "steps" not in about or "reading" in about:
            raise Damaged(f"{opened.path} was written by an earlier Retcon.")
        return about["first"], _part(about, tensors, device)


def _part(about: Mapping[str, Any], tensors: Mapping[str, Tensor], device: str) -> Part:
    rows = pl.read_parquet(BytesIO(tensors["rows"].numpy().tobytes()))
    end = None if about["end"] is None else End(*about["end"])
    placed = {name: tensor.to(device) for name, tensor in tensors.items() if name != "rows"}
    past = [_past(step, placed) for step in about["steps"]]
    return Part(past, about["records"], rows, end)


def _past(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Past:
    deltas = {
        int(layer): LowRankDelta(
            left=tensors[own["left"]], right=tensors[own["right"]], shared=own["shared"]
        )
        for layer, own in about["layers"].items()
    }
    update = Update(tuple(about["ids"]), deltas, decode(about["increment"], tensors))
    signals = None if about["signals"] is None else Signals(*about["signals"])
    return Past(update, bool(about["refreshed"]), signals, int(about["next_size"]))
