"""Read a packed study: four files in which all finished cells lie together. No torch here.

    study.yaml      the file that the study was last run with
    cells.jsonl     a line about the study, with the sha256 of both tables, then a line a cell
    rows.parquet    rows of all cells; the column `cell` says whose
    steps.parquet   records of all batches; numbers and truth values as they are, all else as JSON

Nothing of a pack is used that is not what was written.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from retcon.errors import Damaged, InvalidStudy
from retcon.sealed import Owner, differs, digest, load_lines
from retcon.study.earlier import observations

if TYPE_CHECKING:
    import polars as pl

CELLS, ROWS, STEPS = "cells.jsonl", "rows.parquet", "steps.parquet"
# Whose a row of a table is.
WHOSE = "cell"
PACK: Owner = {"kind": "pack"}


class Line(NamedTuple):
    """A finished cell, as `cells.jsonl` has it.

    Attributes:
        id: its name today.
        formerly: names that it had before, oldest first, by which it is still found.
        cell: the fields of its `Cell`.
        environment: versions, threads, platform and commit that made it.
        weights: sha256 of the edited matrices, where edits were carried.
        sealed: whether it had a seal before it was packed.
        rows, steps: digests of the content of its part of a table, however the table is stored.
        examples: facts with what the model said of them.
        general, generations: what earlier versions kept beside the rows, see `study.earlier`.
    """

    id: str
    formerly: list[str]
    cell: dict[str, Any]
    environment: dict[str, object]
    weights: str | None
    sealed: bool
    rows: str
    steps: str
    examples: list[dict[str, str | None]]
    general: Sequence[Any] = ()
    generations: dict[str, list[Any]] | None = None


@dataclass(frozen=True)
class Pack:
    """An open pack.

    Attributes:
        folder: with its four files.
        head: the first line of `cells.jsonl`.
        lines: the others, as they stand.
    """

    folder: Path
    head: Mapping[str, Any]
    lines: tuple[Mapping[str, Any], ...]

    @cached_property
    def cells(self) -> dict[str, "PackedCell"]:
        """Its cells by their names of today."""
        try:
            cells = [PackedCell(self, Line(**line)) for line in self.lines]
        except TypeError as error:
            raise _remedied(Damaged(f"{self.folder / CELLS} cannot be read: {error}.")) from error
        return {cell.line.id: cell for cell in cells}

    @cached_property
    def _formerly(self) -> dict[str, "PackedCell"]:
        return {name: cell for cell in self.cells.values() for name in cell.line.formerly}

    def cell(self, identity: str | None) -> "PackedCell | None":
        """A cell by its name, or one that it had before; None where it is not in the pack."""
        if identity is None:
            return None
        return self.cells.get(identity) or self._formerly.get(identity)

    def read(self, name: str) -> bytes:
        """The bytes of one of the tables.

        Raises:
            InvalidStudy: they are not what was written.
        """
        path = self.folder / name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise _remedied(Damaged(f"{path} cannot be read: {error.strerror}.")) from error
        if hashlib.sha256(content).hexdigest() != self.head["files"][name]:
            raise _remedied(differs(path))
        return content

    @cached_property
    def rows(self) -> "dict[str, pl.DataFrame]":
        """The rows of each cell."""
        return self._table(ROWS)

    @cached_property
    def steps(self) -> "dict[str, pl.DataFrame]":
        """The records of each cell's batches, as `steps_of` reads them."""
        return self._table(STEPS)

    def _table(self, name: str) -> "dict[str, pl.DataFrame]":
        """The parts of a table by their cells."""
        import polars as pl

        whole = pl.read_parquet(BytesIO(self.read(name)))
        parts = whole.partition_by(WHOSE, maintain_order=True, as_dict=True, include_key=False)
        none = dict.fromkeys(self.cells, whole.drop(WHOSE).clear())
        return none | {str(key[0]): part for key, part in parts.items()}


@dataclass(frozen=True)
class PackedCell:
    """A finished cell of a pack."""

    pack: Pack
    line: Line

    def resolved(self) -> dict[str, Any]:
        """See `FinishedCell`."""
        return self.line.cell

    def environment(self) -> dict[str, object]:
        """See `FinishedCell`."""
        return self.line.environment

    def weights(self) -> str | None:
        """See `FinishedCell`."""
        return self.line.weights

    def rows(self) -> "pl.DataFrame":
        """See `FinishedCell`."""
        import polars as pl

        texts = self.line.generations
        return observations(
            self.pack.rows[self.line.id],
            self.line.general,
            None if texts is None else pl.DataFrame(texts, infer_schema_length=None),
            self.steps() if self.line.general else (),
        )

    def steps(self) -> list[dict[str, Any]]:
        """See `FinishedCell`. A key that other cells' steps have is None where these have none."""
        return [
            {k: json.loads(v) if isinstance(v, str) else v for k, v in record.items()}
            for record in self.pack.steps[self.line.id].iter_rows(named=True)
        ]

    def examples(self) -> list[dict[str, str | None]]:
        """See `FinishedCell`."""
        return self.line.examples

    def sealed(self) -> bool:
        """See `FinishedCell`."""
        return self.line.sealed

    def check(self) -> bool:
        """See `FinishedCell`."""
        for name, wanted, content in (
            (ROWS, self.line.rows, content_of_rows(self.pack.rows[self.line.id])),
            (STEPS, self.line.steps, content_of_steps(self.steps())),
        ):
            if content != wanted:
                path = self.pack.folder / name
                raise _remedied(Damaged(f"{path} holds other content of cell {self.line.id}."))
        return self.sealed()


def content_of_rows(rows: "pl.DataFrame") -> str:
    """Digest rows, whatever file they are in."""
    return digest(rows.to_dict(as_series=False))


def content_of_steps(steps: list[dict[str, Any]]) -> str:
    """Digest batches' records, whatever file they are in; None counts as absent."""
    return digest([{k: v for k, v in step.items() if v is not None} for step in steps])


def open_pack(folder: Path) -> Pack | None:
    """The pack in a folder; None where there is none.

    Raises:
        InvalidStudy: what it says of its cells is not what was written.
    """
    try:
        head, lines = load_lines(folder / CELLS, PACK)
    except FileNotFoundError:
        return None
    except Damaged as error:
        raise _remedied(error) from error
    return Pack(folder, head, tuple(lines))


def _remedied(error: Damaged) -> InvalidStudy:
    return InvalidStudy(
        f"{error} The four files of a pack belong together: bring back all of them as they were "
        f"published. To do without what is in it, remove {CELLS} and run the study again."
    )
