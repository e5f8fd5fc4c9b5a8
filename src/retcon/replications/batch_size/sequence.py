"""(b2), (c), (e) Carried edits: the size of sequential batches, and the number of edits."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import log2

from retcon.replications.batch_size.paper import BATCH_SIZE, PAPERS_SIZE, distance
from retcon.report.charts import sizes
from retcon.report.charts.style import Chart
from retcon.report.conditions import Arm
from retcon.report.families import Family, carried_by_size, leading, name_of, name_with_number
from retcon.report.findings import Outcome, finding, needs
from retcon.report.numbers import points, share
from retcon.report.results import Results
from retcon.report.verdicts import (
    Effect,
    contrast,
    effect_of,
    judge_higher,
    judge_lower,
    measure,
    measure_best,
)
from retcon.scoring.intervals import Statistic, combine

# The paper's scores are most likely immediate ones, averaged over all facts so far.
TIMES = ("immediate", "final")


@finding(
    "b2",
    set=BATCH_SIZE,
    title="One large batch against sequential small ones",
    claim="With equally many facts in the weights, one large batch is worse than smaller "
    "sequential ones in S (and in ES and PS, while NS is higher).",
    source="Llama-3-8B, layer 1, N = 4,096, MEMIT: S 81.3 for one batch against 82.3 to "
    "83.5 for smaller ones; ES 93.7 against 97.4 to 99.2; NS 66.8 against 62.5 to 66.4.",
    measured="The score of one batch of all N facts minus the mean over all smaller batch "
    "sizes, paired over the same facts. Both sides hold all N facts at the end.",
)
def large_batch_against_small_ones(results: Results) -> Outcome:
    """One batch of all N facts against the mean of the smaller sequential sizes, at equal N."""
    effects: list[Effect] = []
    for when in TIMES:
        curves = [
            curve
            for curve in carried_by_size(results, when, distance)
            if _whole(curve) in curve and len(curve) > 1
        ]
        nearest = leading(curves)
        for curve in curves:
            name = name_with_number(curve, nearest if curve in nearest else curves)
            effects += _large(results, curve, when, name, decides=curve in nearest)
    if not effects:
        return needs(
            "carried edits in one batch of all N facts and in smaller ones", _by_size(results)
        )
    return Outcome(effects, _sentences(effects), charts=_by_size(results))


def _by_size(results: Results) -> list[Chart | None]:
    return [sizes.sequential(results, when, distance) for when in TIMES]


def _whole(curve: Family) -> int:
    return next(iter(curve.values())).condition.n


def _large(results: Results, curve: Family, when: str, name: str, *, decides: bool) -> list[Effect]:
    whole = curve[_whole(curve)]
    smaller = [arm for size, arm in curve.items() if size < _whole(curve)]
    measured = [
        measure(
            results,
            f"{name}: {metric} of one batch − mean of the smaller sizes ({len(smaller)})",
            [(1.0, whole), *((-1 / len(smaller), arm) for arm in smaller)],
            when,
            metric,
            judge_higher if metric == "NS" else judge_lower,
            decides=decides and metric == "S",
        )
        for metric in ("S", "ES", "PS", "NS")
    ]
    return [effect for effect in measured if effect is not None]


@finding(
    "c",
    set=BATCH_SIZE,
    title="The best sequential batch size",
    claim=f"At the largest N, sequential batches of {PAPERS_SIZE:,} (a quarter of N where that "
    "is not among the sizes) are the best, by S.",
    source="Llama-3-8B, layer 1, N = 4,096: S 83.5 (MEMIT) and 83.2 (EMMET) for batches of "
    "1,024, 0.6 to 2.2 points above all other sizes.",
    measured="Paired with each of the other sizes, the intervals widened for all sizes that "
    "are compared; the one that decides is the size that is better, or else the one that may "
    "be better by most. The best size was read off the same facts, so its S is a little "
    "flattered.",
)
def best_sequential_size(results: Results) -> Outcome:
    """The paper's best size against all others, at the largest N."""
    effects: list[Effect] = []
    sentences: list[str] = []
    for when in TIMES:
        curves = [c for c in carried_by_size(results, when, distance) if len(c) > 2]
        most = max((_whole(c) for c in curves), default=0)
        curves = [c for c in curves if _whole(c) == most]
        nearest = leading(curves)
        for curve in curves:
            name = name_with_number(curve, nearest if curve in nearest else curves)
            effects += _best(results, curve, when, name, decides=curve in nearest)
            if curve in nearest:
                sentences.append(_ranking(results, curve, when, name))
    if not effects:
        return needs("carried edits in three batch sizes or more at equal N", _by_size(results))
    return Outcome(effects, "\n".join(sentences), charts=_by_size(results))


