"""Examples before and after: what the model said, where that was kept, and probabilities."""

from collections.abc import Sequence

from retcon.report.conditions import Arm, describe
from retcon.report.numbers import MISSING
from retcon.report.results import Results
from retcon.report.tables import Table


def told(results: Results) -> Table:
    """The model's words before and after, of the carried arm of most facts that has kept them."""
    heads = ("prompt", "new target", "old target", "before", "after all edits")
    ordered = sorted(results.arms, key=lambda arm: (-arm.condition.n, -_final_score(results, arm)))
    for arm in ordered:
        examples = results.study.examples(arm.runs[0].cell)
        if examples:
            columns = ("prompt", "target", "target_old", "before", "after")
            rows = tuple(tuple(one.get(c) or MISSING for c in columns) for one in examples)
            note = f"Greedy continuations. {_arm(arm)}"
            return Table("Examples, in the model's words", note, heads, rows)
    return Table("Examples, in the model's words", "", heads, ())


def _final_score(results: Results, arm: Arm) -> float:
    return results.estimate(arm, "final", "S").mean or 0.0


def _arm(arm: Arm) -> str:
    fields = ("method", "layers", "batch_size", "n", "accumulate", "refresh")
    return describe(arm.condition, fields) + "."


def by_probability(results: Results, most: int = 8) -> Table:
    """The target's probability at the rewrite prompt before and after, of evenly chosen cases."""
    arm = _shown(results)
    columns = ("case", "untouched model", "immediate", "final")
    if arm is None:
        return Table("Examples, by probability", "", columns, ())
    cell = arm.runs[0].cell
    times = ("pre", "immediate", "final")
    levels = [results.means(cell, when, "target_probability") for when in times]
    cases: Sequence[str] = list(levels[0].values) if levels[0] else []
    chosen = cases[:: max(1, len(cases) // most)][:most]
    rows = tuple(
        (case, *(_per_cent(means.values.get(case) if means else None) for means in levels))
        for case in chosen
    )
    note = (
        "Probability of the new target per token at the rewrite prompt, %, of facts evenly "
        f"chosen. {_arm(arm)}"
    )
    return Table("Examples, by probability", note, columns, rows)


def _shown(results: Results) -> Arm | None:
    """The carried arm of most facts that was scored before, immediately and finally."""
    full = [
        arm
        for arm in results.arms
        if arm.condition.carried
        and all(results.has(arm, when, "target_probability") for when in ("pre", "final"))
    ]
    return max(full, key=lambda arm: (arm.condition.n, -arm.condition.batch_size), default=None)


def _per_cent(value: float | None) -> str:
    return MISSING if value is None else f"{value:.1f}"
