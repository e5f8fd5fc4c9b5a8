"""What was read of a model as a whole, and how two readings are compared. No torch here.

Intervals of an accuracy are Wilson's for a binomial share; those of a change are Agresti and Min's
for paired shares (2005, Stat. Med. 24), which are not empty where no item has changed.
"""

from collections.abc import Sequence
from math import exp, sqrt
from statistics import NormalDist
from typing import NamedTuple

from retcon.data.tasks import Rule
from retcon.scoring.intervals import Estimate, Statistic, wilson
from retcon.scoring.rows import When

_Z = NormalDist().inv_cdf(0.975)


class PassageScore(NamedTuple):
    """Of one passage: predicted tokens, and the sum of their negative log-probabilities in nats."""

    tokens: int
    nll: float


class Perplexity(NamedTuple):
    """What a model makes of some passages, each cut to `length` tokens."""

    length: int
    passages: tuple[PassageScore, ...]

    @property
    def tokens(self) -> int:
        """How many were predicted."""
        return sum(passage.tokens for passage in self.passages)

    @property
    def nll(self) -> float:
        """Mean negative log-probability per token, in nats."""
        return sum(passage.nll for passage in self.passages) / self.tokens

    @property
    def value(self) -> float:
        """Perplexity; infinite where it is beyond all numbers."""
        return _exp(self.nll)


class Ability(NamedTuple):
    """Which items of a task are answered rightly. items: their records in the task's file."""

    task: str
    rule: Rule
    items: tuple[int, ...]
    right: tuple[bool, ...]

    def estimate(self) -> Estimate:
        """Accuracy in per cent, with its 95 % interval."""
        n = len(self.right)
        share = sum(self.right) / n
        low, high = wilson(share, float(n), _Z)
        return Estimate(100 * share, 100 * low, 100 * high, n)


class Reading(NamedTuple):
    """What was found at one time; None and empty where it was not asked."""

    perplexity: Perplexity | None
    abilities: tuple[Ability, ...]


class Checkpoint(NamedTuple):
    """A reading, and when it was taken. at: edits that had been written by then."""

    when: When
    at: int
    reading: Reading


def ratio(before: Perplexity, after: Perplexity) -> Estimate:
    """Perplexity after over perplexity before, with its 95 % interval; 1 is no drift.

    The interval is that of Σ(nllᵢ' − nllᵢ)/Σ nᵢ over passages, which are read by both and so are
    paired; `cases` is their number.

    Raises:
        ValueError: other passages were read before.
    """
    pairs = list(zip(before.passages, after.passages, strict=True))
    if any(b.tokens != a.tokens for b, a in pairs):
        raise ValueError("before and after are of different passages")
    moved = after.nll - before.nll
    influence = {
        str(i): (a.nll - b.nll - moved * b.tokens) / before.tokens for i, (b, a) in enumerate(pairs)
    }
    found = Statistic(moved, influence, len(pairs)).estimate()
    low, high = found.low, found.high
    return Estimate(
        _exp(moved),
        None if low is None else _exp(low),
        None if high is None else _exp(high),
        found.cases,
    )


def change(before: Ability, after: Ability) -> Estimate:
    """Accuracy after minus before, in points, with its paired 95 % interval.

    Raises:
        ValueError: they are of different items.
    """
    if (before.task, before.items) != (after.task, after.items):
        raise ValueError("before and after are of different items")
    return _paired(list(zip(before.right, after.right, strict=True)))


def change_over_all(before: Sequence[Ability], after: Sequence[Ability]) -> Estimate:
    """As `change`, over the items of all tasks, each counting as much as any other.

    Raises:
        ValueError: they are of different items, or of none.
    """
    both = list(zip(before, after, strict=True))
    if not both or any((b.task, b.items) != (a.task, a.items) for b, a in both):
        raise ValueError("before and after are of different items")
    return _paired([pair for b, a in both for pair in zip(b.right, a.right, strict=True)])


def _paired(pairs: Sequence[tuple[bool, bool]]) -> Estimate:
    """Right after minus right before, as a share of all, in points."""
    n = len(pairs)
    won, lost = pairs.count((False, True)), pairs.count((True, False))
    difference = (won - lost) / (n + 2)
    error = sqrt((won + lost + 1) / (n + 2) - difference**2) / sqrt(n + 2)
    moved = (won - lost) / n
    low, high = min(difference - _Z * error, moved), max(difference + _Z * error, moved)
    return Estimate(100 * moved, 100 * max(-1.0, low), 100 * min(1.0, high), n)


def _exp(x: float) -> float:
    return exp(x) if x < 700 else float("inf")
