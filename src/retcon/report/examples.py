"""Examples before and after: what the model said, where that was kept, and probabilities."""

import json
from collections.abc import Sequence

from retcon.report.arms import Arm, Results
from retcon.report.tables import MISSING, Table
from retcon.study.reading import Study


def told(study: Study) -> Table:
    """What the model said before and after, from `examples.json` of the folder, where it is."""
    path = study.folder / "examples.json"
    found: list[dict[str, str]] = []
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
    columns = ("prompt", "target", "target_old", "before", "after")
    rows = tuple(tuple(str(one.get(c) or MISSING) for c in columns) for one in found)
    heads = ("prompt", "new target", "old target", "before", "after")
    return Table("Examples, in the model's words", "Greedy continuations.", heads, rows)


def by_probability(results: Results, most: int = 8) -> Table:
    """The target's probability at the rewrite prompt before and after, of evenly chosen cases."""
    arm = _shown(results)
    columns = ("case", "untouched model", "immediate", "final")
    if arm is None:
        return Table("Examples, by probability", "", columns, ())
    cell = arm.runs[0].cell
    times = ("pre", "immediate", "final")
    found = [results.means(cell, when, "target_probability") for when in times]
    cases: Sequence[str] = list(found[0].values) if found[0] else []
    chosen = cases[:: max(1, len(cases) // most)][:most]
    rows = tuple(
        (case, *(_per_cent(means.values.get(case) if means else None) for means in found))
        for case in chosen
    )
    s = arm.setting
    note = (
        f"Probability of the new target per token at the rewrite prompt, %, every "
        f"{max(1, len(cases) // most)}th fact of {s.method.upper()}, layer "
        f"{'+'.join(map(str, s.layers))}, batches of {s.batch_size:,}, N = {s.n:,}."
    )
    return Table("Examples, by probability", note, columns, rows)


def _shown(results: Results) -> Arm | None:
    """The carried arm of most facts that was scored before, immediately and finally."""
    full = [
        arm
        for arm in results.arms
        if arm.setting.carried
        and all(results.has(arm, when, "target_probability") for when in ("pre", "final"))
    ]
    return max(full, key=lambda arm: (arm.setting.n, -arm.setting.batch_size), default=None)


def _per_cent(value: float | None) -> str:
    return MISSING if value is None else f"{value:.1f}"
