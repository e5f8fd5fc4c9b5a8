"""The registry of batch rules: how large the next batch is, and whether one on trial stays.

`sequential-batch:B` has a fixed size. `adaptive-NAME:B` has the rule of that name; each is a file
of this package, or of another one that enters it with `batch_rule`.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

from retcon.edits import Edit
from retcon.registry import Registry, entered
from retcon.run.signals import Signals


class Verdict(NamedTuple):
    """The judgement on a batch.

    Attributes:
        stays: whether it is written for good.
        reason: what is wrong with it; empty where nothing is.
        next_size: of the batch that is tried next.
    """

    stays: bool
    reason: str
    next_size: int


@runtime_checkable
class Waiting(Protocol):
    """Features of the edits that come next: `method.base.Features`, as far as a rule needs them."""

    @property
    def edits(self) -> tuple[Edit, ...]: ...

    def select(self, rows: slice) -> "Waiting":
        """The features of some of them."""
        ...


@runtime_checkable
class BatchRule(Protocol):
    """A rule for the size of batches.

    Attributes:
        looks: whether batches are written on trial, so that `judge` sees what they did.
    """

    @property
    def looks(self) -> bool: ...

    def check(self, method: object) -> None:
        """Refuse methods that give the rule nothing to go by.

        Raises:
            InvalidSetting: such a method, and what to take in its place.
        """
        ...

    def propose(self, method: object, waiting: Waiting, state: object, size: int) -> int:
        """Number of the waiting edits that are solved for together.

        Args:
            method: a `method.base.Method`; a rule asks it for what only some methods can do.
            waiting: their features; at most `size` of them are the next batch.
            state: the method's.
            size: what the last verdict said.
        """
        ...

    def judge(
        self, size: int, before: Signals | None, after: Signals | None, usual: float | None
    ) -> Verdict:
        """The verdict on a batch that is in the weights on trial.

        Args:
            size: of the batch.
            before, after: signals without it and with it; None where nothing looked.
            usual: nats a token of ordinary text that a fact has cost so far; None where no fact
                was written.
        """
        ...


Factory = Callable[[int], BatchRule]
Made = TypeVar("Made", bound=Factory)
RULES: Registry[Factory] = Registry("batch rule", "retcon.run.rules")


def batch_rule(name: str) -> Callable[[Made], Made]:
    """Enter a rule under a name. It is made from B, the size in the schedule's name."""
    return entered(RULES, name, lambda factory: factory)
