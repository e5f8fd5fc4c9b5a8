"""A study, live or packed: its points, and rows and steps of its finished cells. No torch here."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from retcon.errors import Damaged, InvalidStudy
from retcon.scoring.measured import Measured
from retcon.scoring.observations import Observation
from retcon.sealed import Owner, load_record, load_text
from retcon.study.finished import FAILED, FinishedCell, LiveCell, cell_of
from retcon.study.packed import CELLS, Pack, open_pack
from retcon.study.points import Frozen, Point, renamed_option

if TYPE_CHECKING:
    import polars as pl

# One more whenever a folder of an earlier version can no longer be read.
FORMAT = 1

STUDY, TUNED, FILE = "study.json", "tuned.json", "study.yaml"


class Model(Frozen):
    """A model of a study, by what tells it from any other.

    Attributes:
        tokens: identity of the rules by which text becomes tokens; None: it was not recorded.
    """

    name: str
    dtype: str
    fingerprint: str
    d_in: int
    blocks: int
    tokens: str | None = None


class Data(Frozen):
    """The facts of a study.

    Attributes:
        cases: the file, as the study names it.
        sha256: of the file.
        unique_subjects: True if only one fact of a subject was kept.
        facts: how many could be used.
        options: of the data set.
        skipped: how many records of the file could not be used, and were left out.
    """

    cases: str
    sha256: str
    unique_subjects: bool
    facts: int
    options: dict[str, object] = Field(default_factory=dict)
    skipped: int = 0

    @model_validator(mode="before")
    @classmethod
    def _earlier(cls, record: object) -> object:
        return renamed_option(record, "options")


TuningRule = Literal["largest S", "one standard error"]


class Tuned(Frozen):
    """A ridge that was chosen on facts of its own: for whom, among which, and by which scores.

    Attributes:
        scores: S of each of `ridges`, from `cells`.
        schedule, refresh: how their facts were written; those that are carried are scored at the
            end.
        rule: `largest S`, or the largest ridge whose S is within one standard error of the largest,
            which studies that were begun before November 2026 do not have.
        edge: set if the ridge is the smallest or the largest candidate: one beyond may be better.
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
    def _at_its_edge(cls, record: dict[str, Any]) -> dict[str, Any]:
        """Add `edge` to records that were written before there was one."""
        ridges, ridge = record.get("ridges") or (), record.get("ridge")
        ends = {min(ridges): "smallest", max(ridges): "largest"} if len(ridges) > 1 else {}
        return {**record, "edge": ends.get(ridge)}


