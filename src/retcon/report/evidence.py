"""The rows behind findings: verdicts, effects with their cells, and the score of each case."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from retcon.escaping import cell
from retcon.report.findings import Finding
from retcon.report.numbers import MISSING, points
from retcon.report.results import Results
from retcon.report.tables import Table

if TYPE_CHECKING:
    import polars as pl


def verdict_table(findings: Sequence[Finding]) -> Table:
    """The claims and their verdicts, a line for each time at which one is judged."""
    rows: list[tuple[str, ...]] = []
    for finding in findings:
        name = f"({finding.key}) {finding.title}"
        if not finding.times:
            rows.append((name, MISSING, "no data", MISSING))
        for when in finding.times:
            effects = "; ".join(points(effect.estimate) for effect in finding.deciding(when))
            rows.append((name, when, finding.verdict_at(when), effects))
    note = "Effects with 95 % intervals, clustered by relation."
    return Table("Verdicts", note, ("claim", "scores", "verdict", "effect"), tuple(rows))


def effects_table(finding: Finding) -> Table:
    """Every effect of a finding with its interval, verdict and cells."""
    rows = [
        (
            effect.text,
            effect.when,
            effect.metric,
            *map(_cell, effect.estimate[:3]),
            str(effect.estimate.cases),
            effect.verdict or "measured",
            "yes" if effect.decides else "no",
            " ".join(dict.fromkeys(item.cell for item in effect.evidence)),
        )
        for effect in finding.effects
    ]
    columns = (
        "claim",
        "when",
        "metric",
        "effect",
        "low",
        "high",
        "cases",
        "verdict",
        "decides",
        "cells",
    )
    title = f"({finding.key}) {finding.title}"
    return Table(title, finding.claim.claim, columns, tuple(rows))


def _cell(value: float | None) -> str:
    return MISSING if value is None else f"{value:.4f}"


def rows_behind(results: Results, finding: Finding) -> "pl.DataFrame":
    """The score of each case in each cell that a finding rests on; the prompts are in the cell."""
    import polars as pl

    columns: dict[str, list[object]] = {
        name: [] for name in ("cell", "seed", "when", "metric", "case", "relation", "score")
    }
    for item in finding.evidence:
        means = results.means(item.cell, item.when, item.metric)
        for case, score in means.values.items() if means else ():
            assert means is not None
            line = (item.cell, item.seed, item.when, item.metric, case, means.clusters[case], score)
            for column, value in zip(columns.values(), line, strict=True):
                column.append(value)
    return pl.DataFrame(columns)


def harmless(frame: "pl.DataFrame") -> "pl.DataFrame":
    """Make a table safe for a CSV file: no text in it is a formula."""
    import polars as pl

    texts = pl.col(pl.String)
    return frame.with_columns(texts.map_elements(cell, return_dtype=pl.String))
