"""adaptive-doubling:B. Batches of B, 2B, 4B, …: early facts are few, so that they are seen soon."""

from dataclasses import dataclass

from retcon.run.rules import Verdict, Waiting, batch_rule
from retcon.run.signals import Signals


@dataclass(frozen=True)
class Doubling:
    """Each batch is twice as large as the one before."""

    @property
    def looks(self) -> bool:
        """No: nothing has to be written on trial."""
        return False

    def check(self, method: object) -> None:
        """Any method will do."""

    def propose(self, method: object, waiting: Waiting, state: object, size: int) -> int:
        """As many as the last verdict said."""
        return size

    def judge(
        self, size: int, before: Signals | None, after: Signals | None, usual: float | None
    ) -> Verdict:
        """It stays, and the next is twice as large."""
        return Verdict(True, "", 2 * size)


@batch_rule("doubling")
def doubling(size: int) -> Doubling:
    """The first batch has B facts."""
    return Doubling()
