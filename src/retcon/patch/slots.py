"""The entries of a ledger's stack, as they follow from the events of its history."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from retcon.errors import InvalidLedger, UnknownName
from retcon.patch.events import Added, Event, Noted, PutBack, Returned, TakenBack


class Slot(NamedTuple):
    """An entry's place in the stack: its patch file, and the facts of it that were taken back.

    Attributes:
        solved: the event that put the facts which stayed, solved again, in the patch's place; or 0.
    """

    entry: int
    sha: str
    dropped: frozenset[str] = frozenset()
    solved: int = 0


def stack_after(history: Sequence[Event], at: int | None) -> tuple[Slot, ...]:
    """The stack after event `at` (0: empty); the last one where none is named.

    Raises:
        UnknownName: there is no such event.
        InvalidLedger: an event undoes what was not there.
    """
    at = len(history) if at is None else at
    if not 0 <= at <= len(history):
        raise UnknownName(f"There is no event {at}: the ledger's events are 0 to {len(history)}.")
    return stacks(history[:at])[at]


def stacks(history: Sequence[Event]) -> list[tuple[Slot, ...]]:
    """The stack after no event, after the first, and so on.

    Raises:
        InvalidLedger: an event undoes what was not there.
    """
    states: list[tuple[Slot, ...]] = [()]
    places: dict[int, Slot] = {}
    for event in history:
        states.append(_step(states, places, event))
        places |= {slot.entry: slot for slot in states[-1]}
    return states


def _step(
    states: Sequence[tuple[Slot, ...]], places: Mapping[int, Slot], event: Event
) -> tuple[Slot, ...]:
    """The stack after one more event. places: where each entry was last."""
    action, before = event.action, states[-1]
    if isinstance(action, Added):
        return (*before, Slot(event.number, action.patch))
    if isinstance(action, Returned):
        return states[action.to]
    if isinstance(action, Noted):
        return before
    if isinstance(action, PutBack):
        if unknown := action.entries.keys() - places.keys():
            raise InvalidLedger(
                f"Event {event.number} puts back entry {min(unknown)}, which there never was. The "
                f"ledger was changed by something else."
            )
        back = [
            places[entry]._replace(dropped=frozenset(out)) for entry, out in action.entries.items()
        ]
        staying = [slot for slot in before if slot.entry not in action.entries]
        return tuple(sorted([*staying, *back]))
    absent = {*action.facts, *action.entries, *action.solved} - {slot.entry for slot in before}
    if absent:
        raise InvalidLedger(
            f"Event {event.number} undoes entry {min(absent)}, which was not in the stack then. "
            f"The ledger was changed by something else."
        )
    return tuple(
        Slot(slot.entry, action.solved[slot.entry], solved=event.number)
        if slot.entry in action.solved
        else slot._replace(dropped=slot.dropped.union(action.facts.get(slot.entry, ())))
        for slot in before
        if slot.entry not in action.entries
    )


def last_places(history: Sequence[Event]) -> tuple[Slot, ...]:
    """The place of every entry that there ever was: now, or when it was last in the stack."""
    places = {slot.entry: slot for state in stacks(history) for slot in state}
    return tuple(places[entry] for entry in sorted(places))


def note_of(entry: int, history: Sequence[Event]) -> str:
    """The last note that an entry was given."""
    for event in reversed(history):
        if isinstance(event.action, Noted) and event.action.entry == entry:
            return event.note
    return history[entry - 1].note


def solved_without(history: Sequence[Event], event: Event) -> dict[int, int]:
    """Entries that were solved again, by which event, as if what is put back had never been.

    They stay so: the stack is not what it was before that event.

    Args:
        history: of the ledger.
        event: by which entries were put back.
    """
    assert isinstance(event.action, PutBack)
    found: dict[int, int] = {}
    for slot in stack_after(history, event.number):
        action = history[slot.solved - 1].action if slot.solved else None
        if isinstance(action, TakenBack):
            gone = {*action.entries, *action.facts} - {slot.entry}
            found |= {slot.entry: slot.solved} if gone & event.action.entries.keys() else {}
    return found


def check_held(
    event: Event,
    stack: Sequence[Slot],
    out: Mapping[int, Sequence[str]],
    held: Callable[[str], frozenset[str] | None],
) -> None:
    """Refuse an event that leaves out facts which an entry never had.

    Args:
        event: of the ledger.
        stack: before or after it.
        out: ids of the facts that it leaves out, by entry.
        held: tells the ids in a patch, None where it cannot be read.

    Raises:
        InvalidLedger: there is such a fact.
    """
    for slot in stack:
        ids = {*out.get(slot.entry, ())}
        known = held(slot.sha) if ids else None
        if known is not None and not ids <= known:
            raise InvalidLedger(
                f"Event {event.number} leaves out the fact {min(ids - known)!r}, which entry "
                f"{slot.entry} never had. The ledger was changed by something else."
            )
