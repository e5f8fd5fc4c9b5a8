"""Ability: what else a model can do, as accuracy over a few items of common tasks.

An option's log-probability is that of its whole continuation, teacher-forced. Options of different
length are compared per character, which does not depend on the tokenizer.
"""

from collections.abc import Iterator, Sequence

from retcon.data.tasks import Item, Rule, Task
from retcon.model.handle import ModelHandle
from retcon.progress import Progress, silent
from retcon.scoring.observations import ITEM, Moment, Observation
from retcon.scoring.score import Score, score_targets


def answer_items(
    model: ModelHandle,
    tasks: Sequence[Task],
    moment: Moment = Moment("pre"),
    *,
    progress: Progress = silent,
) -> list[Observation]:
    """Let the model as it is answer the items of some tasks: a row an item.

    Args:
        model: the model.
        tasks: with their items.
        moment: of the rows.
        progress: is told how many options are scored.

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
    scores = iter(score_targets(model, texts, progress=report))
    return [
        answer_row(task, item, moment, right=_right(task.rule, item, scores))
        for task in tasks
        for item in task.items
    ]


def answer_row(task: Task, item: Item, moment: Moment, *, right: bool) -> Observation:
    """The row of an item."""
    name = f"{task.name} {item.number}"
    return Observation(name, None, f"{ITEM}:{task.name}", item.number, *moment, exact=right)


def _right(rule: Rule, item: Item, scores: Iterator[Score]) -> bool:
    """True if the right option is chosen, from the scores of the next options; ties go wrong."""
    given = [next(scores) for _ in item.options]
    if rule == "greedy":
        return given[item.answer].hits == given[item.answer].tokens
    lengths = [
        len(option.continuation) if rule == "per character" else 1 for option in item.options
    ]
    values = [-s.nll * s.tokens / n for s, n in zip(given, lengths, strict=True)]
    answer = values.pop(item.answer)
    return all(answer > other for other in values)
