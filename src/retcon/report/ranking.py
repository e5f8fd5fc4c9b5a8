"""The best of several conditions, and which differ from it: by paired differences.

The best of many looks a little better than it is, because it was picked on the same facts. So the
intervals of differences to it are widened for all the conditions that are compared.
"""

from collections import defaultdict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from retcon.report.conditions import Arm, Condition, full_names, short_names
from retcon.report.results import Results
from retcon.scoring.intervals import Estimate
from retcon.scoring.metrics import METRICS, metrics

K = TypeVar("K", bound=Hashable)

# By what conditions are ranked: the first that all of them have, of these and of further scores.
_FIRST = ("S", "ES", "PS", "NS")


@dataclass(frozen=True)
class Ranking(Generic[K]):
    """Conditions by one score at one time.

    Attributes:
        best: the key of the one with the best score.
        scores: by key, the best first.
        differences: score minus that of the best, over the facts that both have, by key.
    """

    metric: str
    when: str
    best: K
    scores: Mapping[K, Estimate]
    differences: Mapping[K, Estimate]

    @property
    def tied(self) -> tuple[K, ...]:
        """The keys that cannot be told from the best: the interval of the difference includes 0."""
        sign = turned(self.metric)
        return tuple(k for k, d in self.differences.items() if not _is_below(d, sign))

    @property
    def worse(self) -> tuple[K, ...]:
        """The keys that are worse than the best."""
        return tuple(k for k in self.differences if k not in self.tied)


def rank(results: Results, arms: Mapping[K, Arm], when: str, metric: str) -> Ranking[K] | None:
    """Rank conditions by a score; None where none has it."""
    scores = {key: results.estimate(arm, when, metric) for key, arm in arms.items()}
    means = {key: score.mean for key, score in scores.items() if score.mean is not None}
    if not means:
        return None
    ordered = sorted(means, key=lambda key: turned(metric) * means[key], reverse=True)
    best, *others = ordered
    differences = {
        key: statistic.estimate(comparisons=len(others))
        for key in others
        if (statistic := results.contrast([(1.0, arms[key]), (-1.0, arms[best])], when, metric))
    }
    return Ranking(metric, when, best, {key: scores[key] for key in ordered}, differences)


def turned(metric: str) -> float:
    """The sign by which a difference of a metric counts: −1 where lower is better."""
    return -1.0 if METRICS.find(metric).better == "lower" else 1.0


def _is_below(difference: Estimate, sign: float) -> bool:
    """True if the whole interval is on the worse side of 0."""
    ends = (difference.low, difference.high)
    return all(end is not None and sign * end < 0 for end in ends)


@dataclass(frozen=True)
class Comparison:
    """All conditions of one model that were scored at one time over equally many facts.

    Attributes:
        names: what each is called, by what most of the others do not have.
        usual: what goes without saying in these names.
        full_names: what each is called, by all in which they differ.
        partial: whether they have scored the facts alone that were written first.
    """

    model: str
    n: int
    arms: Mapping[Condition, Arm]
    names: Mapping[Condition, str]
    usual: str
    full_names: Mapping[Condition, str]
    ranking: Ranking[Condition]
    partial: bool


def compare(results: Results) -> list[Comparison]:
    """Compare the conditions of a study in groups, those of most conditions first.

    Edits that are carried are compared by their final scores, others by immediate ones. Those of
    which the facts alone are scored that were written first stand for no others, and come last.
    Groups of one condition are left out, unless there are no others.
    """
    groups: dict[tuple[bool, str, str, int], list[Arm]] = defaultdict(list)
    for arm in results.arms:
        when = "final" if arm.condition.carried else "immediate"
        if results.has(arm, when):
            condition = arm.condition
            groups[condition.first_written, when, condition.model, condition.n].append(arm)
    ordered = sorted(groups, key=lambda key: (*key[:3], -key[3]))
    compared = [_comparison(results, groups[key], key[1]) for key in ordered]
    known = [one for one in compared if one is not None]
    several = [one for one in known if len(one.ranking.scores) > 1]
    return sorted(several or known, key=lambda one: (one.partial, -len(one.ranking.scores)))


def _comparison(results: Results, arms: list[Arm], when: str) -> Comparison | None:
    by_setting = {arm.condition: arm for arm in arms}
    ranking = rank(results, by_setting, when, _metric(results, arms, when))
    if ranking is None:
        return None
    first = arms[0].condition
    names, usual = short_names(arms)
    return Comparison(
        model=first.model,
        n=first.n,
        arms=by_setting,
        names=names,
        usual=usual,
        full_names=full_names(arms),
        ranking=ranking,
        partial=first.first_written,
    )


def _metric(results: Results, arms: list[Arm], when: str) -> str:
    """The first of the scores that most of the conditions have."""
    further = [one.name for one in metrics("table", scored=True) if not one.freely]
    count = {
        metric: sum(results.estimate(arm, when, metric).mean is not None for arm in arms)
        for metric in (*_FIRST, *further)
    }
    return max(count, key=lambda metric: count[metric])
