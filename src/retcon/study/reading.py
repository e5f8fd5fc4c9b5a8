"""Read the folder of a study: points, and of finished cells rows and steps. No torch here."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, TypeAdapter, ValidationError

from retcon.data.zsre import ZsreTarget
from retcon.errors import DamagedCell, InvalidStudy
from retcon.evaluation.readings import Checkpoint
from retcon.evaluation.rows import Row
from retcon.study.points import Frozen, Point

if TYPE_CHECKING:
    import polars as pl

# One more whenever a folder of an earlier version can no longer be read.
FORMAT = 1

ROWS, STEPS, DONE, CELL = "rows.parquet", "steps.jsonl", "done.json", "cell.json"
GENERATIONS, EXAMPLES = "generations.parquet", "examples.json"
GENERAL = "general.json"


class Model(Frozen):
    """A model of a study, by what tells it from any other."""

    name: str
    dtype: str
    fingerprint: str
    d_in: int
    blocks: int


class Data(Frozen):
    """The facts of a study: where they were, the file's sha256, and how many could be used.

    skipped: how many records of the file could not, and were left out.
    """

    cases: str
    sha256: str
    unique_subjects: bool
    facts: int
    zsre_target: ZsreTarget = "answers"
    skipped: int = 0


class Tuned(Frozen):
    """A ridge that was chosen on facts of its own: for whom, among which, and by which scores.

    scores: S of each ridge, by the cells they were read from.
    """

    model: str
    dtype: str
    method: str
    layers: tuple[int, ...]
    settings: dict[str, object]
    batch_size: int
    seed: int
    ridge: float
    ridges: tuple[float, ...]
    scores: tuple[float | None, ...]
    cells: tuple[str, ...]
    n: int
    score: int


class Record(Frozen):
    """`study.json`: what a folder is of."""

    format: int
    name: str
    description: str
    threads: int
    models: tuple[Model, ...]
    data: Data
    points: tuple[Point, ...]
    device: str = "cpu"
    # What was to be known before it was run.
    warnings: tuple[str, ...] = ()
    # Of each text that second moments are read from, what names its content.
    corpora: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A study's folder, as it is on disk now."""

    folder: Path
    record: Record

    @property
    def points(self) -> tuple[Point, ...]:
        """Every place of the grid, in the file's order."""
        return self.record.points

    @cached_property
    def tuned(self) -> tuple[Tuned, ...]:
        """The ridges that were chosen, in the order in which they were.

        Raises:
            InvalidStudy: the file is damaged.
        """
        path = self.folder / "tuned.json"
        if not path.exists():
            return ()
        try:
            return TypeAdapter(tuple[Tuned, ...]).validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InvalidStudy(
                f"{path} is damaged. Resume the study: ridges are chosen again from the cells that "
                f"are done."
            ) from error

    def cell(self, identity: str) -> Path:
        """The folder of a cell."""
        return self.folder / "cells" / identity

    def is_done(self, identity: str | None) -> bool:
        """Whether a cell has been finished."""
        return identity is not None and (self.cell(identity) / DONE).exists()

    def failure(self, identity: str) -> str | None:
        """Why a cell could not be run when it was last tried; None where it was not, or is done."""
        path = self.cell(identity) / "failed.json"
        if self.is_done(identity) or not path.exists():
            return None
        try:
            return str(json.loads(path.read_text(encoding="utf-8"))["error"])
        except (OSError, ValueError, KeyError, TypeError):
            return f"{path} cannot be read."

    def finished(self) -> Iterator[Point]:
        """The points whose cells are done."""
        return (point for point in self.points if self.is_done(point.cell))

    def rows(self, identity: str) -> "pl.DataFrame":
        """The scored prompts of a finished cell, in the columns of `Row`.

        Raises:
            DamagedCell: the file is not the one that was written.
        """
        import polars as pl

        return pl.read_parquet(self._whole(identity, ROWS))

    def scored(self, identity: str, when: str) -> list[Row]:
        """The rows of one time, as the formulas of `evaluation.metrics` take them."""
        import polars as pl

        chosen = self.rows(identity).filter(pl.col("when") == when)
        return [Row(*values) for values in chosen.select(Row._fields).iter_rows()]

    def generations(self, identity: str) -> "pl.DataFrame | None":
        """The texts a finished cell has let the model write; None where none were asked for.

        Raises:
            DamagedCell: the file is not the one that was written.
        """
        import polars as pl

        if not (self.cell(identity) / GENERATIONS).exists():
            return None
        return pl.read_parquet(self._whole(identity, GENERATIONS))

    def examples(self, identity: str) -> list[dict[str, str | None]]:
        """Facts of a finished cell whose edits were carried, with what the model said of them.

        Each has `prompt`, `target`, `target_old`, and its continuations `before` and `after`.
        """
        if not (self.cell(identity) / EXAMPLES).exists():
            return []
        return json.loads(self._whole(identity, EXAMPLES).read_text(encoding="utf-8"))

    def general(self, identity: str) -> tuple[Checkpoint, ...]:
        """What was read of a finished cell's model as a whole, in order; empty where it was not.

        Raises:
            DamagedCell: the file is not the one that was written.
        """
        if not (self.cell(identity) / GENERAL).exists():
            return ()
        said = json.loads(self._whole(identity, GENERAL).read_text(encoding="utf-8"))
        return TypeAdapter(tuple[Checkpoint, ...]).validate_python(said)

    def steps(self, identity: str) -> list[dict[str, object]]:
        """What each batch of a finished cell took and did (`editing.trial.StepRecord`)."""
        lines = self._whole(identity, STEPS).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def environment(self, identity: str) -> dict[str, object]:
        """Versions, threads, platform and commit that made a cell."""
        path = self.cell(identity) / "environment.json"
        return json.loads(path.read_text(encoding="utf-8"))

    def _whole(self, identity: str, name: str) -> Path:
        """A cell's file, after its sha256 was checked."""
        return _checked(self.cell(identity), name)


