"""Edit and look: the rows of one method, one schedule and some cases, each with its time.

pre         the untouched model
immediate   right after the case's own batch
final       after all edits (only where they carry)
retention   earlier cases again, after 2, 4, 8, … batches (on demand, only where they carry)
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from retcon.edits import Case
from retcon.method.base import Editor, Rewriting, State, Update
from retcon.method.presets import Choice
from retcon.model.handle import ModelHandle
from retcon.progress import Progress, silent
from retcon.run.schedule import Schedule
from retcon.run.session import ahead, run, solve
from retcon.run.steps import Past, Step
from retcon.scoring.rows import Row
from retcon.scoring.score import Look, score_cases, score_looks


class StepRecord(NamedTuple):
    """What one batch took and did.

    at: edits written when it was. cached: how many of its edits' targets were. seconds: features
    and solve, as if nothing had been cached. loss, target_steps, reached: means over the batch;
    reached is the share of a residual that was written. By layer: delta_norm ‖ΔW‖ of the batch,
    total_norm ‖W − W₀‖ with it, weight_norm ‖W₀‖. ridge: ρ. novelty: smallest share of a key that
    was new (ρ = 0: 0 collides). refreshed, staleness, tried, note, undone: as in `Step`. signals:
    the probe's, by name. energy: by layer, tr(D M₀ Dᵀ) where a ridge follows it. each: of every
    edit its target's steps, ‖δ‖/‖t₀‖, and its novelty. directions: by layer, how many a null space
    has left to write in. peak_memory: bytes, of the process so far. None: there is no such thing.
    """

    index: int
    at: int
    edits: int
    cached: int
    seconds: float
    loss: float | None
    target_steps: float
    short_passes: bool
    delta_norm: dict[int, float]
    total_norm: dict[int, float]
    weight_norm: dict[int, float]
    ridge: float | None
    reached: float | None
    novelty: float | None
    refreshed: bool
    staleness: float | None
    peak_memory: int | None
    signals: dict[str, float | None] | None = None
    energy: dict[int, float] | None = None
    each: dict[str, list[float] | list[str]] | None = None
    directions: dict[int, int] | None = None
    tried: int = 0
    note: str = ""
    undone: bool = False

    @classmethod
    def of(cls, model: ModelHandle, step: Step) -> "StepRecord":
        """What is kept of a step, on the model into which it may have been written."""
        targets, deltas, fit = step.features.targets, step.update.deltas, step.update.fit
        delta_norm = {layer: delta.norm() for layer, delta in deltas.items()}
        carried = not model.as_loaded
        return cls(
            index=step.index,
            at=step.at,
            edits=len(step.edits),
            cached=int(targets.cached.sum()),
            seconds=step.seconds,
            loss=_known(targets.loss.mean()) if fit is None else fit.loss,
            target_steps=float(targets.steps.float().mean() if fit is None else fit.steps),
            short_passes=targets.short,
            delta_norm=delta_norm,
            total_norm={k: model.moved(k) for k in deltas} if carried else delta_norm,
            weight_norm={k: model.original_norm(k) for k in deltas},
            ridge=step.update.ridge,
            reached=_known(step.update.reached.mean()),
            novelty=_known(step.update.novelty.min()),
            refreshed=step.refreshed,
            staleness=step.staleness,
            peak_memory=_peak_memory(),
            signals=None if step.signals is None else step.signals._asdict(),
            energy=dict(step.update.energy) or None,
            each=_each(step),
            directions=dict(step.update.directions) or None,
            tried=step.tried,
            note=step.note,
            undone=step.undone,
        )


# What becomes of cases before they are scored.
Telling = Callable[[Sequence[Case]], Sequence[Case]]


def as_they_are(cases: Sequence[Case]) -> Sequence[Case]:
    """The cases."""
    return cases


class Seen(NamedTuple):
    """Steps that were solved together, and what was seen of them.

    telling: what cases are scored as after the last of them.
    """

    steps: list[Step]
    records: list[StepRecord]
    rows: list[Row]
    telling: Telling = as_they_are


@dataclass(frozen=True, kw_only=True)
class Looks:
    """What to score, and when.

    when: of `immediate`, `final` and `retention`; final and retention only where edits carry.
    among: ids of the cases that are scored (None: all).
    """

    when: tuple[str, ...] = ("immediate", "final")
    among: frozenset[str] | None = None

    def chosen(self, cases: Sequence[Case]) -> list[Case]:
        """Those of the cases that are scored."""
        return [c for c in cases if self.among is None or c.edit.id in self.among]

    def scored(self, cases: Sequence[Case], step: Step) -> list[Case]:
        """Those of a step's own cases that are scored."""
        return self.chosen(standing(cases[step.at - len(step.edits) : step.at]))

    def rows(
        self,
        model: ModelHandle,
        cases: Sequence[Case],
        schedule: Schedule,
        step: Step,
        progress: Progress,
        telling: Telling = as_they_are,
    ) -> list[Row]:
        """The rows that are due after a carried step.

        Where it is the first and last, its immediate scores are final too. Retention is looked at
        after 2, 4, 8, … batches, of the cases of the batches before. Final scores are of all cases,
        also of those that a guard has left unwritten, but for those whose fact has been edited
        again since: what they said is no longer wanted.
        """
        number, last = step.index + 1, step.last
        rows: list[Row] = []
        if "immediate" in self.when and not step.undone:
            asked = telling(self.scored(cases, step))
            rows += score_cases(model, asked, when="immediate", step=number, progress=progress)
        own = 0 if step.undone else len(step.edits)
        written, unwritten = standing(cases[: step.at]), cases[step.at :]
        new = {case.edit.id for case in cases[step.at - own : step.at]}
        older = self.chosen([case for case in written if case.edit.id not in new])
        if "retention" in self.when and step.checkpoint and older:
            older = telling(older)
            rows += score_cases(model, older, when="retention", step=number, progress=progress)
        if "final" in self.when and last:
            if number == 1 and rows and step.at == len(cases):
                return rows + [row._replace(when="final") for row in rows]
            final = telling(self.chosen([*written, *unwritten]))
            rows += score_cases(model, final, when="final", step=number, progress=progress)
        return rows


