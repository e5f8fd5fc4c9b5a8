"""Carried batches on their way into a model: what is written next, and whether it stays.

Where a guard watches or a rule adapts the batch size to the model, a batch is first written on
trial: the probe looks, the saved tensors are copied back, and only what stays is written again.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import NamedTuple

from retcon.edits import Edit
from retcon.method.base import Editor, Features, State, Update
from retcon.method.locate_then_edit import LocateThenEdit
from retcon.model.handle import ModelHandle
from retcon.progress import Progress
from retcon.run.batch_rules import Aimd, Verdict, compatible
from retcon.run.guard import first_written
from retcon.run.probing import Probe, weighed
from retcon.run.schedule import Schedule
from retcon.run.signals import Signals, growth
from retcon.run.steps import Past, Step, own_seconds, shared_seconds

# Of the facts that wait, the share whose drift must be below the refresh rule's threshold.
_STALE_SHARE = 0.9


class _Solved(NamedTuple):
    """A batch that stays: what was tried before, and why that did not, is in `tried` and notes."""

    part: Features
    update: Update
    signals: Signals | None
    next_size: int
    tried: int
    notes: list[str]
    seconds: float


@dataclass
class Fold:
    """Carried batches on their way into a model.

    written: how many edits are in. waiting: features of the next ones, on the weights as they were
    when these were made; the first of them are for edit number `written`. size: of the next batch.
    ended: whether there is none.
    """

    model: ModelHandle
    editor: Editor
    edits: Sequence[Edit]
    schedule: Schedule
    progress: Progress
    state: State
    written: int = field(default=0, init=False)
    index: int = field(default=0, init=False)
    ended: bool = field(default=False, init=False)
    waiting: Features | None = field(default=None, init=False)
    shared: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.size = self.schedule.batch_size
        self._aimd = Aimd(step=self.size) if self.schedule.rule == "aimd" else None
        self._probe = Probe(self.model) if self._aimd or self.schedule.guard.watches else None
        untouched = self._probe.measure([], [], 0.0) if self._probe else None
        self._refresh = self.schedule.refresh
        # From which edit on, and up to which, the last targets were made.
        self._made = (0, 0)
        # Of the untouched model, then after each batch that stayed.
        self._seen = [] if untouched is None else [untouched]

    def replay(self, past: Sequence[Past]) -> None:
        """Write earlier steps again, and make the targets that were waiting after the last."""
        made = max((i for i, step in enumerate(past) if step.refreshed), default=0)
        kept = self.schedule.refresh.stale > 0
        for i, step in enumerate(past):
            if step.refreshed:
                self._renew()
            if i == made and kept:
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
        done = self._solved()
        alarm = self._alarm(done.signals)
        undone = bool(alarm) and self.schedule.guard.action == "rollback"
        stopped = bool(alarm) and self.schedule.guard.action in ("stop", "rollback")
        index, seconds = self.index, done.seconds + own_seconds(done.part, self.shared)
        if not undone:
            self._write(done.update, done.signals)
        self.size = done.next_size
        self.ended = stopped or self.written >= len(self.edits)
        self.progress("editing", self.written, len(self.edits))
        return Step(
            index=index,
            at=self.written,
            edits=done.part.edits,
            update=done.update,
            features=done.part,
            refreshed=anew,
            staleness=staleness,
            seconds=seconds,
            signals=done.signals,
            next_size=done.next_size,
            tried=done.tried,
            note="; ".join([*done.notes, *([alarm] if alarm else [])]),
            last=self.ended,
            undone=undone,
        )

    def _solved(self) -> _Solved:
        """The next batch, as large as the schedule lets it be."""
        assert self.waiting is not None
        size, tried, spent = self._wanted(self.waiting), 0, 0.0
        notes: list[str] = []
        while True:
            part = self.waiting.select(slice(0, size))
            started = time.perf_counter()
            update = self.editor.edit(self.model, part, self.state, self.progress)
            signals = self._on_trial(update, part)
            spent += time.perf_counter() - started
            verdict = self._verdict(len(part.edits), signals)
            if verdict.reason:
                notes.append(f"{len(part.edits)}: {verdict.reason}")
            if verdict.stays:
                return _Solved(part, update, signals, verdict.next_size, tried, notes, spent)
            size, tried = verdict.next_size, tried + 1

    def _wanted(self, waiting: Features) -> int:
        """How many of the facts that wait are solved for together."""
        size = min(self.size, len(waiting.edits), self.editor.max_batch or self.size)
        if self.schedule.rule != "energy":
            return size
        assert isinstance(self.editor, LocateThenEdit)
        (layer,) = self.editor.layers
        part = waiting.select(slice(0, size))
        residual = part.targets.delta.double()
        ridge = self.editor.ridge_of(size)
        return compatible(part.keys, residual, self.state.metrics[layer], ridge)

    def _on_trial(self, update: Update, part: Features) -> Signals | None:
        """What the probe sees of a batch; the weights are as before afterwards, bit for bit."""
        if self._probe is None:
            return None
        norm = max(delta.norm() for delta in update.deltas.values()) / sqrt(len(part.edits))
        with self.model.scratch():
            self.model.write(update.deltas)
            seen = self._probe.measure(part.edits, self.edits[: self.written], norm)
            if not self.schedule.guard.watches:  # nobody asks for the energy
                return seen
            metrics, before = self.state.metrics, self._seen[-1]
            return weighed(seen, self.model, metrics, before=before, facts=len(part.edits))

    def _verdict(self, size: int, signals: Signals | None) -> Verdict:
        if self._aimd is None or signals is None:
            return Verdict(True, "", self.schedule.batch_size)
        assert self.waiting is not None
        usual = growth(self._seen[0], self._seen[-1]) / self.written if self.written else None
        verdict = self._aimd.judge(size, self._seen[-1], signals, usual)
        if verdict.reason or size < len(self.waiting.edits):
            return verdict
        # That no more facts waited says nothing of how many there might have been.
        return verdict._replace(next_size=max(verdict.next_size, self.size))

    def _alarm(self, signals: Signals | None) -> str:
        if signals is None or not self.schedule.guard.watches:
            return ""
        first = first_written(self._seen[1:])
        return self.schedule.guard.judge(self._seen[0], first, signals)

    def _renew(self) -> None:
        """Decide for which of the facts that come next targets are made at once."""
        start, end = self._made
        if end:
            self._refresh = self._refresh.after(self.written - start, end - self.written)
        ahead = self._refresh.ahead(self.size)
        self._made = (self.written, min(self.written + ahead, len(self.edits)))

    def _make(self) -> None:
        """The features of these facts, on the weights as they are."""
        started = time.perf_counter()
        chosen = self.edits[slice(*self._made)]
        self.waiting = self.editor.features(self.model, chosen, self.state, self.progress)
        self.shared = shared_seconds(self.waiting, time.perf_counter() - started)

    def _staleness(self) -> float | None:
        """The 90th percentile of the drift of the facts that wait; None where none does.

        Facts whose δ is 0 have no unit to measure it in, and are left out; 0 where all are such.
        """
        if self.waiting is None or not self.waiting.edits or self.schedule.refresh.stale == 0:
            return None
        drift = self.editor.drift(self.model, self.waiting)
        drift = drift[~drift.isnan()]
        return float(drift.quantile(_STALE_SHARE)) if len(drift) else 0.0

    def _write(self, update: Update, signals: Signals | None) -> None:
        self.model.write(update.deltas)
        self.state = self.editor.carry(self.state, update)
        self.written += len(update.ids)
        self.index += 1
        if signals is not None:
            self._seen.append(signals)
        if self.waiting is not None:
            self.waiting = self.waiting.select(slice(len(update.ids), None))