_REMEDY = "Resume the study: it is run again, and every other cell stays as it is."


def damage(cell: Path) -> str | None:
    """Which file of a finished cell is not the one that was written; None where all are."""
    try:
        for name in _files(cell):
            _checked(cell, name)
    except DamagedCell as error:
        return str(error).removesuffix(f" {_REMEDY}")
    return None


def _files(cell: Path) -> dict[str, str]:
    """The files of a finished cell, and their sha256."""
    path = cell / DONE
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        return {str(name): str(digest) for name, digest in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCell(f"{path} cannot be read: {error}. {_REMEDY}") from error


def _checked(cell: Path, name: str) -> Path:
    """A finished cell's file, after its sha256 was checked."""
    path, wanted = cell / name, _files(cell)
    try:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DamagedCell(f"{path} cannot be read: {error.strerror}. {_REMEDY}") from error
    if found != wanted.get(name):
        raise DamagedCell(f"{path} is not the file that was written. {_REMEDY}")
    return path


def read_study(folder: Path | str) -> Study:
    """Open a study's folder.

    Raises:
        InvalidStudy: there is none, it is damaged, or a newer version of Retcon has written it.
    """
    path = Path(folder) / "study.json"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        raise InvalidStudy(
            f"{folder} holds no study: there is no study.json in it. Start one with "
            f"`retcon study run FILE.yaml --out {folder}`."
        ) from None
    try:
        found = json.loads(text)
        if int(found["format"]) > FORMAT:
            raise InvalidStudy(
                f"{folder} was written by a newer version of Retcon (format {found['format']}, "
                f"this one knows {FORMAT}). Update Retcon, or choose another folder."
            )
        return Study(Path(folder), Record.model_validate(found))
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise InvalidStudy(
            f"{path} is damaged ({str(error).splitlines()[0]}). Remove it and run the study again "
            f"with its file, `retcon study run FILE.yaml --out {folder}`: the cells that are done "
            f"are found again."
        ) from error
