"""Fold edits over a model: write a batch, let the caller look, go on; in the end restore.

Without `carry` every batch meets the untouched model, so targets and keys depend on no batch and
are computed for many edits at a time. With it, a refresh rule says for how long they are good.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from retcon.editing.schedule import Schedule
from retcon.edits import Edit
from retcon.errors import InvalidEdit
from retcon.methods.base import Editor, Features, State, Update, check_batch
from retcon.model.handle import ModelHandle
from retcon.progress import Progress, silent

# Edits that are worked on together where batches do not carry.
_AHEAD = 64
# Of the facts that wait, the share whose drift must be below the refresh rule's threshold.
_STALE_SHARE = 0.9


class Step(NamedTuple):
    """One batch, solved: what it is made of and what it took.

    index: of the batch. at: edits written when it is. refreshed: whether targets were made for it,
    rather than taken from those that waited. staleness: of these, just before (None: none waited).
    seconds: for features and solve, without writing and looking; a target that was cached counts
    with what it took when it was optimised, and one that waited with the batch it was made for.
    """

    index: int
    at: int
    edits: tuple[Edit, ...]
    update: Update
    features: Features
    refreshed: bool
    staleness: float | None
    seconds: float


class Past(NamedTuple):
    """A step of an earlier run, to be written again without being solved again."""

    update: Update
    refreshed: bool


def run(
    model: ModelHandle,
    editor: Editor,
    state: State,
    edits: Sequence[Edit],
    schedule: Schedule,
    progress: Progress = silent,
    *,
    past: Sequence[Past] = (),
) -> Iterator[Step]:
    """Write the edits batch by batch, yielding after each while it is in the weights.

    A step's update stays there until the next step is asked for; for good, within the run, where
    batches carry. The model is as before when the iterator is exhausted, closed, or interrupted.
    past: the first steps, which an earlier run has solved; they are written and not yielded.

    Raises:
        InvalidSetting: a batch larger than the method can write at once.
        InvalidEdit: two edits with one id.
    """
    if schedule.carry:
        check(editor, edits, schedule)
        with model.scratch():
            fold = _Fold(model, editor, edits, schedule, progress, state)
            fold.replay(past)
            while fold.written < len(edits):
                yield fold.step()
        return
    for step in solve(model, editor, state, edits, schedule, progress, first=len(past)):
        with model.scratch():
            model.write(step.update.deltas)
            yield step


def solve(
    model: ModelHandle,
    editor: Editor,
    state: State,
    edits: Sequence[Edit],
    schedule: Schedule,
    progress: Progress = silent,
    *,
    first: int = 0,
) -> Iterator[Step]:
    """Solve batch by batch, each for the untouched model, and write nothing.

    first: the batch to begin with.

    Raises:
        InvalidSetting, InvalidEdit: as `run`.
    """
    check(editor, edits, schedule)
    size = schedule.batch_size
    together = size * ahead(schedule)
    for start in range(first * size, len(edits), together):
        started = time.perf_counter()
        found = editor.features(model, edits[start : start + together], state, progress)
        shared = _shared_seconds(found, time.perf_counter() - started)
        for begin in range(0, len(found.edits), size):
            part = found.select(slice(begin, begin + size))
            started = time.perf_counter()
            update = editor.edit(model, part, state)
            seconds = time.perf_counter() - started + _seconds(part, shared)
            at = start + begin + len(part.edits)
            progress("editing", at, len(edits))
            yield Step((start + begin) // size, at, part.edits, update, part, True, None, seconds)


def ahead(schedule: Schedule) -> int:
    """How many batches may be worked on together: one where each meets what the last has made."""
    return 1 if schedule.carry else max(1, _AHEAD // schedule.batch_size)


def check(editor: Editor, edits: Sequence[Edit], schedule: Schedule) -> None:
    """Refuse what cannot be run, before any work is done."""
    check_batch(editor, schedule.batch_size)
    if not edits:
        raise InvalidEdit("There is nothing to edit: the list of facts is empty.")
    seen: set[str] = set()
    for edit in edits:
        if edit.id in seen:
            raise InvalidEdit(f"Two edits have the id {edit.id!r}. Give each its own.")
        seen.add(edit.id)


@dataclass
class _Fold:
    """Carried batches on their way into a model.

    written: how many edits are in. waiting: features of the next ones, on the weights as they were
    when these were made; the first of them are for edit number `written`.
    """

    model: ModelHandle
    editor: Editor
    edits: Sequence[Edit]
    schedule: Schedule
    progress: Progress
    state: State
    written: int = 0
    waiting: Features | None = field(default=None, init=False)
    shared: float = field(default=0.0, init=False)

    def replay(self, past: Sequence[Past]) -> None:
        """Write earlier steps again, and make the targets that were waiting after the last."""
        made = max((i for i, step in enumerate(past) if step.refreshed), default=0)
        kept = self.schedule.refresh.stale > 0
        for i, step in enumerate(past):
            if i == made and kept:
                self._make()
            self._write(step.update)

    def step(self) -> Step:
        """Solve and write the next batch."""
        staleness = self._staleness()
        anew = (
            staleness is None
            or self.schedule.refresh.stale == 0
            or staleness > self.schedule.refresh.stale
        )
        if anew:
            self._make()
        assert self.waiting is not None
        part = self.waiting.select(slice(0, self.schedule.batch_size))
        index = self.written // self.schedule.batch_size
        started = time.perf_counter()
        update = self.editor.edit(self.model, part, self.state)
        seconds = time.perf_counter() - started + _seconds(part, self.shared)
        self._write(update)
        self.progress("editing", self.written, len(self.edits))
        return Step(index, self.written, part.edits, update, part, anew, staleness, seconds)

    def _make(self) -> None:
        """The features of the facts that come next, on the weights as they are."""
        started = time.perf_counter()
        ahead = self.schedule.refresh.ahead(self.schedule.batch_size)
        chosen = self.edits[self.written : self.written + ahead]
        self.waiting = self.editor.features(self.model, chosen, self.state, self.progress)
        self.shared = _shared_seconds(self.waiting, time.perf_counter() - started)

    def _staleness(self) -> float | None:
        """The 90th percentile of the drift of the facts that wait; None where none does.

        Facts whose δ is 0 have no unit to measure it in, and are left out; 0 where all are such.
        """
        if self.waiting is None or not self.waiting.edits or self.schedule.refresh.stale == 0:
            return None
        drift = self.editor.drift(self.model, self.waiting)
        drift = drift[~drift.isnan()]
        return float(drift.quantile(_STALE_SHARE)) if len(drift) else 0.0

    def _write(self, update: Update) -> None:
        self.model.write(update.deltas)
        self.state = self.editor.carry(self.state, update)
        self.written += len(update.ids)
        if self.waiting is not None:
            self.waiting = self.waiting.select(slice(len(update.ids), None))


def _shared_seconds(found: Features, took: float) -> float:
    """Seconds per edit of what is no target's, and so shared by all that were read together."""
    now = ~found.targets.cached
    return (took - float(found.targets.seconds[now].sum())) / len(found.edits)


def _seconds(part: Features, shared: float) -> float:
    """What the features of some edits took."""
    return float(part.targets.seconds.sum()) + shared * len(part.edits)
