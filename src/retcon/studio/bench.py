"""The bench: a model and its ledger, and what the worker does with them.

Every fact is written into the base model and kept as an entry of the ledger; the changes of all
entries add up. Between two jobs the model is as it was loaded, so a job that ends early, in
whatever way, leaves nothing behind.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

from retcon.edits import Case
from retcon.errors import InvalidSetting
from retcon.files import check_writable
from retcon.model.handle import ModelHandle
from retcon.patch.ledger import Ledger, LedgerEntry, Undoing
from retcon.patch.naming import among
from retcon.patch.patch import Patch
from retcon.progress import Progress
from retcon.run.asked import FactVerdict, ask, with_verdicts
from retcon.run.close_up import look_at, place_of, watched
from retcon.run.edit import edit, writing
from retcon.run.interference import Interference, interference
from retcon.run.outcomes import check_outcome, outcome_of
from retcon.scoring.metrics import METRICS
from retcon.studio.jobs import JobQueue, StudioJob
from retcon.studio.views import (
    CaseView,
    Disturbance,
    EntryView,
    FactView,
    Foresight,
    Shelf,
    VerdictView,
    fact_view,
    rows_of,
)

# So many facts that would be disturbed are named, none below this share.
_NAMED, _LEAST = 5, 0.005
# So many seconds are waited for another process that writes to the ledger; pages are not kept long.
_PATIENCE = 15.0
# So many lines of an export's tables are told.
_LINES = 12
# Bytes that a small patch and its views take.
_ROOM = 2**20


class Editing(TypedDict, total=False):
    """Method, layers and settings of all edits, as far as they were given."""

    method: str | None
    layers: tuple[int, ...] | None
    settings: Mapping[str, object]


class Bench:
    """A model, its ledger, and the worker that owns the model.

    name, revision: what the model is called. load: loads it. ledger: the folder. who: the user.
    """

    def __init__(
        self,
        name: str,
        load: Callable[[Progress], ModelHandle],
        ledger: Path,
        *,
        who: str,
        editing: Editing | None = None,
        revision: str | None = None,
    ) -> None:
        self.name, self.who, self.revision = name, who, revision
        self.editing: Editing = editing or {}
        self.ledger = Ledger(ledger, patience=_PATIENCE)
        self.shelf = Shelf(ledger / "seen")
        self.exports = ledger / "exports"
        self.jobs = JobQueue()
        self._load = load
        self._loaded: ModelHandle | None = None
        self._start: StudioJob | None = None
        # What was foreseen last, of which fact, and after how many events.
        self._foresight = (("", -1), Foresight())

    @property
    def trouble(self) -> str:
        """Why no fact can be written; empty where they can, or it is not known yet."""
        return "" if self._start is None else self._start.problem

    @property
    def entries(self) -> tuple[LedgerEntry, ...]:
        """The stack; empty before the first fact makes the folder a ledger."""
        return self.ledger.entries() if self.begun else ()

    @property
    def begun(self) -> bool:
        """True if there is a ledger."""
        return (self.ledger.folder / "ledger.json").exists()

    def model(self, progress: Progress) -> ModelHandle:
        """The model, loaded on first use. Only jobs call it."""
        if self._loaded is None:
            loaded = self._load(progress)
            if self.begun:
                self.ledger.stack().check(loaded)
            self._loaded = loaded
        return self._loaded

    def _writing(self, progress: Progress) -> ModelHandle:
        """The model, for what takes its time: first it is seen whether its result can be kept."""
        self.ledger.check_place()
        check_writable(self.ledger.folder / "ledger.json", room=_ROOM)
        return self.model(progress)

    def start(self) -> StudioJob:
        """Load the model, and look whether facts can be written into it as is asked for."""

        def work(progress: Progress) -> Mapping[str, object]:
            writing(self.model(progress), **self.editing).build()
            return {}

        self._start = self.jobs.add(f"Loading {self.name}", work)
        return self._start

    def looked(self, case: Case, progress: Progress) -> FactView:
        """Look at a fact as the model says it now."""
        model = self.model(progress)
        check_outcome(model, [case])
        place = place_of(model, case)
        with self._stacked(model):
            rows = watched(model, Case(edit=case.edit))[:1]
            seen = look_at(model, rows, progress)
        return fact_view(case, place, rows_of(rows, seen))

    def foreseen(self, case: Case, progress: Progress) -> Foresight:
        """Predict which facts that are there a new one would disturb, and be disturbed by."""
        stands = (case.edit.fact, len(self.ledger.history) if self.begun else 0)
        if self._foresight[0] != stands:
            self._foresight = (stands, self._foresee(self.model(progress), case, progress))
        return self._foresight[1]

    def written(self, case: Case, note: str, progress: Progress) -> int:
        """Write a fact, look at it, and put it on the stack; the number of its entry.

        A fact that is there already, with whatever answer, is taken back for it.
        """
        model = self._writing(progress)
        case = self._named([case])[0]
        check_outcome(model, [case])
        foresight = self.foreseen(case, progress)
        patch = self._make(model, [case], progress)
        older = self._older([case])
        with self._stacked(model):
            rows = watched(model, case)
            before = look_at(model, rows, progress)
        with self._without(older, model), patch.applied(model):
            after = look_at(model, rows, progress)
            verdicts = ask(model, [case], progress=progress)
        number = self._kept(with_verdicts(patch, verdicts), [case], note)
        seen = rows_of(rows, before, after)
        view = fact_view(case, place_of(model, case), seen)
        self.shelf.keep(view.model_copy(update={"foresight": foresight}), number, 1)
        spoken = {case.edit.text: seen[0].before.text}
        self.shelf.keep(_entry_view([case], verdicts, spoken, patch.notes), number)
        return number

    def written_together(self, cases: Sequence[Case], note: str, progress: Progress) -> int:
        """Write some facts in one batch, ask for each, and put them on the stack as one entry."""
        model = self._writing(progress)
        cases = self._named(cases)
        check_outcome(model, cases)
        patch = self._make(model, cases, progress)
        older = self._older(cases)
        with self._without(older, model):
            outcome = outcome_of(model, cases, patch, progress)
        number = self._kept(outcome.patch, cases, note)
        view = _entry_view(cases, outcome.verdicts, outcome.before, outcome.told())
        scores = [
            (METRICS.find(name).title, outcome.scores["pre"][name], score)
            for name, score in outcome.scores["final"].items()
            if score is not None and METRICS.find(name).shown == "headline"
        ]
        self.shelf.keep(view.model_copy(update={"scores": tuple(scores)}), number)
        return number

    def solved_together(self, progress: Progress) -> int:
        """Write all facts of the stack again, in one batch that takes each into account."""
        entries = self.entries
        cases = [case for entry in entries for case in self.cases_of(entry)]
        if len(cases) < 2:
            raise InvalidSetting("Facts are solved together where there are at least two of them.")
        return self.written_together(cases, "all facts, solved together", progress)

    def closer(self, number: int, place: int, progress: Progress) -> FactView:
        """Look at a fact of an entry: without that entry in the model, and with it."""
        model, ledger = self.model(progress), self.ledger
        case = self.case(number, place)
        rest = ledger.choose(entries=[number]) if number in self._numbers else None
        below = ledger.stack() if rest is None else ledger.after(rest)
        with below.applied(model):
            rows = watched(model, case)
            before = look_at(model, rows, progress)
            with ledger.patch(number, at=number).applied(model):
                after = look_at(model, rows, progress)
        view = fact_view(case, place_of(model, case), rows_of(rows, before, after))
        if (seen := self.shelf.fact(number, place)) is not None:
            view = view.model_copy(update={"foresight": seen.foresight})
        self.shelf.keep(view, number, place)
        return view

    def put_back(self, facts: Sequence[str], entries: Sequence[int]) -> None:
        """Switch facts or entries on again, each in its place.

        Raises:
            UnknownName: there is no such fact or entry that is switched off.
            InvalidSetting: the same fact has been written anew since, and is switched on.
        """
        on = {r.edit.fact: entry.number for entry in self.entries for r in entry.about.edits}
        for entry in self.ledger.outside():
            for record in entry.about.edits:
                asked = entry.number in entries or f"{entry.number}:{record.id}" in facts
                if asked and (number := on.get(record.edit.fact)) is not None:
                    raise InvalidSetting(
                        f"“{record.edit.text}” has been written anew, as entry {number}, and the "
                        f"changes of both would add up. Switch entry {number} off first."
                    )
        self.ledger.put_back(facts, entries, who=self.who)

    def exported(self, form: str, name: str, progress: Progress) -> list[str]:
        """Write the stack in a form that other programs read; what is to be said of it."""
        self.check_export(name)
        stack = self.ledger.stack()
        if not stack.deltas:
            raise InvalidSetting("There is nothing to export: no fact is switched on.")
        done = stack.export(
            form, self.exports / name, model=self.name, revision=self.revision, progress=progress
        )
        told = [
            "; ".join(f"{name}: {cell}" for name, cell in zip(table.columns, row, strict=True))
            for table in done.tables
            for row in table.rows
        ]
        return [*told[:_LINES], *done.notes, *done.warnings]

    def check_export(self, name: str) -> None:
        """Refuse what is no plain name of a new folder.

        Raises:
            InvalidSetting: it is none, or there is such a folder.
        """
        if not re.fullmatch(r"\w[\w.-]{0,80}", name):
            raise InvalidSetting(
                f"{name!r} is no name for a folder. Take letters, digits, dots and dashes."
            )
        if (self.exports / name).exists():
            raise InvalidSetting(f"There is an export {name!r} already. Give another name.")

    def case(self, number: int, place: int) -> Case:
        """A fact of an entry, as it was added.

        Raises:
            UnknownName: there is no such entry, or it has not so many facts.
        """
        entries = {entry.number: entry for entry in self.every}
        added = (
            {e.number: e for e in self.ledger.entries(at=number)} if among(number, entries) else {}
        )
        cases = self.cases_of(added[number])
        among(place, range(1, len(cases) + 1))
        return cases[place - 1]

    def cases_of(self, entry: LedgerEntry) -> list[Case]:
        """The facts of an entry, each with the prompts that were given with it."""
        view = self.shelf.entry(entry.number)
        kept = {} if view is None else {one.id: one.case for one in view.cases}
        return [kept.get(r.id, Case(edit=r.edit)) for r in entry.about.edits]

    @property
    def _numbers(self) -> set[int]:
        return {entry.number for entry in self.entries}

    def _stacked(self, model: ModelHandle) -> AbstractContextManager[ModelHandle]:
        return self.ledger.applied(model) if self.begun else nullcontext(model)

    def _make(self, model: ModelHandle, cases: Sequence[Case], progress: Progress) -> Patch:
        """The patch of some facts, made on the base model."""
        return edit(model, [case.edit for case in cases], progress=progress, **self.editing)

    def _foresee(self, model: ModelHandle, case: Case, progress: Progress) -> Foresight:
        there = {
            f"{entry.number}:{record.id}": record.edit
            for entry in self.entries
            for record in entry.about.edits
            if record.edit.fact != case.edit.fact
        }
        if not there:
            return Foresight()
        others = [replace(one, id=name) for name, one in there.items()]
        try:
            seen = interference(model, [case.edit, *others], progress=progress, **self.editing)
        except InvalidSetting as error:
            return Foresight(unknown=str(error))
        return _strongest(seen)

    def _named(self, cases: Sequence[Case]) -> list[Case]:
        """The cases under ids that nothing in the ledger has."""
        taken = {record.id for entry in self.every for record in entry.about.edits}
        named: list[Case] = []
        for case in cases:
            id = _free(case.edit.id, taken)
            taken.add(id)
            named.append(replace(case, edit=replace(case.edit, id=id)))
        return named

    @property
    def every(self) -> tuple[LedgerEntry, ...]:
        """All that is in the stack, and all that was taken back."""
        return (*self.entries, *self.ledger.outside()) if self.begun else ()

    def _older(self, cases: Sequence[Case], besides: int | None = None) -> Undoing | None:
        """Find the same facts in the stack, in all entries but one."""
        facts = {case.edit.fact for case in cases}
        same = [
            f"{entry.number}:{record.id}"
            for entry in self.entries
            for record in entry.about.edits
            if record.edit.fact in facts and entry.number != besides
        ]
        return self.ledger.choose(same) if same else None

    def _without(
        self, undoing: Undoing | None, model: ModelHandle
    ) -> AbstractContextManager[ModelHandle]:
        if undoing is None:
            return self._stacked(model)
        return self.ledger.after(undoing).applied(model)

    def _kept(self, patch: Patch, cases: Sequence[Case], note: str) -> int:
        """Put a patch on the stack, in the place of what it takes the place of; its number.

        What that is may have changed while the patch was made. It is taken back last: who ends the
        process between the two has the fact twice, and has lost nothing.
        """
        size = sum(delta.left.nbytes + delta.right.nbytes for delta in patch.deltas.values())
        check_writable(self.ledger.folder / "ledger.json", room=size + _ROOM)
        added = self.ledger.add(patch, who=self.who, note=note).number
        if (older := self._older(cases, besides=added)) is not None:
            self.ledger.undo(older, who=self.who, note="written anew")
        return added


def _strongest(seen: Interference) -> Foresight:
    """The facts that disturb the first one most, or that it disturbs."""
    shares = [one.tolist() for one in seen.shares.values()]
    named = [
        Disturbance(
            name=one.id,
            text=f"{one.text} {one.target}",
            gives=max((layer[0][place] for layer in shares), key=abs),
            takes=max((layer[place][0] for layer in shares), key=abs),
        )
        for place, one in enumerate(seen.edits[1:], start=1)
    ]
    most = sorted(named, key=lambda one: -one.size)[:_NAMED]
    return Foresight(facts=tuple(one for one in most if one.size >= _LEAST))


def _free(id: str, taken: set[str]) -> str:
    """The id, or with a number behind it where it is taken."""
    number, free = 1, id
    while free in taken:
        number += 1
        free = f"{id}-{number}"
    return free


def _entry_view(
    cases: Sequence[Case],
    verdicts: Sequence[FactVerdict],
    before: Mapping[str, str],
    remarks: Sequence[str],
) -> EntryView:
    return EntryView(
        cases=tuple(CaseView.of(case) for case in cases),
        verdicts=tuple(
            VerdictView(
                id=one.id,
                prompt=one.prompt,
                target=one.target,
                before=before.get(one.prompt, ""),
                after=one.text,
                word=one.word,
                right=one.others.right,
                of=one.others.of,
            )
            for one in verdicts
        ),
        remarks=tuple(remarks),
    )
