"""The rule of a fixed batch size: B edits at a time, and every batch stays."""

from dataclasses import dataclass

from retcon.run.rules import Verdict, Waiting, batch_rule
from retcon.run.signals import Signals


@dataclass(frozen=True)
class Fixed:
    """The rule: batches of `size` edits."""

    size: int

    @property
    def looks(self) -> bool:
        """False: nothing depends on what a batch did."""
        return False

    def check(self, method: object) -> None:
        """Any method will do."""

    def propose(self, method: object, waiting: Waiting, state: object, size: int) -> int:
        """Propose the size that was set."""
        del method, waiting, state
        return size

    def judge(
        self, size: int, before: Signals | None, after: Signals | None, usual: float | None
    ) -> Verdict:
        """Keep every batch."""
        del size, before, after, usual
        return Verdict(True, "", self.size)


@batch_rule("fixed")
def fixed(size: int) -> Fixed:
    """B edits at a time."""
    return Fixed(size=size)
