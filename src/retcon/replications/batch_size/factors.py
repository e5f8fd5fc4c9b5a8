"""(f) What batch size is: its spread taken apart into the factors that move with it.

A factor is switched by itself: two families of carried arms that are equal in everything but this
factor and the batch size. All scores are final ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations, permutations
from typing import NamedTuple

from retcon.replications.batch_size.charts import turned_on
from retcon.replications.batch_size.paper import BATCH_SIZE, distance
from retcon.replications.batch_size.sequence import extremes, paired
from retcon.report.charts import sizes
from retcon.report.conditions import Arm, Condition, called, describe
from retcon.report.families import Family, carried_by_size, shared
from retcon.report.findings import Outcome, finding, needs
from retcon.report.numbers import points
from retcon.report.results import SCORES, Results
from retcon.report.sameness import SAME
from retcon.report.verdicts import (
    MARGIN,
    Effect,
    Verdict,
    contrast,
    effect_of,
    judge_higher,
    measure,
)
from retcon.scoring.intervals import Estimate, combine

WHEN = "final"

# Each factor's field, its name, and its values from the one that holds batch size still.
FACTORS: Mapping[str, str] = {
    "accumulate": "Accumulation off",
    "ridge_batch": "λ per fact",
    "refresh": "Targets refreshed",
    "dtype": "Precision",
    "order": "Order of the facts",
}
_DTYPES = ("float64", "float32", "bfloat16", "float16")


class Switch(NamedTuple):
    """A factor turned: families of batch sizes before and after, and where all else stands."""

    factor: str
    off: Family
    on: Family
    place: str

    @property
    def sizes(self) -> list[int]:
        """The batch sizes that both have."""
        return sorted(set(self.off) & set(self.on))


@finding(
    "f",
    set=BATCH_SIZE,
    title="What batch size is",
    claim="Batch size as such does nothing: where past keys are kept, targets frozen and λ is "
    f"one number, all sequential batch sizes end within {MARGIN:.0f} point of S. What is seen "
    "between sizes comes from factors that move with it.",
    source="Not in the paper, whose runs forget past keys and refresh targets: there S differs "
    "by up to 2.3 points between sizes at N = 4,096 (figures 4 and 5).",
    measured="The spread is the highest minus the lowest score over batch sizes. Where the "
    f"NLLs of all prompts agree to {SAME} nats a token, far less than other weights make, the "
    "sizes are one measurement, and no other facts would part them; else that the spread is "
    "small is judged by the upper limits of all pairs of sizes. That a factor widens it, by "
    "the gap between the two extreme sizes with the factor on, minus the gap between the same "
    "two with it off, over the same facts, with the interval widened for the choice of the "
    "pair. One factor is turned at a time, once from the still setting and once from the "
    "paper's.",
)
def what_batch_size_is(results: Results) -> Outcome:
    """The spread over sizes with all else held, and which factor widens it."""
    curves = [curve for curve in carried_by_size(results, WHEN, distance) if len(curve) > 1]
    turned = switches(curves)
    effects = [*_still(results, curves), *(e for s in turned for e in _switched(results, s))]
    charts = [sizes.factors(results, distance), turned_on(effects)]
    if not effects:
        return needs(
            "final scores of carried edits in two batch sizes, with one of these turned: "
            + ", ".join(FACTORS.values()),
            charts,
        )
    outcome = Outcome(effects, _in_words(effects), charts=charts)
    if any(effect.decides for effect in effects):
        return outcome
    needed = needs(
        "final scores of carried edits with past keys kept, targets frozen and one λ, in two "
        "batch sizes or more; factors that were turned elsewhere are below"
    )
    return replace(outcome, missing=needed.missing)


def _is_still(condition: Condition) -> bool:
    return (
        bool(condition.accumulate) and condition.refresh == "never" and condition.ridge_batch == 0
    )


def _still(results: Results, curves: list[Family]) -> list[Effect]:
    """Families in which nothing but batch size moves: all sizes should score alike."""
    effects: list[Effect] = []
    still = [curve for curve in curves if _is_still(shared(curve))]
    for curve in sorted(still, key=lambda c: _standing(results, c)):
        condition = shared(curve)
        for metric in ("S", *SCORES[:3]):
            width = width_of(results, curve, metric)
            if width is None or width.mean is None:
                continue
            text = (
                f"Nothing but batch size moves ({called(condition.method)}, N = {condition.n:,}, "
                f"{condition.dtype}): spread of {metric} over {len(curve)} sizes"
                f"{_apart(results, curve)}"
            )
            first = metric == "S" and not any(effect.decides for effect in effects)
            effect = effect_of(
                text,
                WHEN,
                metric,
                width,
                _small(width),
                curve.values(),
                decides=first,
                any_facts=True,
            )
            effects.append(effect)
    return effects


def _apart(results: Results, curve: Mapping[int, Arm]) -> str:
    """Largest difference of any prompt's NLL between sizes, in words."""
    seeds = {run.seed for arm in curve.values() for run in arm.runs}
    gaps = [
        results.measurements.widest(
            (run.cell for arm in curve.values() for run in arm.runs if run.seed == seed), WHEN
        )
        for seed in seeds
    ]
    known = [gap for gap in gaps if gap is not None]
    return (
        f", whose NLLs differ by {max(known):.1g} nats at most" if len(known) == len(gaps) else ""
    )


