"""Intervals of means and of all that is made of them: differences, slopes, S. No torch here.

A statistic carries its influence: what each cluster of cases adds to it, to first order. Sums and
multiples of statistics are statistics, so what is measured on the same cases is paired by itself.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import pi, sqrt, tan
from statistics import NormalDist
from typing import NamedTuple


class Estimate(NamedTuple):
    """A mean over cases, its 95 % interval, and how many cases it is over."""

    mean: float | None
    low: float | None
    high: float | None
    cases: int


class CaseMeans(NamedTuple):
    """One score of each case, and the cluster (relation) that a case belongs to."""

    values: Mapping[str, float]
    clusters: Mapping[str, str]

    def only(self, cases: Iterable[str]) -> "CaseMeans":
        """Those of some cases."""
        return CaseMeans({c: self.values[c] for c in cases if c in self.values}, self.clusters)


@dataclass(frozen=True)
class Statistic:
    """A number that is made of means over cases, and what each cluster adds to it.

    influence: None where it has no slope to judge it by, and so no interval.
    """

    value: float
    influence: Mapping[str, float] | None
    cases: int

    @property
    def error(self) -> float | None:
        """Standard error: Var = G/(G−1) Σ_g u_g², None for one cluster.

        u_g is the cluster's influence. Of a mean it is Σ_{i∈g} (xᵢ − x̄)/n, which gives the CR1
        estimator (Cameron & Miller 2015, J. Human Resources 50(2)).
        """
        groups = 0 if self.influence is None else len(self.influence)
        if groups < 2 or self.influence is None:
            return None
        return sqrt(groups / (groups - 1) * sum(u * u for u in self.influence.values()))

    def estimate(
        self, least: float | None = None, most: float | None = None, comparisons: int = 1
    ) -> Estimate:
        """With its 95 % interval, cut to what is possible.

        comparisons: of how many this one was chosen; the interval is widened (Bonferroni) so
        that all of them hold together.
        """
        error = self.error
        if error is None or self.influence is None:
            return Estimate(self.value, None, None, self.cases)
        margin = t_quantile(len(self.influence) - 1, 1 - 0.025 / comparisons) * error
        low, high = self.value - margin, self.value + margin
        low = low if least is None else max(low, least)
        return Estimate(self.value, low, high if most is None else min(high, most), self.cases)


def mean(found: CaseMeans) -> Statistic | None:
    """The mean over cases; None where there are none."""
    if not found.values:
        return None
    count = len(found.values)
    average = sum(found.values.values()) / count
    influence: dict[str, float] = defaultdict(float)
    for case, value in found.values.items():
        influence[found.clusters[case]] += (value - average) / count
    return Statistic(average, influence, count)


def combine(terms: Iterable[tuple[float, Statistic]]) -> Statistic:
    """Σ wⱼ θⱼ: a difference, a slope, an average of several statistics."""
    terms = list(terms)
    value = sum(weight * statistic.value for weight, statistic in terms)
    cases = min(statistic.cases for _, statistic in terms)
    influence: dict[str, float] = defaultdict(float)
    for weight, statistic in terms:
        if statistic.influence is None:
            return Statistic(value, None, cases)
        for cluster, share in statistic.influence.items():
            influence[cluster] += weight * share
    return Statistic(value, influence, cases)


def harmonic_mean(parts: Sequence[Statistic]) -> Statistic:
    """S of the parts, by the delta method: ∂S/∂x = S²/(n x²), and its limit n/k² where k are 0."""
    none = [part for part in parts if part.value <= 0]
    total = 0.0 if none else len(parts) / sum(1 / part.value for part in parts)
    slopes = [(total**2 / (len(parts) * part.value**2), part) for part in parts if not none]
    slopes += [(len(parts) / len(none) ** 2, part) for part in none]
    return Statistic(total, combine(slopes).influence, min(part.cases for part in parts))


def slope(points: Sequence[tuple[float, Statistic]]) -> Statistic:
    """Least-squares slope of statistics over the places x at which they were taken."""
    centre = sum(x for x, _ in points) / len(points)
    scale = sum((x - centre) ** 2 for x, _ in points)
    return combine([((x - centre) / scale, statistic) for x, statistic in points])


def t_quantile(degrees: int, probability: float = 0.975) -> float:
    """A quantile of Student's t, by the Cornish-Fisher expansion around the normal's.

    Good to 1 % at 97.5 % from three degrees of freedom on; below that it is exact.
    """
    if degrees == 1:
        return tan(pi * (probability - 0.5))
    if degrees == 2:
        alpha = 2 * probability - 1
        return alpha * sqrt(2 / (1 - alpha**2))
    z = NormalDist().inv_cdf(probability)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / degrees**power for power, term in enumerate(terms))
