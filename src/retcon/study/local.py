"""Run cells here, one after the other, in this process."""

import time
from collections.abc import Iterator, Sequence

from retcon.progress import Progress
from retcon.study.worker import Ended, Task, Worker


def run_here(
    tasks: Sequence[Task], worker: Worker, deadline: float | None, progress: Progress
) -> Iterator[Ended]:
    """Run the tasks in their order. deadline: `time.monotonic()` after which none is begun."""
    for task in tasks:
        if deadline is not None and time.monotonic() > deadline:
            return
        yield worker.run(task, progress)
