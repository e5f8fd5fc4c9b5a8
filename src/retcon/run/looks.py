"""Score a run as it goes: which cases, at which times, by which observers.

pre         the untouched model
immediate   right after the case's own batch
final       after all edits (only where they carry)
retention   earlier cases again, after 2, 4, 8, … batches (on demand, only where they carry)
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from retcon.edits import Case
from retcon.method.base import Method, Rewrites
from retcon.model.handle import ModelHandle
from retcon.model.overlay import Overlay
from retcon.model.tokens import Tokens
from retcon.progress import Progress, silent
from retcon.run.driver import fold
from retcon.run.record import StepRecord
from retcon.run.schedule import Schedule
from retcon.run.steps import Past, Step
from retcon.scoring.metrics import Observer
from retcon.scoring.observations import Moment, Observation
from retcon.scoring.score import Look, score_cases, score_looks

# How cases are put to the model: as they are, or behind facts that stand before each prompt.
Rewrite = Callable[[Sequence[Case]], Sequence[Case]]


def unchanged(cases: Sequence[Case]) -> Sequence[Case]:
    """Leave the cases as they are."""
    return cases


class Stage(NamedTuple):
    """Steps that were worked on together, and what was seen of them.

    Attributes:
        steps: one, where batches are carried.
        records: of the steps.
        rows: observations that were due after them.
        rewrite: how cases are put to the model after the last of them.
    """

    steps: list[Step]
    records: list[StepRecord]
    rows: list[Observation]
    rewrite: Rewrite = unchanged


@dataclass(frozen=True, kw_only=True)
class Looks:
    """Choice of cases to score, of times, and of observers.

    Attributes:
        when: of `pre`, `immediate`, `final` and `retention`; the last two only where edits carry.
        among: ids of the cases that are scored; None: all.
        observers: other ways to look at the model, at the same times; before the first edit always.
    """

    when: tuple[str, ...] = ("pre", "immediate", "final")
    among: frozenset[str] | None = None
    observers: tuple[Observer, ...] = ()

    def of(self, cases: Sequence[Case]) -> "Looks":
        """The same, of a run of some cases: all of them, whichever are scored."""
        return replace(self, observers=tuple(one.of(cases) for one in self.observers))

    def check(self, tokens: Tokens, cases: Sequence[Case]) -> None:
        """Refuse, before any work is done, what some observer cannot look at.

        Raises:
            InvalidSetting, InvalidEdit: a way of asking that the tokenizer does not have, or a text
                that is too long for the model.
        """
        for one in self.observers:
            if one.check is not None:
                one.check(tokens, self.chosen(cases))

    def chosen(self, cases: Sequence[Case]) -> list[Case]:
        """Cases among these that are scored."""
        return [c for c in cases if self.among is None or c.edit.id in self.among]

    def scored(self, cases: Sequence[Case], step: Step) -> list[Case]:
        """Cases of a step's own that are scored."""
        return self.chosen(standing(cases[step.at - len(step.edits) : step.at]))

    def before(
        self, model: ModelHandle, cases: Sequence[Case], progress: Progress
    ) -> list[Observation]:
        """The rows of the untouched model."""
        moment, chosen = Moment("pre"), self.chosen(cases)
        if "pre" in self.when:
            return self.all(model, chosen, moment, progress)
        rows = self.observe(model, chosen, moment, progress)
        return rows + self.whole(model, moment, progress)

    def all(
        self, model: ModelHandle, cases: Sequence[Case], moment: Moment, progress: Progress
    ) -> list[Observation]:
        """Scores of some cases, and what observers see of them and of the model as a whole."""
        rows = self._look(model, cases, moment, progress)
        return rows + self.whole(model, moment, progress)

    def after(
        self,
        model: ModelHandle,
        cases: Sequence[Case],
        step: Step,
        progress: Progress,
        rewrite: Rewrite = unchanged,
    ) -> list[Observation]:
        """The rows that are due after a carried step.

        Where it is the first and last, its immediate scores are final too. Retention is looked at
        after 2, 4, 8, … batches, of the cases of the batches before. Final scores are of all cases,
        also of those that a guard has left unwritten, but for those whose fact has been edited
        again since: what they said is no longer wanted.
        """
        number, last = step.index + 1, step.last
        rows: list[Observation] = []
        if "immediate" in self.when and not step.undone:
            asked = rewrite(self.scored(cases, step))
            rows += self._look(model, asked, Moment("immediate", number), progress)
        own = 0 if step.undone else len(step.edits)
        written, unwritten = standing(cases[: step.at]), cases[step.at :]
        new = {case.edit.id for case in cases[step.at - own : step.at]}
        older = self.chosen([case for case in written if case.edit.id not in new])
        if "retention" in self.when and step.checkpoint:
            moment = Moment("retention", number)
            rows += self._look(model, rewrite(older), moment, progress) if older else []
            rows += self.whole(model, moment, progress)
        if "final" in self.when and last:
            moment, final = Moment("final", number), rewrite(self.chosen([*written, *unwritten]))
            if number == 1 and rows and step.at == len(cases):
                rows += [row._replace(when="final") for row in rows]
                rows += self.observe(model, final, moment, progress, beyond="immediate")
            else:
                rows += self._look(model, final, moment, progress)
            rows += self.whole(model, moment, progress)
        return rows

    def apart(
        self, model: ModelHandle, looks: Sequence[Look], progress: Progress, *, holds_all: bool
    ) -> list[Observation]:
        """Observe the cases of each look under its update, none of which is carried.

        What can look under several updates at once does; for the rest each is written, and undone.

        Args:
            holds_all: true if there is one update, of all cases: then the model as a whole is
                looked at.
        """
        due = [one for one in self.observers if all(look.when in one.at for look in looks)]
        overlay = Overlay(model=model, updates=[look.deltas for look in looks])
        shared = [one.together for one in due if one.together and overlay.applicable]
        rows = [row for together in shared for row in together(overlay, looks, progress)]
        alone = [one for one in due if one.together not in shared and (holds_all or not one.whole)]
        for look in looks if alone else ():
            moment = Moment(look.when, look.step)
            with model.scratch():
                model.write(look.deltas)
                for one in alone:
                    cases = () if one.whole else look.cases
                    rows += look_at(one, model, cases, moment, progress)
        return rows

    def observe(
        self,
        model: ModelHandle,
        cases: Sequence[Case],
        moment: Moment,
        progress: Progress,
        beyond: str = "",
    ) -> list[Observation]:
        """Observe some cases.

        Args:
            beyond: a time; observers that look then too are left out.
        """
        return [
            row
            for one in self.observers
            if moment.when in one.at and beyond not in one.at and not one.whole
            for row in look_at(one, model, cases, moment, progress)
        ]

    def whole(self, model: ModelHandle, moment: Moment, progress: Progress) -> list[Observation]:
        """Observe the model as a whole."""
        return [
            row
            for one in self.observers
            if moment.when in one.at and one.whole
            for row in look_at(one, model, (), moment, progress)
        ]

    def _look(
        self, model: ModelHandle, cases: Sequence[Case], moment: Moment, progress: Progress
    ) -> list[Observation]:
        """Scores of some cases, and what observers see of them."""
        when, step = moment
        rows = score_cases(model, cases, when=when, step=step, progress=progress)
        return rows + self.observe(model, cases, moment, progress)


