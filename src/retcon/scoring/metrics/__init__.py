"""Metrics: scores read off observations. Needs no model and no torch.

All are means over a case's observations first, then over cases, as in ROME's evaluation
(arXiv:2202.05262 §3.4). Intervals are 95 %, from standard errors clustered by relation: cases of
one relation share their template and are not independent (`scoring.intervals`). None is "not
measured", and is left out and counted, never taken for 0.

An entry is a function of one observation. What the table does not hold yet it says how to observe.
"""

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, Literal, TypeVar

from retcon.edits import Case
from retcon.errors import InvalidPlugin, InvalidSetting
from retcon.registry import Registry, entered
from retcon.scoring.intervals import (
    CaseMeans,
    Estimate,
    Statistic,
    differences,
    harmonic_mean,
    mean,
)
from retcon.scoring.observations import PROMPTS, Observation
from retcon.scoring.scales import Amount, Share

Value = Callable[[Observation], float | None]
# observe(model, cases, moment, progress), together(overlay, looks, progress): see `Observer`.
Observe = Callable[..., list[Observation]]
# In every table of scores; in tables of further scores; in records alone.
Place = Literal["headline", "table", "record"]
PER_CENT = Share()
PLACES: tuple[Place, ...] = ("headline", "table", "record")
# Words that stand beside scores of forms that a model cannot do.
UNABLE = "cannot do this form"
# In the kinds of all that is read off what a model writes by itself, as `free rewrite`; and
# scores of prompts that are decided so.
FREE = "free "
_EXACT = ("exact_match", "portability_exact_match")
Made = TypeVar("Made", bound=Value)


@dataclass(frozen=True, kw_only=True)
class Observer:
    """A way to look at a model.

    Attributes:
        observe: `observe(model, cases, moment, progress)`, the rows of a `Moment`: of the model as
            it is then, and the cases that are scored then.
        at: the times at which it looks.
        whole: whether it looks at the model as a whole, whatever the cases: then only where a model
            holds all edits so far.
        together: in place of `observe`, `together(overlay, looks, progress)`, the rows of several
            looks at once, each of its own cases under its own update. With `observe`, updates are
            written one after the other.
        prepare: `prepare(cases)`, the observer of a run of these cases, where it needs to know them
            all, whichever it looks at. It is the same for every schedule then.
        check: `check(tokens, cases)` raises what is wrong before any work is done.
    """

    observe: Observe | None = None
    at: tuple[str, ...] = ("pre", "immediate", "final")
    whole: bool = False
    together: Observe | None = None
    prepare: "Callable[[Sequence[Case]], Observer] | None" = None
    check: Callable[[Any, Sequence[Case]], object] | None = None

    def __post_init__(self) -> None:
        if (self.observe is None) is (self.together is None):
            raise InvalidPlugin("An observer looks in one way: give it `observe`, or `together`.")

    def of(self, cases: Sequence[Case]) -> "Observer":
        """The observer of a run of some cases."""
        return self if self.prepare is None else self.prepare(cases)


@dataclass(frozen=True, kw_only=True)
class Control:
    """A check that a model can do a form of asking at all: it is asked about what it knows.

    Attributes:
        metric: how often the untouched model is right about its own old answers, in this form.
        chance: what it would be if it could not tell, in per cent.
    """

    metric: str
    chance: float


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric.

    Attributes:
        name: in records, and what `--metric` takes.
        title: in tables.
        kind: of the observations that it reads; `item` reads `item:TASK` of every task.
        value: of one of them; None where it has none.
        scale: how its mean and its change are told.
        better: which is better, if one is.
        shown: where.
        rank: its place among others that are shown there.
        parts: metrics of which it is the harmonic mean; it reads nothing itself then.
        weight: of one observation, where they do not count alike.
        observer: how to observe what it reads, where scores do not hold that already.
        control: how to know that a model can do its form at all, where it is an unusual one.
    """

    name: str
    title: str
    kind: str
    value: Value
    scale: Amount = PER_CENT
    better: Literal["higher", "lower"] | None = "higher"
    shown: Place = "table"
    rank: int = 100
    parts: tuple[str, ...] = ()
    weight: Callable[[Observation], float] | None = None
    observer: Observer | None = None
    control: Control | None = None

    @property
    def about(self) -> str:
        """A sentence: the first line of the function's docstring."""
        return (inspect.getdoc(self.value) or "").partition("\n")[0]

    @property
    def of_prompts(self) -> bool:
        """True if it is a score of prompts, which every run has."""
        return self.kind in PROMPTS or bool(self.parts)

    @property
    def freely(self) -> bool:
        """True if it is of what the model writes by itself, and not of answers that it is given."""
        return FREE in self.kind or self.name in _EXACT

    @property
    def scored(self) -> bool:
        """True if tables of scores have it: it is of prompts, or of what is written behind them."""
        return self.of_prompts or self.freely

    def reads(self, kind: str) -> bool:
        """True if it is read off observations of a kind."""
        return kind == self.kind or kind.startswith(f"{self.kind}:")


METRICS: Registry[Metric] = Registry("metric", "retcon.scoring.metrics")


def metric(
    name: str,
    *,
    title: str,
    kind: str,
    scale: Amount = PER_CENT,
    better: Literal["higher", "lower"] | None = "higher",
    shown: Place = "table",
    rank: int = 100,
    observer: Observer | None = None,
) -> Callable[[Made], Made]:
    """Enter a metric under a name; the function is its value of one observation.

    A `Metric` can also be entered itself: `METRICS.enter(name, …)`.

    Args:
        name, title, kind, scale, better, shown, rank, observer: see `Metric`.
    """

    def entry(value: Value) -> Metric:
        return Metric(
            name=name,
            title=title,
            kind=kind,
            value=value,
            scale=scale,
            better=better,
            shown=shown,
            rank=rank,
            observer=observer,
        )

    return entered(METRICS, name, entry)


