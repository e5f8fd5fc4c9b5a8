"""Find facts and entries of a ledger by the names that a user gives them."""

import difflib
from collections.abc import Callable, Collection, Mapping

from retcon.errors import InvalidSetting, UnknownName


def not_in_stack(name: str, hint: str, facts: int) -> str:
    """Say that a fact is not in the stack. hint: those it may be. facts: how many there are."""
    return f"The stack has no fact {name!r}.{hint} `retcon patch show` lists its {facts} facts."


def not_taken_back(name: str, hint: str, facts: int) -> str:
    """Say that a fact cannot be put back, and why not."""
    return (
        f"There is no fact {name!r} among the {facts} that can be put back.{hint} It is in the "
        f"stack, it never was, or others were solved again in its place: then `retcon patch undo "
        f"LEDGER --to EVENT` brings it back, with the stack as it was after that event."
    )


def find_fact(
    name: str,
    known: Mapping[int, Collection[str]],
    absent: Callable[[str, str, int], str] = not_in_stack,
) -> tuple[int, str]:
    """The entry and the id that a fact's name means: `ID`, or `ENTRY:ID`.

    Args:
        name: of the fact.
        known: the ids of each entry.
        absent: says that there is no such fact.

    Raises:
        UnknownName: there is no such fact.
        InvalidSetting: several entries have it.
    """
    holding = [number for number, ids in known.items() if name in ids]
    if len(holding) == 1:
        return holding[0], name
    if holding:
        raise InvalidSetting(
            f"{name!r} is in the entries {', '.join(map(str, holding))}. Say which: "
            f"{holding[0]}:{name}."
        )
    entry, _, id = name.partition(":")
    if entry.isdecimal() and id in known.get(int(entry), ()):
        return int(entry), id
    every = [id for ids in known.values() for id in sorted(ids)]
    near = difflib.get_close_matches(name, every, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise UnknownName(absent(name, hint, len(every)))


def among(number: int, entries: Collection[int]) -> int:
    """The number of an entry, if there is such an entry.

    Raises:
        UnknownName: there is none.
    """
    if number not in entries:
        raise UnknownName.among("entry", str(number), map(str, entries))
    return number