def look_at(
    observer: Observer,
    model: ModelHandle,
    cases: Sequence[Case],
    moment: Moment,
    progress: Progress = silent,
) -> list[Observation]:
    """The rows of an observer, of a model as it is."""
    if observer.together is not None:
        look = Look(cases, *moment)
        return observer.together(Overlay(model=model), [look], progress)
    assert observer.observe is not None
    return observer.observe(model, cases, moment, progress)


def standing(cases: Sequence[Case]) -> list[Case]:
    """Cases whose fact was not edited again, of some that were written in this order."""
    last = {case.edit.fact: case.edit.id for case in cases}
    return [case for case in cases if last[case.edit.fact] == case.edit.id]


def run(
    model: ModelHandle,
    method: Method[Any, Any, Any],
    state: Any,
    cases: Sequence[Case],
    schedule: Schedule,
    progress: Progress = silent,
    *,
    past: Sequence[Past] = (),
    looks: Looks = Looks(),
) -> Iterator[Stage]:
    """Edit the cases by a schedule, and look after each step, or group of steps.

    While what was seen of a carried step is in the caller's hands, it is in the weights.

    Args:
        state: what `method.setup.begin` gave.
        past: the first steps, which an earlier run has solved and seen.
        looks: what to score, and when.

    Raises:
        InvalidSetting, InvalidEdit: as `driver.fold`.
    """

    def rewriting(step: Step) -> Rewrite:
        rewrites = method if isinstance(method, Rewrites) else None
        return unchanged if rewrites is None else lambda cases: rewrites.rewrite(cases, step.state)

    edits = [case.edit for case in cases]
    for steps in fold(model, method, state, edits, schedule, progress, past=past):
        if schedule.carry:
            (step,) = steps
            rewrite = rewriting(step)
            rows = looks.after(model, cases, step, progress, rewrite)
            yield Stage(steps, [StepRecord.of(model, step)], rows, rewrite)
            continue
        overlaid = [
            Look(
                rewriting(step)(looks.scored(cases, step)),
                "immediate",
                step.index + 1,
                step.update.deltas,
            )
            for step in steps
            if "immediate" in looks.when
        ]
        records = [StepRecord.of(model, step) for step in steps]
        alone = len(steps) == 1 and steps[0].index == 0 and steps[0].at == len(cases)
        rows = score_looks(model, overlaid, progress)
        rows += looks.apart(model, overlaid, progress, holds_all=alone)
        yield Stage(steps, records, rows)
