"""The registry of data sets: the form of a file's records, and how cases are made of them.

A file's set is known by its records. A set's options are the keyword arguments of its function.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from retcon.data.parsing import Record
from retcon.edits import Case
from retcon.registry import Registry, entered
from retcon.settings import Settings, chosen_of

Recognise = Callable[[Mapping[str, Any]], bool]
CasesOf = Callable[..., list[Case]]


class Place(NamedTuple):
    """Position of a record in its file.

    Attributes:
        number: of its line, from 1, or its place in an array, from 0.
        index: how many records are before it.
    """

    number: int
    index: int


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """An entry of the registry: a data set.

    Attributes:
        name: by which it is known in messages.
        record: the form of a record; keys that it does not have are named, not dropped in silence.
        recognises: whether a record, as JSON gives it, is of this set.
        cases: the cases of one record, by itself: `cases(record, place, **options)`.
        together: the cases of all records, where they are others than those of each.
    """

    name: str
    record: type[Record]
    recognises: Recognise
    cases: CasesOf
    together: Callable[[Sequence[Any]], list[Case]] | None = None

    def chosen(self, options: Settings) -> dict[str, object]:
        """The options, checked.

        Raises:
            UnknownName, InvalidSetting: one that the set does not have, or of another type.
        """
        return chosen_of(f"the data set {self.name}", self.cases, options)


DATASETS: Registry[Dataset] = Registry("data set", "retcon.data.sets")


def dataset(
    name: str,
    *,
    record: type[Record],
    recognises: Recognise,
    together: Callable[[Sequence[Any]], list[Case]] | None = None,
) -> Callable[[CasesOf], CasesOf]:
    """Enter a data set under a name; the function makes the cases of a record."""

    def entry(cases: CasesOf) -> Dataset:
        return Dataset(
            name=name, record=record, recognises=recognises, cases=cases, together=together
        )

    return entered(DATASETS, name, entry)


def dataset_of(value: object) -> Dataset:
    """The data set of a record: the one that knows it; plain facts where none does."""
    sets = DATASETS.all()
    plain = sets.pop("plain")
    if not isinstance(value, dict):
        return plain
    return next((one for one in sets.values() if one.recognises(value)), plain)
