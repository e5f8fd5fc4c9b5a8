"""The rule adaptive-energy:B: batches of at most B that end where facts get in each other's way.

What a batch costs on ordinary text is known from its keys and targets before it is written
(`algebra.compatible`).
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from retcon.errors import InvalidSetting
from retcon.run.rules import Verdict, Waiting, batch_rule
from retcon.run.signals import Signals


@runtime_checkable
class Foresees(Protocol):
    """A method that knows before it writes which edits get into each other's way."""

    def check_foreseen(self) -> None:
        """Refuse settings with which it does not.

        Raises:
            InvalidSetting: which, and what to take in their place.
        """
        ...

    def compatible(self, features: Any, state: Any) -> int:
        """Count the edits, from the first on, that may be one batch."""
        ...


@dataclass(frozen=True)
class Energy:
    """The rule: batches of at most `largest` edits that do not get into each other's way."""

    largest: int

    @property
    def looks(self) -> bool:
        """False: the cost is foreseen."""
        return False

    def check(self, method: object) -> None:
        """Refuse methods that foresee nothing.

        Raises:
            InvalidSetting: such a method, or settings with which it does not.
        """
        if not isinstance(method, Foresees):
            raise InvalidSetting(
                "The rule adaptive-energy foresees what a batch costs from its keys, targets and a "
                "ridge that stays: gradients and a budget have none. Take adaptive-aimd."
            )
        method.check_foreseen()

    def propose(self, method: object, waiting: Waiting, state: object, size: int) -> int:
        """Propose as many edits as do not get into each other's way."""
        assert isinstance(method, Foresees)
        return method.compatible(waiting.select(slice(0, size)), state)

    def judge(
        self, size: int, before: Signals | None, after: Signals | None, usual: float | None
    ) -> Verdict:
        """Keep every batch."""
        del size, before, after, usual
        return Verdict(True, "", self.largest)


@batch_rule("energy")
def energy(size: int) -> Energy:
    """Batches of at most B, which end where facts get into each other's way."""
    return Energy(largest=size)
