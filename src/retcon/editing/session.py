"""Fold edits over a model: write a batch, let the caller look, go on; in the end restore.

Without `carry` every batch meets the untouched model, so targets and keys depend on no batch and
are computed for many edits at a time.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import NamedTuple

from retcon.editing.schedule import Schedule
from retcon.edits import Edit
from retcon.errors import InvalidEdit
from retcon.methods.base import Editor, Features, State, Update, check_batch
from retcon.model.handle import ModelHandle
from retcon.progress import Progress, silent

# Edits that are worked on together where batches do not carry.
_AHEAD = 64


class Step(NamedTuple):
    """One batch, solved: what it is made of and what it took.

    index: of the batch. seconds: for features and solve, without writing and looking; a target that
    was cached counts with what it took when it was optimised.
    """

    index: int
    edits: tuple[Edit, ...]
    update: Update
    features: Features
    seconds: float


def run(
    model: ModelHandle,
    editor: Editor,
    state: State,
    edits: Sequence[Edit],
    schedule: Schedule,
    progress: Progress = silent,
) -> Iterator[Step]:
    """Write the edits batch by batch, yielding after each while it is in the weights.

    A step's update stays there until the next step is asked for; for good, within the run, where
    batches carry. The model is as before when the iterator is exhausted, closed, or interrupted.

    Raises:
        InvalidSetting: a batch larger than the method can write at once.
        InvalidEdit: two edits with one id.
    """
    with model.scratch():
        for step in solve(model, editor, state, edits, schedule, progress):
            with nullcontext() if schedule.carry else model.scratch():
                model.write(step.update.deltas)
                yield step


def solve(
    model: ModelHandle,
    editor: Editor,
    state: State,
    edits: Sequence[Edit],
    schedule: Schedule,
    progress: Progress = silent,
) -> Iterator[Step]:
    """Solve batch by batch and write nothing: enough where batches do not carry.

    Where they do, whoever asks for the next step must have written this one.

    Raises:
        InvalidSetting, InvalidEdit: as `run`.
    """
    check(editor, edits, schedule)
    solved = 0
    for index, (features, took) in enumerate(
        _features(model, editor, state, edits, schedule, progress)
    ):
        started = time.perf_counter()
        update, after = editor.edit(model, features, state)
        seconds = took + time.perf_counter() - started
        solved += len(features.edits)
        progress("editing", solved, len(edits))
        yield Step(index, features.edits, update, features, seconds)
        state = after if schedule.carry else state


def ahead(schedule: Schedule) -> int:
    """How many batches may be worked on together: one where each meets what the last has made."""
    return 1 if schedule.carry else max(1, _AHEAD // schedule.batch_size)


def check(editor: Editor, edits: Sequence[Edit], schedule: Schedule) -> None:
    """Refuse what cannot be run, before any work is done."""
    check_batch(editor, schedule.batch_size)
    if not edits:
        raise InvalidEdit("There is nothing to edit: the list of facts is empty.")
    seen: set[str] = set()
    for edit in edits:
        if edit.id in seen:
            raise InvalidEdit(f"Two edits have the id {edit.id!r}. Give each its own.")
        seen.add(edit.id)


def _features(
    model: ModelHandle,
    editor: Editor,
    state: State,
    edits: Sequence[Edit],
    schedule: Schedule,
    progress: Progress,
) -> Iterator[tuple[Features, float]]:
    """The features of each batch and the seconds they took, on the weights they are to meet."""
    size = schedule.batch_size
    together = size * ahead(schedule)
    for start in range(0, len(edits), together):
        started = time.perf_counter()
        chunk = edits[start : start + together]
        found = editor.features(model, chunk, state, progress)
        took = time.perf_counter() - started
        now = ~found.targets.cached
        # What is no target's is shared by all.
        rest = (took - float(found.targets.seconds[now].sum())) / len(chunk)
        for first in range(0, len(chunk), size):
            part = found.select(slice(first, first + size))
            yield part, float(part.targets.seconds.sum()) + rest * len(part.edits)