def _standing(results: Results, curve: Mapping[int, Arm]) -> tuple[object, ...]:
    """Rank families: many sizes, many facts written, many scored, the finest precision first."""
    cases = len(results.common(curve.values(), WHEN, "ES"))
    condition = shared(curve)
    return -len(curve), -condition.n, -cases, _level(condition, "dtype")


def width_of(results: Results, curve: Mapping[int, Arm], metric: str) -> Estimate | None:
    """The spread over batch sizes; its upper limit is the largest of all pairs'."""
    scores = paired(results, curve, WHEN, metric)
    if len(scores) < 2:
        return None
    high, low = extremes(scores)
    widest = combine([(1.0, scores[high]), (-1.0, scores[low])])
    estimate = widest.estimate(len(list(combinations(scores, 2))))
    gaps = [
        combine([(1.0, one), (-1.0, other)]).estimate().high
        for one, other in permutations(scores.values(), 2)
    ]
    if estimate.low is None or None in gaps:
        return estimate
    high = max(gap for gap in gaps if gap is not None)
    return estimate._replace(low=max(0.0, estimate.low), high=high)


def _small(width: Estimate) -> Verdict:
    if width.low is None or width.high is None:
        return "inconclusive"
    if width.high < MARGIN:
        return "reproduced"
    return "not reproduced" if width.low > MARGIN else "inconclusive"


def switches(curves: list[Family]) -> list[Switch]:
    """Pairs of families that differ in one factor, all else still, or all else as in the paper.

    If several qualify, take the one of most sizes among those whose scored facts stand for all.
    """
    pairs: list[tuple[tuple[object, ...], Switch]] = []
    for factor in FACTORS:
        for off in curves:
            for on in curves:
                before, after = shared(off), shared(on)
                if before.but(factor, "batch_size") != after.but(factor, "batch_size"):
                    continue
                if _level(before, factor) >= _level(after, factor):
                    continue
                place = _place(before, factor)
                switch = Switch(factor, off, on, place)
                if place and len([s for s in switch.sizes if s < before.n]) > 0:
                    rank = (
                        place == "paper",
                        before.first_written,
                        -len(switch.sizes),
                        -before.n,
                        *distance(before),
                    )
                    pairs.append((rank, switch))
    order = list(FACTORS)
    ranked = sorted(pairs, key=lambda item: (order.index(item[1].factor), item[0]))
    return list(
        {
            (shared(s.on).model, s.factor, s.place, _level(shared(s.on), s.factor)): s
            for _, s in reversed(ranked)
        }.values()
    )[::-1]


def _level(condition: Condition, factor: str) -> tuple[int, str]:
    """Level of a factor; the lowest is the one that holds batch size still."""
    value = getattr(condition, factor)
    if factor == "accumulate":
        return int(not value), ""
    if factor == "refresh":
        return int(value != "never") + int(value == "each-batch"), str(value)
    if factor == "dtype":
        return (_DTYPES.index(value) if value in _DTYPES else len(_DTYPES)), value
    return int(value), ""


