"""A batch, once it is solved: its edits, its update, and what is kept to go on later."""

from typing import Any, NamedTuple

from retcon.edits import Edit
from retcon.method.base import Features, Update
from retcon.run.signals import Signals


class Step(NamedTuple):
    """One batch, solved.

    Attributes:
        index: of the batch.
        at: edits written when it is.
        edits: its edits.
        update: the change it asks for.
        features: what was read for it.
        state: the method's, once it is in the weights. Where batches are not carried, only methods
            that rewrite prompts have another one than at the beginning.
        refreshed: whether features were read for it, rather than taken from those that waited.
        staleness: of these, just before; None where none waited.
        seconds: for features and solve, and for the monitor where there is one, without scoring. A
            target that was cached counts with what it took when it was optimised, and one that
            waited with the batch it was made for.
        signals: of the monitor, where a guard or a rule has one.
        next_size: of the next batch.
        tried: how many larger batches were taken back before.
        note: why, or what the guard has seen.
        last: whether the run ends with it.
        undone: whether the guard has taken it back; it is in no weights then.
    """

    index: int
    at: int
    edits: tuple[Edit, ...]
    update: Update[Any]
    features: Features
    state: Any
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
        """True for the 2nd, 4th, 8th, … batch, not the last: older facts are scored then."""
        number = self.index + 1
        return number > 1 and number & (number - 1) == 0 and not self.last


class Past(NamedTuple):
    """A step of an earlier run, to be written again without being solved again."""

    update: Update[Any]
    refreshed: bool
    signals: Signals | None = None
    next_size: int = 0


def shared_seconds(features: Features, took: float) -> float:
    """Seconds per edit of what is no edit's own, and so shared by all that were read together."""
    now = ~features.cached
    return (took - float(features.seconds[now].sum())) / len(features.edits)


def own_seconds(part: Features, shared: float) -> float:
    """Seconds that the features of some edits took."""
    return float(part.seconds.sum()) + shared * len(part.edits)