def standing(cases: Sequence[Case]) -> list[Case]:
    """Of cases that were written in this order, those whose fact was not edited again."""
    last = {case.edit.fact: case.edit.id for case in cases}
    return [case for case in cases if last[case.edit.fact] == case.edit.id]


class Trial(NamedTuple):
    """Everything a trial saw, and what it was.

    shared_keys: ids of the facts that were written over one another, by their key.
    """

    rows: list[Row]
    steps: list[StepRecord]
    choice: Choice
    schedule: Schedule
    prefixes: tuple[str, ...]
    corpus_tokens: int
    shared_keys: tuple[tuple[str, ...], ...] = ()

    def at(self, when: str) -> list[Row]:
        """The rows taken at one time."""
        return [row for row in self.rows if row.when == when]

    def describe(self) -> dict[str, object]:
        """What a record says beside the scores: everything that decided them."""
        preset = self.choice.preset
        return {
            "method": self.choice.method.name,
            "prompts": "as they are" if self.choice.method.writes else "behind retrieved facts",
            "layers": list(self.choice.layers),
            "schedule": str(self.schedule),
            "refresh": str(self.schedule.refresh),
            "guard": self.schedule.guard.action,
            "settings": self.choice.settings,
            "preset": preset.source if preset else None,
            "covariance": self._covariance(),
            "shared_keys": [list(ids) for ids in self.shared_keys],
            "prefixes": list(self.prefixes),
            "seconds_per_edit": self.seconds_per_edit,
            "steps": [step._asdict() for step in self.steps],
        }

    def _covariance(self) -> dict[str, object] | None:
        """What second moments were read from; None where the method has none."""
        if "corpus" not in self.choice.settings:
            return None
        names = ("corpus", "corpus_seed", "document_tokens", "jitter")
        said = {name: self.choice.settings[name] for name in names}
        return said | {"tokens": self.corpus_tokens}

    @property
    def seconds_per_edit(self) -> float:
        """Features and solve, without second moments and without scoring."""
        return sum(step.seconds for step in self.steps) / sum(step.edits for step in self.steps)


def watch(
    model: ModelHandle,
    editor: Editor,
    state: State,
    cases: Sequence[Case],
    schedule: Schedule,
    progress: Progress = silent,
    *,
    past: Sequence[Past] = (),
    looks: Looks = Looks(),
) -> Iterator[Seen]:
    """Edit the cases by a schedule, and after each step, or group of steps, look.

    While what was seen of carried steps is in the caller's hands, they are in the weights. past:
    the first steps, which an earlier run has solved and seen.

    Raises:
        InvalidSetting, InvalidEdit: as `session.run`.
    """
    edits = [case.edit for case in cases]
    if schedule.carry:
        after = _replayed(editor, state, [one.update for one in past])
        for step in run(model, editor, state, edits, schedule, progress, past=past):
            after = _replayed(editor, after, [step.update])
            telling = _telling(editor, after)
            rows = looks.rows(model, cases, schedule, step, progress, telling)
            yield Seen([step], [StepRecord.of(model, step)], rows, telling)
        return
    taken = solve(model, editor, state, edits, schedule, progress, first=len(past))
    while group := list(islice(taken, ahead(schedule, editor))):
        found = [
            Look(
                telling(looks.scored(cases, step)), "immediate", step.index + 1, step.update.deltas
            )
            for step in group
            if "immediate" in looks.when
            for telling in [_telling(editor, _replayed(editor, state, [step.update]))]
        ]
        records = [StepRecord.of(model, step) for step in group]
        yield Seen(group, records, score_looks(model, found, progress))


def _each(step: Step) -> dict[str, list[float] | list[str]]:
    """What may tell how hard each fact is, before it is written; by the edits' ids."""
    targets = step.features.targets
    size = targets.delta.norm(dim=-1) / targets.anchor.norm(dim=-1)
    return {
        "edit": [edit.id for edit in step.edits],
        "steps": targets.steps.double().tolist(),
        "size": [round(x, 4) for x in size.tolist()],
        "novelty": [round(x, 6) for x in step.update.novelty.tolist()],
    }


def _replayed(editor: Editor, state: State, updates: Sequence[Update]) -> State:
    """The state by which prompts are rewritten after some updates; others are the session's."""
    if isinstance(editor, Rewriting):
        for update in updates:
            state = editor.carry(state, update)
    return state


def _telling(editor: Editor, state: State) -> Telling:
    """What becomes of prompts in a state: where weights are written, nothing."""
    if isinstance(editor, Rewriting):
        return lambda cases: editor.rewrite(cases, state)
    return as_they_are


def _known(value: Float[Tensor, ""]) -> float | None:
    """None where there is no number."""
    return None if value.isnan() else float(value)


def _peak_memory() -> int | None:
    """Bytes that this process has held at most; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
