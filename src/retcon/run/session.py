"""Fold edits over a model: write a batch, let the caller look, go on; in the end restore.

Without `carry` every batch meets the untouched model, so targets and keys depend on no batch and
are computed for many edits at a time. With it, a refresh rule says for how long they are good.
"""

import time
from collections.abc import Iterator, Sequence

from retcon.edits import Edit
from retcon.errors import InvalidEdit, InvalidSetting
from retcon.method.base import Editor, Rewriting, State, check_batch
from retcon.method.locate_then_edit import LocateThenEdit
from retcon.model.handle import ModelHandle
from retcon.progress import Progress, silent
from retcon.run.folding import Fold
from retcon.run.schedule import Schedule
from retcon.run.steps import Past, Step, own_seconds, shared_seconds

# Edits that are worked on together where batches do not carry.
_AHEAD = 64


def run(
    model: ModelHandle,
    editor: Editor,
    state: State,
    edits: Sequence[Edit],
    schedule: Schedule,
    progress: Progress = silent,
    *,
    past: Sequence[Past] = (),
) -> Iterator[Step]:
    """Write the edits batch by batch, yielding after each while it is in the weights.

    A step's update stays there until the next step is asked for; for good, within the run, where
    batches carry. The model is as before when the iterator is exhausted, closed, or interrupted.
    past: the first steps, which an earlier run has solved; they are written and not yielded.
    A run that the schedule's guard stops ends early.

    Raises:
        InvalidSetting: a batch larger than the method can write at once.
        InvalidEdit: two edits with one id.
    """
    if schedule.carry:
        check(editor, edits, schedule)
        with model.scratch():
            fold = Fold(model, editor, edits, schedule, progress, state)
            fold.replay(past)
            while not fold.ended:
                yield fold.step()
        return
    for step in solve(model, editor, state, edits, schedule, progress, first=len(past)):
        with model.scratch():
            model.write(step.update.deltas)
            yield step


def solve(
    model: ModelHandle,
    editor: Editor,
    state: State,
    edits: Sequence[Edit],
    schedule: Schedule,
    progress: Progress = silent,
    *,
    first: int = 0,
) -> Iterator[Step]:
    """Solve batch by batch, each for the untouched model, and write nothing.

    first: the batch to begin with.

    Raises:
        InvalidSetting, InvalidEdit: as `run`.
    """
    check(editor, edits, schedule)
    size = schedule.batch_size
    together = size * ahead(schedule, editor)
    progress("editing", first * size, len(edits))
    for start in range(first * size, len(edits), together):
        started = time.perf_counter()
        found = editor.features(model, edits[start : start + together], state, progress)
        shared = shared_seconds(found, time.perf_counter() - started)
        for begin in range(0, len(found.edits), size):
            part = found.select(slice(begin, begin + size))
            started = time.perf_counter()
            update = editor.edit(model, part, state, progress)
            seconds = time.perf_counter() - started + own_seconds(part, shared)
            at = start + begin + len(part.edits)
            progress("editing", at, len(edits))
            index = (start + begin) // size
            yield Step(index, at, part.edits, update, part, True, None, seconds)


def ahead(schedule: Schedule, editor: Editor) -> int:
    """How many batches may be worked on together.

    One where each meets what the last has made, or where facts of one batch share a target.
    """
    merges = isinstance(editor, LocateThenEdit) and editor.residuals.merge_subjects
    return 1 if schedule.carry or merges else max(1, _AHEAD // schedule.batch_size)


def check(editor: Editor, edits: Sequence[Edit], schedule: Schedule) -> None:
    """Refuse what cannot be run, before any work is done."""
    check_batch(editor, schedule.batch_size)
    check_rule(editor, schedule)
    if not edits:
        raise InvalidEdit("There is nothing to edit: the list of facts is empty.")
    seen: set[str] = set()
    for edit in edits:
        if edit.id in seen:
            raise InvalidEdit(f"Two edits have the id {edit.id!r}. Give each its own.")
        seen.add(edit.id)


def check_rule(editor: Editor, schedule: Schedule) -> None:
    """Refuse a rule or a guard that a method gives nothing to go by.

    Raises:
        InvalidSetting: nothing is written, or its cost cannot be foreseen.
    """
    if isinstance(editor, Rewriting) and (schedule.rule or schedule.guard.watches):
        raise InvalidSetting(
            "This method writes no weight: there is nothing that a guard or an adaptive schedule "
            "could take back. Use sequential-batch:B without a guard."
        )
    if schedule.rule != "energy":
        return
    if not isinstance(editor, LocateThenEdit) or editor.step.budget:
        raise InvalidSetting(
            "The rule adaptive-energy foresees what a batch costs from its keys, targets and a "
            "ridge that stays: gradients and a budget have none. Take adaptive-aimd."
        )
    if len(editor.layers) > 1:
        raise InvalidSetting(
            "The rule adaptive-energy foresees the cost of a batch at one layer, and the method "
            "writes several. Take one layer, or adaptive-aimd."
        )
