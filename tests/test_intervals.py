"""Whether intervals cover as often as they say, on clustered facts of the sizes that studies have.

Coverage is simulated with a twin of the formulas that takes all draws at once, and that agrees with
them draw by draw.
"""

from itertools import pairwise, product
from typing import NamedTuple

import numpy as np
import pytest

from oracles import cluster_jackknife
from retcon.scoring.intervals import (
    CaseMeans,
    Statistic,
    combine,
    harmonic_mean,
    jackknife,
    mean,
    t_quantile,
    wilson,
)

# Facts of each relation, among so many uniform records of CounterFact.
RELATIONS = {
    48: (5, 4, 4, 3, 3, *(2,) * 10, *(1,) * 9),
    128: (8, 8, 7, 7, 6, 6, *(5,) * 7, *(4,) * 4, *(3,) * 8, *(2,) * 4, 1, 1, 1),
    256: (17, 15, 14, 13, 13, 12, 12, 11, 10, 10, 9, 9, 9, 8, 8, 7, 7, 7, 7, 6, 6, 6, 5, 5, 5, 4, 4,
          3, 3, 3, 3, 2, 2, 1),
}  # fmt: skip
RELATIONS[512] = tuple(2 * size for size in RELATIONS[256])
DRAWS = 2500


class Drawn(NamedTuple):
    """So many draws: the mean over facts, each relation's influence on it, and a fact's flip."""

    mean: np.ndarray
    influence: np.ndarray
    flip: float
    facts: int

    @property
    def variance(self) -> np.ndarray:
        groups = self.influence.shape[1]
        return groups / (groups - 1) * (self.influence**2).sum(1)

    @property
    def t(self) -> float:
        return t_quantile(self.influence.shape[1] - 1)

    def statistic(self, draw: int, sides: int) -> Statistic:
        influence = {str(i): float(u) for i, u in enumerate(self.influence[draw])}
        flips = dict.fromkeys(range(sides), self.flip)
        return Statistic(float(self.mean[draw]), influence, self.facts, flips)


def drawn(share: float, *, facts: int, prompts: int, alike: float, up: float, seed: int) -> Drawn:
    """Each prompt is won with chance `share`, and counts 100, or −100 but for a share `up` of them.

    alike: correlation of two facts of one relation; two prompts of one fact have 0.3 beside it.
    """
    random, sizes = np.random.default_rng(seed), np.array(RELATIONS[facts])
    relation = np.repeat(np.arange(len(sizes)), sizes)
    chances = beta(random, np.full((DRAWS, len(sizes)), share), alike)[:, relation]
    won = random.binomial(prompts, beta(random, chances, 0.3) if prompts > 1 else chances)
    scores = 100 * (2 * random.binomial(won, up) - won) / prompts
    average = scores.mean(1)
    influence = np.zeros((DRAWS, len(sizes)))
    np.add.at(influence.T, relation, (scores - average[:, None]).T / facts)
    return Drawn(average, influence, 100 / prompts**0.5 / facts, facts)


def beta(random, chance: np.ndarray, alike: float) -> np.ndarray:
    """Chances around others, of which two draws at one have the correlation `alike`."""
    inner, weight = np.clip(chance, 1e-9, 1 - 1e-9), (1 - alike) / alike
    return np.where(chance > 0, random.beta(inner * weight, (1 - inner) * weight), 0.0)


def shares(of: Drawn) -> np.ndarray:
    """The twin of `Statistic.share`, as a column of lower and a column of upper limits."""
    p, k, t = of.mean / 100, of.flip / 100, of.t
    doubt = k**2 * np.sqrt(of.facts / of.influence.shape[1])
    n = (p * (1 - p) + of.facts * k**2) / (of.variance / 1e4 + doubt)
    half = t * np.sqrt(p * (1 - p) / n + t**2 / (4 * n**2))
    ends = np.stack([p + t**2 / (2 * n) - half, p + t**2 / (2 * n) + half], axis=1)
    return 100 * ends / (1 + t**2 / n)[:, None]


def differences(of: Drawn) -> np.ndarray:
    """The twin of `Statistic.estimate`: the outer roots, found by numpy."""
    v, k, t = of.variance, of.flip / 2**0.5, of.t
    gap = np.sign(of.mean) * np.minimum(np.abs(of.mean), v / k)
    companion = np.zeros((len(v), 3, 3))
    companion[:, 1, 0] = companion[:, 2, 1] = 1
    companion[:, 0, 2], companion[:, 1, 2] = t**4 * k**2 * gap, t**2 * (v + t**2 * k**2)
    roots = np.sort(np.linalg.eigvals(companion).real, axis=1)
    return of.mean[:, None] + roots[:, [0, 2]]


def coverage(limits: np.ndarray, truth: float) -> float:
    return 100 * np.mean((limits[:, 0] <= truth + 1e-9) & (limits[:, 1] >= truth - 1e-9))


