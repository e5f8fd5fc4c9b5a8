"""Tell how work is getting on: bars on a terminal, and a line now and then elsewhere.

Both are on the error stream, and both show what is done, of how much, since when, and how long it
will still take at the pace so far.
"""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, Lock, Thread

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

from retcon.progress import Progress

# Seconds between two lines.
_EVERY = 20.0
# Seconds whose pace a bar's time left goes by.
_PACE = 600.0

Clock = Callable[[], float]


@contextmanager
def telling(console: Console) -> Generator[Progress, None, None]:
    """Yield what work is to call while it is going on; nothing of it stays on a terminal."""
    with _bars(console) if console.is_terminal else _lines(console) as progress:
        yield progress


@contextmanager
def _bars(console: Console) -> Generator[Progress, None, None]:
    """Bars, one a task, gone when done."""
    columns = (
        TextColumn("[cyan]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console, transient=True, speed_estimate_period=_PACE) as display:
        tasks: dict[str, TaskID] = {}
        reached: dict[str, int] = {}

        def report(task: str, done: int, total: int) -> None:
            if task not in tasks:
                tasks[task] = display.add_task(task, total=total)
            elif done < reached[task]:
                display.reset(tasks[task])  # it begins again
            reached[task] = done
            display.update(tasks[task], completed=done, total=total, visible=done < total)

        yield report


@contextmanager
def _lines(console: Console) -> Generator[Progress, None, None]:
    """Lines, also while the work does not call."""
    lines = Lines(lambda text: console.print(text, markup=False, soft_wrap=True))
    ended = Event()

    def watch() -> None:
        while not ended.wait(1.0):
            lines.tick()

    watching = Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield lines
    finally:
        ended.set()
        watching.join()


@dataclass
class _Task:
    """Task that is under way.

    Attributes:
        begun: how much of it was done when it was first reported, and when that was. This says
            nothing of the pace.
        done, total: how much of it, of how much.
    """

    begun: tuple[int, float]
    done: int
    total: int

    def told(self, name: str, now: float) -> str:
        """Say how it is getting on."""
        before, since = self.begun
        spent, made = now - since, self.done - before
        if self.total <= 1:
            return f"{name} ({clock_time(spent)})"
        left = f", about {clock_time(spent / made * (self.total - self.done))} left" if made else ""
        return f"{name}: {self.done:,} of {self.total:,} ({clock_time(spent)}{left})"


@dataclass
class Lines:
    """Says every twenty seconds what is under way, the outermost first."""

    say: Callable[[str], None]
    clock: Clock = time.monotonic
    _tasks: dict[str, _Task] = field(default_factory=dict[str, _Task], init=False)
    _lock: Lock = field(default_factory=Lock, init=False)

    def __post_init__(self) -> None:
        self._said = self.clock()

    def __call__(self, task: str, done: int, total: int) -> None:
        """Note how far a task is."""
        with self._lock:
            known = self._tasks.get(task)
            if done >= total:
                self._tasks.pop(task, None)
            elif known is None or done < known.done:
                self._tasks[task] = _Task((done, self.clock()), done, total)
            else:
                known.done, known.total = done, total
        self.tick()

    def tick(self) -> None:
        """Say a line if it is time."""
        with self._lock:
            now = self.clock()
            if not self._tasks or now - self._said < _EVERY:
                return
            self._said = now
            text = "; ".join(task.told(name, now) for name, task in self._tasks.items())
        self.say(text)


def clock_time(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
