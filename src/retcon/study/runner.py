"""Run a study into a folder: plan it, run what is not done yet, tune, plan again, until all is."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from retcon.errors import DamagedCell, InvalidSetting, InvalidStudy
from retcon.files import check_writable, make_folder, write_whole
from retcon.locking import locked
from retcon.progress import Progress, silent
from retcon.sealed import save_record, save_text
from retcon.study.cells import Cell
from retcon.study.checking import check
from retcon.study.finished import DONE, ENVIRONMENT, checked, damage
from retcon.study.packed import ROWS, STEPS, Pack, open_pack
from retcon.study.planning import StudyPlan, plan, warned_of
from retcon.study.spec import Spec, load_spec
from retcon.study.store import CellFolder, check_there
from retcon.study.study import (
    FILE,
    FORMAT,
    STUDY,
    TUNED,
    Study,
    StudyRecord,
    Tuned,
    TuningRule,
    holds_study,
    read_file,
    read_study,
    study_of,
)
from retcon.study.tuning import RULE, choose_ridges
from retcon.study.worker import CellTask, Ended, Worker

# A model's name and dtype.
Loaded = tuple[str, str]

EXECUTORS = ("local", "ray")


class StudyOutcome(NamedTuple):
    """Outcome of a run of a study.

    Attributes:
        done: number of cells that are finished.
        own: those that this run has finished.
        cells: number of cells.
        busy: by cell that another process has taken, who is at work on it.
        failed: reason by cell.
        notes: what was damaged and has been run again.
    """

    done: int
    own: int
    cells: int
    busy: dict[str, str]
    failed: dict[str, str]
    notes: tuple[str, ...]


def run_study(
    file: Path | str,
    folder: Path | str,
    *,
    data: Path | str | None = None,
    progress: Progress = silent,
) -> Study:
    """Run a study file into a folder, or go on with it, and open what has come of it.

    Args:
        file: the study, as YAML.
        folder: where cells are kept as they finish; made if need be.
        data: where the file of facts is; None: RETCON_DATA, or beside the study file.
        progress: is told what is done.

    Returns:
        The study: `.rows(cell)`, `.all_rows()`, `.scores()`.

    Raises:
        InvalidStudy: the file says something wrong, the folder is another study's, or cells failed;
            those that are done stay done.
        StorageError: no space or no permission.
    """
    spec = load_spec(Path(file))
    check(spec, Path(file))
    outcome = run_cells(
        spec, Path(folder), data=None if data is None else Path(data), progress=progress
    )
    if outcome.failed:
        first, why = next(iter(outcome.failed.items()))
        raise InvalidStudy(
            f"{len(outcome.failed)} of {outcome.cells} cells could not be run, the first {first}: "
            f"{why} Mend that and run the study again: those that are done are kept."
        )
    return read_study(folder)


def run_cells(
    spec: Spec,
    folder: Path,
    *,
    data: Path | None = None,
    executor: str = "local",
    workers: int = 0,
    limit: float | None = None,
    progress: Progress = silent,
) -> StudyOutcome:
    """Run the cells of a study that are not done yet.

    Args:
        spec: the study file.
        folder: of the study; made if need be.
        data: folder of the file of facts.
        executor: `local`, or `ray`.
        workers: of Ray; 0: as many as fit.
        limit: seconds after which no cell is begun.
        progress: is told what is done.

    Raises:
        InvalidStudy: the spec cannot be run, or the folder is another study's.
        StorageError: no space or no permission; what is done stays done.
    """
    if executor not in EXECUTORS:
        raise InvalidSetting(f"There is no executor {executor!r}: take local or ray.")
    run = _Run(spec, folder, data, executor, workers, progress)
    run.check_folder()
    run.deadline = None if limit is None else time.monotonic() + limit
    return run.to_the_end()


@dataclass
class _Run:
    """One call of `run_cells`."""

    spec: Spec
    folder: Path
    data: Path | None
    executor: str
    workers: int
    progress: Progress
    deadline: float | None = None
    ended: dict[str, Ended] = field(default_factory=dict, init=False)
    notes: list[str] = field(default_factory=list, init=False)
    sound: set[str] = field(default_factory=set, init=False)
    tokens: dict[Loaded, str | None] = field(default_factory=dict, init=False)

    def check_folder(self) -> None:
        """Refuse another study's folder, and bad plans, before any model is loaded."""
        if self.folder.exists() and not self.folder.is_dir():
            raise InvalidStudy(f"{self.folder} is a file. Name a folder for the study.")
        known = self._known()
        if known is not None and known.record.name != self.spec.name:
            raise InvalidStudy(
                f"{self.folder} holds the study {known.record.name!r}, and this one is "
                f"{self.spec.name!r}. Give each study a folder of its own."
            )
        study = warned_of(self._plan())
        if known is not None:
            check_same(known.record, study)
        if self.pack is not None:
            for name in (ROWS, STEPS):
                self.pack.read(name)
        self._threads()
        check_writable(self.folder / "study.json")

    def to_the_end(self) -> StudyOutcome:
        """Run what can be run; tuning first, because the cells behind it depend on its outcome."""
        make_folder(self.folder)
        worker = Worker(self._threads(), self.spec.device)
        fingerprints = self._fingerprints(worker)
        while True:
            plan = self._planned(fingerprints, worker.threads)
            waiting = [
                cell for cell in plan.cells if cell.id not in self.ended and not self._is_done(cell)
            ]
            late = self.deadline is not None and time.monotonic() > self.deadline
            if not waiting or late:
                return self._outcome(plan)
            make_folder(self.folder / "cells")
            tasks = [
                CellTask(
                    cell,
                    *plan.cases(cell),
                    self._path(cell),
                    plan.beside(cell),
                    self.tokens.get((cell.name, cell.dtype)),
                )
                for cell in waiting
            ]
            self.progress("cells", 0, len(tasks))
            for number, ended in enumerate(self._executed(tasks, worker), start=1):
                self.ended[ended.cell] = ended
                self.notes += ended.notes if ended.state == "done" else ()
                self.progress("cells", number, len(tasks))

    def _planned(self, fingerprints: Mapping[Loaded, str], threads: int) -> StudyPlan:
        """The plan as it is now, with the ridges that finished cells have decided; written down."""
        plan = self._plan(fingerprints=fingerprints)
        self._mend(plan)
        known = Study(self.folder, self._record(plan, threads))
        tuned = choose_ridges(plan.tunings, self.spec, known)
        if tuned:
            plan = self._plan(fingerprints=fingerprints, tuned=tuned)
            self._mend(plan)
        self._keep(self._record(plan, threads), tuned)
        return plan

    def _plan(self, **known: Any) -> StudyPlan:
        return plan(self.spec, data=self.data, rule=self._rule(), **known)

    def _rule(self) -> TuningRule:
        """The rule by which ridges are chosen: the folder's own, so that it never changes."""
        known = self._known()
        return RULE if known is None else known.record.tuning

    def _mend(self, plan: StudyPlan) -> None:
        """Move finished cells that are damaged out of the way, so that they are run again."""
        for cell in plan.cells:
            folder = CellFolder(self._path(cell))
            if cell.id in self.sound or not folder.done:
                continue
            why = damage(folder.path)
            if why is None:
                folder.clear_parts()  # of a run that was killed when it was done
                self.sound.add(cell.id)
                continue
            with folder.claimed() as mine:
                # Another process may have seen it too, and may have run it again by now.
                if mine and folder.done and damage(folder.path) is not None:
                    aside = folder.set_aside()
                    self.ended.pop(cell.id, None)
                    self.notes.append(f"{why} It was moved to {aside.name} and is run again.")

    def _record(self, plan: StudyPlan, threads: int) -> StudyRecord:
        return StudyRecord(
            format=FORMAT,
            name=self.spec.name,
            description=self.spec.description,
            threads=threads,
            models=tuple(
                model.model_copy(update={"tokens": self.tokens.get((model.name, model.dtype))})
                for model in plan.models
            ),
            data=plan.data,
            points=plan.points,
            device=self.spec.device,
            corpora=plan.corpora,
            plugins=plan.plugins,
            tuning=self._rule(),
            warnings=plan.warnings,
            findings=tuple(self.spec.findings),
        )

    def _keep(self, record: StudyRecord, tuned: Sequence[Tuned]) -> None:
        """Write what the folder is of."""
        check_there(self.folder)
        if self._is_pack_of(record, tuned):
            return
        with locked(self.folder / ".study.lock"):
            known = self._known()
            if known is not None and known.record.threads != record.threads:
                raise InvalidStudy(
                    f"Another process has begun {self.folder} with {known.record.threads} threads, "
                    f"and this one has {record.threads}. Run it again: it takes as many then."
                )
            whose = study_of(record.name)
            if tuned or self.pack is not None or (self.folder / TUNED).exists():
                chosen = [each.model_dump(mode="json") for each in tuned]
                save_record(self.folder / TUNED, {"tuned": chosen}, whose)
            save_record(self.folder / STUDY, record.model_dump(mode="json"), whose)
            save_text(self.folder / FILE, self.spec.text, whose)
            # Finished cells are worth committing; what a running one keeps is not.
            ignored = b"*.lock\nstep-*\n.*\n!.gitignore\n"
            write_whole(self.folder / ".gitignore", lambda work: work.write_bytes(ignored))

    def _is_pack_of(self, record: StudyRecord, tuned: Sequence[Tuned]) -> bool:
        """True if the folder is a pack alone that says all this: then it is left as it is."""
        if self.pack is None or (self.folder / STUDY).exists():
            return False
        with suppress(InvalidStudy):
            known = read_study(self.folder)
            content = known.record, known.tuned, read_file(self.folder)
            return content == (record, tuple(tuned), self.spec.text)
        return False

    def _fingerprints(self, worker: Worker) -> dict[Loaded, str]:
        """Fingerprint of each model: as the folder has it, or of the model loaded now.

        Beside it the identity of its tokens, which a folder of earlier days may not have.
        """
        known = self._known()
        of: dict[Loaded, str] = {}
        for model in () if known is None else known.record.models:
            of[model.name, model.dtype] = model.fingerprint
            self.tokens[model.name, model.dtype] = model.tokens
        for model in self._plan().models:
            key = (model.name, model.dtype)
            if not of.get(key):
                loaded = worker.model(*key, self.progress)
                of[key], self.tokens[key] = loaded.fingerprint, loaded.tokens.identity
        return of

    def _executed(self, tasks: Sequence[CellTask], worker: Worker) -> Iterator[Ended]:
        if self.executor == "local":
            return run_here(tasks, worker, self.deadline, self.progress)
        from retcon.study.ray_runner import run_on_ray

        return run_on_ray(
            tasks,
            threads=worker.threads,
            device=self.spec.device,
            workers=self.workers,
            deadline=self.deadline,
        )

    def _outcome(self, plan: StudyPlan) -> StudyOutcome:
        states = [(cell.id, self.ended.get(cell.id)) for cell in plan.cells]
        failed = {c: e.notes[-1] for c, e in states if e is not None and e.state == "failed"}
        finished = {cell.id for cell in plan.cells if self._is_done(cell)}
        busy = {
            c: e.notes[-1]
            for c, e in states
            if e is not None and e.state == "busy" and c not in finished
        }
        own = sum(e is not None and e.state == "done" for _, e in states)
        return StudyOutcome(len(finished), own, len(plan.cells), busy, failed, tuple(self.notes))

    def _threads(self) -> int:
        """The number of threads that the study was begun with: bits depend on it."""
        known, wanted = self._known(), self.spec.threads
        begun = _threads_of_cells(self.folder) if known is None else known.record.threads
        if begun is not None and wanted not in (None, begun):
            raise InvalidStudy(
                f"{self.folder} was begun with {begun} threads, and the study asks for {wanted}: "
                f"the last bits of a score depend on it. Put `threads: {begun}`, or take another "
                f"folder."
            )
        return begun or wanted or torch.get_num_threads()

    def _known(self) -> Study | None:
        return read_study(self.folder) if holds_study(self.folder) else None

    @cached_property
    def pack(self) -> Pack | None:
        """Cells that were packed into the folder: they are done, and the pack stays as it is."""
        return open_pack(self.folder)

    def _is_done(self, cell: Cell) -> bool:
        packed = self.pack is not None and self.pack.cell(cell.id) is not None
        return packed or CellFolder(self._path(cell)).done

    def _path(self, cell: Cell) -> Path:
        return self.folder / "cells" / cell.id