def _reference(curve: Family) -> int:
    """The paper's size, or the one that is nearest to a quarter of N."""
    if PAPERS_SIZE in curve and _whole(curve) > PAPERS_SIZE:
        return PAPERS_SIZE
    return min(curve, key=lambda size: abs(log2(size / (_whole(curve) / 4))))


def _best(results: Results, curve: Family, when: str, name: str, *, decides: bool) -> list[Effect]:
    size = _reference(curve)
    others = {other: arm for other, arm in curve.items() if other != size}
    pending = results.waiting(curve[min(curve)].condition, "batch_size")
    text = lambda other: f"{name}: S of batches of {size:,} − batches of {other:,}"  # noqa: E731
    return measure_best(results, curve[size], others, when, text, pending=pending, decides=decides)


def _ranking(results: Results, curve: Family, when: str, name: str) -> str:
    scores = {size: results.estimate(arm, when, "S") for size, arm in curve.items()}
    best = max(scores, key=lambda size: scores[size].mean or 0.0)
    tied: list[str] = []
    for size, arm in curve.items():
        pair = [(1.0, arm), (-1.0, curve[best])]
        effect = contrast(results, pair, when, "S", comparisons=len(curve) - 1)
        if size != best and effect and (effect.high is None or effect.high >= 0):
            tied.append(f"{size:,}")
    rest = (
        f", statistically indistinguishable from {', '.join(tied)}"
        if tied
        else ", above all others"
    )
    return f"{when.capitalize()}, {name}: best {best:,} with S {share(scores[best])}{rest}."


@finding(
    "e",
    set=BATCH_SIZE,
    title="Number of edits against batch size",
    claim="The number of edits costs more S than the choice of the sequential batch size.",
    source="Llama-3-8B, layer 1: S falls from about 92 to 81–83.5 between 16 and 4,096 edits, "
    "for every batch size; at 4,096 the sizes differ by 2.3 points at most.",
    measured="The loss of S from the smallest to the largest N (mean over the sizes that "
    "both have) minus the spread, best − worst, at the largest N. Final scores are paired "
    "over the facts of the smaller N; immediate ones are means over all facts so far, as in "
    "the paper. A spread is the gap of extremes picked on the same facts, which works "
    "against the claim; the interval is widened for the pairs it was picked from.",
)
def number_against_size(results: Results) -> Outcome:
    """The loss from the smallest to the largest N, against the spread over sizes."""
    effects: list[Effect] = []
    empty: list[str] = []
    for when in TIMES:
        grids = _grids(carried_by_size(results, when, distance))
        nearest = leading([_flat(grid) for grid in grids])
        effects += [
            effect
            for grid in grids
            for effect in _costs(results, grid, when, grids, decides=_flat(grid) in nearest)
        ]
        if grids and not any(_own_sizes(results, grid, when) for grid in grids):
            empty.append(f"At {when} the largest N has no row of its own: {_SAME_ROWS}.")
    missing = " ".join(empty) or None
    charts = [sizes.number(results, when, distance) for when in TIMES]
    if not effects:
        needed = needs("carried edits at two N or more, each in two batch sizes or more", charts)
        return replace(needed, missing=missing or needed.missing)
    return Outcome(effects, _sentences(effects), missing, charts)


# Families that differ in N alone, by N.
Grid = dict[int, Family]

_SAME_ROWS = (
    "the facts that are scored are written first, and right after that they stand where they stand "
    "in a run that ends with them, so that a loss is none by construction; score other facts too"
)


