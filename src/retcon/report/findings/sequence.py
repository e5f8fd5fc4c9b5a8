"""(b2), (c), (e) Carried edits: the size of sequential batches, and the number of edits."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import log2

from retcon.report.arms import Arm, Results
from retcon.report.findings.batch import closest, name_of, size_families
from retcon.report.findings.claims import (
    Claim,
    Finding,
    against_all,
    contrast,
    make,
    points,
    share,
    towards,
)
from retcon.scoring.intervals import Statistic, combine

# The paper's scores are most likely immediate ones, averaged over all facts so far.
TIMES = ("immediate", "final")
PAPERS_SIZE = 1024

Curve = dict[int, Arm]


def large_batch_against_small_ones(results: Results) -> Finding:
    """One batch of all N facts against the mean of the smaller sequential sizes, at equal N."""
    found = Finding(
        key="b2",
        name="One large batch against sequential small ones",
        claim="With equally many facts in the weights, one large batch is worse than smaller "
        "sequential ones in S (and in ES and PS, while NS is higher).",
        paper="Llama-3-8B, layer 1, N = 4,096, MEMIT: S 81.3 for one batch against 82.3 to "
        "83.5 for smaller ones; ES 93.7 against 97.4 to 99.2; NS 66.8 against 62.5 to 66.4.",
        explanation="The score of one batch of all N facts minus the mean over all smaller batch "
        "sizes, paired over the same facts. Both sides hold all N facts at the end.",
        charts=("sequential-immediate", "sequential-final"),
    )
    claims: list[Claim] = []
    for when in TIMES:
        curves = [c for c in carried(results, when) if _whole(c) in c and len(c) > 1]
        leading = closest(curves)
        for curve in curves:
            name = _at(curve, leading if curve in leading else curves)
            claims += _large(results, curve, when, name, primary=curve in leading)
    if not claims:
        return found.needs("carried edits in one batch of all N facts and in smaller ones")
    return replace(found, effect=_sentences(claims), claims=tuple(claims))


def carried(results: Results, when: str) -> list[Curve]:
    """Families of carried arms; one batch of all facts belongs to each, however it was named."""
    curves = size_families(results, carried=True, when=when)
    wholes = [arm for arm in results.arms if arm.setting.batch_size == arm.setting.n]
    for curve in curves:
        setting = next(iter(curve.values())).setting
        alike = ("carried", "batch_size", "accumulate", "refresh", "order")
        for arm in wholes:
            if arm.setting.but(*alike) == setting.but(*alike):
                curve.setdefault(setting.n, arm)
    return curves


def _whole(curve: Curve) -> int:
    return next(iter(curve.values())).setting.n


def _at(curve: Curve, curves: list[Curve]) -> str:
    name, n = name_of(curve, curves), f"N = {_whole(curve):,}"
    return name if n in name else f"{name}, {n}"


def _large(results: Results, curve: Curve, when: str, name: str, *, primary: bool) -> list[Claim]:
    whole = curve[_whole(curve)]
    smaller = [arm for size, arm in curve.items() if size < _whole(curve)]
    terms = [(1.0, whole), *((-1 / len(smaller), arm) for arm in smaller)]
    found: list[Claim] = []
    for metric in ("S", "ES", "PS", "NS"):
        effect = contrast(results, terms, when, metric)
        if effect is None:
            continue
        verdict = towards(effect, 1 if metric == "NS" else -1)
        text = f"{name}: {metric} of one batch − mean of the smaller sizes ({len(smaller)})"
        mine = primary and metric == "S"
        found.append(make(text, when, metric, effect, verdict, [whole, *smaller], primary=mine))
    return found


def best_sequential_size(results: Results) -> Finding:
    """The paper's best size against all others, at the largest N."""
    found = Finding(
        key="c",
        name="The best sequential batch size",
        claim=f"At the largest N, sequential batches of {PAPERS_SIZE:,} (a quarter of N where that "
        "is not among the sizes) are the best, by S.",
        paper="Llama-3-8B, layer 1, N = 4,096: S 83.5 (MEMIT) and 83.2 (EMMET) for batches of "
        "1,024, 0.6 to 2.2 points above all other sizes.",
        explanation="Paired with each of the other sizes, the intervals widened for all sizes that "
        "are compared; the one that decides is the size that is better, or else the one that may "
        "be better by most. The best size was read off the same facts, so its S is a little "
        "flattered.",
        charts=("sequential-immediate", "sequential-final"),
    )
    claims: list[Claim] = []
    sentences: list[str] = []
    for when in TIMES:
        curves = [c for c in carried(results, when) if len(c) > 2]
        most = max((_whole(c) for c in curves), default=0)
        curves = [c for c in curves if _whole(c) == most]
        leading = closest(curves)
        for curve in curves:
            name = _at(curve, leading if curve in leading else curves)
            claims += _best(results, curve, when, name, primary=curve in leading)
            if curve in leading:
                sentences.append(_ranking(results, curve, when, name))
    if not claims:
        return found.needs("carried edits in three batch sizes or more at equal N")
    return replace(found, effect="\n".join(sentences), claims=tuple(claims))


def _reference(curve: Curve) -> int:
    """The paper's size, or the one that is nearest to a quarter of N."""
    if PAPERS_SIZE in curve and _whole(curve) > PAPERS_SIZE:
        return PAPERS_SIZE
    return min(curve, key=lambda size: abs(log2(size / (_whole(curve) / 4))))


