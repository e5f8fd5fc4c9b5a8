"""Run a cell, from its beginning or from where it was cut off, on a model that stays loaded."""

import errno
import hashlib
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from retcon.edits import Case
from retcon.errors import InvalidStudy, RetconError, StorageError
from retcon.features.contexts import check_texts
from retcon.files import check_writable
from retcon.locking import holder
from retcon.method.base import Method
from retcon.method.entries import find_method
from retcon.model.handle import ModelHandle
from retcon.model.load import load
from retcon.progress import Progress, silent
from retcon.run.looks import Looks, Rewrite, run
from retcon.run.order import by_keys
from retcon.scoring.exact_match import continuations
from retcon.scoring.metrics import Observer, observers
from retcon.scoring.observations import Moment, Observation
from retcon.scoring.score import check_cases
from retcon.scoring.suites import General
from retcon.study.cells import Cell
from retcon.study.parts import End, Part
from retcon.study.store import CellFolder, check_there

# Facts of a carried cell that are kept with what the model says before and after.
_EXAMPLES = 8
# What is the matter with the whole disk.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
# Bytes that a disk must have left for the next cell to be begun after one has failed on it.
_ROOM = 2**20


class CellTask(NamedTuple):
    """A cell to be run.

    Attributes:
        cell: what to run.
        cases: in the order in which they are written.
        scored: ids of the cases that are scored.
        folder: of the cell.
        general: text and tasks that are read beside the facts.
        tokens: identity of the rules of the model's tokens; None: any will do.
    """

    cell: Cell
    cases: tuple[Case, ...]
    scored: tuple[str, ...]
    folder: Path
    general: General | None = None
    tokens: str | None = None


class Ended(NamedTuple):
    """The end of a task.

    Attributes:
        cell: its id.
        state: `done`, `before` (it was done already), `busy` (another process is at work on it) or
            `failed`.
        notes: what was damaged and has been run again; then who that process is, or why it failed.
    """

    cell: str
    state: str
    notes: tuple[str, ...] = ()


@dataclass
class Worker:
    """A model and what was computed for it, kept between the cells of a study.

    Between cells the model is as it was loaded. Only the last model and the last state are held.
    """

    threads: int
    device: str = "cpu"
    _model: tuple[tuple[str, str], ModelHandle] | None = field(default=None, init=False)
    _state: tuple[object, Any] | None = field(default=None, init=False)
    _readings: dict[str, list[Observation]] = field(
        default_factory=dict[str, list[Observation]], init=False
    )

    def model(self, name: str, dtype: str, progress: Progress = silent) -> ModelHandle:
        """The model of that name, loaded if it is not the last one."""
        if self._model is None or self._model[0] != (name, dtype):
            self._model, self._state = None, None
            handle = load(name, dtype=dtype, device=self.device, progress=progress)
            self._model = ((name, dtype), handle)
        return self._model[1]

    def run(self, task: CellTask, progress: Progress = silent) -> Ended:
        """Run a cell, from its last finished batch if there is one.

        If something goes wrong, the reason is kept in its folder; finished batches stay.

        Raises:
            StorageError: the disk is full or gone: no cell could be run then.
        """
        import torch

        torch.set_num_threads(self.threads)
        folder = CellFolder(task.folder, task.cell.id)
        with folder.claimed() as mine:
            if not mine:
                return Ended(task.cell.id, "busy", (holder(folder.lock),))
            if folder.done:
                folder.clear_parts()
                return Ended(task.cell.id, "before")
            return self._run(task, folder, progress)

    def _run(self, task: CellTask, folder: CellFolder, progress: Progress) -> Ended:
        damage: list[str] = []
        try:
            self._to_the_end(task, folder, damage, progress)
        except RetconError as error:
            if isinstance(error, StorageError):
                _check_disk(folder, error)
            folder.note_failure(str(error))
            return Ended(task.cell.id, "failed", (*damage, str(error)))
        except Exception as error:
            # Not foreseen, and no reason why other cells should not be run.
            message = f"{type(error).__name__}: {error}"
            folder.note_failure(message, traceback.format_exc())
            where = folder.path / "failed.json"
            return Ended(task.cell.id, "failed", (*damage, f"{message} (all of it is in {where})"))
        return Ended(task.cell.id, "done", tuple(damage))

    def _to_the_end(
        self, task: CellTask, folder: CellFolder, damage: list[str], progress: Progress
    ) -> None:
        """Go on behind the parts of an earlier run. damage: gets what was wrong with these."""
        cell = task.cell
        folder.begin(cell)
        method = find_method(cell.method).build(cell.layers, cell.settings)
        parts, why = folder.parts("cpu" if self.device == "auto" else self.device)
        damage += [] if why is None else [why]
        model = self._checked(task, progress)
        among, watching = frozenset(task.scored), self._observers(task)
        looks = Looks(when=cell.when, among=among, observers=watching).of(task.cases)
        check_texts(model.tokens, [case.edit for case in task.cases])
        check_cases(model.tokens, looks.chosen(task.cases))
        looks.check(model.tokens, task.cases)
        state = self._begin(model, method, progress)
        if isinstance(cell.order, str):
            cases = tuple(by_keys(model, task.cases, cell.layers[0], cell.order, progress))
            task = task._replace(cases=cases)
        pre = looks.before(model, task.cases, progress)
        parts += _Work(model, method, state, task, folder, looks).go_on(parts, progress)
        folder.finish(parts, pre, self.device)

    def _observers(self, task: CellTask) -> tuple[Observer, ...]:
        """Observers beside scores; an untouched model is read as a whole once for all cells."""
        cell = task.cell
        named = observers((*(["GE"] if cell.generation else ()), *cell.metrics))
        general = task.general
        if general is None:
            return named

        def observe(
            model: ModelHandle, cases: Sequence[Case], moment: Moment, progress: Progress
        ) -> list[Observation]:
            if moment.when != "pre":
                return general.observe(model, cases, moment, progress)
            name = f"{model.fingerprint} {model.dtype} {general.identity}"
            if name not in self._readings:
                self._readings[name] = general.observe(model, cases, moment, progress)
            return self._readings[name]

        return (*named, replace(general.observer, observe=observe))

    def _checked(self, task: CellTask, progress: Progress) -> ModelHandle:
        """The cell's model, if it is the one that the cell was planned for."""
        cell = task.cell
        model = self.model(cell.name, cell.dtype, progress)
        if model.fingerprint != cell.fingerprint:
            raise InvalidStudy(
                f"The weights of {cell.name} are not those that this study was begun with "
                f"(fingerprint {model.fingerprint[:12]}, not {cell.fingerprint[:12]}). Bring the "
                f"old ones back, or run the study into another folder."
            )
        if task.tokens not in (None, model.tokens.identity):
            raise InvalidStudy(
                f"The tokenizer of {cell.name} is not the one that this study was begun with: its "
                f"rules or special tokens have changed, so its texts would come to other tokens. "
                f"Bring the old one back, or run the study into another folder."
            )
        return model

    def _begin(self, model: ModelHandle, method: Method[Any, Any, Any], progress: Progress) -> Any:
        """The method's beginning, from the last cell where that had the same."""
        key = (model.fingerprint, model.dtype, method.setup)
        if self._state is None or self._state[0] != key:
            self._state = None  # first, so that two factors are never held
            self._state = (key, method.setup.begin(model, progress))
        return self._state[1]


