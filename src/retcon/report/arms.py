"""What is compared: arms, the points that differ in nothing but seeds, and their scores.

A statistic of an arm is over (run, case) pairs, clustered by relation across its runs. Scores of
different times are never put together: every question names its `when`.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

from retcon.report.sameness import Measurements
from retcon.report.titles import called
from retcon.scoring.intervals import (
    CaseMeans,
    Estimate,
    Statistic,
    combine,
    harmonic_mean,
    mean,
)
from retcon.scoring.metrics import METRICS, case_means
from retcon.scoring.rows import Row
from retcon.study.points import Order, Point, carries
from retcon.study.reading import Study

SCORES = ("ES", "PS", "NS", "S")
OTHERS = (
    "token_accuracy", "paraphrase_token_accuracy", "neighbour_token_accuracy", "exact_match",
    "target_probability",
)  # fmt: skip
TIMES = ("pre", "immediate", "final", "retention")
# Settings that are seeds of what is sampled beside the facts.
_DRAWN = {"seed": "prefixes", "corpus_seed": "corpus"}

# Of the facts, and of what is sampled beside them.
Seeds = tuple[int, tuple[tuple[str, int], ...]]


class Setting(NamedTuple):
    """Everything that makes an arm, seeds aside: of the facts, of prefixes, and of the corpus.

    ridge: the number, `hard` for 0, `none` where the method has none, or `tuned` where it was
    chosen for each seed. accumulate, refresh: None
    where no edits are carried. others: further settings as JSON.
    """

    model: str
    dtype: str
    method: str
    layers: tuple[int, ...]
    carried: bool
    rule: str
    batch_size: int
    n: int
    ridge: str
    ridge_batch: int
    accumulate: bool | None
    refresh: str | None
    order: Order
    score: int
    others: str

    def but(self, *names: str) -> tuple[object, ...]:
        """The rest of a setting, some fields left out: what must be equal to compare them."""
        return tuple(v for k, v in self._asdict().items() if k not in names)

    @property
    def first_written(self) -> bool:
        """Whether the facts that are scored are those that were written first, and not all.

        Right after their batches few others are in the weights, and at the end they are the oldest.
        """
        part = 0 < self.score < self.n
        return self.carried and self.batch_size < self.n and part and self.order == 0

    def across_n(self) -> tuple[object, ...]:
        """What must be equal to compare different N and batch sizes.

        The number of an order is not: of other facts every order is another one.
        """
        by_keys = self.order if isinstance(self.order, str) else None
        return (*self.but("n", "batch_size", "score", "order"), by_keys)


class Run(NamedTuple):
    """One seed of an arm, and one draw of what is sampled beside the facts.

    draw: the seeds of prefixes and corpus, where they are not 0.
    """

    seed: int
    draw: tuple[tuple[str, int], ...]
    cell: str

    @property
    def name(self) -> str:
        """What tells it from the other runs of its arm: `0`, or `0 (prefixes 1)`."""
        drawn = ", ".join(f"{what} {number}" for what, number in self.draw)
        return f"{self.seed} ({drawn})" if drawn else str(self.seed)


@dataclass(frozen=True)
class Arm:
    """Finished runs that differ in nothing but seeds."""

    setting: Setting
    runs: tuple[Run, ...]
    point: Point

    @property
    def load(self) -> float:
        """Facts per input dimension at the end."""
        held = self.setting.n if self.setting.carried else self.setting.batch_size
        return held / self.point.capacity

    @property
    def cells(self) -> frozenset[str]:
        """The cells that its scores come from."""
        return frozenset(run.cell for run in self.runs)


class Evidence(NamedTuple):
    """Rows that a number rests on: a cell's, of one time, as one metric reads them."""

    cell: str
    seed: int
    when: str
    metric: str


def setting_of(point: Point) -> Setting:
    """What a point is, by what can matter."""
    alone = point.schedule in ("single", "sequential")
    batch_size = 1 if alone else min(point.batch_size, point.n)
    carried = carries(point.schedule)
    settings = dict(point.settings)
    ridge_batch = settings.pop("ridge_batch", 0)
    settings.pop("accumulate", None)
    settings.pop("ridge", None)
    for name in _DRAWN:
        settings.pop(name, None)
    fixed = "none" if point.ridge is None else f"{point.ridge:g}" if point.ridge else "hard"
    return Setting(
        model=point.model,
        dtype=point.dtype,
        method=point.method,
        layers=point.layers,
        carried=carried,
        rule=point.schedule.removeprefix("adaptive-") if "adaptive" in point.schedule else "",
        batch_size=batch_size,
        n=point.n,
        ridge="tuned" if point.tuned else fixed,
        ridge_batch=ridge_batch if isinstance(ridge_batch, int) else 0,
        accumulate=point.accumulate if carried else None,
        refresh=point.refresh if carried else None,
        order=point.order,
        score=point.score,
        others=json.dumps(settings, sort_keys=True),
    )


