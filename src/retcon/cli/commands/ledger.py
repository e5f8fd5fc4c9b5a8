"""`retcon patch add`, `list`, `undo`, `redo` and `verify`: a ledger of patches."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from retcon.cli import choices
from retcon.cli.choices import ModelChoice, login
from retcon.cli.console import bars, number, out, table, warn, write_json
from retcon.errors import InvalidLedger, InvalidSetting

if TYPE_CHECKING:
    from retcon.patch.ledger import Ledger, LedgerEntry, Undoing
    from retcon.run.undo import UndoScores

Folder = Annotated[
    Path, typer.Argument(metavar="LEDGER", help="A ledger's folder.", show_default=False)
]
Who = Annotated[
    str | None, typer.Option("--who", help="Who does this.", show_default="the user's login")
]
Note = Annotated[str, typer.Option("--note", help="Why, in your words.", show_default=False)]
BaseModel = Annotated[
    str | None,
    typer.Option("--model", metavar="MODEL", help="The base model.", show_default=False),
]
Facts = Annotated[
    list[str] | None,
    typer.Argument(metavar="[FACT...]", help="Ids; ENTRY:ID where several entries have one."),
]
Entries = Annotated[
    list[int] | None, typer.Option("--entry", help="A whole entry. May be repeated.")
]


def add(
    ledger: Folder,
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Patch files.", show_default=False)
    ],
    who: Who = None,
    note: Note = "",
    scores: Annotated[
        Path | None,
        typer.Option(help="What `retcon edit --json` or `eval --json` wrote.", show_default=False),
    ] = None,
    model: BaseModel = None,
    dtype: choices.Dtype = "float32",
    device: choices.Device = "cpu",
) -> None:
    """Put patches on a ledger's stack; a new folder becomes a ledger.

    MODEL is needed only for a patch that was made on top of the stack.
    """
    from retcon.patch.events import read_scores
    from retcon.patch.ledger import Ledger
    from retcon.patch.patch import load_about

    sheet = None if scores is None else read_scores(scores)
    for file in files:
        load_about(file)  # all of them, before any is added
    handle = None
    if model is not None:
        with bars() as progress:
            handle = ModelChoice(name=model, dtype=dtype, device=device).load(progress)
    opened = Ledger(ledger)
    for file in files:
        entry = opened.add(file, who=who or login(), note=note, scores=sheet, model=handle)
        out.print(
            f"Added {escape(str(file))} as entry {entry.number} ({_facts(entry)}).",
            soft_wrap=True,
        )
    _warn_of_repeats(opened)


def list_(
    ledger: Folder,
    history: Annotated[
        bool, typer.Option("--history", help="All events, undone ones too.")
    ] = False,
    json: choices.Json = None,
) -> None:
    """List what is in a ledger's stack, or all that was ever done to it."""
    from retcon.patch.events import told
    from retcon.patch.ledger import Ledger

    opened = Ledger(ledger)
    identity, events, entries = opened.identity, opened.history, opened.entries()
    if history:
        rows = [[str(e.number), _when(e.when), e.who, told(e.action), e.note] for e in events]
        out.print(table(f"{ledger}: history", ["event", "when", "who", "what", "note"], rows))
    else:
        title = f"{ledger}: {len(entries)} entries on {identity.model} ({identity.base[:12]}…)"
        columns = ["entry", "when", "who", "method", "layers", "facts", "note"]
        out.print(table(title, columns, [_row(entry) for entry in entries]))
    write_json(
        json,
        {
            **identity.model_dump(mode="json"),
            "entries": [_described(entry) for entry in entries],
            "history": [event.model_dump(mode="json") for event in events],
        },
    )


def undo(
    ledger: Folder,
    facts: Facts = None,
    entry: Entries = None,
    to: Annotated[
        int | None,
        typer.Option("--to", help="Back to the stack after this event (0: empty).", min=0),
    ] = None,
    resolve: Annotated[
        bool, typer.Option("--resolve", help="Solve the facts that stay again.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Show what both ways do to the scores; undo nothing.")
    ] = False,
    cases: Annotated[
        str | None,
        typer.Option(help="With --check: paraphrases and neighbours of facts.", show_default=False),
    ] = None,
    skip_bad: choices.SkipBad = False,
    who: Who = None,
    note: Note = "",
    model: BaseModel = None,
    dtype: choices.Dtype = "float32",
    device: choices.Device = "cpu",
    json: choices.Json = None,
) -> None:
    """Take facts back: one, an entry, or all since some event. The history keeps them.

    The rows of these facts are removed, exactly; the others stay as they were written. With
    --resolve the others are solved again as if these had never been there, which needs MODEL.
    """
    from retcon.patch.ledger import Ledger

    opened = Ledger(ledger)
    if to is not None:
        if facts or entry or resolve or check:
            raise InvalidSetting("--to goes back to a point as it was: give nothing beside it.")
        event = opened.back_to(to, who=who or login(), note=note)
        out.print(f"Event {event.number}: the stack is what it was after event {to}.")
        return
    if cases is not None and not check:
        raise InvalidSetting("--cases says what --check should score. Give both, or neither.")
    undoing = opened.choose(facts or (), entry or (), again=resolve)
    source = ModelChoice(name=model or opened.identity.model, dtype=dtype, device=device)
    if check:
        found = _check(source, opened, undoing, cases, skip_bad)
        _print_check(found)
        write_json(json, found._asdict())
        return
    solved = _resolve(source, opened, undoing) if resolve else None
    event = opened.undo(undoing, who=who or login(), note=note, solved=solved)
    gone = sum(map(len, undoing.facts.values())) + _brought(opened, undoing, event.number)
    way = "removed; what stays was solved again" if resolve else "removed"
    out.print(
        f"Event {event.number}: {_count(gone)} {way}. Take that back: "
        f"retcon patch undo {escape(str(ledger))} --to {event.number - 1}",
        soft_wrap=True,
    )


