"""In what portions edits are written, and whether they stay.

single            one edit at a time, each on the untouched model
batch:B           B at a time, each batch on the untouched model
sequential        one after the other, each on the model that the ones before have made
sequential-batch:B    the same in batches of B
adaptive-aimd:B       the same in batches of at least B, which grow while the model holds up, and
                      where it does not are taken back, halved and written again (`adapting.Aimd`)
adaptive-energy:B     the same in batches of at most B, which end where facts get into each other's
                      way (`adapting.compatible`)

Where they stay, a refresh rule says on which weights their targets are made.

each-batch     on those that the batch is written into
never          on the untouched ones
stale:T        on those of some batch before, until the values of the facts that wait have moved by
               more than the share T of their targets (in nine of ten facts, by less), or none waits
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import TypeVar

from retcon.errors import InvalidSetting, UnknownName
from retcon.run.guard import Guard

T = TypeVar("T")

# More facts than any run has, and how many wait for one refresh where targets go stale.
_ALL, _WINDOW = 2**40, 256

_RULED = ("adaptive-aimd", "adaptive-energy")
_NAMES = ("single", "batch:B", "sequential", "sequential-batch:B", *(f"{r}:B" for r in _RULED))


_RULES = ("each-batch", "never", "stale:T")


@dataclass(frozen=True, kw_only=True)
class Refresh:
    """When targets are made anew on the weights as they have become.

    stale: the drift, in units of ‖δ‖, of which the 90th percentile over the facts that wait must
    not be above; 0 refreshes for each batch, infinity never. window: for how many facts targets
    are made at once.
    """

    stale: float
    window: int

    @classmethod
    def parse(cls, text: str) -> "Refresh":
        """Read `each-batch`, `never` or `stale:T`, as in `stale:0.15`.

        Raises:
            UnknownName: another word.
            InvalidSetting: a threshold that is missing, or no positive number.
        """
        name, _, number = text.partition(":")
        if name in ("each-batch", "never") and not number:
            return cls(stale=0.0, window=1) if name == "each-batch" else cls(stale=inf, window=_ALL)
        if name != "stale":
            raise UnknownName.among("refresh rule", text, _RULES)
        try:
            stale = float(number)
        except ValueError:
            stale = 0.0
        if not 0 < stale < inf:
            raise InvalidSetting(
                f"The refresh rule stale needs a positive threshold, as in stale:0.15: {text!r}."
            )
        return cls(stale=stale, window=_WINDOW)

    def __str__(self) -> str:
        if self.stale == 0:
            return "each-batch"
        return "never" if self.stale == inf else f"stale:{self.stale:g}"

    def after(self, used: int, left: int) -> "Refresh":
        """The rule for the next targets, of the last of which some were used and some left over.

        Where targets went stale as many are made as were used, else twice as many, so that in all
        about as many are made in vain as are used, at most.
        """
        if self.stale in (0.0, inf):
            return self
        return replace(self, window=used if left else min(2 * used, _WINDOW))

    def ahead(self, batch_size: int) -> int:
        """For how many facts targets are made at once: whole batches."""
        return -(-self.window // batch_size) * batch_size


EACH_BATCH = Refresh(stale=0.0, window=1)
UNGUARDED = Guard()


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """batch_size: edits in one update. carry: earlier updates stay in the weights.

    refresh: when targets are made anew; it matters only where edits are carried. rule: by which
    the batch size adapts, `aimd` or `energy`, or none; batch_size is the smallest, or the largest.
    """

    batch_size: int
    carry: bool
    refresh: Refresh = EACH_BATCH
    rule: str = ""
    guard: Guard = UNGUARDED

    @classmethod
    def parse(cls, text: str, refresh: str = "each-batch", guard: str = "off") -> "Schedule":
        """Read a schedule's name, with its batch size where it has one, a refresh rule and a guard.

        Raises:
            UnknownName: another word.
            InvalidSetting: a batch size that is missing, or no positive number; a guard that
                watches nothing, because no batch is carried.
        """
        read = cls._parse(text, refresh)
        watching = Guard.parse(guard)
        if watching.watches and not read.carry:
            raise InvalidSetting(
                f"The schedule {read} writes each batch into the untouched model: there is nothing "
                f"that a guard could watch. Take sequential or sequential-batch:B, or --guard off."
            )
        return replace(read, guard=watching)

    @classmethod
    def of(cls, schedule: "Schedule | str") -> "Schedule":
        """A schedule, or what its name says."""
        return cls.parse(schedule) if isinstance(schedule, str) else schedule

    @classmethod
    def _parse(cls, text: str, refresh: str) -> "Schedule":
        name, _, size = text.partition(":")
        rule = Refresh.parse(refresh)
        if name in ("single", "sequential") and not size:
            return cls(batch_size=1, carry=name == "sequential", refresh=rule)
        if name not in ("batch", "sequential-batch", *_RULED):
            raise UnknownName.among("schedule", text, _NAMES)
        if not size.isdecimal() or int(size) < 1:
            raise InvalidSetting(
                f"The schedule {name!r} needs a batch size, as in {name}:64; found {size!r}."
            )
        ruled = name.removeprefix("adaptive-") if name in _RULED else ""
        return cls(batch_size=int(size), carry=name != "batch", refresh=rule, rule=ruled)

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
        if self.rule:
            return f"adaptive-{self.rule}:{self.batch_size}"
        if self.batch_size == 1:
            return "sequential" if self.carry else "single"
        return f"{'sequential-batch' if self.carry else 'batch'}:{self.batch_size}"

    def batches(self, items: Sequence[T]) -> Iterator[Sequence[T]]:
        """The items in portions, in their order; the last may be smaller."""
        for start in range(0, len(items), self.batch_size):
            yield items[start : start + self.batch_size]
