"""A trial, and what else is measured of the model: before, and after all edits.

There is a model that holds all edits where they carry (`final`), or where one batch is all of them
(`immediate`, which that batch's scores are). Where several batches each meet the untouched model
there is none, and nothing is measured after them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from retcon.editing.schedule import Schedule
from retcon.editing.session import check
from retcon.editing.trial import Seen, StepRecord, Trial, watch
from retcon.edits import Case
from retcon.evaluation.rows import When
from retcon.evaluation.scoring import score_cases
from retcon.methods.presets import choose
from retcon.model.handle import ModelHandle
from retcon.progress import Progress, silent

M = TypeVar("M")


@dataclass(frozen=True, kw_only=True)
class Measured(Generic[M]):
    """A trial, and measures of the model by the time at which they were taken."""

    trial: Trial
    measures: dict[When, M]


def evaluate_measured(
    model: ModelHandle,
    cases: Sequence[Case],
    measure: Callable[[ModelHandle], M],
    *,
    method: str | None = None,
    layers: Sequence[int] | None = None,
    settings: Mapping[str, object] | None = None,
    schedule: Schedule | str = "single",
    progress: Progress = silent,
) -> Measured[M]:
    """As `trial.evaluate`, and measure the untouched model and the one that holds all edits.

    Raises:
        UnknownName, InvalidSetting: a method, layer, setting or schedule that does not exist.
    """
    plan = schedule if isinstance(schedule, Schedule) else Schedule.parse(schedule)
    choice = choose(model.outline, method=method, layers=layers, settings=settings)
    editor = choice.method.build(choice.layers, choice.settings)
    check(editor, [case.edit for case in cases], plan)
    rows = score_cases(model, cases, when="pre", progress=progress)
    measures: dict[When, M] = {"pre": measure(model)}
    state = editor.begin(model, progress)
    steps: list[StepRecord] = []
    for seen in watch(model, editor, state, cases, plan, progress):
        rows += seen.rows
        steps += seen.records
        if seen.steps[-1].last or seen.steps[-1].at == len(cases):
            measures |= _after(model, seen, plan, measure)
    trial = Trial(rows, steps, choice, plan, state.prefixes, state.corpus_tokens)
    return Measured(trial=trial, measures=measures)


def _after(
    model: ModelHandle, seen: Seen, schedule: Schedule, measure: Callable[[ModelHandle], M]
) -> dict[When, M]:
    """What is measured when the last step has been seen."""
    step = seen.steps[-1]
    if schedule.carry:
        return {"final": measure(model)}
    if step.index > 0:
        return {}
    with model.scratch():
        model.write(step.update.deltas)
        return {"immediate": measure(model)}
