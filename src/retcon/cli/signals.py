"""Signals that end a command. Each is like Ctrl-C, and has the exit code that is usual for it."""

import signal
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import current_thread, main_thread
from types import FrameType

# What a terminal that is closed sends, and what a scheduler or a machine that shuts down does.
_LIKE_CTRL_C = ("SIGTERM", "SIGHUP")


@dataclass
class Received:
    """The signal by which a command was ended; Ctrl-C where it was no other."""

    number: int | None = None

    @property
    def code(self) -> int:
        """The exit code that tells it."""
        return 128 + (self.number or signal.SIGINT)

    @property
    def name(self) -> str:
        """What it is called in a message."""
        return "Terminated" if self.number else "Interrupted"


@contextmanager
def like_ctrl_c() -> Generator[Received, None, None]:
    """Let every signal that asks a process to end raise KeyboardInterrupt, once.

    So whatever is cleaned up at Ctrl-C is cleaned up then, too, and not cut off by a second one.
    A signal that this process was told to ignore (`nohup`) stays ignored.
    """
    received = Received()

    def end(number: int, _frame: FrameType | None) -> None:
        first, received.number = received.number is None, number
        if first:
            raise KeyboardInterrupt

    names = [name for name in _LIKE_CTRL_C if hasattr(signal, name)]
    numbers = [getattr(signal, name) for name in names]
    before = {n: signal.getsignal(n) for n in numbers if current_thread() is main_thread()}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, end)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
