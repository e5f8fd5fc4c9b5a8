"""(d) ROME, EMMET and MEMIT on single edits."""

from collections import defaultdict
from itertools import combinations

from retcon.replications.batch_size.charts import between_methods
from retcon.replications.batch_size.paper import BATCH_SIZE, PAPERS_LAYER
from retcon.report.conditions import Arm, called
from retcon.report.findings import Outcome, finding, needs
from retcon.report.numbers import points
from retcon.report.results import SCORES, Results
from retcon.report.verdicts import Effect, judge_equal, measure

WHEN = "immediate"
METHODS = ("rome", "emmet", "memit")

# Model, dtype, layers, and number of facts.
Place = tuple[str, str, tuple[int, ...], int]


@finding(
    "d",
    set=BATCH_SIZE,
    title="One edit, three methods",
    claim="For single edits ROME, EMMET and MEMIT are equally good: S within ±1 point.",
    source="Llama-3-8B, layer 1, 1,000 single edits: MEMIT S 94.10, ROME 94.15 (table 1).",
    measured="Paired differences over the same facts. Equal means that the 95 % interval "
    "lies within ±1 point, which is more than that no difference was found. Judged at layer 1, "
    "or at the layer that most methods share.",
)
def methods_agree(results: Results) -> Outcome:
    """Each pair of methods, over the same single edits at one layer."""
    groups = _groups(results)
    if not groups:
        return needs("single edits by two of ROME, EMMET and MEMIT at the same layer")
    chosen = max(groups, key=lambda place: (len(groups[place]), place[2] == PAPERS_LAYER))
    effects = [
        effect
        for place, arms in sorted(groups.items(), key=lambda item: item[0] != chosen)
        for effect in _pairs(results, place, arms, decides=place == chosen)
    ]
    summary = "\n".join(f"{e.text}: {points(e.estimate)}." for e in effects if e.decides)
    return Outcome(effects, summary, charts=[between_methods(effects)])


def _groups(results: Results) -> dict[Place, dict[str, Arm]]:
    """Single edits of two methods or more, by place."""
    groups: dict[Place, dict[str, Arm]] = defaultdict(dict)
    for arm in sorted(results.arms, key=_is_unlike_itself):
        s = arm.condition
        alone = s.batch_size == 1 and not s.carried and s.method in METHODS
        if alone and results.has(arm, WHEN):
            groups[s.model, s.dtype, s.layers, s.n].setdefault(s.method, arm)
    return {place: arms for place, arms in groups.items() if len(arms) > 1}


def _is_unlike_itself(arm: Arm) -> bool:
    """True if MEMIT has no ridge, or EMMET one, as each other's published form has it."""
    return (arm.condition.ridge == "hard") is (arm.condition.method == "memit")


def _pairs(results: Results, place: Place, arms: dict[str, Arm], *, decides: bool) -> list[Effect]:
    model, _, layers, n = place
    where = f"{model}, layer {'+'.join(map(str, layers))}"
    ordered = [method for method in METHODS if method in arms]
    measured = [
        measure(
            results,
            f"{called(one)} − {called(other)}, {metric}, {where}",
            [(1.0, arms[one]), (-1.0, arms[other])],
            WHEN,
            metric,
            judge_equal,
            decides=decides and metric == "S",
            pair=f"{called(one)} − {called(other)}",
            place=where,
            n=n,
        )
        for one, other in combinations(ordered, 2)
        for metric in ("S", *SCORES[:3])
    ]
    return [effect for effect in measured if effect is not None]
