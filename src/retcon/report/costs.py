"""The costs of conditions: seconds, how far the weights have moved, and memory."""

from collections.abc import Mapping
from typing import Any

from retcon.report.conditions import Arm
from retcon.report.numbers import MISSING, fixed
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


def costs_of(results: Results, arm: Arm) -> tuple[str, ...]:
    """The four numbers of an arm's costs: seconds, ‖ΔW‖, the share of residuals written, GiB."""
    steps = results.study.steps(arm.runs[0].cell)
    reached = [float(str(s["reached"])) for s in steps if s.get("reached") is not None]
    memory = [int(str(s["peak_memory"])) for s in steps if s.get("peak_memory") is not None]
    return (
        fixed(seconds_per_edit(results, arm), 2),
        fixed(moved(steps[-1]) if steps else None, 2),
        fixed(100 * sum(reached) / len(reached), 1) if reached else MISSING,
        fixed(max(memory) / 2**30, 2) if memory else MISSING,
    )
