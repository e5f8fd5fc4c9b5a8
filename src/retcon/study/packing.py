"""Pack a study: its finished cells, which lie in folders of six files each, become four files.

Values are kept to the last bit, and the same study gives the same bytes. What is derived (the
page, charts, tables) is left out, and so is what an unfinished cell has kept so far.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from retcon.errors import InvalidStudy
from retcon.files import whole_folder
from retcon.progress import Progress, silent
from retcon.sealed import digest_of, save_lines, save_text
from retcon.study.finished import FinishedCell
from retcon.study.packed import (
    CELLS,
    PACK,
    ROWS,
    STEPS,
    WHOSE,
    Line,
    content_of_rows,
    content_of_steps,
)
from retcon.study.study import FILE, Study, read_file, study_of

if TYPE_CHECKING:
    import polars as pl


class Packed(NamedTuple):
    """A pack that was written.

    Attributes:
        folder: where.
        cells, rows: how many.
        missing: cells of the grid that are not done, and so are not in it.
        unsealed: how many cells were written before there were seals.
    """

    folder: Path
    cells: int
    rows: int
    missing: tuple[str, ...]
    unsealed: int


def pack(
    study: Study,
    target: Path,
    *,
    renamed: Mapping[str, str] | None = None,
    progress: Progress = silent,
) -> Packed:
    """Write the finished cells of a study as a pack.

    Args:
        study: live, packed, or a pack that was gone on with.
        target: a new or empty folder.
        renamed: new names of cells by their old ones, which are still found in the pack. For when
            what a name is a hash of has changed, and the cells give the same numbers as before.
        progress: is told how many cells have been read.

    Raises:
        DamagedCell, InvalidStudy: something is not what was written, or no cell is done.
        StorageError: the folder is not empty, no space, or no permission.
    """
    new = dict(renamed or {})
    named = {point.cell for point in study.points if point.cell is not None}
    missing = tuple(sorted(name for name in named if not study.is_done(name)))
    names = sorted(study.finished_cells(), key=lambda name: new.get(name, name))
    if not names:
        raise InvalidStudy(f"No cell of {study.folder} is done: there is nothing to pack.")
    if len({new.get(name, name) for name in names}) < len(names):
        raise InvalidStudy("Two cells would have one name: give each of `renamed` its own.")
    text = read_file(study.folder)
    lines: list[Line] = []
    rows: list[pl.DataFrame] = []
    steps: dict[str, list[dict[str, Any]]] = {}
    for number, name in enumerate(names):
        progress("reading the cells", number, len(names))
        cell, identity = study.finished_cell(name), new.get(name, name)
        table, steps[identity] = cell.rows(), cell.steps()
        rows.append(_named(identity, table))
        digests = {"rows": content_of_rows(table), "steps": content_of_steps(steps[identity])}
        lines.append(_line(cell, identity, _formerly(study, name, identity), digests))
    progress("writing the pack", 0, 1)
    with whole_folder(target) as work:
        _write(work / ROWS, _table(rows))
        _write(work / STEPS, _table_of_steps(steps))
        save_text(work / FILE, text, study_of(study.record.name))
        files = {name: digest_of(work / name) for name in (ROWS, STEPS)}
        head = {"study": _record(study, new), "tuned": _tuned(study, new), "files": files}
        owner = {**PACK, "study": study.record.name}
        save_lines(work / CELLS, head, [_kept(line) for line in lines], owner)
    progress("writing the pack", 1, 1)
    unsealed = sum(not line.sealed for line in lines)
    return Packed(target, len(lines), sum(map(len, rows)), missing, unsealed)


def _line(
    cell: FinishedCell, identity: str, formerly: list[str], digests: Mapping[str, str]
) -> Line:
    """Make the line of `cells.jsonl` for a cell. digests: of the content of its rows and steps."""
    return Line(
        id=identity,
        formerly=formerly,
        cell=cell.resolved(),
        environment=cell.environment(),
        weights=cell.weights(),
        sealed=cell.sealed(),
        examples=cell.examples(),
        rows=digests["rows"],
        steps=digests["steps"],
    )


def _kept(line: Line) -> dict[str, Any]:
    """Fields of a line that are written: all but those that are in the rows today."""
    return {k: v for k, v in line._asdict().items() if k not in ("general", "generations")}


def _formerly(study: Study, name: str, identity: str) -> list[str]:
    """The names that a cell had before, oldest first."""
    packed = None if study.pack is None else study.pack.cell(name)
    before = [] if packed is None else packed.line.formerly
    return before if name == identity else [*before, name]


def _record(study: Study, new: Mapping[str, str]) -> dict[str, Any]:
    """The study's record, its places with the names that their cells have now."""
    record: dict[str, Any] = study.record.model_dump(mode="json")
    for point in record["points"]:
        point["cell"] = new.get(point["cell"], point["cell"])
    return record


def _tuned(study: Study, new: Mapping[str, str]) -> list[dict[str, Any]]:
    tuned: list[dict[str, Any]] = [one.model_dump(mode="json") for one in study.tuned]
    return [one | {"cells": [new.get(name, name) for name in one["cells"]]} for one in tuned]


def _named(identity: str, rows: "pl.DataFrame") -> "pl.DataFrame":
    """Rows behind a column that says whose they are."""
    import polars as pl

    return rows.select(pl.lit(identity).alias(WHOSE), pl.all())


def _table_of_steps(steps: Mapping[str, list[dict[str, Any]]]) -> "pl.DataFrame":
    """Records of batches as a table: numbers and truth values as they are, all else as JSON."""
    import polars as pl

    records = [record for each in steps.values() for record in each]
    columns: dict[str, list[Any]] = {WHOSE: [name for name, each in steps.items() for _ in each]}
    for key in dict.fromkeys(key for record in records for key in record):
        values = [record.get(key) for record in records]
        kinds = {type(value) for value in values if value is not None}
        if len(kinds) != 1 or kinds - {bool, int, float}:
            dump = partial(json.dumps, ensure_ascii=False, separators=(",", ":"))
            values = [None if value is None else dump(value) for value in values]
        columns[key] = values
    return pl.DataFrame(columns, infer_schema_length=None)


def _table(parts: "Sequence[pl.DataFrame]") -> "pl.DataFrame":
    import polars as pl

    return pl.concat(parts, how="vertical_relaxed")


def _write(path: Path, table: "pl.DataFrame") -> None:
    """A table as Parquet, in a folder that is not in its place yet.

    Scores of the untouched model are the same in many cells: pages that are large enough to hold
    several of them take a quarter less than small ones.
    """
    table.write_parquet(
        path, compression="zstd", compression_level=19, row_group_size=2**23, data_page_size=2**26
    )
