"""Look through a study: its pages, by their addresses, served or written to a disk.

    index.html            the grid of cells, with their scores, and how far the study is
    cells/CELL.html       a cell: its settings, scores, curve and cases
    case.html             a case of a cell, which its address names: #cell=CELL&case=ID
    report.html           the report: findings, charts, tables
    data/…                what pages load: facts in words, and all that was observed of each cell

A page is made of the study's folder alone: no model is loaded. It is the same whether it is served
or written; what is served asks now and then whether the study has got further.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

from retcon.errors import DamagedCell, InvalidStudy
from retcon.files import make_folder, whole_folder
from retcon.progress import Progress, silent
from retcon.report.charts.of_cell import charts_of
from retcon.report.headline import in_brief
from retcon.report.page import StudyReport, drawing, make_report, specifications, to_body, vega
from retcon.report.ranking import compare
from retcon.report.results import Results
from retcon.report.tables import missing, tuned
from retcon.studio.browse_cases import (
    CellCases,
    Texts,
    facts_script,
    ids,
    observed_script,
    texts_of,
)
from retcon.studio.browse_grid import Grid, GridRow
from retcon.studio.browse_scores import about, batches, said_before_and_after, scores_of
from retcon.studio.browse_states import STATES, progressed, trace_of
from retcon.studio.drawing import STYLE, Link, draw, stylesheet
from retcon.study.study import Study, read_study

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute

# So many milliseconds lie between two questions whether a study has got further.
_PATIENCE = 2000
# Made when it is asked for.
Pages = Mapping[str, Callable[[], str]]


class Bundle(NamedTuple):
    """A study's pages, as they were written."""

    index: Path
    files: int
    bytes: int


@dataclass(frozen=True)
class Browsed:
    """A study as it is on the disk now.

    Attributes:
        study: the study.
        texts: its facts in words.
        before: what was read of it earlier; cells that are done do not change.
        links: to the other parts of the studio, where it is served.
        trace: changes when the study gets further; None where pages are written to a disk.
    """

    study: Study
    texts: Texts
    before: Results | None = None
    links: Sequence[Link] = ()
    trace: str | None = None

    def texts_of(self, study: Study) -> Texts | None:
        """The facts in words, if they are those of a study, and were there when they were read."""
        same = study.record.data == self.study.record.data
        return self.texts if same and not self.texts.missing else None

    @cached_property
    def results(self) -> Results:
        """The scores of all cells that are done and can be read."""
        return self._read[0]

    @cached_property
    def _read(self) -> tuple[Results, dict[str, str]]:
        """Scores, and why some cells cannot be read."""
        results = Results(self.study) if self.before is None else self.before.later(self.study)
        damaged: dict[str, str] = {}
        for point in self.study.finished():
            try:
                results.means(point.cell or "", "pre", "ES")
            except DamagedCell as error:
                damaged[point.cell or ""] = str(error)
        sound = tuple(point for point in self.study.points if point.cell not in damaged)
        record = self.study.record.model_copy(update={"points": sound})
        return results.later(replace(self.study, record=record)), damaged

    @cached_property
    def grid(self) -> Grid:
        """All cells."""
        return Grid(self.study, self.results, progressed(self.study, self._read[1]))

    @cached_property
    def cases(self) -> dict[str, CellCases]:
        """The cases of each cell that can be read."""
        return {
            cell: CellCases(arm, self.results, self.texts)
            for cell, arm in self.grid.readable.items()
        }

    @cached_property
    def report(self) -> StudyReport:
        """The report of what is done."""
        return make_report(self.results.study, results=self.results)

    def pages(self) -> Pages:
        """All pages, and what they load."""
        rows = {row.cell: row for row in self.grid.rows if row.cell is not None}
        charts = {"report.html": self._report_page, "vega.js": vega} if _draws() else {}
        return {
            "index.html": self._index_page,
            **{f"cells/{cell}.html": partial(self._cell_page, row) for cell, row in rows.items()},
            "case.html": self._case_page,
            **charts,
            "data/facts.js": lambda: facts_script(self.texts, ids(self.cases.values())),
            **{f"data/cells/{cell}.js": partial(self._observed, rows[cell]) for cell in self.cases},
            STYLE: stylesheet,
            "study.css": _style,
            "study.js": lambda: _own("study.js"),
            "charts.js": drawing,
        }

    def _draw(self, template: str, root: str = "", **values: object) -> str:
        return draw(
            template,
            part="study",
            links=self.links,
            root=root,
            study=self.study.record,
            trace=self.trace,
            patience=_PATIENCE,
            draws=_draws(),
            **values,
        )

    def _index_page(self) -> str:
        lines = in_brief(compare(self.results)) if self.grid.readable else []
        return self._draw(
            "study_index.html.j2",
            grid=self.grid,
            states=STATES,
            lines=lines,
            tables=[one for one in (missing(self.study), tuned(self.study)) if one.rows],
        )

    def _cell_page(self, row: GridRow) -> str:
        cell = row.cell or ""
        known = {"row": row, "grid": self.grid, "about": about(self.study, cell, row)}
        if cell not in self.cases:
            return self._draw("study_cell.html.j2", "../", **known, scored=None)
        arm, cases = self.grid.readable[cell], self.cases[cell]
        charts = charts_of(self.results, arm) if _draws() else []
        return self._draw(
            "study_cell.html.j2",
            "../",
            **known,
            scored=scores_of(self.results, arm),
            cases=cases,
            missing=self.texts.missing,
            charts=charts,
            specs=specifications(charts),
            tables=[
                one
                for one in (said_before_and_after(self.study, cell), batches(self.study, cell))
                if one.rows
            ],
        )

    def _observed(self, row: GridRow) -> str:
        return observed_script(self.cases[row.cell or ""], row.name)

    def _case_page(self) -> str:
        names = {row.cell: row.name for row in self.grid.rows if row.cell in self.cases}
        return self._draw("study_case.html.j2", names=json.dumps(names).replace("<", "\\u003c"))

    def _report_page(self) -> str:
        from markupsafe import Markup

        return self._draw(
            "study_report.html.j2",
            report=self.report,
            body=Markup(to_body(self.report)),
            specs=specifications(self.report.charts.values()),
        )


