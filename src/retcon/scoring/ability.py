"""Ability: what else a model can do, as accuracy over a few items of common tasks.

An option's log-probability is that of its whole continuation, teacher-forced. Options of different
length are compared per character, which does not depend on the tokenizer.
"""

from collections.abc import Iterator, Sequence

from retcon.data.tasks import Item, Rule, Task
from retcon.model.handle import ModelHandle
from retcon.progress import Progress, silent
from retcon.scoring.readings import Ability
from retcon.scoring.score import Score, score_targets


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

    # One blank between, whatever a context ends in: so they are published, LAMBADA by its blanks.
    texts = [
        (f"{option.context} ", option.continuation)
        for task in tasks
        for item in task.items
        for option in item.options
    ]
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
