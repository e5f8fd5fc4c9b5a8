"""Where Retcon keeps what it has computed, and how a file is written so that it is whole."""

import os
import shutil
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import platformdirs
from safetensors import SafetensorError

from retcon.errors import StorageError


def cache_folder() -> Path:
    """The user's cache, or `RETCON_CACHE` where that is set."""
    chosen = os.environ.get("RETCON_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("retcon"))


@contextmanager
def storing(target: Path) -> Generator[None, None, None]:
    """Turn what an operating system says about a full or read-only disk into a StorageError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        # The safetensors library reports a full disk as an error of its own.
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


def check_writable(target: Path | None) -> None:
    """Find out before the work is done whether its result can be kept.

    Raises:
        StorageError: no permission, or a file where a folder should be, or the other way round.
    """
    if target is None:
        return
    if target.is_dir():
        raise StorageError(f"{target} is a folder. Name a file, in it or elsewhere.")
    with storing(target), tempfile.TemporaryFile(dir=make_folder(target.parent)):
        pass


@contextmanager
def locked(lock: Path) -> Generator[None, None, None]:
    """Keep other processes out by a lock file until the work inside is done.

    Raises:
        StorageError: no space or no permission for the lock file.
    """
    from filelock import FileLock

    with storing(lock):
        held = FileLock(lock).acquire()
    with held:
        yield


def write_whole(target: Path, write: Callable[[Path], object], *, sync: bool = False) -> None:
    """Let `write` fill a temporary file beside `target`, then move it into place.

    A reader sees the old file or the new one, never a part. sync: not only this process may die
    right afterwards, but the machine.

    Raises:
        StorageError: no space or no permission.
    """
    with storing(target):
        make_folder(target.parent)
        work = target.with_name(f".{target.name}-{uuid4().hex[:12]}")
        try:
            write(work)
            if sync:
                _sync(work)
            work.replace(target)
            if sync:
                _sync(target.parent)
        finally:
            work.unlink(missing_ok=True)


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
    work = target.with_name(f".{target.name}-{uuid4().hex[:12]}")
    try:
        with storing(target):
            work.mkdir()
            yield work
            if target.exists():
                target.rmdir()
            work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _sync(path: Path) -> None:
    """Wait until the disk holds a file, or what a folder lists."""
    if path.is_dir() and os.name == "nt":
        return  # folders cannot be opened there
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
