"""The grid of a study as a table: a row a cell, its place on the study's axes, and its scores.

When a score was taken is part of its name: `S, final`. Nothing is computed anew: numbers are those
of the report.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from retcon.report.conditions import Arm, condition_of, gather, names_of
from retcon.report.results import Results
from retcon.report.tables import TIMES_IN_WORDS, condition_fields, place, place_columns
from retcon.scoring.intervals import Estimate
from retcon.scoring.metrics import Metric
from retcon.studio.browse_states import CellState, Progressed
from retcon.study.points import Point
from retcon.study.study import Study

# Columns of a place that stay where all cells have the same in them.
_ALWAYS = ("schedule", "batch", "N")
# A column of more values than this is not offered as a filter.
_CHOICES = 40
_NONE = Estimate(None, None, None, 0)


class ScoreColumn(NamedTuple):
    """A metric at one time."""

    metric: Metric
    when: str

    @property
    def title(self) -> str:
        """The name of the score, with the time at which it was taken."""
        return f"{self.metric.title}, {self.when}"


class GridPlace(NamedTuple):
    """A cell's place in the grid: the first point that has the cell, as an arm of one run."""

    point: Point
    arm: Arm
    blocks: tuple[str, ...]


class GridRow(NamedTuple):
    """A cell in the grid.

    Attributes:
        name: words that tell it from the others.
        blocks: of the study file, in which it stands.
        cell: id; None where a ridge is to be tuned first.
        axes: texts in the columns of its place.
        scores: in the columns of scores.
    """

    name: str
    blocks: tuple[str, ...]
    cell: str | None
    state: CellState
    axes: tuple[str, ...]
    scores: tuple[Estimate, ...]


@dataclass(frozen=True)
class Grid:
    """All cells of a study that can be run.

    Attributes:
        study: whose cells they are.
        results: of those that are done and can be read.
        progress: of all.
    """

    study: Study
    results: Results
    progress: Progressed

    @cached_property
    def places(self) -> tuple[GridPlace, ...]:
        """The cells, in the file's order; places that have one cell count once."""
        same: dict[object, list[Point]] = {}
        for point in self.study.points:
            if point.refused is None:
                key = point.cell or (condition_of(point), point.seed)
                same.setdefault(key, []).append(point)
        return tuple(
            GridPlace(
                points[0], gather(points[:1])[0], tuple(dict.fromkeys(p.block for p in points))
            )
            for points in same.values()
        )

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Each of them in words: its condition, and its seeds where there are several."""
        conditions = names_of([one.arm for one in self.places])
        several = len({one.point.seed for one in self.places}) > 1
        names = [
            conditions[one.arm.condition] + (f", seed {one.point.seed}" if several else "")
            for one in self.places
        ]
        again = Counter(names)
        return tuple(
            name if again[name] == 1 else f"{name} ({_drawn(one)})"
            for name, one in zip(names, self.places, strict=True)
        )

    @cached_property
    def readable(self) -> dict[str, Arm]:
        """The arms of cells that are done and can be read, by cell."""
        known = {point.cell for point in self.results.study.finished()}
        return {
            one.point.cell: one.arm
            for one in self.places
            if one.point.cell in known and one.point.cell
        }

    @property
    def times(self) -> list[str]:
        """The times at which some cell was scored, the last first."""
        return list(dict.fromkeys(column.when for column in self.scores))

    @property
    def words(self) -> Mapping[str, str]:
        """Each time with what it is."""
        return {when: f"{when}: {words}" for when, words in TIMES_IN_WORDS.items()}

    @cached_property
    def scores(self) -> list[ScoreColumn]:
        """The columns of scores: those of the last time first."""
        return [
            ScoreColumn(metric, when)
            for when in reversed([*TIMES_IN_WORDS])
            for metric in self.results.measured(self.readable.values(), when, "headline")
        ]

    @cached_property
    def _columns(self) -> tuple[tuple[str, ...], list[tuple[str, ...]], str]:
        """Titles of the axes, a row for each place, and a note of what all have in common."""
        arms = [one.arm for one in self.places]
        fields, note = condition_fields(arms)
        titles = [title.replace("seeds", "seed") for title in place_columns(fields)]
        rows = [place(arm, arms, fields) for arm in arms]
        varied = [len(set(column)) > 1 for column in zip(*rows, strict=True)]
        kept = [i for i, title in enumerate(titles) if title in _ALWAYS or (rows and varied[i])]
        return tuple(titles[i] for i in kept), [tuple(row[i] for i in kept) for row in rows], note

    @property
    def axes(self) -> tuple[str, ...]:
        """The titles of the axes."""
        return self._columns[0]

    @property
    def note(self) -> str:
        """A sentence on what all cells have in common."""
        return self._columns[2]

    @cached_property
    def rows(self) -> list[GridRow]:
        """The cells, in the file's order."""
        return [
            GridRow(
                name, one.blocks, one.point.cell, self._state(one.point), axes, self._scores(one)
            )
            for one, name, axes in zip(self.places, self.names, self._columns[1], strict=True)
        ]

    def _state(self, point: Point) -> CellState:
        if point.cell is None:
            return CellState("waiting", why="its ridge is tuned first")
        return self.progress.cells[point.cell]

    def _scores(self, one: GridPlace) -> tuple[Estimate, ...]:
        arm = self.readable.get(one.point.cell or "")
        if arm is None:
            return (_NONE,) * len(self.scores)
        return tuple(self.results.estimate(arm, s.when, s.metric.name) for s in self.scores)

    def chosen(self, row: GridRow) -> str:
        """Values of a cell in the columns of `choices`, as JSON."""
        texts = {title: [text] for title, text in zip(self.axes, row.axes, strict=True)}
        return as_json(texts | {"block": row.blocks, "state": [row.state.state]})

    @cached_property
    def choices(self) -> Mapping[str, Sequence[str]]:
        """The values of each column of which there are a few, to choose from."""
        axes = zip(*(row.axes for row in self.rows), strict=True)
        values = {
            "block": _distinct(block for row in self.rows for block in row.blocks),
            **{title: _distinct(texts) for title, texts in zip(self.axes, axes, strict=False)},
            "state": _distinct(row.state.state for row in self.rows),
        }
        few = {title: texts for title, texts in values.items() if 1 < len(texts) <= _CHOICES}
        few.pop("load", None)  # it follows from the others
        return few


def as_json(value: object) -> str:
    """A value as short JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _drawn(one: GridPlace) -> str:
    """The draw of a run, or the block it stands in."""
    runs = [run.name for run in one.arm.runs if run.draw]
    return ", ".join(runs) or ", ".join(one.blocks)


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))
