"""Jobs: one thread that owns the model, a queue before it, and how each job is getting on.

Whatever reads or writes the model is a job, so that no two ever touch it at once. A job ends early
where it next tells its progress; what it had written into the model is undone on the way out.
"""

import logging
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import Literal

from retcon.errors import RetconError, RetconWarning
from retcon.progress import Progress

State = Literal["waiting", "running", "done", "failed", "cancelled"]
Answer = Mapping[str, object]
Work = Callable[[Progress], Answer]
# So many jobs that have ended are remembered.
_REMEMBERED = 200
UNEXPECTED = (
    "{}: {}. This is a mistake of Retcon's own. The model and the ledger are as before; please "
    "report it with what you did."
)
_NO_MEMORY = (
    "There was not enough memory for this: {}. The model and the ledger are as before. Close other "
    "programs, or write fewer facts at once."
)


class JobCancelled(Exception):
    """Raised in the middle of a job that the user has cancelled."""


@dataclass
class StudioJob:
    """Something that the worker does.

    Attributes:
        number: names it.
        title: what it is, for the user.
        quick: goes before those that are not.
        tab: of whom only the latest quick job counts.
        step, done, total: what is being done, how much of it, of how much.
        answer: of a job that is done.
        problem: of a job that has failed: what went wrong and what to do.
        warned: what the library has warned of.
    """

    number: int
    title: str
    work: Work
    quick: bool = False
    tab: str = ""
    state: State = "waiting"
    step: str = ""
    done: int = 0
    total: int = 0
    answer: Answer = field(default_factory=dict[str, object])
    problem: str = ""
    warned: tuple[str, ...] = ()
    stopped: bool = False
    since: float = field(default_factory=time.monotonic)
    until: float | None = None

    @property
    def ended(self) -> bool:
        """True if nothing more will come of it."""
        return self.state in ("done", "failed", "cancelled")

    @property
    def seconds(self) -> float:
        """The time that it has been running, or had been."""
        return (time.monotonic() if self.until is None else self.until) - self.since

    def told(self) -> dict[str, object]:
        """All that a page needs to know of it."""
        return {
            "job": self.number,
            "title": self.title,
            "quick": self.quick,
            "state": self.state,
            "step": self.step,
            "done": self.done,
            "total": self.total,
            "seconds": round(self.seconds, 1),
            "problem": self.problem,
            "warned": list(self.warned),
            "answer": dict(self.answer),
        }


class JobQueue:
    """The worker and its queue."""

    def __init__(self) -> None:
        self.version = 0
        self._known: dict[int, StudioJob] = {}
        # No number that an open page knows from an earlier process is given again.
        self._last = int(time.time())
        self._waiting: deque[StudioJob] = deque()
        self._changed = Condition()
        self._ending = False
        self._thread = Thread(target=self._run, name="retcon-studio", daemon=True)
        self._thread.start()

    def add(self, title: str, work: Work, *, quick: bool = False, tab: str = "") -> StudioJob:
        """Queue a job. A quick one takes the place of an earlier one of the same tab."""
        with self._changed:
            self._last += 1
            job = StudioJob(self._last, title, work, quick, tab)
            for other in self._known.values():
                if quick and tab and other.quick and other.tab == tab:
                    self._stop(other)
            self._known[job.number] = job
            for number in [n for n, one in self._known.items() if one.ended][:-_REMEMBERED]:
                del self._known[number]
            self._waiting.append(job)
            self._tell()
        return job

    def find(self, number: int) -> StudioJob | None:
        """A job by its number; None where it is not known, or not any more."""
        return self._known.get(number)

    def cancel(self, number: int) -> StudioJob | None:
        """End a job: at once if it waits, and else where it next tells its progress."""
        with self._changed:
            job = self._known.get(number)
            if job is not None:
                self._stop(job)
                self._tell()
        return job

    def under_way(self) -> list[StudioJob]:
        """The jobs that run or wait, in the order in which they were begun."""
        with self._changed:
            return [job for job in self._known.values() if not job.ended]

    def end(self, seconds: float = 60.0) -> None:
        """Cancel all jobs, and wait for the thread, which ends where it next tells its progress."""
        with self._changed:
            self._ending = True
            for job in self._known.values():
                self._stop(job)
            self._tell()
        self._thread.join(seconds)

    def _stop(self, job: StudioJob) -> None:
        job.stopped = True
        if job.state == "waiting":
            job.state, job.until = "cancelled", job.since
            self._waiting.remove(job)

    def _tell(self) -> None:
        self.version += 1
        self._changed.notify_all()

    def _next(self) -> StudioJob | None:
        """Wait for the next job; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ending)
            if self._ending:
                return None
            job = next((one for one in self._waiting if one.quick), self._waiting[0])
            self._waiting.remove(job)
            job.state, job.since = "running", time.monotonic()
            self._tell()
            return job

    def _run(self) -> None:
        while (job := self._next()) is not None:
            state, problem = self._done(job)
            with self._changed:
                job.state, job.problem, job.until = state, problem, time.monotonic()
                self._tell()

    def _done(self, job: StudioJob) -> tuple[State, str]:
        """Do a job; how it ended, and why if that was not well."""

        def progress(task: str, done: int, total: int) -> None:
            if job.stopped:
                raise JobCancelled
            job.step, job.done, job.total = task, done, total
            self.version += 1

        try:
            with _warnings_of(job):
                progress("", 0, 0)
                job.answer = job.work(progress)
        except JobCancelled:
            return "cancelled", ""
        except RetconError as error:
            return "failed", str(error)
        except Exception as error:  # the worker outlives whatever a model or a plugin does
            if type(error).__name__ in ("MemoryError", "OutOfMemoryError"):  # Python's, and torch's
                return "failed", _NO_MEMORY.format(str(error) or "none was left")
            logging.getLogger(__name__).exception("%s", job.title)
            return "failed", UNEXPECTED.format(type(error).__name__, error)
        return "done", ""


@contextmanager
def _warnings_of(job: StudioJob) -> Generator[None, None, None]:
    """Keep what the library warns of, however the job ends."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RetconWarning)
        try:
            yield
        finally:
            told = [str(one.message) for one in caught if issubclass(one.category, RetconWarning)]
            job.warned = tuple(dict.fromkeys(told))
