"""The page on which facts are typed and looked at, and the jobs that it starts."""

import json
import re
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from retcon.data.cases import read_facts
from retcon.edits import Case, Edit
from retcon.errors import InvalidData, RetconError, UnknownName
from retcon.progress import Progress
from retcon.studio.bench import Bench
from retcon.studio.drawing import Link, draw, draw_part
from retcon.studio.jobs import Answer, StudioJob

LINKS = (Link("edit", "Edit", "/edit"), Link("stack", "Stack", "/stack"))
# Bytes of a file of facts, at most, and seconds between two looks at the jobs.
_MOST_BYTES, _PAUSE = 64 * 2**20, 0.15

Fields = Mapping[str, str]


def edit_routes(bench: Bench) -> list[BaseRoute]:
    """The routes of editing, and of jobs."""
    pages = _Editing(bench)
    return [
        Route("/edit", pages.form),
        Route("/edits/{entry:int}", pages.entry),
        Route("/edits/{entry:int}/{place:int}", pages.fact),
        Route("/edits/{entry:int}/{place:int}", pages.closer, methods=["POST"]),
        Route("/looks", pages.look, methods=["POST"]),
        Route("/foresight", pages.foresee, methods=["POST"]),
        Route("/edits", pages.write, methods=["POST"]),
        Route("/files", pages.write_file, methods=["POST"]),
        Route("/jobs/{job:int}", pages.job),
        Route("/jobs/{job:int}/cancel", pages.cancel, methods=["POST"]),
        Route("/events", pages.events),
    ]


def case_of(fields: Fields) -> Case:
    """The fact that a form holds.

    Raises:
        InvalidEdit: it is none.
    """
    given = {name: text.strip() for name, text in fields.items()}
    edit = Edit.parse(
        fields.get("prompt", "").rstrip(),
        given.get("target", ""),
        target_old=given.get("old") or None,
    )
    return Case(
        edit=Edit(
            id=_slug(edit.subject),
            prompt=edit.prompt,
            subject=edit.subject,
            target=edit.target,
            target_old=edit.target_old,
        ),
        paraphrases=_lines(given.get("ways", "")),
        neighbours=_lines(given.get("stays", "")),
        questions=_lines(given.get("question", "")),
    )


