"""Folders that Retcon writes to, and files that are written whole or not at all.

What is being written lies in a folder of its own beside its place, `.retcon-…`, and its name tells
which process is at it. So nobody takes it for anything else, and what a process that was killed
has left there is swept by the next one that writes to the same folder.
"""

import hashlib
import os
import re
import shutil
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from uuid import uuid4

import platformdirs
from safetensors import SafetensorError

from retcon.errors import StorageError

# Of a temporary folder: the machine, the process, and whichever of its writes it is.
_WORK = re.compile(r"\.retcon-([0-9a-f]{8})-(\d{1,10})-[0-9a-f]{8}")
# Seconds after which what another machine has not touched is what it has left behind.
_FORSAKEN = 3600


def cache_folder() -> Path:
    """The user's cache, or `RETCON_CACHE` where that is set."""
    chosen = os.environ.get("RETCON_CACHE")
    # Quoted, or in a file that no shell reads, a ~ comes as it is.
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("retcon"))


@contextmanager
def storing(target: Path) -> Generator[None, None, None]:
    """Turn what an operating system says about a full or read-only disk into a StorageError."""
    try:
        yield
    except _refusals() as error:
        cause = getattr(error, "strerror", None) or error
        raise StorageError(
            f"{target} could not be written: {cause}. Nothing was changed. Free some space, or "
            f"choose another place (RETCON_CACHE sets the cache's)."
        ) from error


def make_folder(folder: Path) -> Path:
    """The folder, made where it is missing.

    Raises:
        StorageError: no space or no permission.
    """
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def check_writable(target: Path | None, *, room: int = 0) -> None:
    """Find out before the work is done whether its result can be kept.

    Args:
        room: bytes that must find a place beside it.

    Raises:
        StorageError: no permission, or a file where a folder should be, or the other way round.
    """
    if target is None:
        return
    if target.is_dir():
        raise StorageError(f"{target} is a folder. Name a file, in it or elsewhere.")
    with storing(target), tempfile.TemporaryFile(dir=make_folder(target.parent)) as probe:
        probe.write(bytes(room))


def write_whole(target: Path, write: Callable[[Path], object], *, sync: bool = False) -> None:
    """Let `write` fill a temporary file beside `target`, then move it into place.

    A reader sees the old file or the new one, never a part. Its mode is that of any new file here.

    Args:
        sync: not only this process may die right afterwards, but the machine.

    Raises:
        StorageError: no space or no permission.
    """
    make_folder(target.parent)
    with storing(target), workplace(target.parent) as place:
        work = place / target.name
        mode = _new(work)
        write(work)
        _open_up(work, mode)
        if sync:
            _sync(work)
        work.replace(target)
        if sync:
            _sync(target.parent)


@contextmanager
def whole_folder(target: Path) -> Generator[Path, None, None]:
    """A folder to fill, which becomes `target` at the end; nothing of it stays if that fails.

    Raises:
        StorageError: there is something in `target` already, no space, or no permission.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise StorageError(
            f"{target} exists already and is not an empty folder. Nothing was changed. Name a new "
            f"folder."
        )
    make_folder(target.parent)
    with storing(target), workplace(target.parent) as place:
        mode = _new(place / "a file")
        work = place / target.name
        work.mkdir()
        yield work
        for file in work.rglob("*"):
            if file.is_file() and not file.is_symlink():
                _open_up(file, mode)
        if target.exists():
            target.rmdir()
        work.rename(target)


def is_temporary(path: Path) -> bool:
    """True if a process is writing this file, or was when it was killed."""
    return _WORK.fullmatch(path.name) is not None


def sweep(folder: Path) -> None:
    """Remove what processes that were killed were writing to a folder."""
    with suppress(OSError):
        for path in [path for path in folder.iterdir() if _is_left_over(path)]:
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def workplace(folder: Path) -> Generator[Path, None, None]:
    """A folder to write in, which is gone afterwards; others' that are left over are as well."""
    sweep(folder)
    place = folder / f".retcon-{_here()}-{os.getpid()}-{uuid4().hex[:8]}"
    try:
        place.mkdir()
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _new(file: Path) -> int:
    """Make an empty file: the mode that files have here."""
    file.touch()
    return stat.S_IMODE(file.stat().st_mode)


def _open_up(file: Path, mode: int) -> None:
    """Give a file that mode, since some libraries write what nobody else may read."""
    if stat.S_IMODE(file.stat().st_mode) != mode:
        file.chmod(mode)


def _is_left_over(path: Path) -> bool:
    named = _WORK.fullmatch(path.name)
    if named is None:
        return False
    if named[1] == _here() and os.name != "nt":  # where asking for a process would end it
        return not _is_alive(int(named[2]))
    touched = max(one.stat().st_mtime for one in (path, *path.rglob("*")))
    return time.time() - touched > _FORSAKEN


@cache
def _here() -> str:
    """Name of this machine and its process numbering, which others do not share."""
    numbering = Path("/proc/self/ns/pid")
    parts = [socket.gethostname(), str(numbering.readlink()) if numbering.exists() else ""]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # it is another user's
    return True


def _refusals() -> tuple[type[BaseException], ...]:
    """Errors that stand for a refusal of the operating system; some libraries have their own.

    Nothing is imported for it: who has not imported a library does not write with it.
    """
    polars = sys.modules.get("polars")
    return (OSError, SafetensorError, *((polars.exceptions.PolarsError,) if polars else ()))


def _sync(path: Path) -> None:
    """Wait until the disk holds a file, or what a folder lists."""
    if path.is_dir() and os.name == "nt":
        return  # folders cannot be opened there
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
