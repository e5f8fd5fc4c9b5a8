"""The rows behind a finding: its claims with their cells, and the score of each case in them."""

from typing import TYPE_CHECKING

from retcon.escaping import cell
from retcon.report.arms import Results
from retcon.report.findings import Finding
from retcon.report.tables import MISSING, Table

if TYPE_CHECKING:
    import polars as pl


def findings_table(finding: Finding) -> Table:
    """Every claim of a finding with its effect, interval, verdict and cells."""
    rows = [
        (c.text, c.when, c.metric, _cell(c.effect.mean), _cell(c.effect.low), _cell(c.effect.high),
         str(c.effect.cases), c.verdict or "measured", "yes" if c.primary else "no",
         " ".join(dict.fromkeys(item.cell for item in c.evidence)))
        for c in finding.claims
    ]  # fmt: skip
    columns = ("claim", "when", "metric", "effect", "low", "high", "cases", "verdict", "decides",
               "cells")  # fmt: skip
    return Table(f"({finding.key}) {finding.name}", finding.claim, columns, tuple(rows))


def _cell(value: float | None) -> str:
    return MISSING if value is None else f"{value:.4f}"


def rows_behind(results: Results, finding: Finding) -> "pl.DataFrame":
    """The score of each case in each cell that a finding rests on; the prompts are in the cell."""
    import polars as pl

    columns: dict[str, list[object]] = {
        name: [] for name in ("cell", "seed", "when", "metric", "case", "relation", "score")
    }
    for item in finding.evidence:
        found = results.means(item.cell, item.when, item.metric)
        for case, score in found.values.items() if found else ():
            assert found is not None
            line = (item.cell, item.seed, item.when, item.metric, case, found.clusters[case], score)
            for column, value in zip(columns.values(), line, strict=True):
                column.append(value)
    return pl.DataFrame(columns)


def harmless(frame: "pl.DataFrame") -> "pl.DataFrame":
    """The same for a CSV file: no text in it is a formula."""
    import polars as pl

    texts = pl.col(pl.String)
    return frame.with_columns(texts.map_elements(cell, return_dtype=pl.String))
