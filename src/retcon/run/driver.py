"""The driver: fold edits over a model by a schedule, and look after each batch.

Without `carry` every batch meets the untouched model, so targets and keys depend on no batch and
are computed for many edits at a time, and nothing is written: what is to be seen is seen by
overlays. With it, batches stay; a refresh rule says for how long features are good, a batch rule
how many edits are the next batch, and a guard whether it stays.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Any, NamedTuple

import torch

from retcon.edits import Edit
from retcon.errors import InvalidEdit, InvalidSetting
from retcon.method.base import (
    Features,
    Method,
    Rewrites,
    Stale,
    Update,
    Weighs,
    WritesKeys,
    check_batch,
)
from retcon.model.handle import ModelHandle
from retcon.progress import Progress, silent
from retcon.run.monitor import Monitor
from retcon.run.rules import Verdict
from retcon.run.schedule import Schedule
from retcon.run.signals import Signals, first_written, growth
from retcon.run.steps import Past, Step, own_seconds, shared_seconds

# Edits that are worked on together where batches do not carry.
_AHEAD = 64
# Of the facts that wait, the share whose staleness must be below the refresh rule's threshold.
_STALE_SHARE = 0.9


def fold(
    model: ModelHandle,
    method: Method[Any, Any, Any],
    state: Any,
    edits: Sequence[Edit],
    schedule: Schedule,
    progress: Progress = silent,
    *,
    past: Sequence[Past] = (),
) -> Iterator[list[Step]]:
    """Solve the edits batch by batch, yielding the steps that were worked on together.

    A carried step is alone, and in the weights until the iterator is exhausted, closed or
    interrupted; then the model is as before. Others are not written. A run that the schedule's
    guard stops ends early.

    Args:
        state: what `method.setup.begin` gave.
        past: the first steps, which an earlier run has solved; they are written and not yielded.

    Raises:
        InvalidSetting: a batch larger than the method can write at once, or a rule that it gives
            nothing to go by.
        InvalidEdit: no edits, or two with one id.
    """
    check(method, edits, schedule)
    if not schedule.carry:
        yield from _apart(model, method, state, edits, schedule, progress, first=len(past))
        return
    with model.scratch():
        carried = _Carried(model, method, edits, schedule, progress, state)
        carried.replay(past)
        while not carried.ended:
            yield [carried.step()]


def check(method: Method[Any, Any, Any], edits: Sequence[Edit], schedule: Schedule) -> None:
    """Refuse what cannot be run, before any work is done.

    Raises:
        InvalidSetting, InvalidEdit: as `fold`.
    """
    check_batch(method, schedule.batch_size)
    check_rule(method, schedule)
    if not edits:
        raise InvalidEdit("There is nothing to edit: the list of facts is empty.")
    seen: set[str] = set()
    for edit in edits:
        if edit.id in seen:
            raise InvalidEdit(f"Two edits have the id {edit.id!r}. Give each its own.")
        seen.add(edit.id)


def check_rule(method: Method[Any, Any, Any], schedule: Schedule) -> None:
    """Refuse a rule or a guard that a method gives nothing to go by.

    Raises:
        InvalidSetting: nothing is written, or its cost cannot be foreseen.
    """
    if isinstance(method, Rewrites) and (schedule.adapts or schedule.guard.watches):
        raise InvalidSetting(
            "This method writes no weight: there is nothing that a guard or an adaptive schedule "
            "could take back. Use sequential-batch:B without a guard."
        )
    schedule.batch_rule.check(method)


def _apart(
    model: ModelHandle,
    method: Method[Any, Any, Any],
    state: Any,
    edits: Sequence[Edit],
    schedule: Schedule,
    progress: Progress,
    *,
    first: int,
) -> Iterator[list[Step]]:
    """Batches that each meet the untouched model. first: the batch to begin with."""
    size = schedule.batch_size
    # Facts of one batch may share a target, and those of several must not.
    merges = isinstance(method, WritesKeys) and method.shares_targets
    rewrites = isinstance(method, Rewrites)
    together = size if merges else size * max(1, _AHEAD // size)
    progress("editing", first * size, len(edits))
    for start in range(first * size, len(edits), together):
        started = time.perf_counter()
        chosen = edits[start : start + together]
        features = method.features(model, chosen, state, progress)
        shared = shared_seconds(features, time.perf_counter() - started)
        steps: list[Step] = []
        for begin in range(0, len(chosen), size):
            part = features.select(slice(begin, begin + size))
            started = time.perf_counter()
            update = method.solve(model, part, state, progress)
            seconds = time.perf_counter() - started + own_seconds(part, shared)
            at = start + begin + len(part.edits)
            progress("editing", at, len(edits))
            after = method.carry(state, update.increment) if rewrites else state
            index = (start + begin) // size
            steps.append(Step(index, at, part.edits, update, part, after, True, None, seconds))
        yield steps


class _Solved(NamedTuple):
    """A batch that stays: what was tried before, and why that did not, is in `tried` and notes."""

    part: Features
    update: Update[Any]
    signals: Signals | None
    next_size: int
    tried: int
    notes: list[str]
    seconds: float


@dataclass
class _Carried:
    """Carried batches on their way into a model.

    Where a guard watches or a rule looks, a batch is first written on trial: the monitor looks, the
    saved tensors are copied back, and only what stays is written again.

    Attributes:
        written: how many edits are in.
        waiting: features of the next ones, on the weights as they were when these were made; the
            first of them are for edit number `written`.
        size: of the next batch.
        ended: whether there is none.
    """

    model: ModelHandle
    method: Method[Any, Any, Any]
    edits: Sequence[Edit]
    schedule: Schedule
    progress: Progress
    state: Any
    written: int = field(default=0, init=False)
    index: int = field(default=0, init=False)
    ended: bool = field(default=False, init=False)
    waiting: Features | None = field(default=None, init=False)
    shared: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.size = self.schedule.batch_size
        self._rule, self._guard = self.schedule.batch_rule, self.schedule.guard
        looks = self._rule.looks or self._guard.watches
        self._monitor = Monitor(self.model, self._guard.probes) if looks else None
        untouched = self._monitor.measure([], [], 0.0) if self._monitor else None
        self._refresh = self.schedule.refresh
        # From which edit on, and up to which, the last features were made.
        self._made = (0, 0)
        # Of the untouched model, then after each batch that stayed.
        self._seen = [] if untouched is None else [untouched]

    def replay(self, past: Sequence[Past]) -> None:
        """Write earlier steps again, and make the features that were waiting after the last."""
        refreshed = max((i for i, step in enumerate(past) if step.refreshed), default=0)
        waits = self.schedule.refresh.stale > 0
        for i, step in enumerate(past):
            if step.refreshed:
                self._renew()
            if i == refreshed and waits:
                self._make()
            self._write(step.update, step.signals)
            self.size = step.next_size or self.size
        self.ended = self.written >= len(self.edits)

    def step(self) -> Step:
        """Solve and write the next batch."""
        self.progress("editing", self.written, len(self.edits))
        staleness, stale = self._staleness(), self.schedule.refresh.stale
        anew = staleness is None or stale == 0 or staleness > stale
        if anew:
            self._renew()
            self._make()
        solved = self._solved()
        alarm = self._alarm(solved.signals)
        undone = bool(alarm) and self._guard.action == "rollback"
        stopped = bool(alarm) and self._guard.action in ("stop", "rollback")
        index, seconds = self.index, solved.seconds + own_seconds(solved.part, self.shared)
        if not undone:
            self._write(solved.update, solved.signals)
        self.size = solved.next_size
        self.ended = stopped or self.written >= len(self.edits)
        self.progress("editing", self.written, len(self.edits))
        return Step(
            index=index,
            at=self.written,
            edits=solved.part.edits,
            update=solved.update,
            features=solved.part,
            state=self.state,
            refreshed=anew,
            staleness=staleness,
            seconds=seconds,
            signals=solved.signals,
            next_size=solved.next_size,
            tried=solved.tried,
            note="; ".join([*solved.notes, *([alarm] if alarm else [])]),
            last=self.ended,
            undone=undone,
        )

    def _solved(self) -> _Solved:
        """The next batch, as large as the schedule lets it be."""
        assert self.waiting is not None
        room = min(self.size, len(self.waiting.edits), self.method.max_batch or self.size)
        size = self._rule.propose(self.method, self.waiting, self.state, room)
        tried, spent = 0, 0.0
        notes: list[str] = []
        while True:
            part = self.waiting.select(slice(0, size))
            started = time.perf_counter()
            update = self.method.solve(self.model, part, self.state, self.progress)
            signals = self._on_trial(update, part)
            spent += time.perf_counter() - started
            verdict = self._verdict(len(part.edits), signals)
            if verdict.reason:
                notes.append(f"{len(part.edits)}: {verdict.reason}")
            if verdict.stays:
                return _Solved(part, update, signals, verdict.next_size, tried, notes, spent)
            size, tried = verdict.next_size, tried + 1

    def _on_trial(self, update: Update[Any], part: Features) -> Signals | None:
        """Read the monitor with a batch written, then restore the weights bit for bit."""
        if self._monitor is None:
            return None
        norm = max(delta.norm() for delta in update.deltas.values()) / sqrt(len(part.edits))
        with self.model.scratch():
            self.model.write(update.deltas)
            signals = self._monitor.measure(part.edits, self.edits[: self.written], norm)
            if not (self._guard.watches and isinstance(self.method, Weighs)):
                return signals  # nobody asks for the energy, or it is not known
            before = self._seen[-1]
            return signals._replace(
                energy=self.method.energy(self.model, self.state),
                facts=len(part.edits) + (before.facts if before.energy else 0),
            )

    def _verdict(self, size: int, signals: Signals | None) -> Verdict:
        assert self.waiting is not None
        before = self._seen[-1] if self._seen else None
        usual = growth(self._seen[0], before) / self.written if before and self.written else None
        verdict = self._rule.judge(size, before, signals, usual)
        if not self._rule.looks or verdict.reason or size < len(self.waiting.edits):
            return verdict
        # That no more facts waited says nothing of how many there might have been.
        return verdict._replace(next_size=max(verdict.next_size, self.size))

    def _alarm(self, signals: Signals | None) -> str:
        if signals is None or not self._guard.watches:
            return ""
        return self._guard.judge(self._seen[0], first_written(self._seen[1:]), signals)

    def _renew(self) -> None:
        """Decide for which of the facts that come next features are made at once."""
        start, end = self._made
        if end:
            self._refresh = self._refresh.after(self.written - start, end - self.written)
        ahead = self._refresh.ahead(self.size)
        self._made = (self.written, min(self.written + ahead, len(self.edits)))

    def _make(self) -> None:
        """The features of these facts, on the weights as they are."""
        started = time.perf_counter()
        chosen = self.edits[slice(*self._made)]
        features = self.method.features(self.model, chosen, self.state, self.progress)
        self.waiting = features
        self.shared = shared_seconds(features, time.perf_counter() - started)

    def _staleness(self) -> float | None:
        """The 90th percentile over the facts that wait; None where none does.

        Facts that the method can give no number for are left out; 0 where all are such.
        """
        if self.waiting is None or not self.waiting.edits or self.schedule.refresh.stale == 0:
            return None
        if not isinstance(self.method, Stale):
            return 0.0
        moved = self.method.staleness(self.model, self.waiting)
        moved = moved[~torch.isnan(moved)]
        return float(moved.quantile(_STALE_SHARE)) if len(moved) else 0.0

    def _write(self, update: Update[Any], signals: Signals | None) -> None:
        self.model.write(update.deltas)
        self.state = self.method.carry(self.state, update.increment)
        self.written += len(update.ids)
        self.index += 1
        if signals is not None:
            self._seen.append(signals)
        if self.waiting is not None:
            self.waiting = self.waiting.select(slice(len(update.ids), None))