@dataclass(frozen=True)
class Results:
    """A study's scores, read once and asked often."""

    study: Study
    _means: dict[str, dict[str, dict[str, CaseMeans]]] = field(
        default_factory=dict[str, dict[str, dict[str, CaseMeans]]]
    )
    _pooled: dict[tuple[Setting, tuple[Run, ...], str, str], CaseMeans | None] = field(
        default_factory=dict[tuple[Setting, tuple[Run, ...], str, str], CaseMeans | None]
    )
    _arms: list[Arm] = field(default_factory=list[Arm])

    @cached_property
    def measurements(self) -> Measurements:
        """Which cells have measured the same."""
        return Measurements(self.study)

    @property
    def arms(self) -> list[Arm]:
        """All arms of which a run is finished, in the file's order."""
        if not self._arms:
            self._arms.extend(gather(self.study.finished()))
        return self._arms

    def means(self, cell: str, when: str, metric: str) -> CaseMeans | None:
        """One metric of each case of a cell at one time; None where it was not scored then."""
        if cell not in self._means:
            self._means[cell] = self._read(cell)
        return self._means[cell].get(when, {}).get(metric)

    def _read(self, cell: str) -> dict[str, dict[str, CaseMeans]]:
        rows: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
        for values in self.study.rows(cell).select(Row._fields).iter_rows():
            row = Row(*values)
            rows[row.when][row.kind].append(row)
        return {
            when: {
                name: found
                for name, metric in METRICS.items()
                if (found := case_means(kinds[metric.kind], name)).values
            }
            for when, kinds in rows.items()
            if when != "retention"  # which is of many times, see `report.curves`
        }

    def pooled(self, arm: Arm, when: str, metric: str) -> CaseMeans | None:
        """One metric of each (run, case) of an arm; clusters are one over all runs."""
        key = (arm.setting, arm.runs, when, metric)
        if key not in self._pooled:
            self._pooled[key] = self._pool(arm, when, metric)
        return self._pooled[key]

    def _pool(self, arm: Arm, when: str, metric: str) -> CaseMeans | None:
        known = [(run, found) for run in arm.runs if (found := self.means(run.cell, when, metric))]
        if not known:
            return None
        values = {f"{run.name} {c}": v for run, found in known for c, v in found.values.items()}
        clusters = {f"{run.name} {c}": g for run, found in known for c, g in found.clusters.items()}
        # A fact that flips does so in every draw of prefixes and corpus, for all that is known.
        draws = len(known) / len({run.seed for run, _ in known})
        flip = draws * sum(found.flip for _, found in known) / len(known)
        cells = frozenset(self.measurements.first(run.cell, when) for run, _ in known)
        return CaseMeans(values, clusters, flip, source=(cells, when, metric))

    def statistic(
        self, arm: Arm, when: str, metric: str, among: frozenset[str] | None = None
    ) -> Statistic | None:
        """A score of an arm at one time, over all its cases or some; None where there is none."""
        if metric == "S":
            parts = [self.statistic(arm, when, part, among) for part in SCORES[:3]]
            known = [part for part in parts if part is not None]
            return harmonic_mean(known) if len(known) == len(parts) else None
        if among is None:
            found = self.pooled(arm, when, metric)
            return mean(found) if found else None
        runs = tuple(run for run in arm.runs if self._told(run, when, metric, among))
        found = self.pooled(replace(arm, runs=runs), when, metric)
        return mean(found.only(among)) if found else None

    def _told(self, run: Run, when: str, metric: str, among: frozenset[str]) -> bool:
        """Whether a run has a score of any of some (run, case) pairs: others measure nothing."""
        found = self.means(run.cell, when, metric)
        return found is not None and any(f"{run.name} {case}" in among for case in found.values)

    def estimate(self, arm: Arm, when: str, metric: str) -> Estimate:
        """A score with its interval; all None where there is none."""
        found = self.statistic(arm, when, metric)
        least = METRICS[metric].least if metric in METRICS else 0.0
        return found.share(least) if found else Estimate(None, None, None, 0)

    def common(self, arms: Iterable[Arm], when: str, metric: str) -> frozenset[str]:
        """The (run, case) pairs that all arms have a score of."""
        parts = SCORES[:3] if metric == "S" else (metric,)
        shared: set[str] | None = None
        for arm in arms:
            for part in parts:
                found = self.pooled(arm, when, part)
                cases = set(found.values) if found else set[str]()
                shared = cases if shared is None else shared & cases
        return frozenset(shared or ())

    def contrast(
        self, terms: Sequence[tuple[float, Arm]], when: str, metric: str
    ) -> Statistic | None:
        """Σ wⱼ scoreⱼ over the cases that all arms share; None where they share none."""
        among = self.common((arm for _, arm in terms), when, metric)
        found = [(w, self.statistic(arm, when, metric, among)) for w, arm in terms]
        known = [(w, s) for w, s in found if s is not None]
        return combine(known) if known and len(known) == len(found) else None

    def waiting(self, setting: Setting, vary: str) -> int:
        """How many settings of the study differ from one in this alone, and have no run yet."""
        done = {getattr(arm.setting, vary) for arm in self.arms
                if arm.setting.but(vary) == setting.but(vary)}  # fmt: skip
        asked = {getattr(one, vary) for point in self.study.points if not point.refused
                 if (one := setting_of(point)).but(vary) == setting.but(vary)}  # fmt: skip
        return len(asked - done)

    def has(self, arm: Arm, when: str, metric: str = "ES") -> bool:
        """Whether an arm was scored then."""
        return any(self.means(run.cell, when, metric) is not None for run in arm.runs)