def metrics(*places: Place, scored: bool | None = None) -> list[Metric]:
    """The metrics that are shown at some places, as they follow one another: free generation first.

    Args:
        scored: only those that tables of scores have, or only the others.
    """
    wanted = places or PLACES
    chosen = [one for one in METRICS.all().values() if one.shown in wanted]
    if scored is not None:
        chosen = [one for one in chosen if one.scored is scored]
    return sorted(chosen, key=_place)


def _place(metric: Metric) -> tuple[int, bool, int, str]:
    return PLACES.index(metric.shown), not metric.freely, metric.rank, metric.name


def observers(names: Iterable[str]) -> tuple[Observer, ...]:
    """The ways in which some metrics look at a model, beside what is scored in any case.

    Raises:
        UnknownName: there is no such metric.
        InvalidSetting: it does not say how to observe what it is read off.
    """
    chosen: list[Observer] = []
    for name in names:
        one = METRICS.find(name)
        if one.observer is not None:
            chosen.append(one.observer)
        elif not one.of_prompts:
            raise InvalidSetting(
                f"The metric {name} is read off items of tasks, which have to be given: "
                f"`--ability N` of `retcon eval`, `general: N` of a study."
            )
    return tuple(dict.fromkeys(chosen))


def case_means(rows: Iterable[Observation], name: str) -> CaseMeans:
    """One metric of each case: the mean over its observations.

    With m observations a case, each won or lost by itself, a case changes by about 1/√m.

    Args:
        rows: of one time.
        name: of a metric without parts.
    """
    read = METRICS.find(name)
    values: dict[str, list[float]] = defaultdict(list)
    weights: dict[str, float] = defaultdict(float)
    clusters: dict[str, str] = {}
    for row in rows:
        value = read.value(row) if read.reads(row.kind) else None
        if value is not None:
            values[row.case].append(read.scale.factor * value)
            weights[row.case] += read.weight(row) if read.weight else 1.0
            clusters[row.case] = row.cluster
    counts = [len(each) for each in values.values()]
    flip = read.scale.factor * sqrt(sum(1 / m for m in counts) / len(counts)) if counts else 0.0
    return CaseMeans(
        {case: sum(each) / len(each) for case, each in values.items()},
        clusters,
        flip if read.scale.of_shares else 0.0,
        weights=weights if read.weight else None,
    )


def statistic(name: str, means: Callable[[str], CaseMeans | None]) -> Statistic | None:
    """A metric with what its error is made of; None where it, or one of its parts, has no cases.

    Args:
        means: of each case, by the name of a metric without parts.
    """
    parts = METRICS.find(name).parts
    each = [mean(one) for part in parts or (name,) if (one := means(part)) is not None]
    known = [one for one in each if one is not None]
    if len(known) < max(1, len(parts)):
        return None
    return harmonic_mean(known) if parts else known[0]


def level(rows: Iterable[Observation], name: str) -> Statistic | None:
    """A metric over some rows, with what its error is made of; None where it was not measured."""
    rows = list(rows)
    return statistic(name, lambda part: case_means(rows, part))


def estimate(rows: Iterable[Observation], name: str) -> Estimate:
    """A metric over some rows, with its interval."""
    score = level(rows, name)
    if score is None:
        return Estimate(None, None, None, 0)
    return METRICS.find(name).scale.level(score)


def unable(one: Metric, level: Callable[[str], Estimate]) -> str:
    """Say that a model cannot do the form of a metric; empty where it can, or it is not known.

    A model that says "True" to everything affirms every edit, and one that always says "A" chooses
    half of them: what such a score says of edits is nothing. So the untouched model is asked the
    same of its own old answers. Where the 95 % interval of how often it is right there reaches down
    to chance, it is not shown that it can do the form. One rule for all forms, which needs no
    further prompt; a model that knew none of the old answers fails by it too.

    Args:
        level: of a metric by its name, before any edit.
    """
    if one.control is None:
        return ""
    right, chance = level(one.control.metric), one.control.chance
    if right.low is None or right.low > chance:
        return ""
    return (
        f"{one.title}: the model {UNABLE}. Before any edit it is right about its own old answers "
        f"in {PER_CENT.told(right)} %, and chance is {chance:.0f} %."
    )


def change(before: Iterable[Observation], after: Iterable[Observation], name: str) -> Estimate:
    """A metric after, against before, over the cases that were measured at both times."""
    moved = differences(case_means(before, name), case_means(after, name))
    return METRICS.find(name).scale.change(moved)


def summarise(rows: Sequence[Observation]) -> dict[str, float | None]:
    """The mean of every metric of prompts, and of others that were observed."""
    return {name: found.mean for name, found in _estimates(rows).items()}


def intervals(rows: Sequence[Observation]) -> dict[str, tuple[float, float] | None]:
    """The 95 % intervals of the same."""
    return {
        name: None if e.low is None or e.high is None else (e.low, e.high)
        for name, e in _estimates(rows).items()
    }


def _estimates(rows: Sequence[Observation]) -> Mapping[str, Estimate]:
    found = {one: estimate(rows, one.name) for one in metrics()}
    return {one.name: e for one, e in found.items() if one.of_prompts or e.mean is not None}
