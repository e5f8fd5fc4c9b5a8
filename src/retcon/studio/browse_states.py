"""States of the cells of a study, as its folder tells them: done, running, failed, waiting.

Nothing is locked, so a study that runs meanwhile is not disturbed; and what is half written is not
done.
"""

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

from retcon.locking import at_work
from retcon.study.finished import DONE, FAILED
from retcon.study.points import Point
from retcon.study.study import STUDY, TUNED, Study

State = Literal["done", "running", "cut off", "failed", "damaged", "waiting"]
STATES: Mapping[State, str] = {
    "done": "has its scores",
    "running": "a process is at work on it",
    "cut off": "was begun, and nobody is at work on it: `retcon study resume` goes on",
    "failed": "could not be run",
    "damaged": "its files are not those that were written: resume the study",
    "waiting": "has not been begun",
}


class CellState(NamedTuple):
    """State of a cell.

    Attributes:
        batches, of: how many of its batches are written, and how many there are; None where that
            is not known.
        why: why it failed, or who is at work on it.
    """

    state: State
    batches: int | None = None
    of: int | None = None
    why: str = ""

    @property
    def words(self) -> str:
        """The state, with the batches behind it."""
        counted = self.state in ("running", "cut off") and self.batches is not None
        total = "" if self.of is None else f" of {self.of:,}"
        return f"{self.state}, batch {self.batches:,}{total}" if counted else self.state


@dataclass(frozen=True)
class Progressed:
    """Progress of a study.

    Attributes:
        cells: state of each cell that the grid has now.
        tuned_first: places whose cell is not known yet, because a ridge is to be tuned first.
        refused: places that cannot be run.
        last: when the last cell was finished, as far as the folder tells.
    """

    cells: Mapping[str, CellState]
    tuned_first: int
    refused: int
    last: datetime | None

    @property
    def counts(self) -> dict[str, int]:
        """Number of cells in each state that there are."""
        counts = Counter(one.state for one in self.cells.values())
        return {state: counts[state] for state in STATES if counts[state]}

    @property
    def done(self) -> int:
        """Number of cells that are done."""
        return self.counts.get("done", 0)

    @property
    def over(self) -> bool:
        """True if nothing is left to be run."""
        return self.done == len(self.cells) and not self.tuned_first


def progressed(study: Study, damaged: Mapping[str, str]) -> Progressed:
    """Look how far a study is.

    Args:
        study: its folder.
        damaged: why, by cell that is finished and cannot be read.
    """
    points = {point.cell: point for point in study.points if point.cell is not None}
    cells = {cell: _state(study, point, damaged.get(cell)) for cell, point in points.items()}
    lost = [point for point in study.points if point.cell is None]
    times = [time for cell in points if (time := _written(study.cell(cell) / DONE)) is not None]
    return Progressed(
        cells=cells,
        tuned_first=sum(point.refused is None for point in lost),
        refused=sum(point.refused is not None for point in lost),
        last=datetime.fromtimestamp(max(times), UTC) if times else None,
    )


def _state(study: Study, point: Point, damage: str | None) -> CellState:
    identity = point.cell or ""
    if damage is not None:
        return CellState("damaged", why=damage)
    if study.is_done(identity):
        return CellState("done")
    folder = study.cell(identity)
    who = at_work(folder.with_name(f".{identity}.lock"))
    batches, of = _begun(folder), _batches(point)
    if who is not None:
        return CellState("running", batches or 0, of, who)
    why = study.failure(identity)
    if why is not None:
        return CellState("failed", why=why)
    return CellState("waiting") if batches is None else CellState("cut off", batches, of)


def _begun(folder: Path) -> int | None:
    """The batches before the last part that was written; None where there is none."""
    parts = [path.stem.removeprefix("step-") for path in folder.glob("step-*.safetensors")]
    return max((int(number) + 1 for number in parts if number.isdigit()), default=None)


def _batches(point: Point) -> int | None:
    """Count the batches of a place; None where a rule decides."""
    if "adaptive" in point.schedule:
        return None
    size = 1 if point.schedule in ("single", "sequential") else point.batch_size
    return -(-point.n // min(size, point.n))


def trace_of(folder: Path) -> str:
    """A text that changes whenever something of a study's folder has been written or begun."""
    files = [folder / STUDY, folder / TUNED, *folder.glob("cells/*/step-*.safetensors")]
    files += [*folder.glob(f"cells/*/{DONE}"), *folder.glob(f"cells/*/{FAILED}")]
    files += folder.glob("cells/.*.lock.held")
    return str(hash(tuple(sorted((str(path), _written(path)) for path in files))))


def _written(path: Path) -> float | None:
    """When a file was last written; None where there is none (any more)."""
    with suppress(OSError):
        return path.stat().st_mtime
    return None
