"""Intervals of means and of all that is made of them: differences, slopes, S. No torch here.

A statistic carries its influence: what each cluster of cases adds to it, to first order. Sums and
multiples of statistics are statistics, so what is measured on the same cases is paired by itself.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import acos, atanh, copysign, cos, isnan, nan, pi, sqrt, tan, tanh
from statistics import NormalDist
from typing import NamedTuple


class Estimate(NamedTuple):
    """A mean over cases, its 95 % interval, and how many cases it is over."""

    mean: float | None
    low: float | None
    high: float | None
    cases: int


@dataclass(frozen=True)
class CaseMeans:
    """One score of each case, and the cluster (relation) that a case belongs to.

    Attributes:
        values: by case.
        clusters: by case.
        flip: by how much a case's score changes where it is won and not lost, 0 where scores are
            no shares of what is won.
        source: what was measured; equal for one measurement, and its own else.
        weights: by case, where cases do not count alike.
    """

    values: Mapping[str, float]
    clusters: Mapping[str, str]
    flip: float = 0.0
    source: Hashable = field(default_factory=object)
    weights: Mapping[str, float] | None = None

    def only(self, cases: Iterable[str]) -> "CaseMeans":
        """Keep some cases."""
        return replace(self, values={c: self.values[c] for c in cases if c in self.values})


@dataclass(frozen=True)
class Statistic:
    """A number that is made of means over cases, and what each cluster adds to it.

    Attributes:
        value: the number.
        influence: by cluster; None where it has no slope to judge it by, and so no interval.
        cases: how many it is over.
        flips: by source, what one more case that is won and not lost would add. Where few cases are
            won or lost, this stands for those that chance has not shown.
    """

    value: float
    influence: Mapping[str, float] | None
    cases: int
    flips: Mapping[Hashable, float] = field(default_factory=dict[Hashable, float])

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

    def estimate(self, comparisons: int = 1) -> Estimate:
        """A difference with its 95 % interval, by Student's t, and by scores where few cases flip.

        Where b cases flip one way and c the other, k being a flip, the likeliest variance of
        θ̂ = (b − c) k, if its mean were θ, is (V + √(V² + 4k²θ(θ − θ̂)))/2, with V = (b + c) k² what
        was found. The limits, |θ − θ̂| = t √variance, are the outer roots x = θ − θ̂ of

            x³ − t² (V + t²k²) x − t⁴k² θ̂ = 0

        (Tango 1998, Stat. Med. 17, for Poisson counts). V is the clusters'. With many flips that is
        θ̂ ± t √V; with none of n cases, a flip counting 1/√2, the rule of three, ± 3/n. comparisons:
        of how many this one was chosen; the interval is widened (Bonferroni's quantile over t) so
        that all of them hold together.
        """
        error, t, wider = self.error, self._quantile(1), self._quantile(comparisons)
        if error is None or t is None or wider is None:
            return Estimate(self.value, None, None, self.cases)
        # Each of two sides has one in `flips`.
        flip = sqrt(sum(k * k for k in self.flips.values())) / 2
        # All flips one way are the most that V has room for.
        room = min(abs(self.value), error**2 / flip) if flip else 0.0
        gap = copysign(room, self.value)
        ends = _outer_roots(t**2 * (error**2 + (t * flip) ** 2), t**4 * flip**2 * gap)
        low, high = (self.value + end * wider / t for end in ends)
        return Estimate(self.value, low, high, self.cases)

    def share(self, least: float = 0.0, most: float = 100.0) -> Estimate:
        """A score between two bounds with its 95 % interval: Wilson's, on an effective n.

        n_eff = (p(1−p) + nk²)/(Var + k²√(n/G)), as many independent cases as have this error. One
        case, k, that might have gone the other way stands for those that are too few to be seen:
        where all are won n_eff is √(nG), between the number of cases and that of clusters.
        """
        error, t = self.error, self._quantile(1)
        if error is None or t is None or self.influence is None:
            return Estimate(self.value, None, None, self.cases)
        p = (self.value - least) / (most - least)
        unseen = sum(k * k for k in self.flips.values()) / (most - least) ** 2
        doubt = unseen * sqrt(self.cases / len(self.influence))
        variance = (error / (most - least)) ** 2 + doubt
        if variance <= 0:  # no share, and all cases alike
            return Estimate(self.value, self.value, self.value, self.cases)
        low, high = wilson(p, (p * (1 - p) + unseen * self.cases) / variance, t)
        width = most - least
        return Estimate(self.value, least + width * low, least + width * high, self.cases)

    def _quantile(self, comparisons: int) -> float | None:
        groups = 0 if self.influence is None else len(self.influence)
        return t_quantile(groups - 1, 1 - 0.025 / comparisons) if groups > 1 else None


def wilson(p: float, n: float, z: float) -> tuple[float, float]:
    """The score interval of a share p of n (Wilson 1927, J. Am. Stat. Assoc. 22)."""
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * sqrt(max(0.0, p * (1 - p)) / n + z**2 / (4 * n**2))
    # Rounding must not put the share outside.
    return max(0.0, min(centre - half, p)), min(1.0, max(centre + half, p))


def _outer_roots(linear: float, constant: float) -> tuple[float, float]:
    """The least and the largest x with x³ − linear x − constant = 0, all three being real."""
    if linear <= 0:
        return 0.0, 0.0
    radius = 2 * sqrt(linear / 3)
    angle = acos(max(-1.0, min(1.0, 3 * constant / (linear * radius)))) / 3
    return radius * cos(angle + 2 * pi / 3), radius * cos(angle)


def mean(scores: CaseMeans) -> Statistic | None:
    """The mean over cases; None where there are none."""
    if not scores.values:
        return None
    count = len(scores.values)
    weigh = scores.weights
    total = count if weigh is None else sum(weigh[case] for case in scores.values)
    weighed = (v if weigh is None else v * weigh[case] for case, v in scores.values.items())
    average = sum(weighed) / total
    influence: dict[str, float] = defaultdict(float)
    for case, value in scores.values.items():
        share = value - average if weigh is None else (value - average) * weigh[case]
        influence[scores.clusters[case]] += share / total
    flips = {scores.source: scores.flip / count} if scores.flip else {}
    return Statistic(average, influence, count, flips)


def differences(before: CaseMeans, after: CaseMeans) -> CaseMeans:
    """After minus before, of the cases that were measured at both times."""
    shared = [case for case in after.values if case in before.values]
    moved = {case: after.values[case] - before.values[case] for case in shared}
    return CaseMeans(moved, after.clusters, weights=after.weights)


def combine(terms: Iterable[tuple[float, Statistic]]) -> Statistic:
    """Σ wⱼ θⱼ: a difference, a slope, an average of several statistics."""
    terms = list(terms)
    value = sum(weight * statistic.value for weight, statistic in terms)
    cases = min(statistic.cases for _, statistic in terms)
    influence: dict[str, float] = defaultdict(float)
    flips: dict[Hashable, float] = defaultdict(float)
    for weight, statistic in terms:
        if statistic.influence is None:
            return Statistic(value, None, cases)
        for cluster, share in statistic.influence.items():
            influence[cluster] += weight * share
        for source, flip in statistic.flips.items():
            flips[source] += weight * flip
    return Statistic(value, influence, cases, flips)


def harmonic_mean(parts: Sequence[Statistic]) -> Statistic:
    """S of the parts, by the delta method: ∂S/∂x = S²/(n x²), and its limit n/k² where k are 0."""
    none = [part for part in parts if part.value <= 0]
    total = 0.0 if none else len(parts) / sum(1 / part.value for part in parts)
    slopes = [(total**2 / (len(parts) * part.value**2), part) for part in parts if not none]
    slopes += [(len(parts) / len(none) ** 2, part) for part in none]
    return replace(combine(slopes), value=total)


def jackknife(value: Callable[[Collection[str]], float], clusters: Collection[str]) -> Statistic:
    """Make a statistic of any number, by what it becomes without each cluster.

    The influence of a cluster is (G−1)/G times how far the mean of all leave-one-out values is
    above the one without this cluster, so that the error is the jackknife's.

    Args:
        value: the number over all cases but those of the clusters that it is given.
        clusters: all of them.
    """
    without = {cluster: value((cluster,)) for cluster in clusters}
    groups = len(without)
    middle = sum(without.values()) / max(1, groups)
    shares = {name: (groups - 1) / groups * (middle - left) for name, left in without.items()}
    return Statistic(value(()), shares, groups)


def rank_correlation(pairs: Sequence[tuple[float, float]], clusters: Sequence[str]) -> Estimate:
    """Estimate Spearman's ρ with its interval: of artanh ρ, by leaving each cluster out in turn.

    Args:
        pairs: two numbers of each case.
        clusters: of each case; there is no interval, and no estimate, of fewer than four.
    """
    import polars as pl

    names = list(dict.fromkeys(clusters))
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    known = pl.DataFrame({"first": first, "second": second, "cluster": list(clusters)})

    def turned(without: Collection[str]) -> float:
        kept = known.filter(~pl.col("cluster").is_in(without))
        value = kept.select(pl.corr("first", "second", method="spearman")).item()
        if value is None or isnan(value):
            return nan
        return atanh(max(-0.999999, min(0.999999, value)))

    unknown = Estimate(None, None, None, 0)
    if len(names) < 4:
        return unknown
    mean, low, high, cases = jackknife(turned, names).estimate()
    if mean is None or low is None or high is None or isnan(low):
        return unknown
    return Estimate(tanh(mean), tanh(low), tanh(high), cases)


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
