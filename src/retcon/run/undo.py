"""Undo by solving again for the facts that stay, as if those taken back had never been.

Facts that were solved together took each other into account. *Removed* drops the rows of some and
leaves the others' as they are; *re-solved* edits the others again, by the recorded method, layers,
settings, schedule and refresh rule. On a model as it was loaded targets and keys come from the
cache, so that solving again is algebra.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import NamedTuple

from retcon.edits import Case
from retcon.errors import InvalidSetting
from retcon.method.entries import methods
from retcon.model.handle import ModelHandle
from retcon.patch.ledger import Ledger, LedgerEntry, Undoing
from retcon.patch.patch import Patch
from retcon.progress import Progress, silent
from retcon.run.edit import edit
from retcon.run.schedule import Schedule
from retcon.scoring.metrics import summarise
from retcon.scoring.score import score_cases
from retcon.settings import of_now

Summary = Mapping[str, float | None]
# The stacks that an undo is judged by, in the order in which they are shown.
FORMS = ("base", "now", "removed", "re-solved")


class UndoScores(NamedTuple):
    """Scores of the facts that stay and of those taken back, under each of FORMS."""

    staying: Mapping[str, Summary]
    taken: Mapping[str, Summary]


def resolve(
    model: ModelHandle, ledger: Ledger, undoing: Undoing, progress: Progress = silent
) -> dict[int, Patch]:
    """The patches that take the place of entries of which only some facts are taken back.

    Entries that were made on top of the stack are solved again as well where something below them
    has changed; those made on the base model do not depend on what is below.

    Raises:
        InvalidSetting: an entry was not made by a method of Retcon, so its facts have none.
        PatchMismatch: the ledger is for another model.
    """
    ledger.stack().check(model)
    solved: dict[int, Patch] = {}
    changed = False
    for entry in ledger.entries():
        dropped = undoing.facts.get(entry.number, ())
        if entry.number in undoing.entries:
            changed = True
        elif dropped or (entry.on and changed):
            changed = True
            below = ledger.after(undoing, solved, below=entry.number)
            with below.applied(model) if entry.on else nullcontext():
                solved[entry.number] = _again(model, entry, dropped, progress)
    return solved


def check_undo(
    model: ModelHandle,
    ledger: Ledger,
    undoing: Undoing,
    cases: Sequence[Case] = (),
    progress: Progress = silent,
) -> UndoScores:
    """Score both ways of undoing; the ledger stays as it is.

    Args:
        cases: paraphrases and neighbours of facts, where there are such; other facts are ignored.

    Raises:
        InvalidSetting, PatchMismatch: as `resolve`.
    """
    staying, taken = _judged(ledger.entries(), undoing, cases)
    stacks: dict[str, Patch | None] = {
        "base": None,
        "now": ledger.stack(),
        "removed": ledger.after(undoing),
        "re-solved": ledger.after(undoing, resolve(model, ledger, undoing, progress)),
    }
    summaries: dict[str, tuple[Summary, Summary]] = {}
    for form in FORMS:
        patch = stacks[form]
        with nullcontext() if patch is None else patch.applied(model):
            rows = score_cases(model, [*staying, *taken], when="final", progress=progress)
        ours = {case.edit.id for case in staying}
        summaries[form] = (
            summarise([row for row in rows if row.case in ours]),
            summarise([row for row in rows if row.case not in ours]),
        )
    return UndoScores(
        {form: pair[0] for form, pair in summaries.items()},
        {form: pair[1] for form, pair in summaries.items()},
    )


def _again(
    model: ModelHandle, entry: LedgerEntry, dropped: Sequence[str], progress: Progress
) -> Patch:
    about = entry.about
    if about.method not in methods():
        raise InvalidSetting(
            f"Entry {entry.number} was made by {about.method!r}, which is no method of Retcon: "
            f"there is nothing to solve again. Take its facts back by removing their rows."
        )
    staying = [record for record in about.edits if record.id not in dropped]
    return edit(
        model,
        [record.edit for record in staying],
        method=about.method,
        layers=about.layers,
        settings=of_now(about.settings),
        schedule=Schedule.parse(about.schedule, about.refresh),
        tries={record.id: record.tries for record in staying if record.tries},
        progress=progress,
    )


def _judged(
    entries: Sequence[LedgerEntry], undoing: Undoing, cases: Sequence[Case]
) -> tuple[list[Case], list[Case]]:
    """A case of every fact that stays, and of every one taken back; ids are `ENTRY:ID`."""
    known = {(c.edit.prompt, c.edit.subject, c.edit.target): c for c in cases}
    staying: list[Case] = []
    taken: list[Case] = []
    for entry in entries:
        for record in entry.about.edits:
            fact = replace(record.edit, id=f"{entry.number}:{record.id}")
            case = known.get((fact.prompt, fact.subject, fact.target), Case(edit=fact))
            old = fact.target_old if fact.target_old is not None else case.edit.target_old
            case = replace(case, edit=replace(fact, target_old=old))
            gone = entry.number in undoing.entries or record.id in undoing.facts.get(
                entry.number, ()
            )
            (taken if gone else staying).append(case)
    return staying, taken
