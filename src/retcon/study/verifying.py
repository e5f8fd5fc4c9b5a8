"""Verify that a study's folder holds what was written, and each place of the grid its own cell."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from retcon.errors import InvalidStudy
from retcon.progress import Progress, silent
from retcon.sealed import Looked, load_record, look
from retcon.sealed_tensors import check
from retcon.study.cells import Cell
from retcon.study.packed import ROWS, STEPS, Pack
from retcon.study.points import Point
from retcon.study.study import FILE, STUDY, TUNED, Study, study_of

# What a place and its cell both have. A cell's schedule may be another one that gives the same.
_SHARED = ("dtype", "n", "seed", "order", "when", "score", "generation", "metrics")


def verify(study: Study, progress: Progress = silent) -> list[Looked]:
    """Look at the records, finished cells, parts of unfinished ones and places of a study.

    The tables of a pack are checked first. Cells of one whose tables are damaged are left out:
    nothing can be said of them.
    """
    tables = [] if study.pack is None else [partial(_table, study.pack, n) for n in (ROWS, STEPS)]
    packs = look("packs", tables)
    cells = [
        study.finished_cell(name)
        for name in study.finished_cells()
        if not packs.damaged or study.cell(name).exists()
    ]
    parts = sorted(study.folder.glob("cells/*/step-*.safetensors"))
    kinds: dict[str, list[Callable[[], bool]]] = {
        "records": [partial(_record, study, name) for name in (STUDY, TUNED, FILE)],
        "cells": [cell.check for cell in cells],
        "parts": [partial(_part, path) for path in parts if path.parent.name.isalnum()],
        "places": [partial(_place, study, point) for point in study.finished()],
    }
    total, number = sum(map(len, kinds.values())), 0

    def told(things: list[Callable[[], bool]]) -> Iterator[Callable[[], bool]]:
        nonlocal number
        for one in things:
            number += 1
            progress("verifying the study", number, total)
            yield one

    looked = [look(kind, told(things)) for kind, things in kinds.items()]
    return looked if study.pack is None else [packs, *looked]


def _table(pack: Pack, name: str) -> bool:
    pack.read(name)
    return True


def _record(study: Study, name: str) -> bool:
    return check(study.folder / name, study_of(study.record.name))


def _part(path: Path) -> bool:
    return check(path, {"kind": "part", "cell": path.parent.name})


def _place(study: Study, point: Point) -> bool:
    """Check that a place names a cell of such a place; True if the record is sealed."""
    assert point.cell is not None
    cell = Cell.model_validate(study.finished_cell(point.cell).resolved())
    model = next(m for m in study.record.models if (m.name, m.dtype) == (point.model, point.dtype))
    other = [name for name in _SHARED if getattr(point, name) != getattr(cell, name)]
    other += ["fingerprint"] if model.fingerprint != cell.fingerprint else []
    path = study.folder / STUDY
    if other:
        raise InvalidStudy(
            f"{path}: a place of block {point.block!r} names the cell {cell.id}, "
            f"which has another {' and '.join(other)}."
        )
    return not path.exists() or load_record(path, study_of(study.record.name)).sealed