def _check_disk(folder: CellFolder, error: StorageError) -> None:
    """Raise the error if it would meet every other cell too: where the disk is full or gone."""
    check_there(folder.path.parent)
    if getattr(error.__cause__, "errno", None) in _DISK:
        raise error
    try:
        check_writable(folder.path.parent / "room", room=_ROOM)
    except StorageError:
        raise error from None


class _Work(NamedTuple):
    """A cell on its way through a model."""

    model: ModelHandle
    method: Method[Any, Any, Any]
    state: Any
    task: CellTask
    folder: CellFolder
    looks: Looks

    def go_on(self, parts: Sequence[Part], progress: Progress) -> list[Part]:
        """Solve what is behind the parts of an earlier run, keeping each step as it is made."""
        schedule, cases = self.task.cell.plan, self.task.cases
        past = [step for part in parts for step in part.past]
        texts = [case.edit.text for case in self._examples()] if schedule.carry else []
        before = continuations(self.model, texts, progress=progress) if texts else []
        new: list[Part] = []
        index = len(past)
        for seen in run(
            self.model,
            self.method,
            self.state,
            cases,
            schedule,
            progress,
            past=past,
            looks=self.looks,
        ):
            last = schedule.carry and seen.steps[-1].at == len(cases)
            end = self._at_the_end(before, seen.rewrite, progress) if last else None
            new.append(self.folder.commit(index, seen, carried=schedule.carry, end=end))
            index += len(seen.steps)
        return new

    def _examples(self) -> list[Case]:
        """The cases that are shown before and after."""
        return self.looks.chosen(self.task.cases)[:_EXAMPLES]

    def _at_the_end(self, before: Sequence[str], rewrite: Rewrite, progress: Progress) -> End:
        """Digest of the edited matrices, and examples, once all edits are in the model."""
        texts = [case.edit.text for case in rewrite(self._examples())]
        after = continuations(self.model, texts, progress=progress) if texts else []
        digest = hashlib.sha256()
        for layer in self.method.layers:
            digest.update(self.model.master(layer).cpu().contiguous().numpy().tobytes())
        examples = [
            {
                "case": case.edit.id,
                "prompt": case.edit.text,
                "target": case.edit.target,
                "target_old": case.edit.target_old,
                "before": one,
                "after": two,
            }
            for case, one, two in zip(self._examples(), before, after, strict=True)
        ]
        return End(digest.hexdigest(), examples)
