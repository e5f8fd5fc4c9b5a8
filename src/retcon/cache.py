"""A cache of computed values: small entries, each named by all that it depends on.

    targets, keys, prefixes   entries of this page: any of them may go at any time
    scores, texts             likewise
    sensitivity               likewise, and larger
    moments, corpora, models  large, made elsewhere and only shown and removed here
    fingerprints              small, but of large models, and likewise

An entry is a file of its own under the sha256 of its name, so that nothing stale is ever found:
whatever changes a value changes the name. Two processes that make one entry write the same, and a
reader sees either file whole. When entries outgrow `RETCON_CACHE_LIMIT`, those go that were
longest not read.

Every file, of the large kinds too, is sealed with its place in the cache. One that is damaged, or
another's, is said, removed and made anew.
"""

import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar, get_args

from retcon.errors import Damaged, InvalidSetting, RetconWarning, StorageError, UnknownName
from retcon.files import cache_folder, is_temporary, sweep
from retcon.progress import Progress, silent
from retcon.sealed import Looked, Owner, check_folder, look
from retcon.sealed_tensors import check, open_tensors, save_tensors

if TYPE_CHECKING:
    # Looking into the cache should not wait for torch.
    from torch import Tensor

EntryKind = Literal["targets", "keys", "prefixes", "scores", "texts", "sensitivity"]
ENTRIES: tuple[str, ...] = get_args(EntryKind)
LARGE: tuple[str, ...] = ("moments", "corpora", "models", "fingerprints")

# Bytes of all entries together, where RETCON_CACHE_LIMIT does not say how many.
_LIMIT = 2 * 2**30
_SUFFIXES = (".safetensors", ".json", ".jsonl")
# So full the entries are left when the limit was passed, so that not every one after it evicts.
_LEFT = 0.9
# Seconds after which what is unfinished is written again.
_EVERY = 20.0

Name = Mapping[str, object]
CacheEntry = Mapping[str, "Tensor"]
R = TypeVar("R")


class Recalled(NamedTuple):
    """An entry, and whether it was there before it was asked for."""

    entry: CacheEntry
    cached: bool


class Usage(NamedTuple):
    """Number and size of the entries of one kind."""

    kind: str
    folder: Path
    files: int
    bytes: int


def limit() -> int:
    """Largest size of all entries in bytes; 0 turns them off: none is read, none is written.

    Raises:
        InvalidSetting: `RETCON_CACHE_LIMIT` is no number of bytes.
    """
    chosen = os.environ.get("RETCON_CACHE_LIMIT", str(_LIMIT)).strip()
    if not chosen.isdecimal():
        raise InvalidSetting(
            f"RETCON_CACHE_LIMIT={chosen!r} is no number of bytes. With 0 no {', '.join(ENTRIES)} "
            f"are kept; where it is not set they may take {_LIMIT} bytes."
        )
    return int(chosen)


def recall(
    kind: EntryKind,
    names: Sequence[Name],
    compute: Callable[[list[int]], Sequence[CacheEntry]],
    *,
    together: int | None = None,
) -> list[Recalled]:
    """The entry of each name: read, or computed now and kept.

    Args:
        compute: the entries of the names at some indices, asked for `together` at a time. Each such
            group is kept before the next begins, so an interrupted run keeps what it has.
    """
    digests = [_digest(kind, name) for name in names]
    found = _without_damage(kind, [_read(kind, digest) for digest in digests])
    recalled = {i: Recalled(entry, True) for i, entry in enumerate(found) if entry is not None}
    missing = [i for i, entry in enumerate(found) if entry is None]
    size = together or max(1, len(missing))
    for start in range(0, len(missing), size):
        group = missing[start : start + size]
        entries = compute(group)
        _keep(kind, [digests[i] for i in group], entries)
        recalled |= {i: Recalled(entry, False) for i, entry in zip(group, entries, strict=True)}
    return [recalled[i] for i in range(len(names))]


