"""A run that is scored, and what else is measured of the model: before, and after all edits.

There is a model that holds all edits where they carry (`final`; without those that a guard has
left unwritten), or where one batch is all of them (`immediate`, as that batch's scores are). Where
several batches each meet the untouched model there is none, and nothing is measured after them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from retcon.edits import Case
from retcon.method.base import Recounts
from retcon.method.presets import resolve
from retcon.model.handle import ModelHandle
from retcon.model.overlay import Deltas
from retcon.progress import Progress, silent
from retcon.run.driver import check
from retcon.run.looks import run
from retcon.run.record import Run, StepRecord
from retcon.run.schedule import Schedule
from retcon.run.shared_keys import check_keys, warned_of
from retcon.scoring.rows import When
from retcon.scoring.score import check_cases, score_cases

M = TypeVar("M")


@dataclass(frozen=True, kw_only=True)
class Measured(Generic[M]):
    """A run, and measures of the model by the time at which they were taken."""

    run: Run
    measures: dict[When, M]


def evaluate(
    model: ModelHandle,
    cases: Sequence[Case],
    *,
    method: str | None = None,
    layers: Sequence[int] | None = None,
    settings: Mapping[str, object] | None = None,
    schedule: Schedule | str = "single",
    progress: Progress = silent,
) -> Run:
    """Edit the cases by a schedule and score them; the model is as before afterwards.

    A `RetconWarning` names facts that are written over one another.

    Raises:
        UnknownName, InvalidSetting: a method, layer, setting or schedule that does not exist.
    """
    return evaluate_measured(
        model, cases, None, method=method, layers=layers, settings=settings, schedule=schedule,
        progress=progress,
    ).run  # fmt: skip


def evaluate_measured(
    model: ModelHandle,
    cases: Sequence[Case],
    measure: Callable[[ModelHandle], M] | None,
    *,
    method: str | None = None,
    layers: Sequence[int] | None = None,
    settings: Mapping[str, object] | None = None,
    schedule: Schedule | str = "single",
    progress: Progress = silent,
) -> Measured[M]:
    """As `evaluate`, and measure the untouched model and the one that holds all edits.

    Raises:
        UnknownName, InvalidSetting: a method, layer, setting or schedule that does not exist.
    """
    plan = Schedule.of(schedule)
    recipe = resolve(model.outline, method=method, layers=layers, settings=settings)
    chosen = recipe.build()
    edits = [case.edit for case in cases]
    check(chosen, edits, plan)
    check_cases(model.tokens, cases)
    shared = warned_of(chosen, check_keys(model.tokens, chosen, edits, plan))
    rows = score_cases(model, cases, when="pre", progress=progress)
    measures: dict[When, M] = {} if measure is None else {"pre": measure(model)}
    state = chosen.setup.begin(model, progress)
    steps: list[StepRecord] = []
    for seen in run(model, chosen, state, cases, plan, progress):
        rows += seen.rows
        steps += seen.records
        step = seen.steps[-1]
        if measure is None:
            continue
        if plan.carry and step.last:
            measures["final"] = measure(model)
        elif not plan.carry and step.index == 0 and step.at == len(cases):
            measures["immediate"] = _with(model, step.update.deltas, measure)
    together = tuple(tuple(edit.id for edit in clash.edits) for clash in shared)
    begun = chosen.recount(state) if isinstance(chosen, Recounts) else {}
    return Measured(run=Run(rows, steps, recipe, plan, begun, together), measures=measures)


def _with(model: ModelHandle, deltas: Deltas, measure: Callable[[ModelHandle], M]) -> M:
    """What is measured under an update, which is undone."""
    with model.scratch():
        model.write(deltas)
        return measure(model)
