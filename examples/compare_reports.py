"""Compare two reports of one study: every table, every verdict, the data of every chart.

    python examples/compare_reports.py OLD NEW

OLD, NEW: folders that `retcon study report` has written into. All that is in the report of OLD must
be in that of NEW, number for number; NEW may have more. So a change of Retcon that is to leave
numbers alone can be looked at: draw a report before it and after it. Charts hold numbers in full,
of which the last digits depend on the order of sums; tables round.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from math import isclose
from pathlib import Path
from typing import Any

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
    for path in sorted((old / "report").glob("*.csv")):
        other = new / "report" / path.name
        if not other.exists():
            yield f"{path.name}: is not in the new report"
            continue
        before, after = (one.read_text(encoding="utf-8").splitlines() for one in (path, other))
        pairs = zip(before, after, strict=False)
        first = next((pair for pair in pairs if pair[0] != pair[1]), None)
        if first is not None:
            yield f"{path.name}:\n  - {first[0]}\n  + {first[1]}"
        elif len(before) != len(after):
            yield f"{path.name}: {len(before)} lines before, {len(after)} after"


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
        elif len(rows) != len(after[key]):
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