class Unfinished:
    """State of an unfinished computation of entries, kept under all their names until it is done.

    It is written every twenty seconds, and when the computation is cut off. Where there is no
    cache to write to, nothing is kept.
    """

    def __init__(self, kind: EntryKind, names: Sequence[Name]) -> None:
        self._kind = kind
        self._digest = _digest(kind, {"unfinished": [_digest(kind, name) for name in names]})
        self._path = _path(kind, self._digest)
        self._noted: CacheEntry | None = None
        self._written = time.monotonic()

    def read(self) -> CacheEntry | None:
        """Read the state that an interrupted computation has kept."""
        return _without_damage(self._kind, [_read(self._kind, self._digest)])[0]

    def note(self, standing: CacheEntry) -> None:
        """Keep how far it has come."""
        self._noted = standing
        if time.monotonic() - self._written > _EVERY:
            self._write()

    @contextmanager
    def until_done(self) -> Generator[None, None, None]:
        """Keep the noted state if the computation inside is cut off, and delete it if it ends."""
        try:
            yield
        except Exception:  # it would end in the same way again
            self._forget()
            raise
        except BaseException:
            self._write()
            raise
        self._forget()

    def _write(self) -> None:
        if self._noted is not None and limit():
            with suppress(StorageError):
                save_tensors(self._path, self._noted, place(self._path))
        self._written = time.monotonic()

    def _forget(self) -> None:
        with suppress(OSError):
            self._path.unlink()


def usage(kind: str = "all") -> list[Usage]:
    """Files and bytes of a kind, of all `entries` or of `all` kinds.

    Raises:
        UnknownName: there is no such kind.
    """
    used: list[Usage] = []
    for name in _kinds(kind):
        sizes = [stat.st_size for _, stat in _files(name)]
        used.append(Usage(name, cache_folder() / name, len(sizes), sum(sizes)))
    return used


def clear(kind: str = "entries") -> list[Usage]:
    """Remove a kind, all `entries` or `all` kinds, and return what was there.

    Raises:
        UnknownName: there is no such kind.
        StorageError: something could not be removed.
    """
    removed = usage(kind)
    for one in removed:
        try:
            if one.folder.exists():
                shutil.rmtree(one.folder)
        except OSError as error:
            raise StorageError(
                f"{one.folder} could not be removed, or not all of it: "
                f"{error.strerror or error}. Is it yours, and is no other run using it?"
            ) from error
    return removed


def verify(kind: str = "all", progress: Progress = silent) -> list[Looked]:
    """Look at all that is kept of a kind, of all `entries` or of `all` kinds; change nothing.

    Raises:
        UnknownName: there is no such kind.
    """
    paths = {name: _sealed_paths(name) for name in _kinds(kind)}
    total, done = sum(map(len, paths.values())), count(1)

    def one(path: Path) -> bool:
        progress("verifying the cache", next(done), total)
        return check(path, place(path))

    return [look(name, [partial(one, path) for path in each]) for name, each in paths.items()]


def _sealed_paths(kind: str) -> list[Path]:
    """The files of a kind, or of models the folders: what is no lock and nothing in the making."""
    folder = cache_folder() / kind
    if kind == "models":
        paths = [path for path in folder.glob("*") if path.is_dir()]
    else:
        paths = [path for path, _ in _files(kind) if path.suffix in _SUFFIXES]
    hidden = (path for path in paths if any(p[0] == "." for p in path.relative_to(folder).parts))
    return sorted({*paths} - {*hidden})


def _kinds(kind: str) -> tuple[str, ...]:
    known = {name: (name,) for name in (*ENTRIES, *LARGE)}
    known |= {"entries": ENTRIES, "all": (*ENTRIES, *LARGE)}
    if kind not in known:
        raise UnknownName.among("kind", kind, known)
    return known[kind]


def place(path: Path) -> Owner:
    """Whose a file of the cache is: its place there names all that it depends on."""
    return {"kind": "cache", "place": path.relative_to(cache_folder()).as_posix()}


def whole(path: Path, read: Callable[[Path, Owner], R]) -> R | None:
    """Read a file or folder of the cache; None where there is none, or it is damaged.

    A damaged one is removed with a warning, so that it is made anew.
    """
    value = _trusted(path, read)
    if isinstance(value, Damaged):
        warnings.warn(f"{value} It is made anew.", RetconWarning, stacklevel=2)
        return None
    return value


