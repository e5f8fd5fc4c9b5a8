"""Sealed files and folders: each carries a digest of its content, and says whose it is.

    record    a JSON object with one more key, `seal`
    tensors   a safetensors file; its header is a sealed record, with the digest of each tensor
              (`sealed_tensors`)
    text      a first line that is a sealed record, `# {…}`, with the digest of what follows
    lines     JSON lines, the first of which is a sealed record with the digest of the others
    folder    any files, and a sealed record beside them, `seal.json`, with the digest of each

A seal has an `owner`, which tells what the content is and whose (an event's number and ledger, a
cell's id, a place in the cache), and the sha256 of everything else. A reader names the owner that
it expects; what is not the file that was written, or is another's, is `Damaged`, and what to do
then is for the caller to say. A file without a seal is of a version that wrote none: it is read,
and `sealed` is false. Seals find accidents. Who changes a file on purpose can seal it again.
"""

import hashlib
import json
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from retcon.errors import Damaged, RetconError, StorageError
from retcon.files import write_whole

SEAL = "seal"
FOLDER = "seal.json"
# Hidden, and so no part of the folder: sizes and times of the files that were last found whole.
_SEEN = ".seen.json"
_LINE = b"# "
_CAUSES = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)

Owner = Mapping[str, object]


class SealedRecord(NamedTuple):
    """Record as it was written, without its seal.

    Attributes:
        sealed: true if it had one, which matched.
    """

    value: Any
    sealed: bool


