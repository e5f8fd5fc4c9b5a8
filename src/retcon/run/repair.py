"""Edit until facts are said: those that are not are tried again, harder; the others stay as is.

All facts are written in one batch. Then each is asked for, and those that are not said get other
targets, from more steps within a larger clamp, and with them all facts about the same subjects: one
target a subject, by their joint loss, since one layer tells their keys apart badly. Targets of the
others stay, and the one equation is solved again for all. A round stays if it brings more facts
than it changes probes; else it is taken back, and the next one tries harder still. What is not said
in the end is left out, if no fact about its subject is said, and so costs nothing.

No part of it is random, and the patch records of which try each target is, so that it can be solved
again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from retcon.edits import Case
from retcon.errors import first_few
from retcon.method.base import NONE, Retries
from retcon.model.handle import ModelHandle
from retcon.patch.patch import Patch
from retcon.progress import Progress, silent
from retcon.run.asked import ask
from retcon.run.edit import Prepared, patch_of, prepare, retrying, solve_together
from retcon.run.harm import harm_of
from retcon.scoring.observations import Observation
from retcon.scoring.score import score_cases


class Round(NamedTuple):
    """A round of repair.

    Attributes:
        tried: ids of the facts that were not said, and were tried again.
        said: how many facts are said on their own prompt after it.
        changed: how many probes that were right before are not any more.
        kept: whether it stayed.
    """

    tried: tuple[str, ...]
    said: int
    changed: int
    kept: bool


class Repaired(NamedTuple):
    """A patch, the rounds that it took (the first is of all facts), and who was left out."""

    patch: Patch
    rounds: tuple[Round, ...]
    left_out: tuple[str, ...]

    def told(self) -> str:
        """Say what the rounds have done, and who was left out."""
        first, best = self.rounds[0], [one for one in self.rounds if one.kept][-1]
        told = (
            f"Facts that are said, of {len(first.tried):,}: {first.said:,} at first, {best.said:,} "
            f"after {len(self.rounds) - 1} further rounds."
        )
        names = first_few([repr(id) for id in self.left_out])
        left_out = f" Left out, since they are not said all the same: {names}."
        return told + (left_out if self.left_out else "")

    def record(self) -> dict[str, object]:
        """The rounds, for JSON."""
        return {"rounds": [one._asdict() for one in self.rounds], "left_out": [*self.left_out]}


class _Attempt(NamedTuple):
    """Features, the patch they come to, and what is not said or has changed with it."""

    features: Any
    tries: Mapping[str, int]
    patch: Patch
    missing: tuple[str, ...]
    changed: int

    @property
    def said(self) -> int:
        """Number of facts that are said."""
        return len(self.features.edits) - len(self.missing)


class _Repair(NamedTuple):
    """All that attempts have in common. before: observations of the untouched model."""

    model: ModelHandle
    cases: Sequence[Case]
    prepared: Prepared
    method: Retries[Any, Any]
    state: Any
    before: Sequence[Observation]
    progress: Progress

    def attempt(self, features: Any, tries: Mapping[str, int]) -> _Attempt:
        """Solve for all facts, ask for each, and look at the probes."""
        patch = self.solved(features, tries)
        verdicts = ask(self.model, self.cases, patch=patch, progress=self.progress)
        missing = tuple(one.id for one in verdicts if one.word == "not said")
        with patch.applied(self.model):
            after = score_cases(self.model, self.cases, when="final", progress=self.progress)
        changed = len(harm_of(self.before, after, self.cases).changed)
        return _Attempt(features, tries, patch, missing, changed)

    def solved(self, features: Any, tries: Mapping[str, int]) -> Patch:
        """The patch that some features come to."""
        recipe, method, schedule = self.prepared
        plan = replace(schedule, batch_size=len(features.edits))
        step = solve_together(self.model, method, features, self.state, self.progress)
        return patch_of(self.model, recipe, plan, [step], tries)

    def hopeless(self, best: _Attempt) -> tuple[str, ...]:
        """Ids of facts that are not said and were tried again with none that is."""
        missing, edits = {*best.missing}, best.features.edits
        names = {e.id: self.method.tried_with(e) for e in edits}
        shared = {name for id, name in names.items() if id not in missing}
        return tuple(id for id, name in names.items() if id in missing and name not in shared)


def edit_until_said(
    model: ModelHandle,
    cases: Sequence[Case],
    *,
    rounds: int,
    method: str | None = None,
    layers: Sequence[int] | None = None,
    settings: Mapping[str, object] | None = None,
    progress: Progress = silent,
) -> Repaired:
    """Make the patch that writes some facts, and try again those that are not said.

    Args:
        model: a model; it stays as it is.
        cases: the facts, with the prompts and probes by which they are judged.
        rounds: how often at most facts are tried again.
        method, layers, settings: as of `edit`.
        progress: is told what is done.

    Raises:
        InvalidSetting: the method does not try again; or as `edit`.
        UnknownName, CollidingEdits, UnsupportedModel: as `edit`.
    """
    edits = [case.edit for case in cases]
    prepared = prepare(model, edits, method=method, layers=layers, settings=settings)
    chosen = retrying(prepared.method, len(edits))
    state = prepared.method.setup.begin(model, progress)
    features = prepared.method.features(model, edits, state, progress)
    before = score_cases(model, cases, when="pre", progress=progress)
    repair = _Repair(model, cases, prepared, chosen, state, before, progress)
    best = repair.attempt(features, NONE)
    history = [Round(tuple(edit.id for edit in edits), best.said, best.changed, True)]
    for times in range(1, rounds + 1):
        if not best.missing:
            break
        again = chosen.retried(model, best.features, best.missing, times, state, progress)
        trial = repair.attempt(again, {**best.tries, **dict.fromkeys(best.missing, times)})
        kept = trial.said - trial.changed > best.said - best.changed
        history.append(Round(best.missing, trial.said, trial.changed, kept))
        best = trial if kept else best
    return _finished(repair, best, tuple(history))


def _finished(repair: _Repair, best: _Attempt, rounds: tuple[Round, ...]) -> Repaired:
    """The best attempt, without the facts that further rounds have not brought about."""
    gone = repair.hopeless(best) if len(rounds) > 1 else ()
    staying = [i for i, edit in enumerate(best.features.edits) if edit.id not in gone]
    if not gone or not staying:
        return Repaired(best.patch, rounds, ())
    tries = {id: times for id, times in best.tries.items() if id not in gone}
    return Repaired(repair.solved(best.features.select(staying), tries), rounds, gone)
