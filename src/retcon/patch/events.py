"""A ledger's history on disk: one small JSON file an event, written whole, never changed.

    ledger.json                    which base model the ledger is for, and the head of the chain
    events/000001.json             what was done, by whom, when; numbered without a gap
    patches/<sha256>.safetensors   patch files under the hash of their bytes

Events form a chain: each carries a digest, its link, of the base model and of every event before
it, and the head says how many there are and what links to them all. So an event that was changed,
taken away, or is another ledger's is found by whoever reads the history. An event is on the disk
before the head that knows of it: one more than the head knows of is what a write that was
interrupted leaves, and counts. Ledgers of format 1 have no chain; their next event begins it.

There is no index that could disagree with the files: what is in the stack follows from the events.
A patch is on the disk before the event that names it, so that a write which is interrupted leaves
at most a file that nothing names. Nothing here is executed, and no file is found by a path that
stands in another one: an event names a patch by its hash alone.
"""

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from shutil import copyfile
from typing import Annotated, Literal, NamedTuple, TypeVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
)

from retcon.errors import Damaged, InvalidData, InvalidLedger, StorageError, first_few
from retcon.files import is_temporary, storing, write_whole
from retcon.patch.patch import Patch
from retcon.sealed import Owner, digest, digest_of, load_record, save_record

# Format 1 has no links, format 2 neither facts that come back nor notes that were written later.
FORMAT = 3
LOCK = ".lock"  # the file that writers lock
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


class Head(_Record):
    """End of the chain: number of events, and the link to the next."""

    events: Annotated[int, Field(ge=0)]
    link: Sha


class Identity(_Record):
    """The base model of a ledger: its fingerprint, and what it was called.

    Attributes:
        head: from format 2.
    """

    format: Literal[1, 2, 3] = FORMAT
    base: str
    model: str
    head: Head | None = None

    @property
    def link(self) -> str:
        """The link of the first event."""
        return digest([self.base, self.model])


class Added(_Record):
    """A patch came onto the stack.

    Attributes:
        on: the event after whose stack it was made; 0: the base.
    """

    kind: Literal["add"] = "add"
    patch: Sha
    on: Annotated[int, Field(ge=0)] = 0
    scores: Scores = {}


class TakenBack(_Record):
    """Facts left the stack.

    Attributes:
        facts: ids by entry.
        entries: those that left as a whole.
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


class PutBack(_Record):
    """Facts came back into the stack, each entry to its place.

    Attributes:
        entries: by entry, the ids of its facts that stay out.
    """

    kind: Literal["put back"] = "put back"
    entries: dict[Number, tuple[str, ...]]


class Noted(_Record):
    """An entry got another note: the event's own."""

    kind: Literal["note"] = "note"
    entry: Number


Action = Annotated[
    Added | TakenBack | Returned | PutBack | Noted,
    Field(discriminator="kind"),
]


class _Scored(BaseModel):
    pre: dict[str, float | None] | None = None
    immediate: dict[str, float | None] | None = None
    final: dict[str, float | None] | None = None


def _in_years(time: datetime) -> datetime:
    """A time that every clock can show."""
    try:
        return time.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("there is no such time") from error


class Event(_Record):
    """Something that was done to a ledger: by whom, when (UTC), and why, in the user's words.

    Attributes:
        previous: its link to all that was before it; none in a ledger of format 1.
    """

    number: Number
    who: str
    when: Annotated[AwareDatetime, AfterValidator(_in_years)]
    note: str = ""
    action: Action
    previous: Sha | None = None


class History(NamedTuple):
    """Read everything that was ever done to a ledger, oldest first.

    Attributes:
        link: to the next event.
        sealed: whether all of it is, and in one chain.
    """

    identity: Identity
    events: tuple[Event, ...]
    link: str
    sealed: bool


def read_identity(folder: Path) -> Identity:
    """Read which model a ledger is for.

    Raises:
        InvalidLedger: the folder is no ledger, a damaged one, or one of a newer format.
    """
    return _identity(folder)[0]


def check_place(folder: Path) -> None:
    """Refuse a folder that is no ledger and cannot become one.

    Raises:
        InvalidLedger: it is a file, or a folder that holds something else.
    """
    if not folder.exists() or (folder / "ledger.json").exists():
        return
    if not folder.is_dir():
        raise InvalidLedger(f"{folder} is a file. Name a new folder for the ledger.")
    foreign = [
        child.name
        for child in sorted(folder.iterdir())
        if not child.name.startswith(LOCK) and not is_temporary(child)
    ]
    if foreign:
        raise InvalidLedger(
            f"{folder} holds other files ({foreign[0]}) and is no ledger. Name an empty or a new "
            f"folder."
        )


def begin(folder: Path, base: str, model: str) -> None:
    """Make a folder a ledger without events."""
    identity = Identity(base=base, model=model)
    _write_head(folder, identity, Head(events=0, link=identity.link))


def read_history(folder: Path) -> History:
    """The whole history.

    Raises:
        InvalidLedger: an event is missing, damaged, another ledger's, or speaks of what was not
            there.
    """
    identity, sealed = _identity(folder)
    links, events = [identity.link], list[Event]()
    for number, file in enumerate(_files(folder), start=1):
        value, whole = _value(file, _owner(number))
        event = _event(file, value, number)
        chained = event.previous is not None or (number > 1 and events[-1].previous is not None)
        if chained and event.previous != links[-1]:
            raise InvalidLedger(
                f"{file} does not follow on what is before it: an event before it, or ledger.json, "
                f"is another ledger's or was changed. Bring them back from a copy."
            )
        sealed = sealed and whole and chained
        events.append(event)
        links.append(digest([links[-1], value]))
    _check_head(folder, identity, links)
    return History(identity, tuple(events), links[-1], sealed)