def bundle(
    study: Path | str, out: Path, *, data: Path | None = None, progress: Progress = silent
) -> Bundle:
    """Write a study's pages as a site that opens from the disk.

    Args:
        study: its folder.
        out: a new or empty folder.
        data: the folder of the file of facts, without which cases are shown by their ids.
        progress: is told how many files are written.

    Raises:
        InvalidStudy: there is no study, or its pack is damaged.
        StorageError: there is something in the folder, no space or no permission.
    """
    opened = read_study(study)
    browsed = Browsed(opened, texts_of(opened, data))
    pages, size = browsed.pages(), 0
    with whole_folder(out) as work:
        for number, (path, make) in enumerate(pages.items(), start=1):
            target = work / path
            make_folder(target.parent)
            size += target.write_bytes(make().encode())
            progress("writing pages", number, len(pages))
    return Bundle(out / "index.html", len(pages), size)


@dataclass
class Live:
    """A study that may get further while its pages are looked at.

    Attributes:
        folder: of the study.
        data: folder of its facts' file.
        links: to the other parts of the studio.
    """

    folder: Path
    data: Path | None = None
    links: Sequence[Link] = ()
    _browsed: Browsed | None = field(default=None, init=False)
    _made: dict[str, str] = field(default_factory=dict[str, str], init=False)
    _lock: Any = field(default_factory=Lock, init=False, repr=False)

    def page(self, path: str) -> str | None:
        """A page of the study as it is now; None where there is none of this address.

        Raises:
            InvalidStudy: there is no study, or a part of it is damaged.
        """
        with self._lock:
            pages = self._now().pages()
            if path not in pages:
                return None
            if path not in self._made:
                self._made[path] = pages[path]()
            return self._made[path]

    def _now(self) -> Browsed:
        """The study, read again where it has got further."""
        trace = trace_of(self.folder)
        known = self._browsed
        if known is None or known.trace != trace:
            study = read_study(self.folder)
            texts = None if known is None else known.texts_of(study)
            texts = texts or texts_of(study, self.data)
            before = None if known is None else known.results
            self._browsed = Browsed(study, texts, before, self.links, trace)
            self._made.clear()
        assert self._browsed is not None
        return self._browsed


def study_routes(
    folder: Path | str, *, data: Path | None = None, links: Sequence[Link] = ()
) -> "list[BaseRoute]":
    """Routes of a study's pages, under /study/.

    Args:
        folder: of the study.
        data: the folder of the file of facts.
        links: to the other parts of the studio.

    Raises:
        InvalidStudy: there is no study.
    """
    from starlette.responses import PlainTextResponse, RedirectResponse, Response
    from starlette.routing import Route

    read_study(folder)
    live = Live(Path(folder), data, links)

    def served(request: "Request") -> "Response":
        path = str(request.path_params["path"]) or "index.html"
        content = live.page(path)
        if content is None:
            raise InvalidStudy(f"The study has no page {path!r}. Its grid is at /study/index.html.")
        return Response(content, media_type=_TYPES[path.rpartition(".")[2]])

    def trace(request: "Request") -> "Response":
        return PlainTextResponse(trace_of(live.folder))

    return [
        Route("/study", lambda request: RedirectResponse("/study/index.html")),
        Route("/study/trace", trace),
        Route("/study/{path:path}", served),
    ]


_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css"}


def _style() -> str:
    """The style of a study's pages: parts of the report, and their own."""
    return (files("retcon.report") / "parts.css").read_text(encoding="utf-8") + _own("study.css")


def _own(name: str) -> str:
    return (files("retcon.studio") / name).read_text(encoding="utf-8")


def _draws() -> bool:
    """True if charts can be drawn here."""
    return find_spec("vl_convert") is not None