@pytest.mark.parametrize(("facts", "prompts"), [*product((48, 128, 256), (1, 10))])
@pytest.mark.parametrize("share", [0.5, 0.8, 0.9, 0.95, 0.99])
def test_the_interval_of_a_share_covers(facts, prompts, share):
    for seed, alike in enumerate((0.01, 0.1)):
        of = drawn(share, facts=facts, prompts=prompts, alike=alike, up=1.0, seed=seed)
        limits = shares(of)
        # 93 to 98 %, give or take two standard errors of the simulation.
        assert 92.0 < coverage(limits, 100 * share) < 98.6, alike
        one = of.statistic(7, sides=1).share()
        assert one[1:3] == pytest.approx(np.clip(limits[7], 0, 100), abs=1e-9)


@pytest.mark.parametrize(("facts", "prompts"), [*product((128, 512), (1, 10))])
@pytest.mark.parametrize("flipped", [0.0, 0.01, 0.02, 0.05, 0.1])
def test_the_interval_of_a_difference_covers_where_few_facts_flip(facts, prompts, flipped):
    few = flipped * facts < 8
    for seed, (alike, up) in enumerate(((0.01, 0.5), (0.03, 0.75), (0.01, 1.0))):
        of = drawn(flipped, facts=facts, prompts=prompts, alike=alike, up=up, seed=seed)
        limits = differences(of)
        # Of a handful of flips no interval covers exactly: it may cover more.
        found = coverage(limits, 100 * flipped * (2 * up - 1))
        assert 92.0 < found < (100.1 if few else 98.6), (alike, up)
        one = of.statistic(7, sides=2).estimate()
        assert one[1:3] == pytest.approx(limits[7], abs=1e-6)


def flipped(count: int, prompts: int = 1) -> Statistic:
    """A difference of 128 facts, of which so many prompts are won by one side alone."""
    facts = [f"{relation}.{i}" for relation, n in enumerate(RELATIONS[128]) for i in range(n)]
    relations = {fact: fact.split(".")[0] for fact in facts}
    chosen = facts[:: len(facts) // 16]
    before = dict.fromkeys(facts, 50.0)
    after = before | dict.fromkeys(chosen[:count], 50.0 + 100 / prompts)
    flip = 100 / prompts**0.5
    ends = [mean(CaseMeans(values, relations, flip)) for values in (after, before)]
    assert ends[0] and ends[1]
    return combine([(1.0, ends[0]), (-1.0, ends[1])])


@pytest.mark.parametrize("prompts", [1, 2, 10])
def test_as_flips_vanish_the_width_falls_and_does_not_jump(prompts):
    found = [flipped(count, prompts).estimate() for count in range(12)]
    widths = [one.high - one.low for one in found]
    assert all(less < more < 1.5 * less for less, more in pairwise(widths))
    # A flip of one prompt in ten of one fact in 128 is next to none.
    if prompts == 10:
        assert widths[1] < 1.03 * widths[0]


def test_where_all_are_won_something_is_not_known():
    facts = {str(i): 100.0 for i in range(64)}
    relations = {fact: str(int(fact) % 28) for fact in facts}
    whole = mean(CaseMeans(facts, relations, 100.0))
    low = whole.share().low
    # √(64 · 28) facts, t of 27 degrees.
    assert low == pytest.approx(100 * wilson(1.0, (64 * 28) ** 0.5, t_quantile(27))[0])
    assert (round(low, 1), whole.share().high) == (91.0, 100.0)
    s = harmonic_mean([mean(CaseMeans(facts, relations, 100.0)) for _ in range(3)])
    assert s.value == pytest.approx(100) and low < s.share().low < 100
    none = harmonic_mean(
        [mean(CaseMeans(dict.fromkeys(facts, 0.0), relations, 100.0)) for _ in range(3)]
    )
    assert none.value == 0 and 0 < none.share().high < 20


def test_one_measurement_against_itself_leaves_nothing_open():
    facts = {str(i): 100.0 * (i % 3 > 0) for i in range(64)}
    relations = {fact: str(int(fact) % 9) for fact in facts}
    one = [mean(CaseMeans(facts, relations, 100.0, source="the same")) for _ in range(2)]
    other = mean(CaseMeans(facts, relations, 100.0))
    assert combine([(1.0, one[0]), (-1.0, one[1])]).estimate()[:3] == (0, 0, 0)
    assert combine([(1.0, one[0]), (-1.0, other)]).estimate().high > 3


def test_any_statistic_has_the_jackknife_s_error():
    random = np.random.default_rng(3)
    values = {str(i): float(random.normal(i % 5)) for i in range(60)}
    clusters = {fact: str(int(fact) % 12) for fact in values}

    def spread(without):
        return float(np.std([v for fact, v in values.items() if clusters[fact] not in without]))

    found = jackknife(spread, sorted(set(clusters.values())))
    naive = cluster_jackknife(
        lambda kept: float(np.std([values[fact] for fact in kept])), values, clusters
    )
    assert found.value == spread(()) and found.error == pytest.approx(naive)
