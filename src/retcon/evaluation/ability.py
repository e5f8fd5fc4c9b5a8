"""Ability: what else a model can do, as accuracy over a few items of common tasks.

An option's log-probability is that of its whole continuation, teacher-forced. Options of different
length are compared per character, which does not depend on the tokenizer. Intervals of an accuracy
are Wilson's for a binomial share (1927, J. Am. Stat. Assoc. 22); those of a change are Agresti and
Min's for paired shares (2005, Stat. Med. 24), which are not empty where no item has changed.
"""

from collections.abc import Iterator, Sequence
from math import sqrt
from statistics import NormalDist
from typing import NamedTuple

from retcon.data.tasks import Item, Rule, Task
from retcon.evaluation.inference import Estimate
from retcon.evaluation.scoring import Score, score_targets
from retcon.model.handle import ModelHandle
from retcon.progress import Progress, silent

_Z = NormalDist().inv_cdf(0.975)


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
        centre = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
        half = _Z / (1 + _Z**2 / n) * sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
        # Rounding must not put the share outside.
        low, high = min(centre - half, share), max(centre + half, share)
        return Estimate(100 * share, 100 * max(0.0, low), 100 * min(1.0, high), n)


def ability(
    handle: ModelHandle, tasks: Sequence[Task], *, progress: Progress = silent
) -> list[Ability]:
    """Let the model as it is answer the items of some tasks.

    Raises:
        NotFinite: a log-probability is NaN.
        InvalidEdit: the tokens of a context change when its continuation follows.
    """

    def report(task: str, done: int, total: int) -> None:
        del task  # it is another one here
        progress("answering tasks", done, total)

    texts = [option for task in tasks for item in task.items for option in item.options]
    scores = iter(score_targets(handle, texts, progress=report))
    return [
        Ability(
            task.name,
            task.rule,
            tuple(item.number for item in task.items),
            tuple(_right(task.rule, item, scores) for item in task.items),
        )
        for task in tasks
    ]


def change(before: Ability, after: Ability) -> Estimate:
    """Accuracy after minus before, in points, with its paired 95 % interval.

    Raises:
        ValueError: they are of different items.
    """
    if (before.task, before.items) != (after.task, after.items):
        raise ValueError("before and after are of different items")
    n = len(before.right)
    pairs = list(zip(before.right, after.right, strict=True))
    won, lost = pairs.count((False, True)), pairs.count((True, False))
    difference = (won - lost) / (n + 2)
    error = sqrt((won + lost + 1) / (n + 2) - difference**2) / sqrt(n + 2)
    moved = (won - lost) / n
    low, high = min(difference - _Z * error, moved), max(difference + _Z * error, moved)
    return Estimate(100 * moved, 100 * max(-1.0, low), 100 * min(1.0, high), n)


def _right(rule: Rule, item: Item, scores: Iterator[Score]) -> bool:
    """Whether the right option is chosen, from the scores of the next options; ties go wrong."""
    found = [next(scores) for _ in item.options]
    if rule == "greedy":
        return found[item.answer].hits == found[item.answer].tokens
    lengths = [
        len(option.continuation) if rule == "per character" else 1 for option in item.options
    ]
    values = [-s.nll * s.tokens / n for s, n in zip(found, lengths, strict=True)]
    answer = values.pop(item.answer)
    return all(answer > other for other in values)
