"""Whether a study's folder holds what was written, and each place of the grid its own cell."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from retcon.errors import DamagedCell, InvalidStudy
from retcon.progress import Progress, silent
from retcon.sealed import Looked, load_record, look
from retcon.sealed_tensors import check
from retcon.study.cells import Cell
from retcon.study.points import Point
from retcon.study.reading import (
    CELL,
    DONE,
    FILE,
    STUDY,
    TUNED,
    Study,
    cell_of,
    checked,
    damage,
    study_of,
)

# What a place and its cell both have. A cell's schedule may be another one that gives the same.
_SHARED = ("dtype", "n", "seed", "order", "when", "score", "generation")


def verify(study: Study, progress: Progress = silent) -> list[Looked]:
    """Look at the records, finished cells, parts of unfinished ones and places of a study."""
    folders = [path for path in sorted(study.folder.glob("cells/*")) if _is_cell(path)]
    done = [path for path in folders if (path / DONE).exists()]
    parts = [part for path in folders for part in sorted(path.glob("step-*.safetensors"))]
    places = list(study.finished())
    kinds: dict[str, list[Callable[[], bool]]] = {
        "records": [partial(_record, study, name) for name in (STUDY, TUNED, FILE)],
        "cells": [partial(_cell, path) for path in done],
        "parts": [partial(_part, path) for path in parts],
        "places": [partial(_place, study, point) for point in places],
    }
    total, number = sum(map(len, kinds.values())), 0

    def told(found: list[Callable[[], bool]]) -> Iterator[Callable[[], bool]]:
        nonlocal number
        for one in found:
            number += 1
            progress("verifying the study", number, total)
            yield one

    return [look(kind, told(found)) for kind, found in kinds.items()]


def _is_cell(path: Path) -> bool:
    """Whether it is the folder of a cell, and not one that was put aside."""
    return path.is_dir() and path.name.isalnum()


def _record(study: Study, name: str) -> bool:
    return check(study.folder / name, study_of(study.record.name))


def _cell(path: Path) -> bool:
    why = damage(path)
    if why is not None:
        raise DamagedCell(why)
    return load_record(path / DONE, cell_of(path.name)).sealed


def _part(path: Path) -> bool:
    return check(path, {"kind": "part", "cell": path.parent.name})


def _place(study: Study, point: Point) -> bool:
    """Whether a place has the cell that it names, which must be a cell of such a place."""
    assert point.cell is not None
    cell = Cell.model_validate_json(checked(study.cell(point.cell), CELL).read_bytes())
    model = next(m for m in study.record.models if (m.name, m.dtype) == (point.model, point.dtype))
    other = [name for name in _SHARED if getattr(point, name) != getattr(cell, name)]
    other += ["fingerprint"] if model.fingerprint != cell.fingerprint else []
    if other:
        raise InvalidStudy(
            f"{study.folder / STUDY}: a place of block {point.block!r} names the cell {cell.id}, "
            f"which has another {' and '.join(other)}."
        )
    return load_record(study.folder / STUDY, study_of(study.record.name)).sealed
