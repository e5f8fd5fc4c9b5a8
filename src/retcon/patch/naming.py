"""Find facts and entries of a ledger by the names that a user gives them."""

import difflib
from collections.abc import Collection, Mapping

from retcon.errors import InvalidSetting, UnknownName


def find_fact(name: str, known: Mapping[int, Collection[str]]) -> tuple[int, str]:
    """The entry and the id that a fact's name means: `ID`, or `ENTRY:ID`.

    Args:
        name: of the fact.
        known: the ids of each entry.

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
    raise UnknownName(
        f"The stack has no fact {name!r}. "
        + (f"Did you mean {' or '.join(map(repr, near))}? " if near else "")
        + f"`retcon patch show` lists its {len(every)} facts."
    )


def among(number: int, entries: Collection[int]) -> int:
    """The number of an entry, if there is such an entry.

    Raises:
        UnknownName: there is none.
    """
    if number not in entries:
        raise UnknownName.among("entry", str(number), map(str, entries))
    return number
