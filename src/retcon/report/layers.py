"""Which layer is best: by S of single edits, each scored right after it was made."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from retcon.report.arms import Arm, Results, families
from retcon.scoring.intervals import Estimate
from retcon.study.reading import Study

WHEN = "immediate"


class Recommendation(NamedTuple):
    """The layer with the highest S, and those that cannot be told from it.

    tied: the interval of the paired difference of S to the best, widened for all the layers that
    are compared, includes 0. The best of many looks a little better than it is.
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
        alone = arm.setting.batch_size == 1 and not arm.setting.carried
        return alone and results.has(arm, WHEN)

    found: Iterator[dict[object, Arm]] = families(results.arms, "layers", single)
    swept = [{arm.setting.layers: arm for arm in family.values()} for family in found]
    return sorted(swept, key=len, reverse=True)


def recommend(study: Study | Results) -> list[Recommendation]:
    """The best layer of each sweep in a study; the sweeps of most layers first."""
    results = study if isinstance(study, Results) else Results(study)
    found = (best_of(results, sweep) for sweep in sweeps(results))
    return [one for one in found if one is not None]


def best_of(results: Results, sweep: Mapping[tuple[int, ...], Arm]) -> Recommendation | None:
    """The best layer of one sweep; None where S is not known (no paraphrases or neighbours)."""
    scores = {layer: results.estimate(arm, WHEN, "S") for layer, arm in sweep.items()}
    known = {layer: s.mean for layer, s in scores.items() if s.mean is not None}
    if not known:
        return None
    best = max(known, key=lambda layer: known[layer])
    differences = {
        layer: found.estimate(comparisons=max(1, len(known) - 1))
        for layer in known
        if layer != best
        and (found := results.contrast([(1.0, sweep[layer]), (-1.0, sweep[best])], WHEN, "S"))
    }
    tied = tuple(layer for layer, d in differences.items() if d.high is None or d.high >= 0)
    setting = sweep[best].setting
    return Recommendation(setting.model, setting.method, best, scores[best], tied, differences)