def run_here(
    tasks: Sequence[CellTask], worker: Worker, deadline: float | None, progress: Progress
) -> Iterator[Ended]:
    """Run the tasks in their order, in this process.

    Args:
        tasks: cells to be run.
        worker: holds the model.
        deadline: `time.monotonic()` after which none is begun.
        progress: is told what is done.
    """
    for task in tasks:
        if deadline is not None and time.monotonic() > deadline:
            return
        yield worker.run(task, progress)


def check_same(known: StudyRecord, plan: StudyPlan) -> None:
    """Refuse to go on on other facts, another corpus or another kind of device.

    Raises:
        InvalidStudy: something of the same name is another than the folder was begun with.
    """
    old, new = known.data, plan.data
    if old.cases == new.cases and old.sha256 != new.sha256 and plan.spec.data.sha256 is None:
        raise InvalidStudy(
            f"{new.cases} is not the file that this folder was begun with: its sha256 is "
            f"{new.sha256}, not {old.sha256}. Bring that one (--data), or run the study into "
            f"another folder."
        )
    for name, content in plan.plugins.items():
        if known.plugins.get(name, content) != content:
            raise InvalidStudy(
                f"The plugin {name} is not the file that this folder was begun with. Bring that "
                f"one back, or run the study into another folder."
            )
    for name, content in plan.corpora.items():
        if known.corpora.get(name, content) != content:
            raise InvalidStudy(
                f"The corpus {name} is not the file that this folder was begun with. Bring that "
                f"one back, or run the study into another folder."
            )
    kinds = [name.partition(":")[0] for name in (known.device, plan.spec.device)]
    if kinds[0] != kinds[1]:
        raise InvalidStudy(
            f"This folder was begun on {kinds[0]}, and the study asks for {kinds[1]}: scores "
            f"differ between them. Put `device: {known.device}`, or take another folder."
        )


def _threads_of_cells(folder: Path) -> int | None:
    """Threads that finished cells were run with, for where the record of the study is lost."""
    for path in sorted(folder.glob(f"cells/*/{DONE}")):
        with suppress(DamagedCell, ValueError, KeyError, TypeError):
            text = checked(path.parent, ENVIRONMENT).read_text(encoding="utf-8")
            return int(json.loads(text)["threads"])
    return None
