"""(b1) Batches written into the untouched model: the price of a bigger one."""

from math import log2

from retcon.replications.batch_size.paper import BATCH_SIZE, distance
from retcon.report.charts import sizes
from retcon.report.families import Family, by_size, leading, name_of
from retcon.report.findings import Outcome, finding, needs
from retcon.report.numbers import points
from retcon.report.results import SCORES, Results
from retcon.report.verdicts import Effect, judge_lower, measure

WHEN = "immediate"


@finding(
    "b1",
    set=BATCH_SIZE,
    title="Bigger batches, fewer neighbours kept",
    claim="In the batch regime (each batch on the untouched model) NS falls with batch size.",
    source="Llama-3-8B, layer 1, 4,096 facts, MEMIT: NS 88.3, 86.3, 81.5, 73.8, 67.0 for "
    "batches of 16, 64, 256, 1,024, 4,096: −2.7 points each time the batch doubles (figure 2).",
    measured="The difference of NS between the largest and the smallest batch, paired over the "
    "same facts and neighbours. The slope is the least-squares one over all sizes, per doubling. "
    "Batch size is here the number of facts that the weights hold at once.",
)
def batch_size_costs_neighbours(results: Results) -> Outcome:
    """NS of the largest batch against the smallest, over the same facts."""
    curves = by_size(results, carried=False, when=WHEN, rank=distance)
    if not curves:
        return needs("two batch sizes or more, each batch written into the untouched model")
    nearest = leading(curves)
    effects = [
        effect
        for curve in curves
        for name in [name_of(curve, nearest if curve in nearest else curves)]
        for effect in _effects(results, curve, name, decides=curve in nearest)
    ]
    summary = "\n".join(f"{e.text}: {points(e.estimate)}." for e in effects if e.decides)
    return Outcome(effects, summary, charts=[sizes.batch(results, distance)])


def _effects(results: Results, curve: Family, name: str, *, decides: bool) -> list[Effect]:
    small, large = min(curve), max(curve)
    terms = [(1.0, curve[large]), (-1.0, curve[small])]
    measured = [
        measure(
            results,
            f"{name}: {metric} of batches of {large:,} − batches of {small:,}",
            terms,
            WHEN,
            metric,
            judge_lower if metric == "NS" else None,
            decides=decides and metric == "NS",
        )
        for metric in ("NS", *(m for m in SCORES if m != "NS"))
    ]
    return [effect for effect in (*measured, _slope(results, curve, name)) if effect is not None]


def _slope(results: Results, curve: Family, name: str) -> Effect | None:
    """The slope of NS over all sizes, per doubling."""
    if len(curve) < 3:
        return None
    places = [log2(size) for size in curve]
    centre = sum(places) / len(places)
    scale = sum((place - centre) ** 2 for place in places)
    weights = [(place - centre) / scale for place in places]
    terms = list(zip(weights, curve.values(), strict=True))
    text = f"{name}: slope of NS each time the batch doubles"
    return measure(results, text, terms, WHEN, "NS", judge_lower)
