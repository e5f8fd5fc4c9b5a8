"""Agreement of scores: the best condition by each, and how alike they rank all conditions.

Conditions are ranked under each score by itself, those that cannot be told from the best by the
same paired differences as everywhere (`report.ranking`). How alike two scores rank is Kendall's τ:
pairs of conditions that both order alike, less those that they order otherwise, as a share of the
pairs that both order (τ_b). Scores of which less is better are turned round.

Intervals are of the facts, with the conditions as they are: the Bayesian bootstrap (Rubin 1981,
Ann. Stat. 9(1)) over relations. Each has a weight drawn from the exponential distribution, the same
for all scores and conditions, so that what was measured on the same facts stays paired. Where
conditions are all but equal, chance orders them, and τ of the draws is nearer to 0 than the one
that was measured, which is always within its interval.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from retcon.report.conditions import Condition
from retcon.report.numbers import MISSING
from retcon.report.ranking import Comparison, Ranking, rank, turned
from retcon.report.results import Results
from retcon.report.tables import Table
from retcon.scoring.intervals import CaseMeans, Estimate
from retcon.scoring.metrics import METRICS, Metric

Numbers = NDArray[np.float64]
Pooled = Callable[[int, str], CaseMeans | None]

_DRAWS, _SEED = 1000, 0
# Fewer conditions than this have no order to speak of; fewer relations no interval.
_LEAST_CONDITIONS, _LEAST_CLUSTERS = 4, 4
# Conditions that are named as better by some scores.
_MOST_OTHERS = 4
# Means that differ by less are equal: sums of equal numbers in another order.
_EQUAL = 1e-9


@dataclass(frozen=True)
class Agreement:
    """The conditions of a comparison under every score that they have.

    Attributes:
        rankings: by the name of the score, free generation first.
        correlations: τ of two scores, by their names; of those that both rank four conditions.
    """

    comparison: Comparison
    rankings: Mapping[str, Ranking[Condition]]
    correlations: Mapping[tuple[str, str], Estimate]

    def of(self, one: str, other: str) -> Estimate | None:
        """τ of two scores; None where it is not known."""
        return self.correlations.get((one, other)) or self.correlations.get((other, one))


def agree(results: Results, comparisons: Iterable[Comparison]) -> list[Agreement]:
    """Rank the conditions of each comparison under every score; those of one condition left out."""
    return [_agreement(results, one) for one in comparisons if len(one.ranking.scores) > 1]


def _agreement(results: Results, comparison: Comparison) -> Agreement:
    arms, when = comparison.arms, comparison.ranking.when
    scores = results.telling(arms.values(), when)
    ranked = {metric.name: rank(results, arms, when, metric.name) for metric in scores}
    rankings = {name: one for name, one in ranked.items() if one and len(one.scores) > 1}
    known = [metric for metric in scores if metric.name in rankings]
    each = [*arms.values()]
    taus = correlate(known, len(each), lambda i, name: results.pooled(each[i], when, name))
    return Agreement(comparison, rankings, taus)


def correlate(
    scores: Sequence[Metric], conditions: int, pooled: Pooled
) -> dict[tuple[str, str], Estimate]:
    """τ of every two scores over some conditions, with its 95 % interval.

    Args:
        conditions: how many; some may lack some of the scores.
        pooled: a score of each case, by the place of a condition and the name of a metric.
    """
    draws = _Draws(conditions, pooled)
    orders = {metric.name: _orders(draws.levels(metric)) for metric in scores}
    few = {metric.name for metric in scores if draws.clusters(metric) < _LEAST_CLUSTERS}
    taus = {
        (one, other): _tau(orders[one], orders[other], interval=few.isdisjoint((one, other)))
        for one, other in combinations(orders, 2)
    }
    return {pair: tau for pair, tau in taus.items() if tau is not None}


class _Draws:
    """Weights of clusters, the first of them all equal, and means under these."""

    def __init__(self, conditions: int, pooled: Pooled) -> None:
        self._places, self._pooled = range(conditions), pooled
        self._weights: dict[str, Numbers] = {}

    def clusters(self, metric: Metric) -> int:
        """Number of clusters that a score rests on, at the condition that has fewest."""
        names = metric.parts or (metric.name,)
        means = [self._pooled(place, name) for place in self._places for name in names]
        return min((len({*one.clusters.values()}) for one in means if one is not None), default=0)

    def levels(self, metric: Metric) -> Numbers:
        """A score under each draw (rows) of each condition (columns); NaN where it has none."""
        return turned(metric.name) * np.stack([self._level(one, metric) for one in self._places], 1)

    def _level(self, place: int, metric: Metric) -> Numbers:
        parts = np.stack([self._mean(place, name) for name in metric.parts or (metric.name,)])
        if not metric.parts:
            return parts[0]
        with np.errstate(divide="ignore"):
            return len(parts) / (1 / parts).sum(0)

    def _mean(self, place: int, name: str) -> Numbers:
        means = self._pooled(place, name)
        if means is None or not means.values:
            return np.full(_DRAWS + 1, np.nan)
        sums = _sums(means)
        weights = np.stack([self._weight(cluster) for cluster in sums])
        values, counts = np.array([*sums.values()]).T
        return (values @ weights) / (counts @ weights)

    def _weight(self, cluster: str) -> Numbers:
        """A cluster's weight in each draw, by its name alone."""
        if cluster not in self._weights:
            random = np.random.default_rng([_SEED, *cluster.encode()])
            self._weights[cluster] = np.concatenate([[1.0], random.exponential(size=_DRAWS)])
        return self._weights[cluster]


