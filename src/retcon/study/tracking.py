"""Tell an experiment tracker of a study's cells: trackio, and what speaks its API.

None is told unless you name one. Each cell is a run of the tracker: its place in the grid is the
run's configuration, its batches are steps, its scores come last.

    import trackio
    retcon.run_study("methods.yaml", "out", progress=Tracked("out", trackio))
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from retcon.progress import Progress, silent
from retcon.scoring.measured import Measured
from retcon.scoring.observations import Observation
from retcon.study.points import Point
from retcon.study.study import Study, holds_study, read_study


@runtime_checkable
class Tracker(Protocol):
    """The three functions of trackio, and of others, that are used here."""

    def init(self, *, project: str, name: str, config: dict[str, Any]) -> object:
        """Begin a run."""
        ...

    def log(self, metrics: dict[str, float]) -> object:
        """Tell numbers of the run."""
        ...

    def finish(self) -> object:
        """End the run."""
        ...


class Tracked:
    """Progress of a study that tells a tracker of every cell as it is done.

    Cells that were done before are not told again.

    Args:
        folder: the study's.
        tracker: a module or an object with `init`, `log` and `finish`.
        project: its name there; the study's where nothing is said.
        progress: is told what is done, too.
    """

    def __init__(
        self,
        folder: Path | str,
        tracker: Tracker,
        *,
        project: str | None = None,
        progress: Progress = silent,
    ) -> None:
        self.folder = Path(folder)
        self.tracker, self.project, self.progress = tracker, project, progress
        self._told = {point.cell for point in self._finished()}

    def __call__(self, task: str, done: int, total: int) -> None:
        """Pass the progress on; after each cell, tell of what is new."""
        self.progress(task, done, total)
        if task == "cells":
            for point in self._finished():
                if point.cell is not None and point.cell not in self._told:
                    self._told.add(point.cell)
                    self._tell(point, point.cell)

    def _finished(self) -> list[Point]:
        return list(self._study().finished()) if holds_study(self.folder) else []

    def _study(self) -> Study:
        return read_study(self.folder)

    def _tell(self, point: Point, cell: str) -> None:
        study = self._study()
        project = self.project or study.record.name
        self.tracker.init(project=project, name=cell, config=point.model_dump(mode="json"))
        try:
            for step in study.steps(cell):
                self.tracker.log(_numbers("batch", step))
            rows = study.rows(cell).select(Observation._fields).iter_rows()
            measured = Measured([Observation(*row) for row in rows])
            for when in measured.times:
                scores = {name: one.mean for name, one in measured.scores(when).items()}
                self.tracker.log(_numbers(when, scores))
        finally:
            self.tracker.finish()


def _numbers(prefix: str, values: Mapping[str, object]) -> dict[str, float]:
    """The numbers of a mapping and of those in it, each under the path to it."""
    numbers: dict[str, float] = {}
    for name, value in values.items():
        path = f"{prefix}/{name}"
        if isinstance(value, Mapping):
            numbers |= _numbers(path, {str(key): each for key, each in value.items()})
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[path] = float(value)
    return numbers