def gather(points: Iterable[Point]) -> list[Arm]:
    """Points as arms: equal ones of several blocks count once."""
    found: dict[Setting, dict[Seeds, Point]] = defaultdict(dict)
    for point in points:
        runs = found[setting_of(point)]
        seeds = point.seed, _draw(point)
        known = runs.get(seeds)
        if known is None or len(point.when) > len(known.when):
            runs[seeds] = point
    return [
        Arm(
            setting,
            tuple(Run(*seeds, p.cell) for seeds, p in sorted(runs.items()) if p.cell is not None),
            next(iter(runs.values())),
        )
        for setting, runs in found.items()
    ]


def _draw(point: Point) -> tuple[tuple[str, int], ...]:
    """The seeds of what is sampled beside the facts, where they are not 0."""
    said = {what: point.settings.get(name) for name, what in _DRAWN.items()}
    return tuple((what, n) for what, n in said.items() if isinstance(n, int) and n)


def evidence(arms: Iterable[Arm], when: str, metric: str) -> tuple[Evidence, ...]:
    """Where the numbers of some arms come from."""
    parts = SCORES[:3] if metric == "S" else (metric,)
    return tuple(
        dict.fromkeys(
            Evidence(run.cell, run.seed, when, part)
            for arm in arms
            for run in arm.runs
            for part in parts
        )
    )


def families(
    arms: Iterable[Arm], vary: str, keep: Callable[[Arm], bool]
) -> Iterator[dict[object, Arm]]:
    """Arms that differ in one field alone, by its value in order; two at least."""
    groups: Mapping[tuple[object, ...], list[Arm]] = defaultdict(list)
    for arm in arms:
        if keep(arm):
            groups[arm.setting.but(vary)].append(arm)
    for group in groups.values():
        if len(group) > 1:
            by_value = {getattr(arm.setting, vary): arm for arm in group}
            yield {value: by_value[value] for value in sorted(by_value)}


WORDS: Mapping[str, Callable[[Setting], str]] = {
    "model": lambda s: s.model,
    "method": lambda s: called(s.method),
    "layers": lambda s: f"layer{'s' * (len(s.layers) > 1)} {', '.join(map(str, s.layers))}",
    "carried": lambda s: "carried" if s.carried else "each batch on the untouched model",
    "rule": lambda s: {
        "": "", "aimd": "batches that grow and shrink", "energy": "batches of compatible facts"
    }[s.rule],
    "batch_size": lambda s: f"batches of {s.batch_size:,}",
    "n": lambda s: f"N = {s.n:,}",
    "ridge": lambda s: {"hard": "hard constraint", "none": "no λ"}.get(s.ridge, f"λ {s.ridge}"),
    "ridge_batch": lambda s: "λ per fact" if s.ridge_batch else "λ per batch",
    "accumulate": lambda s: {
        None: "", True: "past keys kept", False: "past keys forgotten"
    }[s.accumulate],
    "refresh": lambda s: {
        None: "", "each-batch": "targets refreshed", "never": "targets frozen"
    }.get(s.refresh, f"targets {s.refresh}"),
    "order": lambda s: f"order {s.order}" if isinstance(s.order, int) else f"{s.order} order",
    "dtype": lambda s: s.dtype,
    "score": lambda s: f"{s.score or s.n:,} scored",
    "others": lambda s: s.others.strip("{}").replace('"', "") or "other settings as given",
}  # fmt: skip


def describe(setting: Setting, fields: Iterable[str]) -> str:
    """A setting in words, by some of its fields."""
    return ", ".join(words for name in fields if (words := WORDS[name](setting)))


def varying(arms: Sequence[Arm], *without: str) -> tuple[str, ...]:
    """The fields in which arms differ, in the order in which they are best named."""
    return tuple(
        name
        for name in WORDS
        if name not in without and len({getattr(arm.setting, name) for arm in arms}) > 1
    )
