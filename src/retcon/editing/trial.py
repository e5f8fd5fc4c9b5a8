"""Edit and look: the rows of one method, one schedule and some cases, each with its time.

pre         the untouched model
immediate   right after the case's own batch
final       after all edits (only where they carry)
"""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from retcon.editing.schedule import Schedule
from retcon.editing.session import Step, ahead, check, run, solve
from retcon.edits import Case
from retcon.evaluation.rows import Row
from retcon.evaluation.scoring import Look, score_cases, score_looks
from retcon.methods.presets import Choice, choose
from retcon.model.handle import ModelHandle
from retcon.model.overlay import UNCHANGED
from retcon.progress import Progress, silent


class StepRecord(NamedTuple):
    """What one batch took and did.

    seconds: features and solve, as if nothing had been cached. cached: how many of the edits'
    targets were. loss, target_steps: means over the batch's targets.
    delta_norm: ‖ΔW‖ by layer. novelty: smallest share of a key that was new (ρ = 0: 0 collides).
    """

    index: int
    edits: int
    cached: int
    seconds: float
    loss: float
    target_steps: float
    short_passes: bool
    delta_norm: dict[int, float]
    novelty: float

    @classmethod
    def of(cls, step: Step) -> "StepRecord":
        """What is kept of a step."""
        targets = step.features.targets
        return cls(
            index=step.index,
            edits=len(step.edits),
            cached=int(targets.cached.sum()),
            seconds=step.seconds,
            loss=float(targets.loss.mean()),
            target_steps=float(targets.steps.float().mean()),
            short_passes=targets.short,
            delta_norm={k: delta.norm() for k, delta in step.update.deltas.items()},
            novelty=float(step.update.novelty.min()),
        )


class Trial(NamedTuple):
    """Everything a trial saw, and what it was."""

    rows: list[Row]
    steps: list[StepRecord]
    choice: Choice
    schedule: Schedule
    prefixes: tuple[str, ...]
    corpus_tokens: int

    def at(self, when: str) -> list[Row]:
        """The rows taken at one time."""
        return [row for row in self.rows if row.when == when]

    def describe(self) -> dict[str, object]:
        """What a record says beside the scores: everything that decided them."""
        preset = self.choice.preset
        return {
            "method": self.choice.method.name,
            "layers": list(self.choice.layers),
            "schedule": str(self.schedule),
            "settings": self.choice.settings,
            "preset": preset.source if preset else None,
            "covariance": {
                name: self.choice.settings[name]
                for name in ("corpus", "corpus_seed", "document_tokens", "jitter")
            }
            | {"tokens": self.corpus_tokens},
            "prefixes": list(self.prefixes),
            "seconds_per_edit": self.seconds_per_edit,
            "steps": [step._asdict() for step in self.steps],
        }

    @property
    def seconds_per_edit(self) -> float:
        """Features and solve, without second moments and without scoring."""
        return sum(step.seconds for step in self.steps) / sum(step.edits for step in self.steps)


def evaluate(
    model: ModelHandle,
    cases: Sequence[Case],
    *,
    method: str | None = None,
    layers: Sequence[int] | None = None,
    settings: Mapping[str, object] | None = None,
    schedule: str = "single",
    progress: Progress = silent,
) -> Trial:
    """Edit the cases by a schedule and score them; the model is as before afterwards.

    Raises:
        UnknownName, InvalidSetting: a method, layer, setting or schedule that does not exist.
    """
    plan = Schedule.parse(schedule)
    choice = choose(model.outline, method=method, layers=layers, settings=settings)
    editor = choice.method.build(choice.layers, choice.settings)
    edits = [case.edit for case in cases]
    check(editor, edits, plan)
    by_id = {case.edit.id: case for case in cases}
    rows = score_cases(model, cases, when="pre", progress=progress)
    state = editor.begin(model, progress)
    steps: list[StepRecord] = []
    advance = run if plan.carry else solve
    taken = advance(model, editor, state, edits, plan, progress)
    while group := list(islice(taken, ahead(plan))):
        rows += score_looks(
            model,
            [
                Look(
                    cases=[by_id[edit.id] for edit in step.edits],
                    when="immediate",
                    step=step.index + 1,
                    deltas=UNCHANGED if plan.carry else step.update.deltas,
                )
                for step in group
            ],
        )
        steps += [StepRecord.of(step) for step in group]
        if plan.carry and sum(s.edits for s in steps) == len(edits):
            rows += score_cases(model, cases, when="final", step=len(steps), progress=progress)
    return Trial(rows, steps, choice, plan, state.prefixes, state.corpus_tokens)
