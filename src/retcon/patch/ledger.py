"""A ledger: patches on one base model, stacked in the order they were added, and their history.

An entry is a patch that was added; its number is that of the event that added it. Undoing is an
event too: it says which facts leave the stack, and nothing is deleted, so every earlier stack can
be had again. The model's own weights are nowhere in a ledger: an empty stack is the model as it
was, to the last bit.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from retcon.errors import (
    InvalidLedger,
    InvalidPatch,
    InvalidSetting,
    PatchMismatch,
    UnknownName,
)
from retcon.files import make_folder
from retcon.locking import locked
from retcon.model.handle import ModelHandle
from retcon.patch import events as journal
from retcon.patch.combine import check_apart, check_rows, stack, without
from retcon.patch.events import Added, Event, Noted, PutBack, Returned, Scores, TakenBack
from retcon.patch.naming import among, find_fact, not_taken_back
from retcon.patch.patch import Patch, Provenance, load_about, load_patch
from retcon.patch.slots import Slot, check_held, last_places, note_of, stack_after, stacks
from retcon.sealed import digest_of


@dataclass(frozen=True, kw_only=True)
class LedgerEntry:
    """A patch in the stack: who added it, when and why, and what is left of it.

    Attributes:
        about: how it was made, with the facts that are still in the stack.
        brought: the ids of the facts that it brought, in their order.
        on: the event on whose stack it was made; 0: on the base model.
        solved: see `Slot`.
    """

    number: int
    who: str
    when: datetime
    note: str
    scores: Scores
    about: Provenance
    brought: tuple[str, ...]
    on: int
    solved: int

    def place(self, id: str) -> int:
        """Place of a fact among those that it brought, from 1 on."""
        return self.brought.index(id) + 1


class Undoing(NamedTuple):
    """Facts, by entry, and whole entries that are to leave the stack.

    Attributes:
        seen: number of events when this was made out.
    """

    facts: dict[int, tuple[str, ...]]
    entries: tuple[int, ...]
    seen: int


@dataclass(frozen=True)
class Ledger:
    """A folder of patches on one base model; see the module `events` for its files.

    Any number of processes may read and write it: writers wait for each other, and readers see
    each event whole or not at all.

    Attributes:
        patience: seconds that a writer waits for others; None: until they are done.
    """

    folder: Path
    patience: float | None = None

    @property
    def identity(self) -> journal.Identity:
        """The base model.

        Raises:
            InvalidLedger: the folder is no ledger.
        """
        return journal.read_identity(self.folder)

    @property
    def history(self) -> tuple[Event, ...]:
        """Events of the whole history, oldest first.

        Raises:
            InvalidLedger: the folder is no ledger, or an event is missing or damaged.
        """
        return self.read().events

    def read(self) -> journal.History:
        """The history with what seals it; every fact that it takes back is one that there was.

        Raises:
            InvalidLedger: the folder is no ledger, or an event is missing or damaged.
        """
        history = journal.read_history(self.folder)
        held = cache(self._held)
        for event, (before, after) in zip(
            history.events, pairwise(stacks(history.events)), strict=True
        ):
            if isinstance(event.action, TakenBack):
                check_held(event, before, event.action.facts, held)
            elif isinstance(event.action, PutBack):
                check_held(event, after, event.action.entries, held)
            elif isinstance(event.action, Added) and history.identity.head is None:
                self._check_base(history.identity, event.number, event.action)
        return history

    def entries(self, at: int | None = None) -> tuple[LedgerEntry, ...]:
        """The stack from its lowest patch on.

        Args:
            at: the event after which it is read (0: empty); None: the stack as it is now.

        Raises:
            InvalidLedger, InvalidPatch: a file is missing or damaged.
            UnknownName: there is no such event.
        """
        history = self.history
        return tuple(self._entry(slot, history) for slot in stack_after(history, at))

    def outside(self) -> tuple[LedgerEntry, ...]:
        """List what was taken back and can be put back: entries with those of their facts.

        Facts in whose place others were solved again are not among them.

        Raises:
            InvalidLedger, InvalidPatch: a file is missing or damaged.
        """
        history = self.history
        inside = {slot.entry: slot for slot in stack_after(history, None)}
        out: list[LedgerEntry] = []
        for place in last_places(history):
            entry = self._entry(place._replace(dropped=frozenset()), history)
            held = inside.get(place.entry)
            gone = tuple(r for r in entry.about.edits if held is None or r.id in held.dropped)
            if gone or held is None:
                out.append(replace(entry, about=entry.about.model_copy(update={"edits": gone})))
        return tuple(out)

    def patch(self, entry: int, at: int | None = None) -> Patch:
        """Patch of one entry, as far as it is in the stack.

        Raises:
            UnknownName: the stack has no such entry.
        """
        history = self.history
        slots = {slot.entry: slot for slot in stack_after(history, at)}
        among(entry, slots)
        return self._patch(slots[entry])

    def stack(self, at: int | None = None) -> Patch:
        """One patch of everything in the stack; without changes where the stack is empty.

        Raises:
            InvalidLedger, InvalidPatch: a file is missing, damaged, or not the one that was added.
        """
        identity, slots = self.identity, stack_after(self.history, at)
        patches = {str(slot.entry): self._patch(slot) for slot in slots}
        return stack(patches, base=identity.base, model=identity.model)

    def applied(
        self, model: ModelHandle, at: int | None = None
    ) -> AbstractContextManager[ModelHandle]:
        """The model with the stack in its weights; afterwards its own weights, bit for bit.

        Raises:
            PatchMismatch: the ledger is for another model.
        """
        return self.stack(at).applied(model)

    def add(
        self,
        patch: Patch | Path | str,
        *,
        who: str,
        note: str = "",
        scores: Scores | None = None,
        model: ModelHandle | None = None,
    ) -> LedgerEntry:
        """Put a patch on top of the stack. A folder that is empty or missing becomes a ledger.

        Args:
            model: the base model, needed only for a patch that was made on top of the stack.

        Raises:
            PatchMismatch: the patch was made for another model.
            InvalidPatch, InvalidLedger: it, or the ledger, is damaged.
            StorageError: no space or no permission; then nothing was added.
        """
        read = patch if isinstance(patch, Patch) else load_patch(patch)
        make_folder(self.folder)
        with self._locked():
            self._found(read.about)
            history, on = self.read(), self._made_on(read.about, model)
            file = patch if isinstance(patch, Patch) else Path(patch)
            sha = journal.keep_patch(self.folder, file)
            action = Added(patch=sha, on=on, scores=scores or {})
            event = journal.append(self.folder, history, action, who=who, note=note)
        return self._entry(Slot(event.number, sha), (*history.events, event))

    def choose(
        self, facts: Sequence[str] = (), entries: Sequence[int] = (), *, again: bool = False
    ) -> Undoing:
        """Find what an undo would take out of the stack.

        Args:
            facts: ids, as `ID` or, where several entries have it, `ENTRY:ID`.
            again: the facts that stay are solved again, so that none needs a row of its own.

        Raises:
            UnknownName: the stack has no such fact or entry.
            InvalidSetting: an id that is in several entries, or nothing named.
            InvalidPatch: a fact of a patch whose rows do not belong to facts, unless `again`.
        """
        if not facts and not entries:
            raise InvalidSetting("Say what to take back: ids of facts, or entries.")
        history = self.history
        slots = {slot.entry: slot for slot in stack_after(history, None)}
        stacked = {number: self._entry(slot, history) for number, slot in slots.items()}
        for number in entries:
            among(number, stacked)
        stacked_ids = {number: _ids(entry) for number, entry in stacked.items()}
        named: dict[int, list[str]] = {}
        for name in dict.fromkeys(facts):
            number, id = find_fact(name, stacked_ids)
            named.setdefault(number, []).append(id)
        if not again:
            for number in named:
                check_rows(self._patch(slots[number]))
        whole = {n for n, ids in named.items() if {r.id for r in stacked[n].about.edits} == {*ids}}
        whole |= {*entries}
        some = {number: tuple(ids) for number, ids in named.items() if number not in whole}
        return Undoing(some, tuple(sorted(whole)), len(history))

    def undo(
        self,
        undoing: Undoing,
        *,
        who: str,
        note: str = "",
        solved: Mapping[int, Patch] | None = None,
    ) -> Event:
        """Take facts out of the stack; the history keeps them.

        Args:
            solved: by entry, the facts of it that stay, solved again. Without it their rows stay as
                they are (*removed*, not re-solved).

        Raises:
            InvalidLedger: somebody else has changed the ledger since the undo was made out.
            InvalidPatch: some of several facts that were given one target, and no solved patch.
            StorageError: no space or no permission; then nothing has happened.
        """
        with self._locked():
            history = self.read()
            if len(history.events) != undoing.seen:
                raise InvalidLedger(
                    f"{self.folder} was changed meanwhile (event {len(history.events)}, by "
                    f"{history.events[-1].who}). Nothing was undone. Look at it, and undo again."
                )
            for slot in stack_after(history.events, None):
                if slot.entry in undoing.facts and slot.entry not in (solved or {}):
                    gone = slot.dropped.union(undoing.facts[slot.entry])
                    check_apart(check_rows(load_patch(self.file(slot.sha))), gone)
            patches = {n: journal.keep_patch(self.folder, p) for n, p in (solved or {}).items()}
            action = TakenBack(facts=undoing.facts, entries=undoing.entries, solved=patches)
            return journal.append(self.folder, history, action, who=who, note=note)

    def put_back(
        self, facts: Sequence[str] = (), entries: Sequence[int] = (), *, who: str, note: str = ""
    ) -> Event:
        """Bring back what was taken back, each fact to its place; this is an event as well.

        Args:
            facts: ids, as of `choose`.
            entries: whole ones.

        Raises:
            UnknownName: there is no such fact or entry outside of the stack.
            InvalidSetting: nothing is named.
            InvalidPatch: some of several facts that were given one target.
        """
        if not facts and not entries:
            raise InvalidSetting("Say what to put back: ids of facts, or entries.")
        _ = self.identity
        with self._locked():
            history, outside = self.read(), {entry.number: entry for entry in self.outside()}
            ids = {number: _ids(entry) for number, entry in outside.items()}
            for number in {*entries} & {slot.entry for slot in stack_after(history.events, None)}:
                if number not in ids:
                    raise UnknownName(f"Entry {number} is in the stack, and nothing is out of it.")
            back = {n: {*ids[among(n, outside)]} for n in entries}
            for number, id in (find_fact(name, ids, not_taken_back) for name in facts):
                back.setdefault(number, set()).add(id)
            action = PutBack(
                entries={
                    number: tuple(id for id in ids[number] if id not in named)
                    for number, named in back.items()
                }
            )
            for place in last_places(history.events):
                if out := action.entries.get(place.entry):
                    check_apart(check_rows(load_patch(self.file(place.sha))), out)
            return journal.append(self.folder, history, action, who=who, note=note)

    def annotate(self, entry: int, note: str, *, who: str) -> Event:
        """Give an entry another note; the history keeps the one that it had.

        Raises:
            UnknownName: there is no such entry.
        """
        _ = self.identity
        with self._locked():
            history = self.read()
            among(entry, {place.entry: place for place in last_places(history.events)})
            return journal.append(self.folder, history, Noted(entry=entry), who=who, note=note)

    def back_to(self, point: int, *, who: str, note: str = "") -> Event:
        """Make the stack what it was after an event; 0: empty. This is an event as well.

        Raises:
            UnknownName: there is no such event.
        """
        _ = self.identity
        with self._locked():
            history = self.read()
            stack_after(history.events, point)
            action = Returned(to=point)
            return journal.append(self.folder, history, action, who=who, note=note)

    def after(
        self,
        undoing: Undoing,
        solved: Mapping[int, Patch] | None = None,
        *,
        below: int | None = None,
    ) -> Patch:
        """The stack as an undo would leave it; nothing is changed.

        Args:
            solved: by entry, what takes its place.
            below: only entries with smaller numbers.

        Raises:
            InvalidLedger, InvalidPatch: a file is missing or damaged.
        """
        identity, anew = self.identity, solved or {}
        patches = {
            str(slot.entry): anew[slot.entry]
            if slot.entry in anew
            else without(self._patch(slot), undoing.facts.get(slot.entry, ()))
            for slot in stack_after(self.history, None)
            if slot.entry not in undoing.entries and (below is None or slot.entry < below)
        }
        return stack(patches, base=identity.base, model=identity.model)

    def _entry(self, slot: Slot, history: Sequence[Event]) -> LedgerEntry:
        event = history[slot.entry - 1]
        assert isinstance(event.action, Added)
        about = self._about(slot.sha)
        staying = tuple(record for record in about.edits if record.id not in slot.dropped)
        brought = about if not slot.solved else self._about(event.action.patch)
        return LedgerEntry(
            number=slot.entry,
            who=event.who,
            when=event.when,
            note=note_of(slot.entry, history),
            scores=event.action.scores,
            about=about.model_copy(update={"edits": staying}),
            brought=tuple(record.id for record in brought.edits),
            on=event.action.on,
            solved=slot.solved,
        )

    def _about(self, sha: str) -> Provenance:
        return load_about(self.file(sha))

    def _patch(self, slot: Slot) -> Patch:
        return without(load_patch(self.file(slot.sha)), slot.dropped)

    def file(self, sha: str) -> Path:
        """The patch file with this hash.

        Raises:
            InvalidLedger: its bytes have another.
        """
        file = journal.patch_file(self.folder, sha)
        if file.is_file() and digest_of(file) != sha:
            raise InvalidLedger(
                f"{file} is not the file that was added: its bytes have another hash. Bring it "
                f"back from a copy, or undo its entry."
            )
        return file

    def _check_base(self, identity: journal.Identity, number: int, action: Added) -> None:
        """Raise InvalidLedger where, without a chain, ledger.json is another model's."""
        with suppress(InvalidPatch):  # which whoever needs the patch will be told
            about = load_about(journal.patch_file(self.folder, action.patch))
            if not action.on and about.base != identity.base:
                raise InvalidLedger(
                    f"{self.folder}: its ledger.json is for {identity.model!r} "
                    f"({identity.base[:12]}…), and the patch of event {number} for "
                    f"{about.model!r} ({about.base[:12]}…). One of them is another ledger's."
                )

    def _held(self, sha: str) -> frozenset[str] | None:
        """The ids of a patch's facts; None where it cannot be read."""
        with suppress(InvalidPatch):  # which whoever needs the patch will be told
            about = load_about(journal.patch_file(self.folder, sha))
            return frozenset(record.id for record in about.edits)
        return None

    def check_place(self) -> None:
        """See `events.check_place`."""
        journal.check_place(self.folder)

    def _locked(self) -> AbstractContextManager[None]:
        return locked(self.folder / journal.LOCK, at_most=self.patience)

    def _found(self, about: Provenance) -> None:
        """Make the folder a ledger for the patch's base where it is none yet."""
        if (self.folder / "ledger.json").exists():
            return
        self.check_place()
        journal.begin(self.folder, about.base, about.model)

    def _made_on(self, about: Provenance, model: ModelHandle | None) -> int:
        """0 for a patch made on the base model; the last event for one made on its stack."""
        identity = self.identity
        if about.base == identity.base:
            return 0
        if model is not None:
            with self.applied(model):
                if about.base == model.live_fingerprint:
                    return len(self.history)
        raise PatchMismatch(
            f"The patch was made for {about.model!r} (fingerprint {about.base[:12]}…); this ledger "
            f"is for {identity.model!r} ({identity.base[:12]}…)"
            + (
                ", and so is its stack. Keep the patch in a ledger of its own."
                if model is not None
                else ". If it was made on top of this stack, give the base model too, to prove it."
            )
        )


def read_source(source: Path | str) -> Patch:
    """A patch file, or the stack of a ledger; `LEDGER@N` is its stack after event N.

    Raises:
        InvalidPatch, InvalidLedger: there is neither, or it is damaged.
        UnknownName: there is no such event.
    """
    text = str(source)
    folder, at, point = text.rpartition("@")
    if at and point.isdecimal() and len(point) < 7 and Path(folder).is_dir():
        return Ledger(Path(folder)).stack(int(point))
    if Path(text).is_dir():
        return Ledger(Path(text)).stack()
    return load_patch(text)


def _ids(entry: LedgerEntry) -> list[str]:
    return [record.id for record in entry.about.edits]
