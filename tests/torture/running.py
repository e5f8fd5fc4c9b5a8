"""Run a command of `retcon` in a process of its own, and disturb it.

Processes are forked from one that has imported everything and computed nothing, so that a try costs
what the command costs. Nothing here judges what comes back.
"""

import os
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from retcon.cli.endings import Received

ENDINGS = (signal.SIGINT, signal.SIGTERM)
# Longer than any command on a pico model takes, on a busy machine.
LIMIT = 120.0
HANG = -1000
_SECONDS_A_LOOK = 0.004


@dataclass(frozen=True)
class Ending:
    """How a command ended: its exit code (a signal's number, negative), what it said, seconds."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def said(self) -> str:
        """What it said on the error stream, without lines of progress."""
        lines = (line.strip() for line in self.err.splitlines())
        return "\n".join(line for line in lines if line and not line.startswith(("progress", "·")))


@dataclass(frozen=True)
class Disturbance:
    """A signal after some seconds, or no file larger than so many bytes."""

    signal: int | None = None
    after: float = 0.0
    largest_file: int | None = None


CALM = Disturbance()


def preload() -> None:
    """Import what commands import. Nothing may be computed: threads do not survive a fork."""
    import torch

    import retcon.cli.main
    import retcon.run.edit
    import retcon.run.evaluate
    import retcon.study.runner  # noqa: F401

    torch.set_num_threads(1)


def command(words: Sequence[str], folder: Path, how: Disturbance = CALM) -> Ending:
    """Run `retcon WORDS` in a folder, whose `cache` is the cache."""
    return forked(lambda: _retcon(words), folder, how)


def forked(work: Callable[[], int], folder: Path, how: Disturbance = CALM) -> Ending:
    """Run something in a process of its own, which answers through pipes: no disk is in the way."""
    began = time.monotonic()
    pipes = [os.pipe() for _ in range(2)]
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS)
    child = os.fork()
    if child != 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDINGS)
    else:
        _be_child(work, folder, [writing for _, writing in pipes], how)
    for _, writing in pipes:
        os.close(writing)
    heard = [b"", b""]
    code = _wait(child, how, began, lambda: _hear(pipes, heard))
    for reading, _ in pipes:
        os.close(reading)
    seconds = time.monotonic() - began
    return Ending(code, *(each.decode(errors="replace") for each in heard), seconds)


def _hear(pipes: list[tuple[int, int]], heard: list[bytes]) -> None:
    """Take what has been said so far."""
    for number, (reading, _) in enumerate(pipes):
        while select.select([reading], [], [], 0)[0]:
            more = os.read(reading, 65536)
            if not more:
                break
            heard[number] += more


def _be_child(work: Callable[[], int], folder: Path, say: list[int], how: Disturbance) -> None:
    code = 70
    try:
        os.setsid()
        for stream, pipe in enumerate(say, start=1):
            os.dup2(pipe, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(folder)
        os.environ |= {
            "RETCON_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "COLUMNS": "160",
        }  # fmt: skip
        if how.largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (how.largest_file,) * 2)
        code = work()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _retcon(words: Sequence[str]) -> int:
    """Run a command; signals wait until it has begun to look out for them."""
    from retcon.cli import main

    heed = main.like_ctrl_c

    @contextmanager
    def begun(received: Received) -> Generator[Received, None, None]:
        with heed(received):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDINGS)
            yield received

    main.like_ctrl_c = begun
    sys.argv = ["retcon", *words]
    main.run()
    return 0


def _wait(child: int, how: Disturbance, began: float, hear: Callable[[], None]) -> int:
    """The exit code; the child, and all that it has started, is gone afterwards."""
    sent = how.signal is None
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        hear()
        if done:
            _kill(child)
            return os.waitstatus_to_exitcode(status)
        passed = time.monotonic() - began
        if not sent and passed >= how.after:
            sent = True
            assert how.signal is not None
            os.kill(child, how.signal)
        if passed > LIMIT:
            _kill(child)
            os.waitpid(child, 0)
            return HANG
        time.sleep(_SECONDS_A_LOOK)


def _kill(group: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


class SmallDisk:
    """A folder on a disk of its own, which can be made full; where that is not allowed, `None`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def at(cls, folder: Path) -> "SmallDisk | None":
        """Mount a disk in memory, if this user may."""
        folder.mkdir(parents=True, exist_ok=True)
        made = _quietly("mount", "-t", "tmpfs", "-o", "size=512m", "tmpfs", str(folder))
        return cls(folder) if made else None

    def fill(self, left: int) -> None:
        """Leave so many bytes."""
        used = os.statvfs(self.folder)
        taken = (used.f_blocks - used.f_bfree) * used.f_frsize
        _quietly("mount", "-o", f"remount,size={taken + left}", str(self.folder))

    def empty(self) -> None:
        """Make room again."""
        _quietly("mount", "-o", "remount,size=512m", str(self.folder))

    def read_only(self, on: bool) -> None:
        """Allow reading only, or writing again."""
        _quietly("mount", "-o", f"remount,{'ro' if on else 'rw'}", str(self.folder))

    def remove(self) -> None:
        """Unmount it."""
        _quietly("umount", "-l", str(self.folder))


def _quietly(*words: str) -> bool:
    try:
        return subprocess.run(words, capture_output=True, check=False).returncode == 0
    except OSError:
        return False
