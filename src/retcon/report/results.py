"""The scores of a study's conditions, read once: each over (run, case) pairs, by one time.

Clusters are relations, across all runs of a condition. Scores of different times are never put
together: every question names its `when`.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

from retcon.report.conditions import Arm, Condition, SeedRun, condition_of, gather
from retcon.report.sameness import Measurements
from retcon.scoring.intervals import (
    CaseMeans,
    Estimate,
    Statistic,
    combine,
    differences,
)
from retcon.scoring.metrics import METRICS, Metric, Place, case_means, metrics, statistic, unable
from retcon.scoring.observations import Observation
from retcon.study.study import Study

SCORES = ("ES", "PS", "NS", "S")


class Evidence(NamedTuple):
    """Rows that a number rests on: a cell's, of one time, as one metric reads them."""

    cell: str
    seed: int
    when: str
    metric: str


@dataclass(frozen=True)
class Results:
    """A study's scores, read once and asked often."""

    study: Study
    _means: dict[str, dict[str, dict[str, CaseMeans]]] = field(
        default_factory=dict[str, dict[str, dict[str, CaseMeans]]]
    )
    _pooled: dict[tuple[Condition, tuple[SeedRun, ...], str, str], CaseMeans | None] = field(
        default_factory=dict[tuple[Condition, tuple[SeedRun, ...], str, str], CaseMeans | None]
    )
    _arms: list[Arm] = field(default_factory=list[Arm])

    def later(self, study: Study) -> "Results":
        """The scores of a study that has got further: no cell that was read is read again."""
        return Results(study, self._means)

    @cached_property
    def measurements(self) -> Measurements:
        """Cells by what they have measured: those that measured the same count once."""
        return Measurements(self.study)

    @property
    def arms(self) -> list[Arm]:
        """Arms of which a run is finished, in the file's order."""
        if not self._arms:
            self._arms.extend(gather(self.study.finished()))
        return self._arms

    def means(self, cell: str, when: str, metric: str) -> CaseMeans | None:
        """One metric of each case of a cell at one time; None where it was not scored then."""
        if cell not in self._means:
            self._means[cell] = self._read(cell)
        return self._means[cell].get(when, {}).get(metric)

    def _read(self, cell: str) -> dict[str, dict[str, CaseMeans]]:
        rows: dict[str, dict[str, list[Observation]]] = defaultdict(lambda: defaultdict(list))
        for values in self.study.rows(cell).iter_rows():
            row = Observation(*values)
            rows[row.when][row.kind].append(row)
        return {
            when: {
                one.name: found
                for one in metrics()
                if (found := case_means(_read_by(one, kinds), one.name)).values
            }
            for when, kinds in rows.items()
            if when != "retention"  # which is of many times, see `report.charts.sizes`
        }

    def pooled(self, arm: Arm, when: str, metric: str) -> CaseMeans | None:
        """One metric of each (run, case) of an arm; clusters are one over all runs."""
        key = (arm.condition, arm.runs, when, metric)
        if key not in self._pooled:
            self._pooled[key] = self._pool(arm, when, metric)
        return self._pooled[key]

    def _pool(self, arm: Arm, when: str, metric: str) -> CaseMeans | None:
        known = [(run, means) for run in arm.runs if (means := self.means(run.cell, when, metric))]
        if not known:
            return None
        values = {f"{run.name} {c}": v for run, means in known for c, v in means.values.items()}
        clusters = {f"{run.name} {c}": g for run, means in known for c, g in means.clusters.items()}
        weights = {
            f"{run.name} {c}": w for run, means in known for c, w in (means.weights or {}).items()
        }
        # A fact that flips does so in every draw of prefixes and corpus, for all that is known.
        draws = len(known) / len({run.seed for run, _ in known})
        flip = draws * sum(means.flip for _, means in known) / len(known)
        cells = frozenset(self.measurements.first(run.cell, when) for run, _ in known)
        return CaseMeans(values, clusters, flip, (cells, when, metric), weights or None)

    def statistic(
        self, arm: Arm, when: str, metric: str, among: frozenset[str] | None = None
    ) -> Statistic | None:
        """A score of an arm at one time, over all its cases or some; None where there is none."""

        def means(name: str) -> CaseMeans | None:
            if among is None:
                return self.pooled(arm, when, name)
            runs = tuple(run for run in arm.runs if self._told(run, when, name, among))
            found = self.pooled(replace(arm, runs=runs), when, name)
            return None if found is None else found.only(among)

        return statistic(metric, means)

    def _told(self, run: SeedRun, when: str, metric: str, among: frozenset[str]) -> bool:
        """True if a run has a score of one of some (run, case) pairs: others measure nothing."""
        means = self.means(run.cell, when, metric)
        return means is not None and any(f"{run.name} {case}" in among for case in means.values)

    def estimate(self, arm: Arm, when: str, metric: str) -> Estimate:
        """A score with its interval; all None where there is none."""
        level = self.statistic(arm, when, metric)
        scale = METRICS.find(metric).scale
        return scale.level(level) if level else Estimate(None, None, None, 0)

    def change(self, arm: Arm, times: tuple[str, str], metric: str) -> Estimate:
        """A metric at the later of two times against the earlier one, over the cases of both."""
        before, after = (self.pooled(arm, when, metric) for when in times)
        if before is None or after is None:
            return Estimate(None, None, None, 0)
        return METRICS.find(metric).scale.change(differences(before, after))

    def common(self, arms: Iterable[Arm], when: str, metric: str) -> frozenset[str]:
        """The (run, case) pairs that all arms have a score of."""
        parts = METRICS.find(metric).parts or (metric,)
        shared: set[str] | None = None
        for arm in arms:
            for part in parts:
                means = self.pooled(arm, when, part)
                cases = set(means.values) if means else set[str]()
                shared = cases if shared is None else shared & cases
        return frozenset(shared or ())

    def contrast(
        self, terms: Sequence[tuple[float, Arm]], when: str, metric: str
    ) -> Statistic | None:
        """Σ wⱼ scoreⱼ over the cases that all arms share; None where they share none."""
        among = self.common((arm for _, arm in terms), when, metric)
        parts = [(w, self.statistic(arm, when, metric, among)) for w, arm in terms]
        known = [(w, s) for w, s in parts if s is not None]
        return combine(known) if known and len(known) == len(parts) else None

    def waiting(self, condition: Condition, vary: str) -> int:
        """Count conditions of the study that differ from one in this alone, and have no run yet."""
        done = {
            getattr(arm.condition, vary)
            for arm in self.arms
            if arm.condition.but(vary) == condition.but(vary)
        }
        planned = {
            getattr(one, vary)
            for point in self.study.points
            if not point.refused
            if (one := condition_of(point)).but(vary) == condition.but(vary)
        }
        return len(planned - done)

    def measured(self, arms: Iterable[Arm], when: str, *places: Place) -> list[Metric]:
        """The metrics that some arms have at a time, as they follow one another.

        `exact_match` is `said` over fewer words, and left out where no arm has it alone.
        """
        arms = list(arms)
        known = [
            metric
            for metric in metrics(*places)
            if any(self._scored(arm, when, metric) for arm in arms)
        ]
        alone = any(
            self.has(arm, when, "exact_match") and not self.has(arm, when, "said") for arm in arms
        )
        return [metric for metric in known if alone or metric.name != "exact_match"]

    def telling(self, arms: Iterable[Arm], when: str) -> list[Metric]:
        """The metrics by which some arms can be ranked at a time.

        One side of them is better, and the model can do the form in which it is asked.
        """
        arms = list(arms)
        return [
            metric
            for metric in self.measured(arms, when, "headline", "table")
            if metric.better is not None
            and not any(unable(metric, partial(self.estimate, arm, "pre")) for arm in arms)
        ]

    def _scored(self, arm: Arm, when: str, metric: Metric) -> bool:
        return all(self.has(arm, when, part) for part in metric.parts or (metric.name,))

    def has(self, arm: Arm, when: str, metric: str = "ES") -> bool:
        """True if an arm was scored at a time."""
        return any(self.means(run.cell, when, metric) is not None for run in arm.runs)