def _trusted(path: Path, read: Callable[[Path, Owner], R]) -> R | Damaged | None:
    """Read like `whole`, but return the damage instead of warning of it."""
    try:
        return read(path, place(path))
    except FileNotFoundError:
        return None
    except Damaged as error:
        with suppress(OSError):  # of a cache that may be read only
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return error


def is_whole(folder: Path) -> bool:
    """True if a model is whole in the cache; it is read again only where it may have changed."""
    return whole(folder, _model) is not None


def _model(folder: Path, owner: Owner) -> bool:
    if not folder.is_dir():
        raise FileNotFoundError
    if not (folder / "config.json").exists():
        raise Damaged(f"{folder} holds no model.")
    return check_folder(folder, owner, anew=False)


def _digest(kind: str, name: Name) -> str:
    canonical = json.dumps([kind, name], sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _path(kind: str, digest: str) -> Path:
    return cache_folder() / kind / digest[:2] / f"{digest}.safetensors"


def _without_damage(
    kind: str, entries: list[CacheEntry | Damaged | None]
) -> list[CacheEntry | None]:
    """The entries that are to be trusted; the others are said in one line."""
    damaged = [one for one in entries if isinstance(one, Damaged)]
    if damaged:
        others = f" So are {len(damaged) - 1} more of the {kind}." if len(damaged) > 1 else ""
        said = f"{damaged[0]} It is made anew.{others}"
        warnings.warn(said, RetconWarning, stacklevel=3)
    return [None if isinstance(one, Damaged) else one for one in entries]


def _read(kind: str, digest: str) -> CacheEntry | Damaged | None:
    """An entry, marked as used now."""
    if limit() == 0:
        return None
    path = _path(kind, digest)
    entry = _trusted(path, _load)
    if entry is not None and not isinstance(entry, Damaged):
        with suppress(OSError):  # of a cache that may be read only
            os.utime(path)
    return entry


def _load(path: Path, owner: Owner) -> CacheEntry:
    with open_tensors(path, owner) as opened:
        # Without a seal the header is the entry's name.
        if not opened.sealed and opened.metadata.get("retcon") != path.stem:
            raise Damaged(f"{path} is another's, or damaged.")
        return opened.read_all()


def _keep(kind: str, digests: Sequence[str], entries: Sequence[CacheEntry]) -> None:
    """Store entries, then make room."""
    if limit() == 0:
        return
    try:
        for digest, entry in zip(digests, entries, strict=True):
            _store(_path(kind, digest), entry)
        _make_room()
    except StorageError:
        # The run has what it came for. That a shared cache is read only, or a disk is full, costs
        # the next run its time, and should not cost this one its result.
        return


def _store(path: Path, entry: CacheEntry) -> None:
    if all(bool(tensor.isfinite().all()) for tensor in entry.values()):
        tensors = {name: tensor.detach().cpu().clone() for name, tensor in entry.items()}
        save_tensors(path, tensors, place(path))


def _make_room() -> None:
    """Remove the least recently used entries if all together are over the limit."""
    most = limit()
    files = [file for kind in ENTRIES for file in _files(kind)]
    total = sum(stat.st_size for _, stat in files)
    if total <= most:
        return
    for path, stat in sorted(files, key=lambda file: file[1].st_mtime_ns):
        with suppress(OSError):  # another process may have been quicker
            path.unlink()
        total -= stat.st_size
        if total <= _LEFT * most:
            return


def _files(kind: str) -> Iterator[tuple[Path, os.stat_result]]:
    """The files of a kind. What processes that were killed have left is swept on the way."""
    for name, inner, names in os.walk(cache_folder() / kind):
        folder = Path(name)
        if any(is_temporary(folder / one) for one in inner):
            sweep(folder)
            inner[:] = [one for one in inner if not is_temporary(folder / one)]
        for path in (folder / one for one in names):
            with suppress(OSError):  # another process may have removed it
                yield path, path.stat()
