"""The rule adaptive-aimd:B: batches of at least B, which grow while the model holds up.

Facts do not average, as samples do in training: they coexist. A larger batch means fewer and
staler targets, a smaller one more work. So a batch may be as large as the model bears, which is
seen once it is written on trial.
"""

from dataclasses import dataclass
from math import inf

from retcon.run.rules import Verdict, Waiting, batch_rule
from retcon.run.signals import Signals, growth

# How many times as much as facts so far a batch's may cost, each, in nats a token of ordinary text;
# what they may cost in any case; and what one may take of earlier facts.
_DEARER, _DRIFT, _FORGOTTEN = 2.0, 2e-4, 1e-3
# Of a batch, the share that must be said right after it was written.
_SAID = 0.9
_LARGEST = 1024


@dataclass(frozen=True)
class Aimd:
    """Additive increase, multiplicative decrease, as in congestion control.

    A batch stays if most of its facts are said, earlier ones still are, and its facts have each
    cost ordinary text at most twice what facts so far have: then they do not get into each other's
    way, whatever one costs on this model. The next batch is then larger by `step`. Otherwise it is
    taken back, bit for bit, and its first half is written, with the same targets.

    Attributes:
        step: the first batch, and the smallest: what a few facts cost is far from what facts cost
            on average, so that smaller and smaller batches would only fail more and more often.
    """

    step: int

    @property
    def looks(self) -> bool:
        """True: the batch is judged by what it did."""
        return True

    def check(self, method: object) -> None:
        """Any method that writes will do."""

    def propose(self, method: object, waiting: Waiting, state: object, size: int) -> int:
        """Propose the size of the last verdict."""
        del method, waiting, state
        return size

    def judge(
        self, size: int, before: Signals | None, after: Signals | None, usual: float | None = None
    ) -> Verdict:
        """Keep a batch that nothing is wrong with, or, with a note, one of the smallest size."""
        assert after is not None
        reason = _complaint(size, before, after, usual)
        if reason and size > self.step:
            return Verdict(False, reason, max(self.step, size // 2))
        return Verdict(True, reason, self.step if reason else min(size + self.step, _LARGEST))


def _complaint(size: int, before: Signals | None, after: Signals, usual: float | None) -> str:
    if after.efficacy is not None and after.efficacy < _SAID:
        return f"of the batch {after.efficacy:.0%} is said"
    if before is None:
        return ""
    moved = growth(before, after)
    most = inf if usual is None else size * max(_DRIFT, _DEARER * usual)
    if not moved <= most or moved == inf:
        return f"ordinary text lost {moved:.3g} nats a token"
    if before.retention is not None and after.retention is not None:
        lost = before.retention - after.retention
        if lost > max(_FORGOTTEN * size, 0.05):
            return f"earlier facts lost {lost:.0%}"
    return ""


@batch_rule("aimd")
def aimd(size: int) -> Aimd:
    """Batches of at least B, which grow while the model holds up."""
    return Aimd(step=size)
