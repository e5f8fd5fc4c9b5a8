"""Split the text of a file into JSON records, each with its place: an array, or one a line.

Which of the two a file is, its text tells, whatever its name.
"""

from collections.abc import Iterator
from typing import NamedTuple

from retcon.data.parsing import parsed
from retcon.errors import InvalidData


class Placed(NamedTuple):
    """A JSON value of a file: where it stands there, in words and as a number from 0 or 1."""

    where: str
    number: int
    value: object


class Bad(NamedTuple):
    """A record that cannot be used, and why."""

    where: str
    why: str

    def __str__(self) -> str:
        return f"{self.where}: {self.why}"


def records(text: str, source: str) -> Iterator[Placed | Bad]:
    """The records of a file, those that are no JSON as what is wrong with them.

    Raises:
        InvalidData: an array that is no JSON: nobody knows where its records begin.
    """
    if _is_array(text):
        values = parsed(text, source)
        values = values if isinstance(values, list) else [values]
        yield from (Placed(f"{source}, record {n}", n, value) for n, value in enumerate(values))
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{source}, line {number}"
            try:
                yield Placed(where, number, parsed(line, where))
            except InvalidData as error:
                yield Bad(where, str(error).removeprefix(f"{where}: "))


def _is_array(text: str) -> bool:
    """True if the text is an array, or one record over several lines."""
    start = text.lstrip()
    return start.startswith("[") or start.partition("\n")[0].rstrip() == "{"