def append(folder: Path, history: History, action: Action, *, who: str, note: str) -> Event:
    """Write the next event. The caller holds the ledger's lock.

    Raises:
        StorageError: no space or no permission; then nothing has happened.
    """
    number = len(history.events) + 1
    now = datetime.now(UTC).replace(microsecond=0)
    event = Event(number=number, who=who, when=now, note=note, action=action, previous=history.link)
    value = event.model_dump(mode="json")
    file = folder / "events" / f"{number:06d}.json"
    save_record(file, value, _owner(number), sync=True)
    link = digest([history.link, json.loads(json.dumps(value))])
    try:
        _write_head(folder, history.identity, Head(events=number, link=link))
    except StorageError:
        file.unlink()
        raise
    return event


def patch_file(folder: Path, sha: str) -> Path:
    """Path of the patch with this hash."""
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
    sha = digest_of(work)
    with storing(folder):
        write_whole(patch_file(folder, sha), work.replace, sync=True)
    return sha


def told(action: Action) -> str:
    """Say in a few words what was done."""
    if isinstance(action, Added):
        return f"added patch {action.patch[:12]}…"
    if isinstance(action, Returned):
        return f"back to event {action.to}"
    if isinstance(action, Noted):
        return f"another note for entry {action.entry}"
    if isinstance(action, PutBack):
        return f"put back {', '.join(_put_back(*one) for one in action.entries.items())}"
    gone = [f"entry {number}" for number in action.entries]
    gone += [f"{number}:{id}" for number, ids in action.facts.items() for id in ids]
    return f"took back {first_few(gone, 6)}" + (", the rest solved again" if action.solved else "")


def _put_back(entry: int, out: Sequence[str]) -> str:
    return f"entry {entry}" + (f" without {first_few(out, 6)}" if out else "")


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
    known = {when: scores for when, scores in scored if scores is not None}
    if not known:
        raise InvalidData(_NO_SCORES.format(file))
    return known


def _files(folder: Path) -> list[Path]:
    """The events' files, in order."""
    found = sorted(file.name for file in (folder / "events").glob("*.json"))
    names = [name for name in found if _EVENT.fullmatch(name)]
    for place, name in enumerate(names, start=1):
        if int(name[:6]) != place:
            raise InvalidLedger(
                f"{folder}: event {place} is missing (the next is {name}). Bring it back from a "
                f"copy; what came after it cannot be told without it."
            )
    return [folder / "events" / name for name in names]


def _owner(number: int) -> Owner:
    return {"kind": "event", "number": number}


def _identity(folder: Path) -> tuple[Identity, bool]:
    """Read which model a ledger is for, and whether that is sealed."""
    file = folder / "ledger.json"
    if not file.is_file():
        raise InvalidLedger(
            f"{str(folder)!r} is no ledger: it has no ledger.json. `retcon patch add {folder} "
            f"FILE` starts one."
        )
    value, sealed = _value(file, {"kind": "ledger"})
    return _parsed(Identity, file, value), sealed


def _check_head(folder: Path, identity: Identity, links: list[str]) -> None:
    """Raise InvalidLedger where the head knows of other events than there are."""
    head, last = identity.head, len(links) - 1
    if head is None:
        return
    if head.events > last:
        raise InvalidLedger(
            f"{folder}: its history has {head.events} events, and those from event {last + 1} on "
            f"are missing. Bring them back from a copy."
        )
    if links[head.events] != head.link:
        raise InvalidLedger(
            f"{folder}: its ledger.json is of another history than its events. One of them is "
            f"another ledger's, or was changed. Bring it back from a copy."
        )


def _write_head(folder: Path, identity: Identity, head: Head) -> None:
    known = identity.model_copy(update={"format": FORMAT, "head": head})
    value = known.model_dump(mode="json")
    save_record(folder / "ledger.json", value, {"kind": "ledger"}, sync=True)


def _event(file: Path, value: object, number: int) -> Event:
    event = _parsed(Event, file, value)
    spoken = _numbers(event.action)
    if event.number != number or any(other >= number for other in spoken):
        raise InvalidLedger(
            f"{file} calls itself event {event.number} and speaks of {sorted(spoken)}; it is "
            f"number {number}, and an event can only speak of earlier ones. It was changed."
        )
    return event


def _numbers(action: Action) -> set[int]:
    """The earlier events that an action names."""
    if isinstance(action, Added):
        return {action.on}
    if isinstance(action, Returned):
        return {action.to}
    if isinstance(action, Noted):
        return {action.entry}
    if isinstance(action, PutBack):
        return {*action.entries}
    return {*action.facts, *action.entries, *action.solved}


def _value(file: Path, owner: Owner) -> tuple[object, bool]:
    """Read the value in a file, and whether it is sealed."""
    if not file.is_file() or file.stat().st_size > _LARGEST:
        raise InvalidLedger(f"{file} is no file, or larger than any event. It was changed.")
    _check_format(file, file.read_bytes())
    try:
        return load_record(file, owner)
    except Damaged as error:
        raise InvalidLedger(f"{error} Bring it back from a copy.") from error


def _parsed(kind: type[R], file: Path, value: object) -> R:
    try:
        return kind.model_validate_json(json.dumps(value))
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
