"""(d) ROME, EMMET and MEMIT on single edits."""

from collections import defaultdict
from dataclasses import replace
from itertools import combinations

from retcon.report.arms import SCORES, Arm, Results
from retcon.report.findings.claims import Claim, Finding, contrast, equal, make, points
from retcon.report.findings.layer import PAPERS_LAYER
from retcon.report.titles import called

WHEN = "immediate"
METHODS = ("rome", "emmet", "memit")

Key = tuple[str, str, tuple[int, ...], int]


def methods_agree(results: Results) -> Finding:
    """Each pair of methods, over the same single edits at one layer."""
    found = Finding(
        key="d",
        name="One edit, three methods",
        claim="For single edits ROME, EMMET and MEMIT are equally good: S within ±1 point.",
        paper="Llama-3-8B, layer 1, 1,000 single edits: MEMIT S 94.10, ROME 94.15 (table 1).",
        explanation="Paired differences over the same facts. Equal means that the 95 % interval "
        "lies within ±1 point, which is more than that no difference was found. Judged at layer 1, "
        "or at the layer that most methods share.",
        charts=("methods",),
    )
    groups = _groups(results)
    if not groups:
        return found.needs("single edits by two of ROME, EMMET and MEMIT at the same layer")
    chosen = max(groups, key=lambda key: (len(groups[key]), key[2] == PAPERS_LAYER))
    claims = [
        claim
        for key, arms in sorted(groups.items(), key=lambda item: item[0] != chosen)
        for claim in _pairs(results, key, arms, primary=key == chosen)
    ]
    effect = "\n".join(f"{c.text}: {points(c.effect)}." for c in claims if c.primary)
    return replace(found, effect=effect, claims=tuple(claims))


def _groups(results: Results) -> dict[Key, dict[str, Arm]]:
    """Single edits of two methods or more, by model, dtype, layers and number of facts."""
    found: dict[Key, dict[str, Arm]] = defaultdict(dict)
    for arm in sorted(results.arms, key=_unlike_itself):
        s = arm.setting
        alone = s.batch_size == 1 and not s.carried and s.method in METHODS
        if alone and results.has(arm, WHEN):
            found[s.model, s.dtype, s.layers, s.n].setdefault(s.method, arm)
    return {key: arms for key, arms in found.items() if len(arms) > 1}


def _unlike_itself(arm: Arm) -> bool:
    """Whether MEMIT has no ridge, or EMMET one, as each other's published form has it."""
    return (arm.setting.ridge == "hard") is (arm.setting.method == "memit")


def _pairs(results: Results, key: Key, arms: dict[str, Arm], *, primary: bool) -> list[Claim]:
    model, _, layers, n = key
    ordered = [method for method in METHODS if method in arms]
    found: list[Claim] = []
    for one, other in combinations(ordered, 2):
        for metric in ("S", *SCORES[:3]):
            effect = contrast(results, [(1.0, arms[one]), (-1.0, arms[other])], WHEN, metric)
            if effect is None:
                continue
            place = f"{model}, layer {'+'.join(map(str, layers))}"
            text = f"{called(one)} − {called(other)}, {metric}, {place}"
            pair = [arms[one], arms[other]]
            mine = primary and metric == "S"
            claim = make(
                text, WHEN, metric, effect, equal(effect), pair, primary=mine,
                pair=f"{called(one)} − {called(other)}", place=place, n=n,
            )  # fmt: skip
            found.append(claim)
    return found
