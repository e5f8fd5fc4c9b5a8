"""Signals that end a command. Each is like Ctrl-C, and has the exit code that is usual for it."""

import os
import signal
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import current_thread, main_thread
from types import FrameType
from typing import Any

# What Ctrl-C sends, a terminal that is closed, and a scheduler or a machine that shuts down.
_ENDINGS = ("SIGINT", "SIGTERM", "SIGHUP")
# Seconds until a signal that came at a bad time is asked about again.
_AGAIN = 0.02
# Where exceptions are turned into others: by modules that are imported, and by pydantic, of which a
# name of a folder is known and no more, since few commands need it.
_IMPORTING = "<frozen importlib._bootstrap"
_PYDANTIC = f"{os.sep}pydantic{os.sep}"

_Handler = Callable[[int, FrameType | None], None]
_Hook = Callable[[Any], None]


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
        """Word for it in a message."""
        return "Interrupted" if self.number in (None, signal.SIGINT) else "Terminated"


@contextmanager
def like_ctrl_c(received: Received | None = None) -> Generator[Received, None, None]:
    """Let every signal that asks a process to end raise KeyboardInterrupt.

    So whatever is cleaned up at Ctrl-C is cleaned up then, too. It is not cut off by a second
    signal, unless that is Ctrl-C again. A signal that this process was told to ignore (`nohup`)
    stays ignored. One that still waits when all is done is forgotten. One that comes
    while Python lets go of an object, where no exception can be raised, comes again.

    received: gets the signal, for who is to look at it afterwards.
    """
    received = received or Received()

    def end(number: int, _frame: FrameType | None) -> None:
        first, received.number = received.number is None, received.number or number
        if first or number == signal.SIGINT:
            raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in _ENDINGS if hasattr(signal, name)]
    before = {n: signal.getsignal(n) for n in numbers if current_thread() is main_thread()}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _when_it_arrives(end))
    unraisable = sys.unraisablehook
    sys.unraisablehook = _again_later(unraisable)
    try:
        yield received
    finally:
        sys.unraisablehook = unraisable
        if before and hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _when_it_arrives(end: _Handler) -> _Handler:
    """Wait until nothing is being done that turns an exception into one of its own."""

    def later(number: int, frame: FrameType | None) -> None:
        if not _converting(frame) or not hasattr(signal, "setitimer"):
            end(number, frame)
            return
        signal.signal(signal.SIGALRM, lambda _, now: later(number, now))
        signal.setitimer(signal.ITIMER_REAL, _AGAIN)

    return later


def _again_later(otherwise: Callable[["sys.UnraisableHookArgs"], object]) -> _Hook:
    """Raise KeyboardInterrupt a little later, where it could not be raised; tell of all else."""

    def again(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def hook(failed: "sys.UnraisableHookArgs") -> None:
        if failed.exc_type is not KeyboardInterrupt or not hasattr(signal, "setitimer"):
            otherwise(failed)
            return
        signal.signal(signal.SIGALRM, again)
        signal.setitimer(signal.ITIMER_REAL, _AGAIN)

    return hook


def _converting(frame: FrameType | None) -> bool:
    """True if a frame is of an import or of pydantic, or was called by one."""
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_IMPORTING) or _PYDANTIC in file:
            return True
        frame = frame.f_back
    return False
