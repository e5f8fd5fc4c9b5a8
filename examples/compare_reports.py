"""Compare two reports of one study: every table, every verdict, the data of every chart.

    python examples/compare_reports.py OLD NEW

OLD, NEW: folders that `retcon study report` has written into. All that is in the report of OLD must
be in that of NEW, number for number; NEW may have more. So a change of Retcon that is to leave
numbers alone can be looked at: draw a report before it and after it. Columns may stand in another
order, or in another table beside the same row. Charts hold numbers in full, of which the last
digits depend on the order of sums; tables round.
"""

import csv
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import isclose
from pathlib import Path
from typing import Any

Row = Mapping[str, str]
_SPECS = re.compile(r'<script id="specs" type="application/json">(.*?)</script>', re.DOTALL)


def main(old: Path, new: Path) -> int:
    """Print what differs; 1 if anything does."""
    differences = [*tables(old, new), *charts(old, new)]
    for line in differences:
        print(line)
    compared = len(list((old / "report").glob("*.csv"))), len(chart_data(old))
    print(f"{old.name}: {compared[0]} tables, {compared[1]} charts, {len(differences)} differ")
    return bool(differences)


def tables(old: Path, new: Path) -> Iterator[str]:
    """Tell what differs in the CSV files, verdicts among them."""
    after = {path.name: rows_of(path) for path in (new / "report").glob("*.csv")}
    for path in sorted((old / "report").glob("*.csv")):
        if path.name not in after:
            yield f"{path.name}: is not in the new report"
            continue
        before, there = rows_of(path), after[path.name]
        differences = (
            f"{path.name}: row {number}, {column}\n  - {row[column]}\n  + {other.get(column)}"
            for number, (row, other) in enumerate(zip(before, there, strict=False), start=1)
            for column in row
            if row[column] != other.get(column)
            and (column in other or not is_beside(row, column, after.values()))
        )
        first = next(differences, None)
        if first is not None:
            yield first
        elif len(before) > len(there):
            yield f"{path.name}: {len(before)} rows before, {len(there)} after"


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, by column."""
    with path.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def is_beside(row: Mapping[str, str], column: str, among: Iterable[Sequence[Row]]) -> bool:
    """True if some table has the value of a column in a row that is else the same."""
    return any(
        column in other and all(other[name] == row[name] for name in row.keys() & other.keys())
        for table in among
        for other in table
    )


def charts(old: Path, new: Path) -> Iterator[str]:
    """Tell what differs in the data of charts."""
    before, after = chart_data(old), chart_data(new)
    for key, rows in before.items():
        if key not in after:
            yield f"chart {key}: is not in the new report"
            continue
        pairs = zip(rows, after[key], strict=False)
        first = next((pair for pair in pairs if not alike(*pair)), None)
        if first is not None:
            yield f"chart {key}:\n  - {first[0]}\n  + {first[1]}"
        elif len(rows) > len(after[key]):
            yield f"chart {key}: {len(rows)} rows before, {len(after[key])} after"


def alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """True if two rows are equal but for the last digits of their numbers."""
    return one.keys() == other.keys() and all(
        isclose(value, other[name], rel_tol=1e-9, abs_tol=1e-9)
        if isinstance(value, float) and isinstance(other[name], float)
        else value == other[name]
        for name, value in one.items()
    )


def chart_data(folder: Path) -> Mapping[str, list[dict[str, Any]]]:
    """The rows of each chart on the page of a report, by the chart's name."""
    found = _SPECS.search((folder / "report.html").read_text(encoding="utf-8"))
    specs = json.loads(found.group(1)) if found else {}
    return {key: spec["data"]["values"] for key, spec in specs.items()}


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
