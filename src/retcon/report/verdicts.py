"""The rule by which a claim is judged: a verdict from an effect and its 95 % interval.

An effect is a difference between scores of a study, in points, paired over the facts that all sides
share. The smallest effect of interest, `MARGIN`, is one point: less than that counts as none. So
equality has to be shown, and is not what is left when no difference was found.

| claim                  | judge             | reproduced             | not reproduced        |
|------------------------|-------------------|------------------------|-----------------------|
| one side is higher     | `judge_higher`    | interval above 0       | below 0, or within ±1 |
| one side is lower      | `judge_lower`     | interval below 0       | above 0, or within ±1 |
| both sides are equal   | `judge_equal`     | interval within ±1     | wholly outside ±1     |
| one is no worse        | `judge_not_worse` | interval above −1      | below 0               |
| one is best of several | `judge_best`      | no worse than any      | any other is better   |

Whatever else an interval says is inconclusive. So is an effect that rests on facts which stand
for no others, those that were written first (`Condition.first_written`): `effect_of` sees to that.

    >>> judge_lower(Estimate(-3.2, -4.1, -2.3, cases=500))
    'reproduced'
    >>> judge_equal(Estimate(0.2, -0.5, 0.9, cases=500))
    'reproduced'
    >>> judge_equal(Estimate(0.2, -2.5, 2.9, cases=60))
    'inconclusive'
    >>> judge_best({"emmet": Estimate(1.5, 0.4, 2.6, 500), "rome": Estimate(0.1, -0.4, 0.6, 500)})
    ('rome', 'reproduced')

`measure` gives an effect from a study's results, judged:

    measure(results, "large − small batches", [(1, large), (-1, small)], "final", "NS", judge_lower)
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf
from typing import Literal, NamedTuple, TypeVar

from retcon.report.conditions import Arm
from retcon.report.results import Evidence, Results, evidence
from retcon.scoring.intervals import Estimate

T = TypeVar("T")
Verdict = Literal["reproduced", "not reproduced", "inconclusive", "no data"]
Judge = Callable[[Estimate], Verdict]

# The smallest effect of interest, in points of a score.
MARGIN = 1.0

# Narrower than this is no interval: sums of equal numbers in another order.
_NO_WIDTH = 1e-9

# Why nothing follows from some runs about all of their facts.
FIRST_WRITTEN = "only the facts that were written first are scored"


class Effect(NamedTuple):
    """A measured difference, and what it says of a claim.

    Attributes:
        text: what is compared, in words.
        when: the time of all scores in it: `immediate` or `final`.
        metric: the score: `ES`, `PS`, `NS`, `S`.
        estimate: the difference in points, with its 95 % interval.
        verdict: by the rule above; None where it is measured and not judged.
        decides: whether the verdict on the claim rests on it.
        evidence: the rows it was computed from.
        about: further values by name, for charts.
    """

    text: str
    when: str
    metric: str
    estimate: Estimate
    verdict: Verdict | None
    decides: bool
    evidence: tuple[Evidence, ...]
    about: Mapping[str, object]


def judge_higher(estimate: Estimate) -> Verdict:
    """Judge the claim that a difference is above 0."""
    if estimate.low is None or estimate.high is None:
        return "inconclusive"
    if estimate.low > 0:
        return "reproduced"
    none = estimate.high < 0 or _is_negligible(estimate.low, estimate.high)
    return "not reproduced" if none else "inconclusive"


def judge_lower(estimate: Estimate) -> Verdict:
    """Judge the claim that a difference is below 0."""
    mean, low, high, cases = estimate
    if low is None or high is None or mean is None:
        return "inconclusive"
    return judge_higher(Estimate(-mean, -high, -low, cases))


def judge_equal(estimate: Estimate) -> Verdict:
    """Judge the claim that a difference is too small to be of interest."""
    if estimate.low is None or estimate.high is None:
        return "inconclusive"
    if _is_negligible(estimate.low, estimate.high):
        return "reproduced"
    outside = estimate.low > MARGIN or estimate.high < -MARGIN
    return "not reproduced" if outside else "inconclusive"


def judge_not_worse(estimate: Estimate) -> Verdict:
    """Judge the claim that one thing is as good as another, give or take the margin."""
    if estimate.low is None or estimate.high is None:
        return "inconclusive"
    if estimate.low > -MARGIN:
        return "reproduced"
    return "not reproduced" if estimate.high < 0 else "inconclusive"


def judge_best(estimates: Mapping[T, Estimate]) -> tuple[T, Verdict]:
    """Judge the claim that a thing is the best of several.

    Args:
        estimates: its score minus that of each rival, by rival.

    Returns:
        The rival that decides, and the verdict: the one that is better, or else the one that may
        be better by most.
    """

    def lead(rival: T) -> tuple[bool, float]:
        low = estimates[rival].low
        is_better = judge_not_worse(estimates[rival]) == "not reproduced"
        return not is_better, -inf if low is None else low

    hardest = min(estimates, key=lead)
    return hardest, judge_not_worse(estimates[hardest])


def while_pending(verdict: Verdict, pending: int) -> Verdict:
    """Hold back `reproduced` while some candidates have not been run: a better one may come."""
    return "inconclusive" if pending and verdict == "reproduced" else verdict


def _is_negligible(low: float, high: float) -> bool:
    return low >= -MARGIN and high <= MARGIN


def contrast(
    results: Results,
    terms: Sequence[tuple[float, Arm]],
    when: str,
    metric: str,
    comparisons: int = 1,
) -> Estimate | None:
    """Measure Σ weight · score over the facts that all arms share.

    Args:
        terms: weights, each with its arm; [(1, a), (-1, b)] is a − b.
        comparisons: how many the extremes among the arms were picked from; the interval is widened
            for all of them.

    Returns:
        The sum in points with its 95 % interval; None where the arms share no scored fact.
    """
    statistic = results.contrast(terms, when, metric)
    return statistic.estimate(comparisons) if statistic else None


def measure(
    results: Results,
    text: str,
    terms: Sequence[tuple[float, Arm]],
    when: str,
    metric: str,
    judge: Judge | None = None,
    *,
    decides: bool = False,
    **about: object,
) -> Effect | None:
    """Measure an effect and judge it; None where the arms share no scored fact.

    Args:
        text: what is compared, in words.
        terms: weights, each with its arm; [(1, a), (-1, b)] is a − b.
        judge: one of the judges above; None measures without a verdict.
        decides: whether the verdict on the claim rests on it.
        about: further values by name, for charts.
    """
    estimate = contrast(results, terms, when, metric)
    if estimate is None:
        return None
    verdict = judge(estimate) if judge else None
    arms = [arm for _, arm in terms]
    effect = effect_of(text, when, metric, estimate, verdict, arms, decides=decides)
    return effect._replace(about=about)


def effect_of(
    text: str,
    when: str,
    metric: str,
    estimate: Estimate,
    verdict: Verdict | None,
    arms: Iterable[Arm],
    *,
    decides: bool = False,
    any_facts: bool = False,
) -> Effect:
    """Make an effect of an estimate that is no plain contrast, with the rows of its arms.

    Args:
        any_facts: what it says holds of any facts, whichever were scored. So does what one
            measurement says against itself.
    """
    arms = list(arms)
    low, high = estimate.low, estimate.high
    same = low is not None and high is not None and high - low < _NO_WIDTH
    if not (any_facts or same) and any(arm.condition.first_written for arm in arms):
        text = f"{text} ({FIRST_WRITTEN})"
        verdict = None if verdict is None else "inconclusive"
    rows = evidence(arms, when, metric)
    return Effect(text, when, metric, estimate, verdict, decides, rows, {})


def measure_best(
    results: Results,
    candidate: Arm,
    rivals: Mapping[T, Arm],
    when: str,
    text: Callable[[T], str],
    *,
    pending: int,
    decides: bool,
) -> list[Effect]:
    """Measure S of a candidate against each rival, and judge whether it is the best.

    Args:
        text: of the effect against a rival, by the rival's key.
        pending: how many rivals have still to be run.
        decides: whether the verdict on the claim rests on it.

    Returns:
        The effect that decides, by `judge_best`, and then all of them, in the order of the rivals.
        Intervals are widened for the number of rivals.
    """
    estimates = {
        key: estimate
        for key, arm in rivals.items()
        if (
            estimate := contrast(
                results, [(1.0, candidate), (-1.0, arm)], when, "S", comparisons=len(rivals)
            )
        )
    }
    if not estimates:
        return []
    hardest, verdict = judge_best(estimates)
    deciding = effect_of(
        f"{text(hardest)}, of all others the one that decides",
        when,
        "S",
        estimates[hardest],
        while_pending(verdict, pending),
        [candidate, *(rivals[key] for key in estimates)],
        decides=decides,
    )
    each = [
        effect_of(
            text(key), when, "S", estimate, judge_not_worse(estimate), [candidate, rivals[key]]
        )
        for key, estimate in estimates.items()
    ]
    return [deciding, *each]
