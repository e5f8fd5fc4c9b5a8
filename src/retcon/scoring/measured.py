"""Observations of a model before and after edits, and every metric of them. No torch here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from retcon.scoring.intervals import Estimate
from retcon.scoring.metrics import METRICS, UNABLE, change, estimate, metrics, unable
from retcon.scoring.observations import TIMES, Observation


@dataclass(frozen=True)
class Measured:
    """Observations, and the scores that are read off them.

    Attributes:
        rows: every observation, each with its time: `pre` on the untouched model, `immediate` right
            after a case's own batch, `final` after all edits.
    """

    rows: list[Observation]

    @property
    def times(self) -> tuple[str, ...]:
        """The times at which something was observed, in their order."""
        seen = {row.when for row in self.rows}
        return tuple(when for when in TIMES if when in seen) + tuple(sorted(seen - {*TIMES}))

    def at(self, when: str) -> list[Observation]:
        """The observations of one time."""
        return [row for row in self.rows if row.when == when]

    def scores(self, when: str) -> Mapping[str, Estimate]:
        """Every metric that was measured at a time, with its 95 % interval.

        The keys are the names of metrics: `ES`, `PS`, `NS`, `S`, `exact_match`, …
        """
        rows = self.at(when)
        estimates = {metric.name: estimate(rows, metric.name) for metric in metrics()}
        return {name: one for name, one in estimates.items() if one.mean is not None}

    def change(self, metric: str, before: str = "pre", after: str = "final") -> Estimate:
        """The change of a metric, over the cases that were measured at both times.

        Args:
            metric: its name.
            before, after: times.

        Raises:
            UnknownName: there is no such metric.
        """
        METRICS.find(metric)
        return change(self.at(before), self.at(after), metric)

    def lines(self, *, scored: bool | None = None) -> list[list[str]]:
        """A table of what is shown: of each metric its title, and its level at each time."""
        by_time = {when: self.at(when) for when in self.times}
        before = by_time.get("pre", [])
        rows: list[list[str]] = []
        for metric in metrics("headline", "table", scored=scored):
            levels = [estimate(observed, metric.name) for observed in by_time.values()]
            if any(one.mean is not None for one in levels):
                mark = unable(metric, lambda name: estimate(before, name)) and f", {UNABLE}"
                told = (metric.scale.told(one) for one in levels)
                rows.append([f"{metric.title}{mark}", *told])
        return rows

    def table(self) -> str:
        """Format the same as text, with the times above."""
        return aligned([["", *self.times], *self.lines()])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as text, the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
