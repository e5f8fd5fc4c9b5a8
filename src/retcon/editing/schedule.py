"""In what portions edits are written, and whether they stay.

single            one edit at a time, each on the untouched model
batch:B           B at a time, each batch on the untouched model
sequential        one after the other, each on the model that the ones before have made
sequential-batch:B    the same in batches of B
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from retcon.errors import InvalidSetting, UnknownName

T = TypeVar("T")

_NAMES = ("single", "batch:B", "sequential", "sequential-batch:B")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """batch_size: edits in one update. carry: earlier updates stay in the weights."""

    batch_size: int
    carry: bool

    @classmethod
    def parse(cls, text: str) -> "Schedule":
        """Read `single`, `batch:B`, `sequential` or `sequential-batch:B`.

        Raises:
            UnknownName: another word.
            InvalidSetting: a batch size that is missing, or no positive number.
        """
        name, _, size = text.partition(":")
        if name in ("single", "sequential") and not size:
            return cls(batch_size=1, carry=name == "sequential")
        if name not in ("batch", "sequential-batch"):
            raise UnknownName.among("schedule", text, _NAMES)
        if not size.isdecimal() or int(size) < 1:
            raise InvalidSetting(
                f"The schedule {name!r} needs a batch size, as in {name}:64; found {size!r}."
            )
        return cls(batch_size=int(size), carry=name == "sequential-batch")

    def carried(self) -> "Schedule":
        """The same, if its edits stay.

        Raises:
            InvalidSetting: they do not, so there is no one model that holds them all.
        """
        if not self.carry:
            raise InvalidSetting(
                f"The schedule {self} writes each batch into the untouched model, so no patch "
                f"holds them all. Use sequential or sequential-batch:B."
            )
        return self

    def __str__(self) -> str:
        if self.batch_size == 1:
            return "sequential" if self.carry else "single"
        return f"{'sequential-batch' if self.carry else 'batch'}:{self.batch_size}"

    def batches(self, items: Sequence[T]) -> Iterator[Sequence[T]]:
        """The items in portions, in their order; the last may be smaller."""
        for start in range(0, len(items), self.batch_size):
            yield items[start : start + self.batch_size]