def redo(
    ledger: Folder,
    facts: Facts = None,
    entry: Entries = None,
    who: Who = None,
    note: Note = "",
) -> None:
    """Put back facts that were taken back, each to its place in the stack."""
    from retcon.patch.events import told
    from retcon.patch.ledger import Ledger
    from retcon.patch.slots import solved_without

    opened = Ledger(ledger)
    event = opened.put_back(facts or (), entry or (), who=who or login(), note=note)
    out.print(
        f"Event {event.number}: {told(event.action)}. Take that back: retcon patch undo {ledger} "
        f"--to {event.number - 1}",
        soft_wrap=True,
        markup=False,
    )
    for other, by in solved_without(opened.history, event).items():
        warn(
            f"Entry {other} was solved again by event {by} as if these facts had never been, and "
            f"stays so. The stack as it was: retcon patch undo {ledger} --to {by - 1}"
        )
    _warn_of_repeats(opened)


def verify(
    ledger: Folder,
    model: BaseModel = None,
    dtype: choices.Dtype = "float32",
    device: choices.Device = "cpu",
    json: choices.Json = None,
) -> None:
    """Look whether a ledger or a patch file is whole; with MODEL, that it applies and is undone."""
    from retcon.patch.ledger import Ledger
    from retcon.patch.verify import verify as look
    from retcon.patch.verify import verify_file

    handle = None
    if model is not None:
        with bars() as progress:
            handle = ModelChoice(name=model, dtype=dtype, device=device).load(progress)
    findings = verify_file(ledger, handle) if ledger.is_file() else look(Ledger(ledger), handle)
    rows = [[f.what, f.problem or f.note or "as it should be"] for f in findings]
    out.print(table(str(ledger), ["looked at", "found"], rows))
    write_json(json, {"findings": [found._asdict() for found in findings]})
    bad = sum(found.problem is not None for found in findings)
    if bad:
        raise InvalidLedger(
            f"{ledger}: {bad} of the {len(findings)} things looked at are not as they should "
            f"be; the table says which, and what to do."
        )


def _check(
    source: ModelChoice, ledger: "Ledger", undoing: "Undoing", cases: str | None, skip_bad: bool
) -> "UndoScores":
    from retcon.data.cases import load_cases

    read = [] if cases is None else load_cases(cases, skip_bad=skip_bad)
    with bars() as progress:
        model = source.load(progress)
        from retcon.run.undo import check_undo

        return check_undo(model, ledger, undoing, read, progress)


def _resolve(source: ModelChoice, ledger: "Ledger", undoing: "Undoing"):  # noqa: ANN202
    with bars() as progress:
        model = source.load(progress)
        from retcon.run.undo import resolve

        return resolve(model, ledger, undoing, progress)


def _print_check(check: "UndoScores") -> None:
    for title, by_form in (("Facts that stay", check.staying), ("Facts taken back", check.taken)):
        forms = list(by_form)
        rows = [
            [name, *(number(by_form[form][name]) for form in forms)]
            for name in by_form[forms[0]]
            if any(by_form[form][name] is not None for form in forms)
        ]
        if rows:
            out.print(table(f"{title}: scores, in %", ["", *forms], rows))
    out.print("Nothing was undone.")


def _brought(ledger: "Ledger", undoing: "Undoing", event: int) -> int:
    """Count the facts of the entries that left as a whole."""
    before = {entry.number: entry for entry in ledger.entries(event - 1)}
    return sum(len(before[number].about.edits) for number in undoing.entries)


def _warn_of_repeats(ledger: "Ledger") -> None:
    """Say which facts are written twice, since their changes add up."""
    seen: dict[tuple[str, str], int] = {}
    ids: dict[tuple[str, str], str] = {}
    for entry in ledger.entries():
        for record in entry.about.edits:
            key = (record.prompt, record.subject)
            if key in seen and seen[key] != entry.number:
                text = record.prompt.replace("{}", record.subject)
                warn(
                    f"{text!r} is also in entry {seen[key]}, and changes add up. Take the older "
                    f"one back: retcon patch undo {ledger.folder} {seen[key]}:{ids[key]}"
                )
            seen[key], ids[key] = entry.number, record.id


def _row(entry: "LedgerEntry") -> list[str]:
    about = entry.about
    layers = ",".join(map(str, about.layers))
    method = f"{about.method}, {about.scheduled}"
    when = _when(entry.when)
    return [str(entry.number), when, entry.who, method, layers, _facts(entry), entry.note]


def _facts(entry: "LedgerEntry") -> str:
    kept, brought = len(entry.about.edits), len(entry.brought)
    if not brought:
        return "no single facts"
    count = _count(kept) if kept == brought else f"{kept} of {_count(brought)}"
    verdicts = [record.verdict for record in entry.about.edits if record.verdict is not None]
    if verdicts and not entry.solved:
        missing = verdicts.count("not said")
        count += f", {missing} not said" if missing else ", all said"
    return f"{count}, solved again by event {entry.solved}" if entry.solved else count


def _count(facts: int) -> str:
    return "1 fact" if facts == 1 else f"{facts} facts"


def _when(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _described(entry: "LedgerEntry") -> dict[str, object]:
    return {
        "entry": entry.number,
        "who": entry.who,
        "when": entry.when.isoformat(),
        "note": entry.note,
        "made_on": entry.on,
        "facts_brought": len(entry.brought),
        "solved_again_by": entry.solved or None,
        "scores": entry.scores,
        **entry.about.model_dump(mode="json"),
    }
