"""What a batch is, once it is solved, and what is kept of it to go on later."""

from typing import NamedTuple

from retcon.edits import Edit
from retcon.method.base import Features, Update
from retcon.run.signals import Signals


class Step(NamedTuple):
    """One batch, solved: what it is made of and what it took.

    index: of the batch. at: edits written when it is. refreshed: whether targets were made for it,
    rather than taken from those that waited. staleness: of these, just before (None: none waited).
    seconds: for features and solve, and for the probe where there is one, without scoring; a target
    that was cached counts with what it took when it was optimised, and one that waited with the
    batch it was made for.
    signals: of the probe, where a guard or a rule has one. next_size: of the next batch. tried: how
    many larger ones were taken back before. note: why, or what the guard has seen. last: whether
    the run ends with it. undone: whether the guard has taken it back; it is in no weights then.
    """

    index: int
    at: int
    edits: tuple[Edit, ...]
    update: Update
    features: Features
    refreshed: bool
    staleness: float | None
    seconds: float
    signals: Signals | None = None
    next_size: int = 0
    tried: int = 0
    note: str = ""
    last: bool = False
    undone: bool = False

    @property
    def checkpoint(self) -> bool:
        """Whether it is the 2nd, 4th, 8th, … batch, not the last: older facts are asked then."""
        number = self.index + 1
        return number > 1 and number & (number - 1) == 0 and not self.last


class Past(NamedTuple):
    """A step of an earlier run, to be written again without being solved again."""

    update: Update
    refreshed: bool
    signals: Signals | None = None
    next_size: int = 0


def shared_seconds(found: Features, took: float) -> float:
    """Seconds per edit of what is no target's, and so shared by all that were read together."""
    now = ~found.targets.cached
    return (took - float(found.targets.seconds[now].sum())) / len(found.edits)


def own_seconds(part: Features, shared: float) -> float:
    """What the features of some edits took."""
    return float(part.targets.seconds.sum()) + shared * len(part.edits)
