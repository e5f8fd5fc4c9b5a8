"""Locks between processes; who waits for one is told, after three seconds, who holds it.

A lock is the operating system's (`flock`), so it ends with the process that holds it, however that
ends. Beside it lies a note of who that is, which counts only while the lock is held.
"""

import json
import os
import shlex
import socket
import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from retcon.errors import HeldElsewhere, RetconWarning
from retcon.files import storing

# Seconds that are waited in silence.
_SILENT = 3.0


@contextmanager
def locked(lock: Path, *, at_most: float | None = None) -> Generator[None, None, None]:
    """Keep other processes out by a lock file until the work inside is done.

    Args:
        at_most: seconds that are waited for others; without it the wait has no end.

    Raises:
        StorageError: no space or no permission for the lock file.
        HeldElsewhere: another process still holds it.
    """
    file = _file(lock)
    with storing(lock):
        try:
            file.acquire(timeout=_SILENT if at_most is None else at_most)
        except Timeout:
            if at_most is not None:
                raise HeldElsewhere(
                    f"{lock.parent} is being changed by {holder(lock)}. Nothing was done. Try "
                    f"again when that has ended."
                ) from None
            said = f"Waiting for {lock}, which is held by {holder(lock)}."
            warnings.warn(said, RetconWarning, stacklevel=2)
            file.acquire()
    try:
        with _signed(lock):
            yield
    finally:
        file.release()


@contextmanager
def claimed(lock: Path) -> Generator[bool, None, None]:
    """Keep other processes out, as `locked`; false, at once, where one is at work.

    Raises:
        StorageError: no space or no permission for the lock file.
    """
    file = _file(lock)
    with storing(lock):
        try:
            file.acquire(blocking=False)
        except Timeout:
            mine = False
        else:
            mine = True
    if not mine:
        yield False
        return
    try:
        with _signed(lock):
            yield True
    finally:
        file.release()


def holder(lock: Path) -> str:
    """Process that holds a lock, as far as the note beside it tells."""
    return _told(lock) or "another process"


def at_work(lock: Path) -> str | None:
    """Process that says it holds a lock, and lives; None where there is none.

    The lock is not touched, so nobody who wants it is kept waiting. A process on another machine
    is taken at its word.
    """
    try:
        note = json.loads(_note(lock).read_text(encoding="utf-8"))
        if note["host"] == socket.gethostname():
            os.kill(note["process"], 0)
    except PermissionError:  # it lives, and is another user's
        pass
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return _told(lock)


def _told(lock: Path) -> str | None:
    try:
        note = json.loads(_note(lock).read_text(encoding="utf-8"))
        return (
            f"process {note['process']} on {note['host']} since {note['since']} ({note['command']})"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _file(lock: Path) -> FileLock:
    """The lock, in a folder that there is: one that was moved away is not made again."""
    with storing(lock):
        lock.parent.stat()
    return FileLock(lock)


def _note(lock: Path) -> Path:
    return lock.with_name(f"{lock.name}.held")


@contextmanager
def _signed(lock: Path) -> Generator[None, None, None]:
    """Say beside a lock who holds it. Where that cannot be said, it is held all the same."""
    note = {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
        "command": shlex.join(sys.argv)[:200],
    }
    with suppress(OSError):
        _note(lock).write_text(json.dumps(note), encoding="utf-8")
    try:
        yield
    finally:
        with suppress(OSError):
            _note(lock).unlink()
