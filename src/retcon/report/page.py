"""The report: one HTML page that works offline, and beside it Markdown, charts, CSV and Parquet.

The page is DIR/report.html, all else is in DIR/report/. The page holds its styles, its charts and
the program that draws them; it loads nothing.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from retcon.errors import MissingExtra
from retcon.escaping import markdown
from retcon.files import make_folder, write_whole
from retcon.report import tables
from retcon.report.agreement import Agreement, agree, best_by_score, correlations, dependence
from retcon.report.charts.every import all_charts
from retcon.report.charts.style import Chart
from retcon.report.evidence import effects_table, harmless, rows_behind, verdict_table
from retcon.report.examples import by_probability, told
from retcon.report.findings import Finding, by_set, judge, select, select_for
from retcon.report.headline import MOST_LINES, headline, reading, tallies
from retcon.report.kinds import difficulty, kinds
from retcon.report.layers import recommended
from retcon.report.numbers import points
from retcon.report.observed import observed
from retcon.report.provenance import Reproduction, provenance
from retcon.report.ranking import Comparison, compare
from retcon.report.results import Results
from retcon.report.tables import Table
from retcon.report.templates import templates
from retcon.report.verdicts import MARGIN
from retcon.study.study import Study, read_study

if TYPE_CHECKING:
    from jinja2 import Environment


class ReportFiles(NamedTuple):
    """The files of a report."""

    html: Path
    markdown: Path
    rows: Path
    charts: tuple[Path, ...]
    tables: tuple[Path, ...]


@dataclass(frozen=True)
class StudyReport:
    """A report, before it is written.

    Attributes:
        comparisons: the conditions of the study, ranked.
        agreements: the same under every score that they have.
        findings: the claims that were tested, judged; none where the study file names none.
    """

    results: Results
    comparisons: Sequence[Comparison]
    agreements: Sequence[Agreement]
    findings: Sequence[Finding]
    charts: Mapping[str, Chart]
    tables: Sequence[Table]
    provenance: Reproduction
    examples: Sequence[Table]

    @property
    def study(self) -> Study:
        """The study it is of."""
        return self.results.study

    @property
    def summary(self) -> list[str]:
        """The conditions that are compared, in sentences, and how their scores are to be read."""
        lines = headline(self.comparisons)
        for agreement in self.agreements:
            place = self.comparisons.index(agreement.comparison)
            lines[place] = f"{lines[place]} {dependence(agreement)}".rstrip()
        return [*lines, reading(self.results)] if lines else []

    @property
    def answers(self) -> list[str]:
        """The findings in sentences: those of their sets, and how many have which verdict."""
        sets = by_set(self.findings)
        return [
            *(line for one, findings in sets for line in one.headline(findings)),
            *tallies(self.findings),
        ]


def make_report(
    study: Study, findings: Sequence[str] | None = None, results: Results | None = None
) -> StudyReport:
    """Read everything once.

    Args:
        study: whose report it is.
        findings: sets and names of findings, or `none`; without it those of the study file.
        results: of the study, where its scores have been read already.

    Raises:
        UnknownName, InvalidStudy: there is no such finding.
    """
    claims = select_for(study.record.findings) if findings is None else select(findings)
    results = results or Results(study)
    comparisons, judged = compare(results), judge(results, claims)
    agreements = agree(results, comparisons[:MOST_LINES])
    by_score = [best_by_score(agreements), correlations(agreements)]
    further = [
        *by_score,
        recommended(results),
        kinds(results),
        difficulty(results),
        *observed(results),
    ]
    return StudyReport(
        results=results,
        comparisons=comparisons,
        agreements=agreements,
        findings=judged,
        charts=all_charts(results, comparisons, agreements, judged),
        tables=[*tables.summary(results, comparisons), *(t for t in further if t.rows)],
        provenance=provenance(study, findings),
        examples=[table for table in (told(results), by_probability(results)) if table.rows],
    )


def write_report(folder: Path | str, findings: Sequence[str] | None = None) -> ReportFiles:
    """Write the report of a study's folder, as far as the study has got.

    Args:
        findings: see `make_report`.

    Raises:
        UnknownName, InvalidStudy, DamagedCell, MissingExtra, StorageError: see `make_report` and
            `write`.
    """
    _need_extra()
    return write(make_report(read_study(folder), findings))


def write(report: StudyReport) -> ReportFiles:
    """Write the page, and beside it all that it links.

    Raises:
        InvalidStudy, DamagedCell: the folder is no study, or a cell's files have changed.
        MissingExtra: what draws the page is not installed; the tables need none of it.
        StorageError: no space or no permission.
    """
    _need_extra()
    study = report.study
    out = make_folder(study.folder / "report")
    charts = [path for chart in report.charts.values() for path in draw(chart, out / "charts")]
    shown = [verdict_table(report.findings), *report.tables] if report.findings else report.tables
    written = [_write(out / f"{_slug(t.title)}.csv", t.csv()) for t in shown]
    written += [path for finding in report.findings for path in _rows_of(report, finding, out)]
    rows = tables.export(study, out / "rows.parquet")
    markdown = _write(out / "report.md", to_markdown(report))
    html = _write(study.folder / "report.html", to_html(report))
    return ReportFiles(html, markdown, rows, tuple(charts), tuple(written))


def _rows_of(report: StudyReport, finding: Finding, out: Path) -> list[Path]:
    """The effects of a finding, and the rows behind them."""
    effects = _write(out / f"finding-{finding.key}.csv", effects_table(finding).csv())
    if not finding.evidence:
        return [effects]
    path = out / f"finding-{finding.key}-rows.csv"
    write_whole(path, harmless(rows_behind(report.results, finding)).write_csv)
    return [effects, path]


def to_html(report: StudyReport) -> str:
    """Draw the page."""
    return (
        _environment()
        .get_template("report.html.j2")
        .render(**_content(report), program=vega(), specs=specifications(report.charts.values()))
    )


def to_body(report: StudyReport) -> str:
    """Draw the report alone, as HTML to be put into another page, without links to its files."""
    return _environment().get_template("body.html.j2").render(**_content(report), files="")


def _environment() -> "Environment":
    _need_extra()
    made = templates("retcon.report", ".")
    made.filters |= {"slug": _slug, "points": points}
    return made


def _content(report: StudyReport) -> dict[str, object]:
    """The names that templates use."""
    beside = {key for finding in report.findings for key in finding.charts}
    beside |= {"verdicts", "differences", "conditions", "by-score", "rank-correlations"}
    return {
        "report": report,
        "study": report.study,
        "sets": by_set(report.findings),
        "margin": f"{MARGIN:.0f}",
        "others": [chart for key, chart in report.charts.items() if key not in beside],
    }


def vega() -> str:
    """The program that can draw charts, which `drawing` tells what to draw."""
    _need_extra()
    import vl_convert

    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def drawing() -> str:
    """The program that draws the charts of a page."""
    return (files("retcon.report") / "charts.js").read_text(encoding="utf-8")


def specifications(charts: Iterable[Chart]) -> str:
    """The specifications of charts by their keys, as JSON that may stand in a page."""
    specs = {chart.key: chart.spec for chart in charts}
    text = json.dumps(specs, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")  # "</" would end the script that holds it


def to_markdown(report: StudyReport) -> str:
    """Write the report as Markdown: sentences, verdicts, findings, tables, and how to repeat it."""
    record = report.study.record
    parts = [f"# {markdown(record.name)}\n", f"{markdown(record.description)}\n"]
    parts += [f"{markdown(line)}\n" for line in (*report.answers, *report.summary)]
    parts += [verdict_table(report.findings).markdown()] if report.findings else []
    parts += [_finding(finding) for finding in report.findings]
    parts += [table.markdown() for table in (*report.tables, *report.examples)]
    parts.append("## How it was made\n\n" + report.provenance.markdown())
    return "\n".join(parts)


def _finding(finding: Finding) -> str:
    claim, outcome = finding.claim, finding.outcome
    verdicts = ", ".join(f"{when}: **{finding.verdict_at(when)}**" for when in finding.times)
    paragraphs = [
        f"## ({finding.key}) {markdown(finding.title)}",
        f"*Claim.* {markdown(claim.claim)}",
        *([f"*Source.* {markdown(claim.source)}"] if claim.source else []),
        f"*Verdict.* {verdicts or 'no data'}",
        "\n".join(markdown(line) + "  " for line in outcome.summary.splitlines()),
        *([f"*Missing.* {markdown(outcome.missing)}"] if outcome.missing else []),
        markdown(claim.measured),
        *(f"![{markdown(chart.title)}](charts/{key}.png)" for key, chart in finding.charts.items()),
        *(table.markdown() for table in finding.tables),
    ]
    return "\n\n".join(part for part in paragraphs if part) + "\n"


def draw(chart: Chart, folder: Path) -> list[Path]:
    """Write a chart as SVG and PNG into a folder, under its key.

    Raises:
        MissingExtra: the packages that draw are not installed.
    """
    _need_extra()
    import vl_convert

    make_folder(folder)
    svg, png = folder / f"{chart.key}.svg", folder / f"{chart.key}.png"
    spec: dict[str, Any] = chart.spec
    _write(svg, vl_convert.vegalite_to_svg(spec))
    image = vl_convert.vegalite_to_png(spec, scale=2)
    write_whole(png, lambda work: work.write_bytes(image))
    return [svg, png]


def _write(path: Path, text: str) -> Path:
    write_whole(path, lambda work: work.write_text(text, encoding="utf-8"))
    return path


def _slug(title: str) -> str:
    """A table's title as the name of its file: what stands before the brackets."""
    words = title.partition("(")[0].replace(",", " ").split()
    return "-".join(words).lower()


def _need_extra() -> None:
    from importlib.util import find_spec

    absent = [name for name in ("vl_convert", "jinja2") if find_spec(name) is None]
    if absent:
        raise MissingExtra(
            f"Pages and charts are drawn with {' and '.join(absent)}, not installed here. Install "
            f"it with `pip install 'retcon-llm[report]'`; tables in the terminal need none of it."
        )
