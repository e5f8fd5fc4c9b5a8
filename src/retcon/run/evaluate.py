"""Score a run before, after each batch and after all edits, or score a patch, in one call.

What looks at a model as a whole needs one that holds all edits. There is one where they carry
(`final`; without those that a guard has left unwritten), or where one batch is all of them
(`immediate`, as that batch's scores are). Where several batches each meet the untouched model there
is none.
"""

from collections.abc import Mapping, Sequence

from retcon.edits import Case
from retcon.method.base import Recounts
from retcon.method.presets import resolve
from retcon.model.handle import ModelHandle
from retcon.patch.patch import Patch
from retcon.progress import Progress, silent
from retcon.run.driver import check
from retcon.run.looks import Looks, run
from retcon.run.record import Run, StepRecord
from retcon.run.schedule import Schedule
from retcon.run.shared_keys import check_keys, warned_of
from retcon.run.treatments import Treatment, treated
from retcon.scoring.measured import Measured
from retcon.scoring.metrics import Observer, observers
from retcon.scoring.observations import Moment
from retcon.scoring.score import check_cases


def evaluate(
    model: ModelHandle,
    cases: Sequence[Case],
    *,
    method: str | None = None,
    layers: Sequence[int] | None = None,
    settings: Mapping[str, object] | None = None,
    schedule: Schedule | str = "single",
    metrics: Sequence[str | Observer] = (),
    progress: Progress = silent,
) -> Run:
    """Edit the cases by a schedule and score them; the model is as before afterwards.

    A `RetconWarning` names facts that are written over one another.

    Args:
        model: a model.
        cases: facts, and the prompts by which they are judged.
        method, layers, settings: as of `edit`.
        schedule: `single`, `batch:B`, `sequential`, `sequential-batch:B` or `adaptive-RULE:B`.
        metrics: names of metrics that need more than scores of prompts, or ways to look at a model.
        progress: is told what is done.

    Raises:
        UnknownName, InvalidSetting: a method, layer, setting, schedule or metric that does not
            exist.
    """
    plan = Schedule.of(schedule)
    looks = Looks(observers=_looking(metrics)).of(cases)
    recipe = resolve(model.outline, method=method, layers=layers, settings=settings)
    chosen = recipe.build()
    edits = [case.edit for case in cases]
    check(chosen, edits, plan)
    check_cases(model.tokens, cases)
    looks.check(model.tokens, cases)
    shared = warned_of(chosen, check_keys(model.tokens, chosen, edits, plan))
    rows = looks.before(model, cases, progress)
    state = chosen.setup.begin(model, progress)
    steps: list[StepRecord] = []
    for seen in run(model, chosen, state, cases, plan, progress, looks=looks):
        rows += seen.rows
        steps += seen.records
    together = tuple(tuple(edit.id for edit in clash.edits) for clash in shared)
    begun = chosen.recount(state) if isinstance(chosen, Recounts) else {}
    return Run(rows, steps, recipe, plan, begun, together)


def score(
    model: ModelHandle,
    cases: Sequence[Case],
    *,
    patch: Patch | None = None,
    after: str | Treatment | None = None,
    metrics: Sequence[str | Observer] = (),
    progress: Progress = silent,
) -> Measured:
    """Score a model on cases: as it is (`pre`), and with a patch in its weights (`final`).

    The model is as before afterwards.

    Args:
        model: a model.
        cases: facts, and the prompts by which they are judged.
        patch: edits of this model; None: only the model as it is is scored.
        after: a treatment that both models get before they are scored: `bf16`, `int8`, `int4`,
            `finetune:STEPS` or `with:PATCH`.
        metrics: as of `evaluate`.
        progress: is told what is done.

    Returns:
        What was observed: `.scores("final")["ES"]`, `.table()`.

    Raises:
        PatchMismatch: the patch is of another model.
        UnknownName, InvalidSetting: a metric that does not exist, or cannot be observed alone.
        InvalidEdit: a case that this model's tokens cannot tell.
        InvalidSetting, MissingExtra: a treatment that does not exist, or whose package does not.
    """
    looks = Looks(observers=_looking(metrics)).of(cases)
    treatment = Treatment.of(after) if isinstance(after, str) else after
    for needed in (patch, treatment):
        if needed is not None:
            needed.check(model)
    check_cases(model.tokens, cases)
    looks.check(model.tokens, cases)
    with treated(model, treatment, progress):
        rows = looks.all(model, cases, Moment("pre"), progress)
    if patch is not None:
        with patch.applied(model), treated(model, treatment, progress):
            rows += looks.all(model, cases, Moment("final"), progress)
    return Measured(rows)


def _looking(metrics: Sequence[str | Observer]) -> tuple[Observer, ...]:
    """The ways to look at a model that some metrics have, or that are given as such."""
    named = observers(one for one in metrics if isinstance(one, str))
    return (*named, *(one for one in metrics if isinstance(one, Observer)))
