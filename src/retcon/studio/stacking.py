"""The page of the stack: facts switched off and on, notes, the history, and exports."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from retcon.errors import InvalidSetting
from retcon.patch.events import Added, Event, told
from retcon.patch.export import EXPORT_FORMS
from retcon.studio.bench import Bench
from retcon.studio.drawing import draw
from retcon.studio.editing import LINKS, fields_of, started

Fields = Mapping[str, str]


def stack_routes(bench: Bench) -> list[BaseRoute]:
    """The routes of the stack."""
    pages = _Stacking(bench)
    forms: dict[str, Callable[[Fields], object]] = {
        "off": pages.off,
        "on": pages.on,
        "note": pages.note,
        "back": pages.back,
    }
    return [
        Route("/stack", pages.stack),
        Route("/stack/patch.safetensors", pages.patch),
        Route("/stack/together", pages.together, methods=["POST"]),
        Route("/exports", pages.export, methods=["POST"]),
        *(
            Route(f"/stack/{name}", _posted(action), methods=["POST"])
            for name, action in forms.items()
        ),
    ]


class _Stacking:
    """The pages of a ledger. What they change of it needs no model, so it waits for no job."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    async def stack(self, request: Request) -> Response:
        """The stack, as it is or as it was after an event."""
        at = request.query_params.get("at", "")
        page = await run_in_threadpool(self._stack, _number(at) if at else None)
        return HTMLResponse(page)

    def _stack(self, at: int | None) -> str:
        bench, ledger = self.bench, self.bench.ledger
        history = ledger.history if bench.begun else ()
        entries = ledger.entries(at) if bench.begun else ()
        outside = ledger.outside() if bench.begun and at is None else ()
        # A fact that is switched off stays where it was.
        lines = [*((entry, True) for entry in entries), *((entry, False) for entry in outside)]
        brought = self._brought()
        return draw(
            "stack.html.j2",
            part="stack",
            links=LINKS,
            model=bench.name,
            folder=ledger.folder,
            at=at,
            lines=sorted(lines, key=lambda line: (-line[0].number, not line[1])),
            count=sum(len(entry.about.edits) for entry in entries),
            history=[(event, self._done(event, brought)) for event in history],
            forms=sorted(EXPORT_FORMS.all()),
            exports=self._exports(),
            free=self._free(),
        )

    def _brought(self) -> dict[int, str]:
        """The facts of each entry that can be in the stack, in a few words."""
        texts: dict[int, list[str]] = {}
        for entry in self.bench.every:
            if facts := [f"{one.edit.text} {one.target}" for one in entry.about.edits]:
                texts.setdefault(entry.number, []).extend(facts)
        return {number: _several(facts) for number, facts in texts.items()}

    def _done(self, event: Event, brought: Mapping[int, str]) -> str:
        """Say what was done; of an entry that was added, its facts."""
        facts = brought.get(event.number) if isinstance(event.action, Added) else None
        return f"entry {event.number}: {facts}" if facts else told(event.action)

    def off(self, fields: Fields) -> None:
        """Take a fact or an entry out of the stack."""
        bench = self.bench
        facts, entries = _named(fields)
        bench.ledger.undo(bench.ledger.choose(facts, entries), who=bench.who)

    def on(self, fields: Fields) -> None:
        """Put a fact or an entry back."""
        self.bench.put_back(*_named(fields))

    def note(self, fields: Fields) -> None:
        """Give an entry another note."""
        entry, note = _number(fields.get("entry", "")), fields.get("note", "").strip()
        self.bench.ledger.annotate(entry, note, who=self.bench.who)

    def back(self, fields: Fields) -> None:
        """Make the stack what it was."""
        self.bench.ledger.back_to(_number(fields.get("to", "")), who=self.bench.who)

    async def together(self, request: Request) -> Response:
        """Solve all facts of the stack together."""
        bench = self.bench
        return started(
            bench.jobs.add(
                "Solving all facts together",
                lambda progress: {"href": f"/edits/{bench.solved_together(progress)}"},
            )
        )

    async def export(self, request: Request) -> Response:
        """Write the stack for another program."""
        fields, bench = await fields_of(request), self.bench
        form, name = fields.get("form", ""), fields.get("name", "").strip()
        EXPORT_FORMS.find(form)
        bench.check_export(name)

        def work(progress: Any) -> dict[str, object]:
            return {"href": "/stack#exports", "told": bench.exported(form, name, progress)}

        return started(bench.jobs.add(f"Exporting {name} ({form})", work))

    async def patch(self, request: Request) -> Response:
        """The stack as one patch file."""
        content = await run_in_threadpool(self._patch)
        named = {"content-disposition": 'attachment; filename="stack.safetensors"'}
        return Response(content, media_type="application/octet-stream", headers=named)

    def _patch(self) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "stack.safetensors"
            self.bench.ledger.stack().save(file)
            return file.read_bytes()

    def _exports(self) -> list[tuple[Path, str]]:
        """The exports, newest first, with their files."""
        if not self.bench.exports.is_dir():
            return []
        folders = sorted(
            (
                path
                for path in self.bench.exports.iterdir()
                if path.is_dir() and path.name[0] != "."
            ),
            key=lambda path: -path.stat().st_mtime,
        )
        return [
            (folder, ", ".join(f"{f.name} {_size(f)}" for f in sorted(folder.iterdir())))
            for folder in folders
        ]

    def _free(self) -> str:
        """A name that no export has."""
        number = 1
        while (self.bench.exports / f"stack-{number}").exists():
            number += 1
        return f"stack-{number}"


def _posted(action: Callable[[Fields], object]) -> Callable[..., Any]:
    """Do what a form asks for, and show the page again."""

    async def answer(request: Request) -> Response:
        texts = parse_qs((await request.body()).decode("utf-8", "replace"), keep_blank_values=True)
        fields = {name: values[0] for name, values in texts.items()}
        await run_in_threadpool(action, fields)
        back = fields.get("back", "/stack")
        if "application/json" in request.headers.get("accept", ""):
            return JSONResponse({"href": back})
        # Of this site alone: two slashes would begin another's address.
        own = back.startswith("/") and not back.startswith(("//", "/\\"))
        return RedirectResponse(back if own else "/stack", status_code=303)

    return answer


def _named(fields: Fields) -> tuple[list[str], list[int]]:
    """The facts and entries that a form names."""
    facts = [fields["fact"]] if fields.get("fact") else []
    return facts, [_number(fields["entry"])] if fields.get("entry") else []


def _number(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise InvalidSetting(f"{text!r} is no number of an entry or event. Load the page again.")
    return int(text)


def _several(facts: list[str]) -> str:
    return facts[0] if len(facts) == 1 else f"{len(facts):,} facts, the first “{facts[0]}”"


def _size(file: Path) -> str:
    count = file.stat().st_size
    return f"{count / 1e6:.1f} MB" if count > 1e6 else f"{count / 1e3:.1f} kB"