def _sums(means: CaseMeans) -> dict[str, tuple[float, float]]:
    """The sum of a score over the cases of each cluster, and of how much they count."""
    sums: dict[str, tuple[float, float]] = {}
    for case, value in means.values.items():
        weight = 1.0 if means.weights is None else means.weights[case]
        total, count = sums.get(means.clusters[case], (0.0, 0.0))
        sums[means.clusters[case]] = total + weight * value, count + weight
    return sums


def _orders(levels: Numbers) -> Numbers:
    """Order of every two conditions (columns) under each draw: 1, 0, −1; NaN where one has none."""
    first, second = (
        list(places) for places in zip(*combinations(range(levels.shape[1]), 2), strict=True)
    )
    gaps = levels[:, first] - levels[:, second]
    return np.where(np.abs(gaps) < _EQUAL, 0.0, np.sign(gaps))


def _tau(one: Numbers, other: Numbers, *, interval: bool) -> Estimate | None:
    """τ_b of two scores; None where too few conditions have both, or one orders none."""
    both = ~np.isnan(one[0]) & ~np.isnan(other[0])
    one, other = one[:, both], other[:, both]
    conditions = round((1 + (1 + 8 * one.shape[1]) ** 0.5) / 2)
    scale = np.sqrt((one**2).sum(1) * (other**2).sum(1))
    if conditions < _LEAST_CONDITIONS or not scale[0]:
        return None
    drawn = (one * other).sum(1)[scale > 0] / scale[scale > 0]
    value = float(drawn[0])
    if not interval:
        return Estimate(value, None, None, conditions)
    low, high = np.quantile(drawn[1:], [0.025, 0.975])
    return Estimate(value, min(value, float(low)), max(value, float(high)), conditions)


def dependence(agreement: Agreement) -> str:
    """Say whether the answer depends on the score; empty where there is one score."""
    comparison = agreement.comparison
    best = comparison.ranking.best
    known = {
        name: one
        for name, one in agreement.rankings.items()
        if best == one.best or best in one.differences
    }
    if len(known) < 2:
        return ""
    better: dict[Condition, list[str]] = defaultdict(list)
    for name, one in known.items():
        if best in one.worse:
            better[one.best].append(title_of(name))
    alike = len(known) - sum(map(len, better.values()))
    others = [
        f"{comparison.names[key]} is better by {', '.join(titles)}"
        for key, titles in better.items()
    ]
    more = [f"{len(others) - _MOST_OTHERS} more"] if len(others) > _MOST_OTHERS else []
    held = (
        f"{comparison.names[best]} is best, or statistically indistinguishable from the best, by "
        f"{alike} of {len(known)} scores"
    )
    return f"Does that depend on the score? {'; '.join([held, *others[:_MOST_OTHERS], *more])}."


def best_by_score(agreements: Sequence[Agreement]) -> Table:
    """The best condition under each score, and how many cannot be told from it."""
    rows = [
        (
            one.comparison.model,
            f"{one.comparison.n:,}",
            ranking.when,
            title_of(name),
            one.comparison.full_names[ranking.best],
            METRICS.find(name).scale.told(ranking.scores[ranking.best]),
            f"{len(ranking.tied)} of {len(ranking.scores) - 1}",
            _alike(one, name),
        )
        for one in agreements
        for name, ranking in one.rankings.items()
    ]
    note = (
        "Indistinguishable from the best are those of which the interval of the paired difference, "
        "widened for all conditions that are compared, includes 0. The last column is Kendall’s τ "
        "between the rankings by this score and by the one of the headline: 1 where they order all "
        "conditions alike, −1 where the other way round; intervals by resampling relations."
    )
    columns = ("model", "N", "scores", "score", "best", "its score", "indistinguishable", "τ")
    return Table("Best condition by score", note, columns, tuple(rows))


def _alike(agreement: Agreement, name: str) -> str:
    headline = agreement.comparison.ranking.metric
    tau = agreement.of(name, headline)
    return MISSING if tau is None else f"with {title_of(headline)} {told(tau)}"


def correlations(agreements: Sequence[Agreement]) -> Table:
    """τ of every two scores."""
    rows = [
        (
            one.comparison.model,
            f"{one.comparison.n:,}",
            one.comparison.ranking.when,
            title_of(pair[0]),
            title_of(pair[1]),
            told(tau),
            str(tau.cases),
        )
        for one in agreements
        for pair, tau in one.correlations.items()
    ]
    note = "Kendall’s τ between the rankings by two scores, with 95 % intervals over relations."
    columns = ("model", "N", "scores", "score", "other", "τ", "conditions")
    return Table("Rank correlations of scores", note, columns, tuple(rows))


def told(tau: Estimate) -> str:
    """Write a rank correlation with its interval: +0.83 [+0.60, +0.95]."""
    text = f"{tau.mean:+.2f}"
    if tau.low is not None and tau.high is not None:
        text += f" [{tau.low:+.2f}, {tau.high:+.2f}]"
    return text.replace("-", "−")


def title_of(name: str) -> str:
    """The title of a score."""
    return METRICS.find(name).title
