"""The best layer: by S of single edits, each scored right after it was made."""

from collections.abc import Mapping
from typing import NamedTuple

from retcon.report.conditions import Arm, called, families
from retcon.report.numbers import share
from retcon.report.ranking import rank
from retcon.report.results import Results
from retcon.report.tables import Table
from retcon.scoring.intervals import Estimate
from retcon.study.study import Study

WHEN = "immediate"


class Recommendation(NamedTuple):
    """The layer with the highest S, and those that cannot be told from it.

    Attributes:
        differences: S of each other layer minus that of the best, by layer.
        tied: layers of which the interval of that difference includes 0.
    """

    model: str
    method: str
    layer: tuple[int, ...]
    score: Estimate
    tied: tuple[tuple[int, ...], ...]
    differences: Mapping[tuple[int, ...], Estimate]


def sweeps(results: Results) -> list[dict[tuple[int, ...], Arm]]:
    """Single edits that differ in the layer alone; the sweeps of most layers first."""

    def single(arm: Arm) -> bool:
        alone = arm.condition.batch_size == 1 and not arm.condition.carried
        return alone and results.has(arm, WHEN)

    swept = [
        {arm.condition.layers: arm for arm in family.values()}
        for family in families(results.arms, "layers", single)
    ]
    return sorted(swept, key=len, reverse=True)


def recommend(study: Study | Results) -> list[Recommendation]:
    """The best layer of each sweep in a study; the sweeps of most layers first."""
    results = study if isinstance(study, Results) else Results(study)
    best = (best_of(results, sweep) for sweep in sweeps(results))
    return [one for one in best if one is not None]


def best_of(results: Results, sweep: Mapping[tuple[int, ...], Arm]) -> Recommendation | None:
    """The best layer of one sweep; None where S is not known (no paraphrases or neighbours)."""
    ranking = rank(results, sweep, WHEN, "S")
    if ranking is None:
        return None
    by_layer = {k: ranking.differences[k] for k in sweep if k in ranking.differences}
    tied = tuple(layer for layer in by_layer if layer in ranking.tied)
    condition, score = sweep[ranking.best].condition, ranking.scores[ranking.best]
    return Recommendation(condition.model, condition.method, ranking.best, score, tied, by_layer)


def recommended(results: Results) -> Table:
    """The best layer of each sweep, and those that cannot be told from it."""
    rows = [
        (
            one.model,
            called(one.method),
            "+".join(map(str, one.layer)),
            share(one.score),
            ", ".join("+".join(map(str, layer)) for layer in one.tied) or "–",
        )
        for one in recommend(results)
    ]
    columns = ("model", "method", "layer", "S, immediate", "statistically indistinguishable")
    return Table("Recommended layer", "", columns, tuple(rows))
