"""Read the folder of a study: points, and of finished cells rows and steps. No torch here."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from retcon.data.zsre import ZsreTarget
from retcon.errors import Damaged, DamagedCell, InvalidStudy
from retcon.scoring.readings import Checkpoint
from retcon.scoring.rows import Row
from retcon.sealed import Owner, digest_of, load_record, load_text
from retcon.study.cells import Cell
from retcon.study.points import Frozen, Point

if TYPE_CHECKING:
    import polars as pl

# One more whenever a folder of an earlier version can no longer be read.
FORMAT = 1

ROWS, STEPS, DONE, CELL = "rows.parquet", "steps.jsonl", "done.json", "cell.json"
GENERATIONS, EXAMPLES = "generations.parquet", "examples.json"
GENERAL, ENVIRONMENT, FAILED = "general.json", "environment.json", "failed.json"
STUDY, TUNED, FILE = "study.json", "tuned.json", "study.yaml"


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


TuningRule = Literal["largest S", "one standard error"]


class Tuned(Frozen):
    """A ridge that was chosen on facts of its own: for whom, among which, and by which scores.

    scores: S of each ridge, by the cells they were read from. schedule, refresh: how their facts
    were written; those that are carried are scored at the end. rule: `largest S`, or the largest
    ridge whose S is within one standard error of the largest one's, which studies that were begun
    before November 2026 do not have. edge: whether it is the smallest or the largest of its
    candidates, so that one beyond them may be better.
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
    schedule: str = "batch"
    refresh: str = "each-batch"
    rule: TuningRule = "largest S"
    edge: Literal["smallest", "largest"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _at_its_edge(cls, said: dict[str, Any]) -> dict[str, Any]:
        """Say it of records, too, that were written before it was said."""
        ridges, ridge = said.get("ridges") or (), said.get("ridge")
        ends = {min(ridges): "smallest", max(ridges): "largest"} if len(ridges) > 1 else {}
        return {**said, "edge": ends.get(ridge)}


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
    tuning: TuningRule = "largest S"
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
        path = self.folder / TUNED
        try:
            found, sealed = load_record(path, study_of(self.record.name))
            said = found["tuned"] if sealed else found
            return TypeAdapter(tuple[Tuned, ...]).validate_json(json.dumps(said))
        except FileNotFoundError:
            return ()
        except (Damaged, ValidationError) as error:
            raise InvalidStudy(
                f"{path} is damaged ({_first(error)}). Resume the study: ridges are "
                f"chosen again from the cells that are done."
            ) from error

    def cell(self, identity: str) -> Path:
        """The folder of a cell."""
        return self.folder / "cells" / identity

    def is_done(self, identity: str | None) -> bool:
        """Whether a cell has been finished."""
        return identity is not None and (self.cell(identity) / DONE).exists()

    def failure(self, identity: str) -> str | None:
        """Why a cell could not be run when it was last tried; None where it was not, or is done."""
        path = self.cell(identity) / FAILED
        if self.is_done(identity) or not path.exists():
            return None
        try:
            return str(load_record(path, cell_of(identity)).value["error"])
        except (Damaged, OSError, KeyError, TypeError):
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
        """The rows of one time, as the formulas of `scoring.metrics` take them."""
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
        """What each batch of a finished cell took and did (`run.trial.StepRecord`)."""
        lines = self._whole(identity, STEPS).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def environment(self, identity: str) -> dict[str, object]:
        """Versions, threads, platform and commit that made a cell.

        Raises:
            DamagedCell: the file is not the one that was written.
        """
        return json.loads(self._whole(identity, ENVIRONMENT).read_text(encoding="utf-8"))

    def _whole(self, identity: str, name: str) -> Path:
        """A cell's file, after its sha256 was checked."""
        return checked(self.cell(identity), name)


_REMEDY = "Resume the study: it is run again, and every other cell stays as it is."


def cell_of(identity: str) -> Owner:
    """Whose the records of a cell are."""
    return {"kind": "cell", "cell": identity}


def study_of(name: str) -> Owner:
    """Whose the records of a study are."""
    return {"kind": "study", "study": name}


def damage(cell: Path) -> str | None:
    """Which file of a finished cell is not the one that was written; None where all are."""
    try:
        for name in _files(cell):
            checked(cell, name)
    except DamagedCell as error:
        return str(error).removesuffix(f" {_REMEDY}")
    return None


def _files(cell: Path) -> dict[str, str]:
    """The files of a finished cell, and their sha256, after it was seen to be this cell."""
    path = cell / DONE
    try:
        found, sealed = load_record(path, cell_of(cell.name))
        files = {str(name): str(digest) for name, digest in found["files"].items()}
        if not sealed:
            _check_identity(cell)
    except Damaged as error:
        raise DamagedCell(f"{error} {_REMEDY}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCell(f"{path} cannot be read: {error}. {_REMEDY}") from error
    return files


def _check_identity(cell: Path) -> None:
    """Raise Damaged unless a folder holds the cell that it is named by."""
    found = Cell.model_validate_json((cell / CELL).read_bytes())
    if found.id != cell.name:
        raise Damaged(f"{cell} holds another cell: by its {CELL} it is {found.id}.")


def checked(cell: Path, name: str) -> Path:
    """A finished cell's file, after its sha256 was checked.

    Raises:
        DamagedCell: it is not the one that was written.
    """
    path, wanted = cell / name, _files(cell)
    try:
        found = digest_of(path)
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
    path = Path(folder) / STUDY
    try:
        found = load_record(path, {"kind": "study"}).value
    except FileNotFoundError:
        raise InvalidStudy(
            f"{folder} holds no study: there is no study.json in it. Start one with "
            f"`retcon study run FILE.yaml --out {folder}`."
        ) from None
    except Damaged as error:
        raise _damaged(path, error) from error
    try:
        if int(found["format"]) > FORMAT:
            raise InvalidStudy(
                f"{folder} was written by a newer version of Retcon (format {found['format']}, "
                f"this one knows {FORMAT}). Update Retcon, or choose another folder."
            )
        return Study(Path(folder), Record.model_validate_json(json.dumps(found)))
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise _damaged(path, error) from error


def read_file(folder: Path) -> str:
    """The study file that a folder was last run with.

    Raises:
        InvalidStudy: there is none, or it was changed since.
    """
    path = folder / FILE
    try:
        return load_text(path, {"kind": "study"}).value
    except (Damaged, FileNotFoundError) as error:
        raise InvalidStudy(
            f"{path} is not the file that the study was last run with: {error} If it is as you "
            f"want it, run that: `retcon study run {path} --out {folder}`."
        ) from error


def _damaged(path: Path, error: Exception) -> InvalidStudy:
    return InvalidStudy(
        f"{path} is damaged ({_first(error)}). Remove it and run the study again "
        f"with its file, `retcon study run FILE.yaml --out {path.parent}`: the cells that are done "
        f"are found again."
    )


def _first(error: Exception) -> str:
    """The first line of an error, to stand in a sentence."""
    return str(error).splitlines()[0].rstrip(".")