class _Editing:
    """The pages and jobs of a bench."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    async def form(self, request: Request) -> Response:
        """The form, filled with what stands in the address."""
        names = ("prompt", "target", "old", "ways", "stays", "question", "note")
        fields = {name: request.query_params.get(name, "") for name in names}
        entries = await run_in_threadpool(lambda: self.bench.entries)
        return self.page("edit.html.j2", fields=fields, entries=entries)

    async def entry(self, request: Request) -> Response:
        """An entry: of one fact, the fact; of more, a table of them."""
        number = int(request.path_params["entry"])
        return await run_in_threadpool(self._entry, number, 1)

    async def fact(self, request: Request) -> Response:
        """A fact of an entry."""
        number, place = (int(request.path_params[name]) for name in ("entry", "place"))
        return await run_in_threadpool(self._fact, number, place)

    def _entry(self, number: int, place: int) -> Response:
        view = self.bench.shelf.entry(number)
        if view is None or len(view.cases) == 1:
            return self._fact(number, place)
        return self.page("entry.html.j2", view=view, number=number, entry=self._inside(number))

    def _fact(self, number: int, place: int) -> Response:
        case, shelf = self.bench.case(number, place), self.bench.shelf
        view = shelf.entry(number)
        inside = self._inside(number)
        ids = [] if inside is None else [record.id for record in inside.about.edits]
        verdicts = {} if view is None else {one.id: one for one in view.verdicts}
        return self.page(
            "fact.html.j2",
            case=case,
            number=number,
            place=place,
            fact=shelf.fact(number, place),
            verdict=verdicts.get(case.edit.id),
            on=case.edit.id in ids,
            remarks=() if view is None else view.remarks,
            many=view is not None and len(view.cases) > 1,
        )

    def _inside(self, number: int) -> Any:
        return next((one for one in self.bench.entries if one.number == number), None)

    async def look(self, request: Request) -> Response:
        """Look at a fact before it is written. One that is half typed is no mistake yet."""
        bench, fields = self.bench, await fields_of(request)

        def work(progress: Progress) -> Answer:
            fact, there = bench.looked(case_of(fields), progress), bool(bench.entries)
            return {"html": draw_part("look", fact, there)}

        tab = fields.get("tab", "")
        return started(bench.jobs.add("Looking at the fact", work, quick=True, tab=tab))

    async def foresee(self, request: Request) -> Response:
        """Predict what writing a fact would disturb."""
        bench, fields = self.bench, await fields_of(request)

        def work(progress: Progress) -> Answer:
            foresight = bench.foreseen(case_of(fields), progress)
            return {"html": draw_part("disturbs", foresight)}

        tab = fields.get("tab", "")
        return started(bench.jobs.add("Predicting interference", work, quick=True, tab=tab))

    async def write(self, request: Request) -> Response:
        """Write a fact."""
        fields = await fields_of(request)
        case, note = case_of(fields), fields.get("note", "").strip()
        return started(
            self.bench.jobs.add(
                f"Writing “{case.edit.text} {case.edit.target}”",
                lambda progress: {"href": f"/edits/{self.bench.written(case, note, progress)}"},
            )
        )

    async def write_file(self, request: Request) -> Response:
        """Write the facts of a file, in one batch."""
        name = Path(request.query_params.get("name", "")).name or "facts.jsonl"
        content = await _content(request, name)
        count = len(await run_in_threadpool(_read, name, content))

        def work(progress: Progress) -> Answer:
            # Read again, so that the job is told what reading warns of.
            number = self.bench.written_together(_read(name, content), name, progress)
            return {"href": f"/edits/{number}"}

        return started(self.bench.jobs.add(f"Writing {count:,} facts of {name}", work))

    async def closer(self, request: Request) -> Response:
        """Look at a fact of an entry that nobody has looked at yet."""
        number, place = (int(request.path_params[name]) for name in ("entry", "place"))

        def work(progress: Progress) -> Answer:
            self.bench.closer(number, place, progress)
            return {"href": f"/edits/{number}/{place}"}

        return started(self.bench.jobs.add("Looking at the fact", work, quick=True))

    async def job(self, request: Request) -> Response:
        """Tell how a job is getting on."""
        return self._told(self.bench.jobs.find(int(request.path_params["job"])))

    async def cancel(self, request: Request) -> Response:
        """Cancel a job."""
        return self._told(self.bench.jobs.cancel(int(request.path_params["job"])))

    async def events(self, request: Request) -> Response:
        """All jobs that are under way, whenever one of them has changed."""
        return StreamingResponse(self._events(request), media_type="text/event-stream")

    async def _events(self, request: Request) -> AsyncIterator[str]:
        version, quiet = -1, 0.0
        while not await request.is_disconnected():
            jobs = self.bench.jobs
            if jobs.version != version:
                version, quiet = jobs.version, 0.0
                under_way = [job.told() for job in jobs.under_way()]
                told = {"trouble": self.bench.trouble, "jobs": under_way}
                yield f"data: {json.dumps(told)}\n\n"
            elif quiet > 15:
                quiet = 0.0
                yield ": still here\n\n"
            await anyio.sleep(_PAUSE)
            quiet += _PAUSE

    def page(self, template: str, **values: Any) -> Response:
        """A page of this part."""
        return HTMLResponse(
            draw(template, part="edit", links=LINKS, model=self.bench.name, **values)
        )

    def _told(self, job: StudioJob | None) -> Response:
        if job is None:
            raise UnknownName(
                "The studio was started anew, or this ended long ago. What was written is in the "
                "stack; what was not is to be done again."
            )
        return JSONResponse(job.told())


def started(job: StudioJob) -> Response:
    """The answer that names a job."""
    return JSONResponse({"job": job.number}, status_code=202)


async def fields_of(request: Request) -> dict[str, str]:
    """The fields of a request, as JSON."""
    try:
        value: object = json.loads(await request.body())
    except ValueError as error:
        raise InvalidData("The page sent no JSON. Load it again.") from error
    if not isinstance(value, dict):
        raise InvalidData("The page sent no fields. Load it again.")
    return {str(name): str(text) for name, text in value.items()}


async def _content(request: Request, name: str) -> bytes:
    """A file that was sent; no more of it is taken than may be kept."""
    parts, size = list[bytes](), 0
    async for part in request.stream():
        size += len(part)
        if size > _MOST_BYTES:
            raise InvalidData(
                f"{name} is larger than 64 MiB. Write so many facts with `retcon edit`."
            )
        parts.append(part)
    return b"".join(parts)


def _read(name: str, content: bytes) -> Sequence[Case]:
    """The facts of a file that was sent, under whatever name."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"facts{'.gz' if name.endswith('.gz') else ''}"
        file.write_bytes(content)
        try:
            return read_facts(file, called=name).cases
        except RetconError as error:
            raise InvalidData(str(error).replace(str(file), name)) from error


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _slug(text: str) -> str:
    """A subject as an id."""
    return re.sub(r"\W+", "-", text.casefold()).strip("-")[:40] or "fact"
