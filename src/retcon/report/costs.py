"""The costs of conditions: seconds, how far the weights have moved, and memory."""

from collections.abc import Mapping
from typing import Any

from retcon.report.conditions import Arm
from retcon.report.results import Results


def seconds_per_edit(results: Results, arm: Arm) -> float | None:
    """Features and solve, as if nothing had been cached; mean over seeds and batches."""
    steps = [step for run in arm.runs for step in results.study.steps(run.cell)]
    edits = sum(int(str(step["edits"])) for step in steps)
    return sum(float(str(step["seconds"])) for step in steps) / edits if edits else None


def moved(step: Mapping[str, Any]) -> float | None:
    """Over all layers of a step: root of the sum of squares, per cent of the weights' own."""
    total = sum(float(v) ** 2 for v in step.get("total_norm", {}).values())
    weight = sum(float(v) ** 2 for v in step.get("weight_norm", {}).values())
    return 100 * (total / weight) ** 0.5 if weight else None
