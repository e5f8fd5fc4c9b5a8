"""The report: one HTML page that works offline, and beside it Markdown, charts, CSV and Parquet.

The page is DIR/report.html, all else is in DIR/report/. The page holds its styles, its charts and
the program that draws them; it loads nothing.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from retcon.errors import MissingExtra
from retcon.escaping import markdown
from retcon.files import make_folder, write_whole
from retcon.report import tables
from retcon.report.arms import Results
from retcon.report.evidence import findings_table, harmless, rows_behind
from retcon.report.examples import by_probability, told
from retcon.report.findings import Finding, all_findings
from retcon.report.findings.claims import MARGIN, points
from retcon.report.fluency import fluency
from retcon.report.headline import headline
from retcon.report.layers import recommend
from retcon.report.lifelong import difficulty, kinds
from retcon.report.plots import Chart, all_charts
from retcon.report.provenance import Provenance, provenance
from retcon.report.tables import Table
from retcon.study.reading import Study, read_study


class Written(NamedTuple):
    """The files of a report."""

    html: Path
    markdown: Path
    rows: Path
    charts: tuple[Path, ...]
    tables: tuple[Path, ...]


@dataclass(frozen=True)
class Report:
    """What a report says, before it is written."""

    results: Results
    findings: Sequence[Finding]
    charts: Mapping[str, Chart]
    tables: Sequence[Table]
    provenance: Provenance
    examples: Sequence[Table]

    @property
    def study(self) -> Study:
        """The study it is of."""
        return self.results.study


def make_report(study: Study) -> Report:
    """Read everything once."""
    results = Results(study)
    findings = all_findings(results)
    examples = [table for table in (told(results), by_probability(results)) if table.rows]
    further = [
        table for table in (kinds(results), difficulty(results), fluency(results)) if table.rows
    ]
    return Report(
        results, findings, all_charts(results, findings),
        [*tables.summary(results, findings), *further],
        provenance(study), examples,
    )  # fmt: skip


def write_report(folder: Path | str) -> Written:
    """Write the report of a study's folder, as far as the study has got. See `write`."""
    _need_extra()
    return write(make_report(read_study(folder)))


def write(report: Report) -> Written:
    """Write the page, and beside it all that it links.

    Raises:
        InvalidStudy, DamagedCell: the folder is no study, or a cell's files have changed.
        MissingExtra: what draws the page is not installed; the tables need none of it.
        StorageError: no space or no permission.
    """
    _need_extra()
    study = report.study
    out = make_folder(study.folder / "report")
    charts = [path for chart in report.charts.values() for path in _draw(out, chart)]
    written = [_write(out / f"{_slug(t.title)}.csv", t.csv()) for t in report.tables]
    for finding in report.findings:
        written.append(_write(out / f"finding-{finding.key}.csv", findings_table(finding).csv()))
        if finding.evidence:
            path = out / f"finding-{finding.key}-rows.csv"
            write_whole(path, harmless(rows_behind(report.results, finding)).write_csv)
            written.append(path)
    rows = tables.export(study, out / "rows.parquet")
    markdown = _write(out / "report.md", to_markdown(report))
    html = _write(study.folder / "report.html", to_html(report))
    return Written(html, markdown, rows, tuple(charts), tuple(written))


def to_html(report: Report) -> str:
    """The page."""
    _need_extra()
    import vl_convert
    from jinja2 import Environment, PackageLoader, select_autoescape

    environment = Environment(
        loader=PackageLoader("retcon.report", "."),
        autoescape=select_autoescape(("html.j2",), default=True),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["slug"] = _slug
    environment.filters["points"] = points
    shown = {key for finding in report.findings for key in finding.charts}
    return environment.get_template("report.html.j2").render(
        report=report,
        study=report.study,
        margin=f"{MARGIN:.0f}",
        headline=headline(report.findings),
        others=[c for k, c in report.charts.items() if k not in shown and k != "verdicts"],
        program=vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"),
        # "</" would end the script that holds the data.
        specs=_harmless({key: chart.spec for key, chart in report.charts.items()}),
        recommended=recommend(report.results) if "layers" in report.charts else [],
    )


def _harmless(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def to_markdown(report: Report) -> str:
    """The same in Markdown: verdicts, findings, tables, and how to repeat it."""
    record = report.study.record
    said = headline(report.findings)
    parts = [f"# {markdown(record.name)}\n", f"{markdown(record.description)}\n"]
    parts += [f"{markdown(line)}\n" for line in (*said.answers, *said.tallies)]
    first, *rest = report.tables
    parts.append(first.markdown())
    for finding in report.findings:
        parts.append(_finding(finding, report.charts))
    parts += [table.markdown() for table in (*rest, *report.examples)]
    parts.append("## How it was made\n\n" + report.provenance.markdown())
    return "\n".join(parts)


def _finding(finding: Finding, charts: Mapping[str, Chart]) -> str:
    said = ", ".join(f"{when}: **{finding.verdict_at(when)}**" for when in finding.times)
    lines = [
        f"## ({finding.key}) {markdown(finding.name)}", "",
        f"*Claim.* {markdown(finding.claim)}", "",
        f"*Paper.* {markdown(finding.paper)}", "", f"*Verdict.* {said or 'no data'}", "",
        *(markdown(line) + "  " for line in finding.effect.splitlines()), "",
        *([f"*Missing.* {markdown(finding.missing)}", ""] if finding.missing else []),
        markdown(finding.explanation), "",
        *(f"![{markdown(charts[key].title)}](charts/{key}.png)\n"
          for key in finding.charts if key in charts),
    ]  # fmt: skip
    return "\n".join(lines)


def _draw(out: Path, chart: Chart) -> list[Path]:
    """A chart as SVG and PNG."""
    import vl_convert

    folder = make_folder(out / "charts")
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
            f"The page is drawn with {' and '.join(absent)}, not installed here. Install it with "
            f"`pip install 'retcon-llm[report]'`; tables in the terminal need none of it."
        )
