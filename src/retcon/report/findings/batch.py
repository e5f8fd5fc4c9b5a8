"""(b1) Batches written into the untouched model: what a bigger one costs."""

from collections.abc import Mapping
from dataclasses import replace
from math import log2

from retcon.report.arms import SCORES, Arm, Results, Setting, describe, families, varying
from retcon.report.findings.claims import (
    Claim,
    Finding,
    contrast,
    make,
    points,
    strangeness,
    towards,
)

WHEN = "immediate"


def batch_size_costs_neighbours(results: Results) -> Finding:
    """NS of the largest batch against the smallest, over the same facts."""
    found = Finding(
        key="b1",
        name="Bigger batches, fewer neighbours kept",
        claim="In the batch regime (each batch on the untouched model) NS falls with batch size.",
        paper="Llama-3-8B, layer 1, 4,096 facts, MEMIT: NS 88.3, 86.3, 81.5, 73.8, 67.0 for "
        "batches of 16, 64, 256, 1,024, 4,096: −2.7 points each time the batch doubles (figure 2).",
        charts=("batch",),
    )
    curves = size_families(results, carried=False, when=WHEN)
    if not curves:
        return found.needs("two batch sizes or more, each batch written into the untouched model")
    leading = closest(curves)
    claims = [
        claim
        for curve in curves
        for name in [name_of(curve, leading if curve in leading else curves)]
        for claim in _claims(results, curve, name, primary=curve in leading)
    ]
    effect = "\n".join(f"{c.text}: {points(c.effect)}." for c in claims if c.primary)
    explanation = (
        "The difference of NS between the largest and the smallest batch, paired over the same "
        "facts and neighbours. The slope is the least-squares one over all sizes, per doubling. "
        "Batch size is here the number of facts that the weights hold at once."
    )
    return replace(found, effect=effect, explanation=explanation, claims=tuple(claims))


def size_families(results: Results, *, carried: bool, when: str) -> list[dict[int, Arm]]:
    """Arms that differ in batch size alone, those closest to the paper's setting first."""

    def fits(arm: Arm) -> bool:
        return arm.setting.carried is carried and results.has(arm, when)

    found = [
        {arm.setting.batch_size: arm for arm in family.values()}
        for family in families(results.arms, "batch_size", fits)
    ]
    return sorted(found, key=_rank)


def _rank(curve: Mapping[int, Arm]) -> tuple[object, ...]:
    setting = next(iter(curve.values())).setting
    return (*strangeness(setting), -len(curve), -setting.n)


def closest(curves: list[dict[int, Arm]]) -> list[dict[int, Arm]]:
    """For each model and method, the family that is closest to the paper's setting."""
    found: dict[tuple[str, str], dict[int, Arm]] = {}
    for curve in curves:
        setting = next(iter(curve.values())).setting
        found.setdefault((setting.model, setting.method), curve)
    return list(found.values())


def shared(curve: Mapping[int, Arm]) -> Setting:
    """What stands for a family: its smallest batches, because one batch of all is of many."""
    return curve[min(curve)].setting


def name_of(curve: Mapping[int, Arm], among: list[dict[int, Arm]]) -> str:
    """A family in words: its method, and in what it differs from the other families."""
    arms = [arm for other in among for arm in other.values()]
    fields = dict.fromkeys(("method", *varying(arms, "batch_size", "score")))
    return describe(next(iter(curve.values())).setting, fields)


def _claims(results: Results, curve: Mapping[int, Arm], name: str, *, primary: bool) -> list[Claim]:
    small, large = min(curve), max(curve)
    found: list[Claim] = []
    for metric in ("NS", *(m for m in SCORES if m != "NS")):
        terms = [(1.0, curve[large]), (-1.0, curve[small])]
        effect = contrast(results, terms, WHEN, metric)
        if effect is None:
            continue
        judged = towards(effect, -1) if metric == "NS" else None
        text = f"{name}: {metric} of batches of {large:,} − batches of {small:,}"
        arms = [arm for _, arm in terms]
        mine = primary and metric == "NS"
        found.append(make(text, WHEN, metric, effect, judged, arms, primary=mine))
    return found + _slope(results, curve, name)


def _slope(results: Results, curve: Mapping[int, Arm], name: str) -> list[Claim]:
    """The slope of NS over all sizes, per doubling."""
    if len(curve) < 3:
        return []
    places = [log2(size) for size in curve]
    centre = sum(places) / len(places)
    scale = sum((place - centre) ** 2 for place in places)
    weights = [(place - centre) / scale for place in places]
    arms = list(curve.values())
    found = results.contrast(list(zip(weights, arms, strict=True)), WHEN, "NS")
    if found is None:
        return []
    effect = found.estimate()
    text = f"{name}: slope of NS each time the batch doubles"
    return [make(text, WHEN, "NS", effect, towards(effect, -1), arms)]
