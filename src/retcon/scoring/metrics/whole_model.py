"""Metrics of the model as a whole, which edits should not change: perplexity and tasks."""

from collections.abc import Sequence
from typing import Any

from retcon.data.tasks import TASKS
from retcon.edits import Case
from retcon.progress import Progress, silent
from retcon.scoring.metrics import METRICS, Metric, Observer, metric
from retcon.scoring.observations import ITEM, PASSAGE, Moment, Observation
from retcon.scoring.scales import ExactAnswers, Exponential

WHOLE = ("pre", "immediate", "retention", "final")


def read_text(
    model: Any, cases: Sequence[Case], moment: Moment, progress: Progress = silent
) -> list[Observation]:
    """Read the held-out text that comes with the package."""
    from retcon.data.held_out import held_out
    from retcon.scoring.perplexity import read_passages

    del cases
    return read_passages(model, held_out().texts, moment, progress=progress)


def _tokens(row: Observation) -> float:
    return float(row.n_new or 0)


def nll(row: Observation) -> float | None:
    """The exponential of the mean negative log-probability of a passage's tokens."""
    return row.nll_new


METRICS.enter(
    "perplexity",
    Metric(
        name="perplexity",
        title="Perplexity of held-out text",
        kind=PASSAGE,
        value=nll,
        scale=Exponential(),
        better="lower",
        weight=_tokens,
        observer=Observer(observe=read_text, at=WHOLE, whole=True),
    ),
)


def answered(row: Observation) -> float | None:
    """1 where an item is answered rightly."""
    return None if row.exact is None else float(row.exact)


metric("tasks", title="Accuracy over all tasks", kind=ITEM, scale=ExactAnswers())(answered)
for _task in TASKS:
    metric(
        f"{_task}_accuracy",
        title=f"Accuracy, {_task}",
        kind=f"{ITEM}:{_task}",
        scale=ExactAnswers(),
        shown="record",
    )(answered)
