"""A ledger's history on disk: one small JSON file an event, written whole, never changed.

    ledger.json                    which base model the ledger is for
    events/000001.json             what was done, by whom, when; numbered without a gap
    patches/<sha256>.safetensors   patch files under the hash of their bytes

There is no index that could disagree with the files: what is in the stack follows from the events.
A patch is on the disk before the event that names it, so that a write which is interrupted leaves
at most a file that nothing names. Nothing here is executed, and no file is found by a path that
stands in another one: an event names a patch by its hash alone.
"""

import hashlib
import re
from datetime import UTC, datetime
from pathlib import Path
from shutil import copyfile
from typing import Annotated, Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from retcon.errors import InvalidData, InvalidLedger
from retcon.patch.format import Patch
from retcon.storage import storing, write_whole

FORMAT = 1
# An event that drops 100,000 facts by name is smaller than this; a larger file is no event.
_LARGEST = 16 * 2**20
_NO_SCORES = "{} holds no scores. Give what `retcon edit --json` or `retcon eval --json` wrote."
_EVENT = re.compile(r"(\d{6})\.json")

Sha = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Number = Annotated[int, Field(ge=1)]
Scores = dict[str, dict[str, float | None]]
R = TypeVar("R", bound=BaseModel)


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Identity(_Record):
    """The base model of a ledger: its fingerprint, and what it was called."""

    format: Literal[1] = FORMAT
    base: str
    model: str


class Added(_Record):
    """A patch came onto the stack. on: the event after whose stack it was made; 0: the base."""

    kind: Literal["add"] = "add"
    patch: Sha
    on: Annotated[int, Field(ge=0)] = 0
    scores: Scores = {}


class TakenBack(_Record):
    """Facts left the stack. facts: ids by entry. entries: those that left as a whole.

    solved: patches of the facts that stay, solved again, by the entry that each takes the place
    of; none where rows were removed.
    """

    kind: Literal["undo"] = "undo"
    facts: dict[Number, tuple[str, ...]] = {}
    entries: tuple[Number, ...] = ()
    solved: dict[Number, Sha] = {}


class Returned(_Record):
    """The stack became what it was after an earlier event; 0: empty."""

    kind: Literal["return"] = "return"
    to: Annotated[int, Field(ge=0)]


Action = Annotated[Added | TakenBack | Returned, Field(discriminator="kind")]


class _Scored(BaseModel):
    pre: dict[str, float | None] | None = None
    immediate: dict[str, float | None] | None = None
    final: dict[str, float | None] | None = None


class Event(_Record):
    """Something that was done to a ledger: by whom, when (UTC), and why, in the user's words."""

    number: Number
    who: str
    when: AwareDatetime
    note: str = ""
    action: Action


def read_identity(folder: Path) -> Identity:
    """Which model a ledger is for.

    Raises:
        InvalidLedger: the folder is no ledger, a damaged one, or one of a newer format.
    """
    file = folder / "ledger.json"
    if not file.is_file():
        raise InvalidLedger(
            f"{str(folder)!r} is no ledger: it has no ledger.json. `retcon patch add {folder} "
            f"FILE` starts one."
        )
    return _parsed(Identity, file)


def write_identity(folder: Path, identity: Identity) -> None:
    """Make a folder a ledger."""
    _write(folder / "ledger.json", identity)


def read_events(folder: Path) -> tuple[Event, ...]:
    """The whole history, oldest first.

    Raises:
        InvalidLedger: an event is missing, damaged, or speaks of what was not there.
    """
    found = sorted(file.name for file in (folder / "events").glob("*.json"))
    names = [name for name in found if _EVENT.fullmatch(name)]
    for place, name in enumerate(names, start=1):
        if int(name[:6]) != place:
            raise InvalidLedger(
                f"{folder}: event {place} is missing (the next is {name}). Bring it back from a "
                f"copy; what came after it cannot be told without it."
            )
    return tuple(
        _event(folder / "events" / name, place) for place, name in enumerate(names, start=1)
    )


def append(folder: Path, number: int, action: Action, *, who: str, note: str) -> Event:
    """Write the next event. The caller holds the ledger's lock.

    Raises:
        StorageError: no space or no permission; then nothing has happened.
    """
    now = datetime.now(UTC).replace(microsecond=0)
    event = Event(number=number, who=who, when=now, note=note, action=action)
    _write(folder / "events" / f"{number:06d}.json", event)
    return event


def patch_file(folder: Path, sha: str) -> Path:
    """Where the patch with this hash is."""
    return folder / "patches" / f"{sha}.safetensors"


def keep_patch(folder: Path, patch: Patch | Path) -> str:
    """Put a patch, or the very bytes of a patch file, into the ledger's folder; its hash.

    Raises:
        StorageError: no space or no permission.
    """
    work = folder / "patches" / ".incoming.safetensors"
    if isinstance(patch, Patch):
        patch.save(work)
    else:
        source = patch
        write_whole(work, lambda target: copyfile(source, target))
    sha = hash_of(work)
    with storing(folder):
        write_whole(patch_file(folder, sha), work.replace, sync=True)
    return sha


def hash_of(file: Path) -> str:
    """sha256 of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_scores(file: Path) -> Scores:
    """The scores, by time, in a file that `retcon edit --json` or `retcon eval --json` wrote.

    Raises:
        InvalidData: it holds none.
    """
    if not file.is_file() or file.stat().st_size > _LARGEST:
        raise InvalidData(f"{file} is no file, or too large for a file of scores.")
    try:
        scored = _Scored.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise InvalidData(_NO_SCORES.format(file)) from error
    # A missing score inside a time stays: it says "not scored".
    found = {when: scores for when, scores in scored if scores is not None}
    if not found:
        raise InvalidData(_NO_SCORES.format(file))
    return found


def _event(file: Path, number: int) -> Event:
    event = _parsed(Event, file)
    spoken = _numbers(event.action)
    if event.number != number or any(other >= number for other in spoken):
        raise InvalidLedger(
            f"{file} calls itself event {event.number} and speaks of {sorted(spoken)}; it is "
            f"number {number}, and an event can only speak of earlier ones. It was changed."
        )
    return event


def _numbers(action: Added | TakenBack | Returned) -> set[int]:
    """The earlier events that an action names."""
    if isinstance(action, Added):
        return {action.on}
    if isinstance(action, Returned):
        return {action.to}
    return {*action.facts, *action.entries, *action.solved}


def _parsed(kind: type[R], file: Path) -> R:
    if not file.is_file() or file.stat().st_size > _LARGEST:
        raise InvalidLedger(f"{file} is no file, or larger than any event. It was changed.")
    try:
        text = file.read_bytes()
        _check_format(file, text)
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InvalidLedger(f"{file} was changed or damaged: {where}: {first['msg']}.") from error


def _check_format(file: Path, text: bytes) -> None:
    """Tell a newer format from a damaged file."""
    newer = re.match(rb'\s*\{\s*"format"\s*:\s*(\d{1,6})\b', text)
    if newer and int(newer[1]) > FORMAT:
        raise InvalidLedger(
            f"{file} has format {int(newer[1])}; this Retcon reads up to {FORMAT}. Update it."
        )


def _write(file: Path, record: BaseModel) -> None:
    text = record.model_dump_json(indent=1) + "\n"
    write_whole(file, lambda work: work.write_text(text, encoding="utf-8"), sync=True)