def _grids(curves: Iterable[Family]) -> list[Grid]:
    """Families that differ in N alone, by N; two at least that share a batch size."""
    by_condition: dict[tuple[object, ...], Grid] = defaultdict(dict)
    for curve in curves:
        condition = next(iter(curve.values())).condition
        by_condition[condition.across_n()].setdefault(condition.n, curve)
    grids = [{n: grid[n] for n in sorted(grid)} for grid in by_condition.values() if len(grid) > 1]
    return [g for g in grids if set(g[min(g)]) & set(g[max(g)]) and len(g[max(g)]) > 1]


def _flat(grid: Grid) -> Family:
    return grid[max(grid)]


def _costs(
    results: Results, grid: Grid, when: str, grids: list[Grid], *, decides: bool
) -> list[Effect]:
    few, many = min(grid), max(grid)
    among = [_flat(other) for other in grids]
    name = name_of(grid[many], leading(among) if decides else among)
    loss = _loss(results, grid, when)
    gap = spread(results, grid[many], when, "S")
    if loss is None or gap is None:
        return []
    arms = [*grid[few].values(), *grid[many].values()]
    sizes = len(grid[many])
    pairs = sizes * (sizes - 1) // 2
    more = combine([(1.0, loss), (-1.0, gap)]).estimate(pairs)
    text = f"{name}: loss of S from N = {few:,} to {many:,} − spread over {sizes} batch sizes"
    rest = {
        "that loss": loss.estimate(),
        "the same, each time N doubles": combine([(1 / log2(many / few), loss)]).estimate(),
        "that spread": gap.estimate(pairs),
    }
    return [
        effect_of(text, when, "S", more, judge_higher(more), arms, decides=decides),
        *(
            effect_of(f"{name}: {what}", when, "S", estimate, None, arms)
            for what, estimate in rest.items()
        ),
    ]


def _loss(results: Results, grid: Grid, when: str) -> Statistic | None:
    """S at the smallest N minus S at the largest, mean over the batch sizes that both have."""
    few, many = grid[min(grid)], grid[max(grid)]
    terms: list[tuple[float, Statistic]] = []
    shared = _own_sizes(results, grid, when)
    for size in shared:
        among = results.common((few[size], many[size]), when, "S") if when == "final" else None
        before = results.statistic(few[size], when, "S", among)
        after = results.statistic(many[size], when, "S", among)
        if before is None or after is None:
            return None
        terms += [(1 / len(shared), before), (-1 / len(shared), after)]
    return combine(terms) if terms else None


def _own_sizes(results: Results, grid: Grid, when: str) -> list[int]:
    """The batch sizes of both ends of which the largest N has rows of its own."""
    few, many = grid[min(grid)], grid[max(grid)]
    shared = sorted(set(few) & set(many))
    return [size for size in shared if not _same_rows(results, many[size], few[size], when)]


def _same_rows(results: Results, one: Arm, other: Arm, when: str) -> bool:
    """True if every row of an arm is one of another's: same prompt, same time, same numbers."""
    theirs = {(run.seed, run.draw): run.cell for run in other.runs}
    return all(
        (run.seed, run.draw) in theirs
        and results.measurements.within(run.cell, theirs[run.seed, run.draw], when)
        for run in one.runs
    )


def paired(
    results: Results, curve: Mapping[int, Arm], when: str, metric: str
) -> dict[int, Statistic]:
    """A score by batch size, over the facts that all sizes share."""
    among = results.common(curve.values(), when, metric)
    found = {size: results.statistic(arm, when, metric, among) for size, arm in curve.items()}
    return {size: statistic for size, statistic in found.items() if statistic is not None}


def extremes(scores: Mapping[int, Statistic]) -> tuple[int, int]:
    """The batch sizes with the highest and the lowest score."""
    return max(scores, key=lambda s: scores[s].value), min(scores, key=lambda s: scores[s].value)


def spread(results: Results, curve: Mapping[int, Arm], when: str, metric: str) -> Statistic | None:
    """Highest minus lowest score over batch sizes."""
    scores = paired(results, curve, when, metric)
    if len(scores) < 2:
        return None
    high, low = extremes(scores)
    return combine([(1.0, scores[high]), (-1.0, scores[low])])


def _sentences(effects: Sequence[Effect]) -> str:
    """The effects that decide, by the time of scoring."""
    deciding = [effect for effect in effects if effect.decides]
    return "\n".join(f"{e.when.capitalize()}, {e.text}: {points(e.estimate)}." for e in deciding)