def digest(value: object) -> str:
    """sha256 of a JSON value, however it is laid out."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def save_record(
    target: Path, value: Mapping[str, object], owner: Owner, *, sync: bool = False
) -> None:
    """Write a JSON object and its seal, whole or not at all.

    Raises:
        StorageError: no space or no permission.
    """
    text = json.dumps(seal(value, owner), indent=2, ensure_ascii=False) + "\n"
    write_whole(target, lambda work: work.write_bytes(text.encode()), sync=sync)


def load_record(path: Path, owner: Owner) -> SealedRecord:
    """Read a JSON file. Without a seal it may hold any value.

    Raises:
        Damaged: it is not what was written, or another's.
        FileNotFoundError: there is none.
    """
    with reading(path):
        found = json.loads(path.read_bytes())
        return unseal(found, owner, path)


def save_text(target: Path, text: str, owner: Owner, *, sync: bool = False) -> None:
    """Write a text behind a line with its seal, whole or not at all.

    Raises:
        StorageError: no space or no permission.
    """
    content = text.encode()
    line = json.dumps(seal({"sha256": hashlib.sha256(content).hexdigest()}, owner))
    whole = _LINE + line.encode() + b"\n" + content
    write_whole(target, lambda work: work.write_bytes(whole), sync=sync)


def load_text(path: Path, owner: Owner) -> SealedRecord:
    """Read a text, without the line of its seal.

    Raises:
        Damaged: it is not what was written, or another's.
        FileNotFoundError: there is none.
    """
    with reading(path):
        whole = path.read_bytes()
        line, ended, content = whole.partition(b"\n")
        if not ended:
            raise Damaged(f"{path} is damaged: not even its first line is whole.")
        if not line.startswith(_LINE + b"{") and f'"{SEAL}"'.encode() not in line:
            return SealedRecord(whole.decode(), sealed=False)
        said = unseal(json.loads(line.removeprefix(_LINE)), owner, path)
        if not said.sealed or said.value["sha256"] != hashlib.sha256(content).hexdigest():
            raise differs(path)
        return SealedRecord(content.decode(), sealed=True)


def save_lines(
    target: Path,
    head: Mapping[str, object],
    values: Iterable[Mapping[str, object]],
    owner: Owner,
    *,
    sync: bool = False,
) -> None:
    """Write JSON objects, a line each, behind one that is sealed with them, whole or not at all.

    Raises:
        StorageError: no space or no permission.
    """
    content = "".join(f"{json.dumps(value, ensure_ascii=False)}\n" for value in values).encode()
    sealed = seal({**head, "sha256": hashlib.sha256(content).hexdigest()}, owner)
    whole = json.dumps(sealed, ensure_ascii=False).encode() + b"\n" + content
    write_whole(target, lambda work: work.write_bytes(whole), sync=sync)


def load_lines(path: Path, owner: Owner) -> tuple[Any, list[Any]]:
    """Read JSON lines: the first, without its seal, and the others.

    Raises:
        Damaged: it is not what was written, or another's.
        FileNotFoundError: there is none.
    """
    with reading(path):
        first, _, content = path.read_bytes().partition(b"\n")
        head, sealed = unseal(json.loads(first), owner, path)
        if not sealed or head.pop("sha256") != hashlib.sha256(content).hexdigest():
            raise differs(path)
        return head, [json.loads(line) for line in content.splitlines()]


def bare(text: str) -> str:
    """A text without the line of a seal that stood before it in another file."""
    line, _, rest = text.partition("\n")
    return rest if line.startswith(_LINE.decode() + "{") and f'"{SEAL}"' in line else text


def seal_folder(folder: Path, owner: Owner) -> None:
    """Write beside the files of a folder what they are.

    Raises:
        StorageError: no space or no permission.
    """
    files = {name: digest_of(folder / name) for name in _files(folder)}
    save_record(folder / FOLDER, {"files": files}, owner)


def check_folder(folder: Path, owner: Owner, *, anew: bool = True) -> bool:
    """Check a folder against its seal; False where it has none.

    Args:
        anew: read all of it again. Without, files are left out that were read before and have had
            the same sizes, times and places on the disk ever since: a large model is read once, not
            each time.

    Raises:
        Damaged: a file of it is not what was written, or the folder is another's.
        FileNotFoundError: there is no folder.
    """
    if not (folder / FOLDER).exists() and folder.is_dir():
        return False
    found = load_record(folder / FOLDER, owner)
    with reading(folder / FOLDER):
        files: dict[str, str] = found.value["files"]
        other = {*files} ^ {*_files(folder)}
        if other:
            raise Damaged(f"{folder / min(other)} was added or removed.")
        stamps = {name: _stamp(folder / name) for name in files}
        seen = {"kind": "seen", "files": digest(files)}
        if not anew and _recall(folder / _SEEN, seen) == stamps:
            return True
        for name, wanted in files.items():
            if digest_of(folder / name) != wanted:
                raise differs(folder / name)
    if not anew:
        with suppress(StorageError):  # of a folder that may be read only
            save_record(folder / _SEEN, stamps, seen)
    return True


class Looked(NamedTuple):
    """Result of checking all files of one kind.

    Attributes:
        damaged: the reason, for each that is.
    """

    kind: str
    whole: int
    unsealed: int
    damaged: tuple[str, ...]


def look(kind: str, checks: Iterable[Callable[[], bool]]) -> Looked:
    """Look at all of a kind.

    Args:
        checks: for each, a call that tells if it is sealed, or raises.
    """
    counts, damaged = [0, 0], list[str]()
    for one in checks:
        try:
            counts[one()] += 1
        except RetconError as error:
            damaged.append(str(error))
        except FileNotFoundError:
            continue  # another process may have removed it
    return Looked(kind, counts[True], counts[False], tuple(damaged))


def seal(
    value: Mapping[str, object], owner: Owner, tensors: Mapping[str, str] | None = None
) -> dict[str, object]:
    """A record with its seal."""
    about = {"owner": owner} if tensors is None else {"owner": owner, "tensors": tensors}
    # As they will be read back: keys that are numbers become text.
    plain, about = json.loads(json.dumps([{**value}, about], default=dict))
    return {**plain, SEAL: {**about, "sha256": digest([plain, about])}}


def unseal(content: object, owner: Owner, path: Path) -> SealedRecord:
    """A record without its seal, which is checked."""
    if not isinstance(content, dict) or SEAL not in content:
        if _holds_a_seal(content):
            raise differs(path)
        return SealedRecord(content, sealed=False)
    about = {**content[SEAL]}
    plain = {key: value for key, value in content.items() if key != SEAL}
    if about.pop("sha256", None) != digest([plain, about]):
        raise differs(path)
    expected, actual = json.loads(json.dumps({**owner})), about["owner"]
    other = [key for key in expected if actual.get(key) != expected[key]]
    if other:
        raise Damaged(
            f"{path} is another's: it is of {_list(actual, other)}, and {_list(expected, other)} "
            f"was asked for."
        )
    return SealedRecord(plain, sealed=True)


def _holds_a_seal(content: object) -> bool:
    """True if there is a seal under another name: damage must not pass for an older version."""
    values = content.values() if isinstance(content, dict) else ()
    return any(isinstance(value, dict) and {"owner", "sha256"} <= {*value} for value in values)


def _files(folder: Path) -> list[str]:
    """Names of the files that a seal is over: all but itself and hidden ones."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    names = {p.as_posix() for p in found if not any(part[0] == "." for part in p.parts)}
    return sorted(names - {FOLDER})


def _stamp(path: Path) -> list[int]:
    """Numbers that change when a file does, as far as can be told without reading it."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _recall(path: Path, owner: Owner) -> object:
    with suppress(Damaged, FileNotFoundError):
        return load_record(path, owner).value
    return None


def _list(owner: Mapping[str, object], keys: list[str]) -> str:
    return ", ".join(f"{key} {owner.get(key, '(none)')}" for key in keys)


def differs(path: Path) -> Damaged:
    """The error for content that is another than its digest says."""
    return Damaged(f"{path} is not what was written: its digest does not match.")


@contextmanager
def reading(path: Path) -> Generator[None, None, None]:
    """Turn whatever a damaged file does to its reader into Damaged."""
    if path.exists() and not path.is_file():
        raise Damaged(f"{path} is no file.")  # a pipe would be waited for
    try:
        yield
    except FileNotFoundError:
        raise
    except _CAUSES as error:
        said = str(error).splitlines() or [type(error).__name__]
        cause = getattr(error, "strerror", None) or said[0]
        raise Damaged(f"{path} is damaged: {cause}.") from error