def _place(condition: Condition, factor: str) -> str:
    """Level of everything but one factor: `still`, `paper`, or empty for in between."""
    if _is_still(_held(condition, factor, accumulate=True, refresh="never")):
        return "still"
    held = _held(condition, factor, accumulate=False, refresh="each-batch")
    papers = not held.accumulate and held.refresh == "each-batch" and held.ridge_batch == 0
    return "paper" if papers else ""


def _held(condition: Condition, factor: str, *, accumulate: bool, refresh: str) -> Condition:
    values: dict[str, object] = {"accumulate": accumulate, "refresh": refresh, "ridge_batch": 0}
    return condition._replace(**{factor: values[factor]}) if factor in values else condition


def _switched(results: Results, switch: Switch) -> list[Effect]:
    """The effect of a factor on the spread, and on each batch size by itself."""
    place = "alone" if switch.place == "still" else "in the paper's setting"
    name = FACTORS[switch.factor]
    before, after = (describe(shared(c), [switch.factor]) for c in (switch.off, switch.on))
    label = f"{name}, {place} ({before} → {after})"
    effects: list[Effect | None] = []
    for metric in ("S", *SCORES[:3]):
        widening = _widening(results, switch, metric)
        if widening is not None:
            estimate, arms = widening
            text = f"{label}: change of the spread of {metric}"
            verdict = judge_higher(estimate)
            about = {"factor": name, "place": place, "kind": "spread"}
            effect = effect_of(text, WHEN, metric, estimate, verdict, arms)
            effects.append(effect._replace(about=about))
        effects += [
            measure(
                results,
                f"{label}: {metric} at batches of {size:,}",
                [(1.0, switch.on[size]), (-1.0, switch.off[size])],
                WHEN,
                metric,
                factor=name,
                place=place,
                kind="level",
                batch_size=size,
                change=f"{before} → {after}",
            )
            for size in switch.sizes
            if switch.on[size].cells != switch.off[size].cells
        ]
    return [effect for effect in effects if effect is not None]


def _widening(results: Results, switch: Switch, metric: str) -> tuple[Estimate, list[Arm]] | None:
    """The gap of the extreme sizes with the factor on, minus that of the same two with it off."""
    on = {size: switch.on[size] for size in switch.sizes}
    off = {size: switch.off[size] for size in switch.sizes}
    if len(on) < 2 or not results.common([*on.values(), *off.values()], WHEN, metric):
        return None
    high, low = extremes(paired(results, on, WHEN, metric))
    terms = [(1.0, on[high]), (-1.0, on[low]), (-1.0, off[high]), (1.0, off[low])]
    pairs = len(on) * (len(on) - 1) // 2
    effect = contrast(results, terms, WHEN, metric, comparisons=pairs)
    return (effect, [arm for _, arm in terms]) if effect else None


def _in_words(effects: Sequence[Effect]) -> str:
    """The decomposition in sentences that are made from its numbers."""
    sentences: list[str] = []
    still = next((effect for effect in effects if effect.decides), None)
    if still:
        answer = {
            "reproduced": "batch size does not matter",
            "not reproduced": "batch size still matters",
        }.get(still.verdict or "", "it cannot be told whether batch size matters")
        spread = points(still.estimate)
        sentences.append(f"With everything else held still, {answer}: spread {spread}.")
    else:
        sentences.append("No family holds everything but batch size still, so this is open.")
    words: dict[Verdict | None, str] = {
        "reproduced": "widens the spread of S by",
        "not reproduced": "does not widen it:",
        "inconclusive": "may or may not widen it:",
        None: "",
    }
    for effect in effects:
        if effect.about.get("kind") == "spread" and effect.metric == "S":
            who = effect.text.split(": change of")[0]
            slight = f", less than {MARGIN:.0f} point" if _is_slight(effect) else ""
            sentences.append(f"{who} {words[effect.verdict]} {points(effect.estimate)}{slight}.")
    return "\n".join(sentences)


def _is_slight(effect: Effect) -> bool:
    """True if it widens the spread, but by less than is of interest."""
    high = effect.estimate.high
    return effect.verdict == "reproduced" and high is not None and high < MARGIN