def _best(results: Results, curve: Curve, when: str, name: str, *, primary: bool) -> list[Claim]:
    size = _reference(curve)
    others = {other: arm for other, arm in curve.items() if other != size}
    waiting = results.waiting(curve[min(curve)].setting, "batch_size")
    place = lambda other: f"{name}: S of batches of {size:,} − batches of {other:,}"  # noqa: E731
    return against_all(results, curve[size], others, when, place, waiting=waiting, primary=primary)


def _ranking(results: Results, curve: Curve, when: str, name: str) -> str:
    scores = {size: results.estimate(arm, when, "S") for size, arm in curve.items()}
    best = max(scores, key=lambda size: scores[size].mean or 0.0)
    tied: list[str] = []
    for size, arm in curve.items():
        pair = [(1.0, arm), (-1.0, curve[best])]
        effect = contrast(results, pair, when, "S", comparisons=len(curve) - 1)
        if size != best and effect and (effect.high is None or effect.high >= 0):
            tied.append(f"{size:,}")
    rest = f", not to be told from {', '.join(tied)}" if tied else ", above all others"
    return f"{when.capitalize()}, {name}: best {best:,} with S {share(scores[best])}{rest}."


def number_against_size(results: Results) -> Finding:
    """What going from the smallest to the largest N costs, against the spread over sizes."""
    found = Finding(
        key="e",
        name="Number of edits against batch size",
        claim="The number of edits costs more S than the choice of the sequential batch size.",
        paper="Llama-3-8B, layer 1: S falls from about 92 to 81–83.5 between 16 and 4,096 edits, "
        "for every batch size; at 4,096 the sizes differ by 2.3 points at most.",
        explanation="The loss of S from the smallest to the largest N (mean over the sizes that "
        "both have) minus the spread, best − worst, at the largest N. Final scores are paired "
        "over the facts of the smaller N; immediate ones are means over all facts so far, as in "
        "the paper. A spread is the gap of extremes picked on the same facts, which works "
        "against the claim; the interval is widened for the pairs it was picked from.",
        charts=("number-immediate", "number-final"),
    )
    claims: list[Claim] = []
    empty: list[str] = []
    for when in TIMES:
        grids = _grids(carried(results, when))
        leading = closest([_flat(grid) for grid in grids])
        told = [
            claim
            for grid in grids
            for claim in _costs(results, grid, when, grids, primary=_flat(grid) in leading)
        ]
        claims += told
        if grids and not any(_own_sizes(results, grid, when) for grid in grids):
            empty.append(f"At {when} the largest N has no row of its own: {_SAME_ROWS}.")
    missing = " ".join(empty) or None
    if not claims:
        needed = found.needs("carried edits at two N or more, each in two batch sizes or more")
        return replace(needed, missing=missing or needed.missing)
    return replace(found, effect=_sentences(claims), claims=tuple(claims), missing=missing)


Grid = dict[int, Curve]

_SAME_ROWS = (
    "the facts that are scored are written first, and right after that they stand where they stand "
    "in a run that ends with them, so that a loss is none by construction; score other facts too"
)


def _grids(curves: Iterable[Curve]) -> list[Grid]:
    """Families that differ in N alone, by N; two at least that share a batch size."""
    found: dict[tuple[object, ...], Grid] = defaultdict(dict)
    for curve in curves:
        setting = next(iter(curve.values())).setting
        found[setting.across_n()].setdefault(setting.n, curve)
    grids = [{n: grid[n] for n in sorted(grid)} for grid in found.values() if len(grid) > 1]
    return [g for g in grids if set(g[min(g)]) & set(g[max(g)]) and len(g[max(g)]) > 1]


def _flat(grid: Grid) -> Curve:
    return grid[max(grid)]


def _costs(
    results: Results, grid: Grid, when: str, grids: list[Grid], *, primary: bool
) -> list[Claim]:
    few, many = min(grid), max(grid)
    among = [_flat(other) for other in grids]
    name = name_of(grid[many], closest(among) if primary else among)
    loss = _loss(results, grid, when)
    gap = spread(results, grid[many], when, "S")
    if loss is None or gap is None:
        return []
    arms = [*grid[few].values(), *grid[many].values()]
    sizes = len(grid[many])
    pairs = sizes * (sizes - 1) // 2
    effect = combine([(1.0, loss), (-1.0, gap)]).estimate(pairs)
    per_n = combine([(1 / log2(many / few), loss)])
    text = f"{name}: loss of S from N = {few:,} to {many:,} − spread over {sizes} batch sizes"
    return [
        make(text, when, "S", effect, towards(effect, 1), arms, primary=primary),
        make(f"{name}: that loss", when, "S", loss.estimate(), None, arms),
        make(f"{name}: the same, each time N doubles", when, "S", per_n.estimate(), None, arms),
        make(f"{name}: that spread", when, "S", gap.estimate(pairs), None, arms),
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
    """Whether every row of an arm is one of another's: same prompt, same time, same numbers."""
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


def _sentences(claims: list[Claim]) -> str:
    """What the deciding claims found, by the time of scoring."""
    told = [f"{c.when.capitalize()}, {c.text}: {points(c.effect)}." for c in claims if c.primary]
    return "\n".join(told)
