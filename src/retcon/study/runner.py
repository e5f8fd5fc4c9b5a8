"""Run a study into a folder: plan it, run what is not done yet, tune, plan again, until all is."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import TypeAdapter

from retcon.errors import InvalidSetting, InvalidStudy
from retcon.progress import Progress, silent
from retcon.storage import locked, make_folder, write_whole
from retcon.study.cells import Cell
from retcon.study.local import run_here
from retcon.study.planning import Plan, choose_ridges, plan
from retcon.study.reading import FORMAT, Record, Study, Tuned, read_study
from retcon.study.spec import Spec
from retcon.study.store import CellFolder
from retcon.study.worker import Ended, Task, Worker

# A model's name and dtype.
Loaded = tuple[str, str]

EXECUTORS = ("local", "ray")


class Outcome(NamedTuple):
    """How far a study is after a run.

    busy: cells that another process is at work on. failed: why, by cell. notes: what was damaged
    and has been run again.
    """

    done: int
    cells: int
    busy: int
    failed: dict[str, str]
    notes: tuple[str, ...]


def run_study(
    spec: Spec,
    folder: Path,
    *,
    data: Path | None = None,
    executor: str = "local",
    workers: int = 0,
    limit: float | None = None,
    progress: Progress = silent,
) -> Outcome:
    """Run the cells of a study that are not done yet. limit: seconds after which none is begun.

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
    """One call of `run_study`."""

    spec: Spec
    folder: Path
    data: Path | None
    executor: str
    workers: int
    progress: Progress
    deadline: float | None = None
    ended: dict[str, Ended] = field(default_factory=dict, init=False)
    notes: list[str] = field(default_factory=list, init=False)

    def check_folder(self) -> None:
        """Refuse another study's folder, and bad plans, before any model is loaded."""
        known = self._known()
        if known is not None and known.record.name != self.spec.name:
            raise InvalidStudy(
                f"{self.folder} holds the study {known.record.name!r}, and this one is "
                f"{self.spec.name!r}. Give each study a folder of its own."
            )
        plan(self.spec, data=self.data)

    def to_the_end(self) -> Outcome:
        """Run what can be run; tuning first, because the cells behind it depend on its outcome."""
        worker = Worker(self._threads(), self.spec.device)
        fingerprints = self._fingerprints(worker)
        while True:
            made = self._planned(fingerprints, worker.threads)
            folders = {cell.id: CellFolder(self._path(cell)) for cell in made.cells}
            waiting = [
                cell for cell in made.cells
                if cell.id not in self.ended and not folders[cell.id].done
            ]  # fmt: skip
            late = self.deadline is not None and time.monotonic() > self.deadline
            if not waiting or late:
                return self._outcome(made)
            tasks = [Task(cell, *made.cases(cell), self._path(cell)) for cell in waiting]
            for number, ended in enumerate(self._executed(tasks, worker), start=1):
                self.ended[ended.cell] = ended
                self.notes += ended.notes if ended.state == "done" else ()
                self.progress("cells", number, len(tasks))

    def _planned(self, fingerprints: Mapping[Loaded, str], threads: int) -> Plan:
        """The plan as it is now, with the ridges that finished cells have decided; written down."""
        made = plan(self.spec, data=self.data, fingerprints=fingerprints)
        study = self._record(made, threads)
        for cell, why in study.damaged().items():
            aside = CellFolder(study.cell(cell)).set_aside()
            self.notes.append(f"{why} It was moved to {aside.name} and is run again.")
        tuned = choose_ridges(made, study)
        if tuned:
            made = plan(self.spec, data=self.data, fingerprints=fingerprints, tuned=tuned)
            text = TypeAdapter(tuple[Tuned, ...]).dump_json(tuned, indent=2).decode()
            self._write("tuned.json", text)
            self._record(made, threads)
        return made

    def _record(self, made: Plan, threads: int) -> Study:
        """Write what the folder is of, and open it."""
        record = Record(
            format=FORMAT, name=self.spec.name, description=self.spec.description,
            threads=threads, models=made.models, data=made.data, points=made.points,
        )  # fmt: skip
        make_folder(self.folder)
        with locked(self.folder / ".study.lock"):
            self._write("study.json", record.model_dump_json(indent=2))
            self._write("study.yaml", self.spec.text)
            # Finished cells are worth committing; what a running one keeps is not.
            self._write(".gitignore", "*.lock\nstep-*\n.*\n!.gitignore\n")
        return read_study(self.folder)

    def _fingerprints(self, worker: Worker) -> dict[Loaded, str]:
        """Of each model: as the folder has them, or of the model loaded now."""
        known = self._known()
        of = (
            {} if known is None else {(m.name, m.dtype): m.fingerprint for m in known.record.models}
        )
        wanted = plan(self.spec, data=self.data).models
        for model in wanted:
            key = (model.name, model.dtype)
            of[key] = of.get(key) or worker.model(*key, self.progress).fingerprint
        return of

    def _executed(self, tasks: Sequence[Task], worker: Worker) -> Iterator[Ended]:
        if self.executor == "local":
            return run_here(tasks, worker, self.deadline, self.progress)
        from retcon.study.ray_runner import run_on_ray

        return run_on_ray(
            tasks, threads=worker.threads, device=self.spec.device,
            workers=self.workers, deadline=self.deadline,
        )  # fmt: skip

    def _outcome(self, made: Plan) -> Outcome:
        states = [(cell.id, self.ended.get(cell.id)) for cell in made.cells]
        failed = {c: e.notes[-1] for c, e in states if e is not None and e.state == "failed"}
        busy = sum(e is not None and e.state == "busy" for _, e in states)
        done = sum(CellFolder(self._path(cell)).done for cell in made.cells)
        return Outcome(done, len(made.cells), busy, failed, tuple(self.notes))

    def _threads(self) -> int:
        """The number of threads that the study was begun with: bits depend on it."""
        known = self._known()
        if known is not None:
            return known.record.threads
        return self.spec.threads or torch.get_num_threads()

    def _known(self) -> Study | None:
        return read_study(self.folder) if (self.folder / "study.json").exists() else None

    def _path(self, cell: Cell) -> Path:
        return self.folder / "cells" / cell.id

    def _write(self, name: str, text: str) -> None:
        write_whole(self.folder / name, lambda work: work.write_text(text, encoding="utf-8"))