def _read_by(metric: Metric, kinds: Mapping[str, list[Observation]]) -> Iterator[Observation]:
    """The observations that a metric is read off."""
    return (row for kind, rows in kinds.items() if metric.reads(kind) for row in rows)


def evidence(arms: Iterable[Arm], when: str, metric: str) -> tuple[Evidence, ...]:
    """Where the numbers of some arms come from."""
    parts = METRICS.find(metric).parts or (metric,)
    return tuple(
        dict.fromkeys(
            Evidence(run.cell, run.seed, when, part)
            for arm in arms
            for run in arm.runs
            for part in parts
        )
    )


def seconds_per_edit(results: Results, arm: Arm) -> float | None:
    """Features and solve, as if nothing had been cached; mean over seeds and batches."""
    steps = [step for run in arm.runs for step in results.study.steps(run.cell)]
    edits = sum(int(str(step["edits"])) for step in steps)
    return sum(float(str(step["seconds"])) for step in steps) / edits if edits else None


def moved(step: Mapping[str, Any]) -> float | None:
    """Relative size of the change after a step: ‖ΔW‖ / ‖W₀‖ over all layers, in per cent."""
    total = sum(float(v) ** 2 for v in step.get("total_norm", {}).values())
    weight = sum(float(v) ** 2 for v in step.get("weight_norm", {}).values())
    return 100 * (total / weight) ** 0.5 if weight else None
