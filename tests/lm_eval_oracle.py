"""The same tasks through lm-evaluation-harness: its prompting, batching and scoring, local files.

https://github.com/EleutherAI/lm-evaluation-harness. It is asked what `retcon.data.tasks` reads, and
`retcon.scoring.ability` should say the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from retcon.data.tasks import Item, Task
from retcon.model.handle import ModelHandle
from retcon.scoring.ability import answer_row
from retcon.scoring.observations import Moment, Observation

_SPLIT = "test"


class _Documents(list[dict[str, Any]]):
    """Records as the harness wants them: a list that knows its fields."""

    @property
    def features(self) -> dict[str, Any]:
        return self[0]


def harness_ability(
    handle: ModelHandle, tasks: Sequence[Task], *, batch_size: int = 8
) -> list[Observation]:
    """Let the model as it is answer the items of some tasks, by the harness."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(
        pretrained=handle.model,
        tokenizer=handle.tokens.tokenizer,
        batch_size=batch_size,
        max_length=getattr(handle.model.config, "max_position_embeddings", 2048),
    )
    by_name = {task.name: harness_task(task) for task in tasks}
    samples = evaluate(lm, by_name, bootstrap_iters=0, log_samples=True)["samples"]
    return [row for task in tasks for row in _rows(task, samples[task.name])]


def harness_task(task: Task) -> Any:
    """A task as an object of the harness's own, which must be installed."""
    from lm_eval.api.task import ConfigurableTask

    return ConfigurableTask(config=_config(task))


def _config(task: Task) -> dict[str, Any]:
    """A task in the harness's own terms; its dataset is made of what was read."""
    docs = [_document(task, item) for item in task.items]
    shared: dict[str, Any] = {
        "task": task.name,
        "custom_dataset": lambda **_: {_SPLIT: _Documents(docs)},
        "test_split": _SPLIT,
        "doc_to_text": "{{context}}",
        "doc_to_target": "{{answer}}",
        "num_fewshot": 0,
        "metadata": {"version": 1},
        "metric_list": [{"metric": _metric(task), "aggregation": "mean", "higher_is_better": True}],
    }
    if task.rule == "greedy":
        # Only in front of choices does the harness put a space by itself.
        return shared | {"output_type": "loglikelihood", "doc_to_target": " {{answer}}"}
    choices = {"output_type": "multiple_choice", "doc_to_choice": "{{choices}}"}
    return shared | choices


def _document(task: Task, item: Item) -> dict[str, Any]:
    """A record of the harness's dataset: contexts, or continuations, are the choices."""
    contexts = [option.context for option in item.options]
    continuations = [option.continuation for option in item.options]
    if task.rule == "greedy":
        return {"context": contexts[0], "answer": continuations[0]}
    if len(set(contexts)) == 1:
        return {"context": contexts[0], "choices": continuations, "answer": item.answer}
    # Where the context is a number, the harness takes it for the index of the right choice, and
    # the choices for contexts.
    return {"context": item.answer, "choices": contexts, "answer": continuations[0]}


def _metric(task: Task) -> str:
    """The metric of the harness that is the task's rule."""
    return "acc_norm" if task.rule == "per character" else "acc"


def _rows(task: Task, samples: Sequence[Mapping[str, Any]]) -> list[Observation]:
    right = {int(sample["doc_id"]): bool(sample[_metric(task)]) for sample in samples}
    return [
        answer_row(task, item, Moment("pre"), right=right[i]) for i, item in enumerate(task.items)
    ]
