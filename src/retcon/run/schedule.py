"""Schedules: how many edits are written at once, whether they stay, and when targets are refreshed.

single            one edit at a time, each on the untouched model
batch:B           B at a time, each batch on the untouched model
sequential        one after the other, each on the model that the ones before have made
sequential-batch:B    the same in batches of B
adaptive-aimd:B       the same in batches of at least B, which grow while the model holds up, and
                      where it does not are taken back, halved and written again (`rules.aimd`)
adaptive-energy:B     the same in batches of at most B, which end where facts get into each other's
                      way (`rules.energy`); other rules likewise (`rules`)

Where they stay, a refresh rule says on which weights their targets are made.

each-batch     on those that the batch is written into
never          on the untouched ones
stale:T        on those of some batch before, until the values of the facts that wait have moved by
               more than the share T of their targets (in nine of ten facts, by less), or none waits
"""

from dataclasses import dataclass, replace
from math import inf

from retcon.errors import InvalidSetting, UnknownName
from retcon.run.guard import Guard
from retcon.run.rules import RULES, BatchRule

# More facts than any run has, and how many wait for one refresh where targets go stale.
_ALL, _WINDOW = 2**40, 256

_FIXED, _ADAPTIVE = "fixed", "adaptive-"
REGIMES = ("single", "batch", "sequential", "sequential-batch")
_NAMES = ("single", "batch:B", "sequential", "sequential-batch:B")
_RULES = ("each-batch", "never", "stale:T")


@dataclass(frozen=True, kw_only=True)
class Refresh:
    """Rule for when targets are made anew, on the weights as they have become.

    Attributes:
        stale: the drift, in units of ‖δ‖, of which the 90th percentile over the facts that wait
            must not be above; 0 refreshes for each batch, infinity never.
        window: for how many facts targets are made at once.
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
        """Number of facts whose targets are made at once: whole batches."""
        return -(-self.window // batch_size) * batch_size


EACH_BATCH = Refresh(stale=0.0, window=1)
UNGUARDED = Guard()


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Schedule of a run: how many edits are written at once, and whether they stay.

    Attributes:
        batch_size: edits in one update; of a rule that adapts it, the size that it begins with.
        carry: earlier updates stay in the weights.
        refresh: when targets are made anew; it matters only where edits are carried.
        rule: the name of the rule by which the batch size adapts.
        guard: what watches the model on the way.
    """

    batch_size: int
    carry: bool
    refresh: Refresh = EACH_BATCH
    rule: str = _FIXED
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
        ruled = name.removeprefix(_ADAPTIVE)
        adapts = name in adaptive_names()
        if name not in ("batch", "sequential-batch") and not adapts:
            known = (*_NAMES, *(f"{adaptive}:B" for adaptive in adaptive_names()))
            raise UnknownName.among("schedule", text, known)
        if not size.isdecimal() or int(size) < 1:
            raise InvalidSetting(
                f"The schedule {name!r} needs a batch size, as in {name}:64; found {size!r}."
            )
        adapted = ruled if adapts else _FIXED
        return cls(batch_size=int(size), carry=name != "batch", refresh=rule, rule=adapted)

    def carried(self) -> "Schedule":
        """The schedule itself, if its edits stay.

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
        if self.adapts:
            return f"{_ADAPTIVE}{self.rule}:{self.batch_size}"
        if self.batch_size == 1:
            return "sequential" if self.carry else "single"
        return f"{'sequential-batch' if self.carry else 'batch'}:{self.batch_size}"

    @property
    def adapts(self) -> bool:
        """True if the batch size adapts."""
        return self.rule != _FIXED

    @property
    def batch_rule(self) -> BatchRule:
        """The rule for the size of batches."""
        return RULES.find(self.rule)(self.batch_size)


def adaptive_names() -> tuple[str, ...]:
    """The names of all schedules whose batch size adapts, without it."""
    return tuple(f"{_ADAPTIVE}{name}" for name in RULES.all() if name != _FIXED)