class StudyRecord(Frozen):
    """The content of `study.json`: what the folder is of.

    Attributes:
        warnings: given before the study was run.
        corpora: identity of each text that second moments are read from, by its name.
        plugins: sha256 of each plugin, by its name in the file.
        findings: claims that the report tests.
    """

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
    # Of each plugin, by its name in the file, its sha256.
    plugins: dict[str, str] = Field(default_factory=dict)
    # The claims that its report tests.
    findings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """A study's folder, as it is on disk now: cells in folders of their own, a pack, or both."""

    folder: Path
    record: StudyRecord

    @property
    def points(self) -> tuple[Point, ...]:
        """Every place of the grid, in the file's order."""
        return self.record.points

    @cached_property
    def pack(self) -> Pack | None:
        """The pack in the folder; None where there is none.

        Raises:
            InvalidStudy: it is damaged.
        """
        return open_pack(self.folder)

    @cached_property
    def tuned(self) -> tuple[Tuned, ...]:
        """The ridges that were chosen, in the order in which they were.

        Raises:
            InvalidStudy: the file is damaged.
        """
        path = self.folder / TUNED
        try:
            record, sealed = load_record(path, study_of(self.record.name))
            if sealed and "tuned" not in record:
                raise Damaged(f"{path} is another file of this study.")
            choices = record["tuned"] if sealed else record
            return TypeAdapter(tuple[Tuned, ...]).validate_json(json.dumps(choices))
        except FileNotFoundError:
            packed = [] if self.pack is None else self.pack.head["tuned"]
            return TypeAdapter(tuple[Tuned, ...]).validate_json(json.dumps(packed))
        except (Damaged, ValidationError) as error:
            raise InvalidStudy(
                f"{path} is damaged ({_first(error)}). Resume the study: ridges are "
                f"chosen again from the cells that are done."
            ) from error

    def cell(self, identity: str) -> Path:
        """The folder of a cell, where it has one of its own."""
        return self.folder / "cells" / identity

    def is_done(self, identity: str | None) -> bool:
        """True if a cell has been finished."""
        if identity is None:
            return False
        return LiveCell(self.cell(identity)).done or self._packed(identity) is not None

    def finished_cells(self) -> tuple[str, ...]:
        """The names of all finished cells, also of those that no place of the grid has now."""
        live = {path.name for path in self.folder.glob("cells/*") if _is_finished(path)}
        packed = set[str]() if self.pack is None else {*self.pack.cells}
        return tuple(sorted(live | packed))

    def finished_cell(self, identity: str) -> FinishedCell:
        """Open a cell: in its own folder, where there is one, or else in the pack."""
        live = LiveCell(self.cell(identity))
        return live if live.done else self._packed(identity) or live

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
        """Observations of a finished cell, in the columns of `Observation`.

        Raises:
            DamagedCell, InvalidStudy: the file is not the one that was written.
        """
        return self.finished_cell(identity).rows()

    def all_rows(self) -> "pl.DataFrame":
        """All rows of all finished cells, each beside its cell and the columns of its point."""
        import polars as pl

        frames = [
            self.rows(point.cell or "").with_columns(**_columns(point)) for point in self._own()
        ]
        return pl.concat(frames, how="vertical_relaxed") if frames else pl.DataFrame()

    def scores(self) -> "pl.DataFrame":
        """Every metric that was measured, at each time, a row each beside the columns of its point.

        The mean, the ends of its 95 % interval, and over how many cases it is.
        """
        import polars as pl

        frames = [
            pl.DataFrame(rows).with_columns(**_columns(point))
            for point in self._own()
            if (rows := self._told(point.cell or ""))
        ]
        return pl.concat(frames, how="vertical_relaxed") if frames else pl.DataFrame()

    def _own(self) -> list[Point]:
        """The finished points, of those with one cell the first."""
        points: dict[str | None, Point] = {}
        for point in self.finished():
            points.setdefault(point.cell, point)
        return [*points.values()]

    def _told(self, identity: str) -> list[dict[str, object]]:
        rows = self.rows(identity).select(Observation._fields).iter_rows()
        measured = Measured([Observation(*row) for row in rows])
        return [
            {"when": when, "metric": name, **one._asdict()}
            for when in measured.times
            for name, one in measured.scores(when).items()
        ]

    def scored(self, identity: str, when: str) -> list[Observation]:
        """The rows of one time, as the formulas of `scoring.metrics` take them."""
        import polars as pl

        chosen = self.rows(identity).filter(pl.col("when") == when)
        return [Observation(*values) for values in chosen.select(Observation._fields).iter_rows()]

    def examples(self, identity: str) -> list[dict[str, str | None]]:
        """Facts of a finished cell whose edits were carried, with what the model said of them.

        Each has `prompt`, `target`, `target_old`, and its continuations `before` and `after`.
        """
        return self.finished_cell(identity).examples()

    def steps(self, identity: str) -> list[dict[str, object]]:
        """Records of a finished cell's batches (`run.record.StepRecord`)."""
        return self.finished_cell(identity).steps()

    def environment(self, identity: str) -> dict[str, object]:
        """Versions, threads, platform and commit that made a cell.

        Raises:
            DamagedCell, InvalidStudy: the file is not the one that was written.
        """
        return self.finished_cell(identity).environment()

    def _packed(self, identity: str) -> FinishedCell | None:
        return None if self.pack is None else self.pack.cell(identity)


def _columns(point: Point) -> dict[str, "pl.Expr"]:
    """Columns of a point, each of one value."""
    import polars as pl

    left_out = {"when", "settings", "layers", "metrics", "cell", "refused"}
    columns = {"cell": point.cell, **point.model_dump(exclude=left_out)}
    columns |= {"layers": ",".join(map(str, point.layers)), "settings": str(point.settings)}
    return {name: pl.lit(value) for name, value in columns.items()}


def _is_finished(folder: Path) -> bool:
    """True if a folder is of a finished cell, and not of one that was put aside."""
    return folder.name.isalnum() and LiveCell(folder).done


def study_of(name: str) -> Owner:
    """Owner of the records of a study."""
    return {"kind": "study", "study": name}


def holds_study(folder: Path) -> bool:
    """True if there is a study in a folder, live or packed."""
    return (folder / STUDY).exists() or (folder / CELLS).exists()


def read_study(folder: Path | str) -> Study:
    """Open a study's folder.

    Raises:
        InvalidStudy: there is none, it is damaged, or a newer version of Retcon has written it.
    """
    folder = Path(folder)
    path = folder / STUDY
    try:
        record = load_record(path, {"kind": "study"}).value
    except FileNotFoundError:
        path = folder / CELLS
        record = _record_of_pack(folder)
    except Damaged as error:
        raise _damaged(path, error) from error
    try:
        if int(record["format"]) > FORMAT:
            raise InvalidStudy(
                f"{folder} was written by a newer version of Retcon (format {record['format']}, "
                f"this one knows {FORMAT}). Update Retcon, or choose another folder."
            )
        return Study(folder, StudyRecord.model_validate_json(json.dumps(record)))
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise _damaged(path, error) from error


def _record_of_pack(folder: Path) -> Any:
    pack = open_pack(folder)
    if pack is None:
        raise InvalidStudy(
            f"{folder} holds no study: there is no {STUDY} in it, and no {CELLS} of a pack. Start "
            f"one with `retcon study run FILE.yaml --out {folder}`."
        )
    return pack.head["study"]


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
