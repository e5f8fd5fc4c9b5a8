"""Charts of one cell: its facts by when they were written, and how far its weights have moved."""

from collections import defaultdict
from collections.abc import Iterator

from retcon.report.charts.panels import SAID, Record, panels
from retcon.report.charts.style import (
    COLOURS,
    Chart,
    Spec,
    facts_written,
    series_colour,
    steps_of,
    titled,
)
from retcon.report.conditions import Arm
from retcon.report.results import SCORES, Results, moved
from retcon.scoring.metrics import METRICS, estimate
from retcon.scoring.observations import Observation

# Facts are put together by when they were written, into so many groups.
_GROUPS = 8


def charts_of(results: Results, arm: Arm) -> list[Chart]:
    """The charts for which a cell has data: those of cells in which edits are carried.

    Args:
        results: with the scores of the cell.
        arm: of one run.
    """
    if not arm.condition.carried:
        return []
    return [chart for chart in (written(results, arm), weights(results, arm)) if chart is not None]


def written(results: Results, arm: Arm) -> Chart | None:
    """Scores of facts by when they were written, right after their batch and at the end."""
    data = list(_by_place(results, arm))
    if len({record["edits"] for record in data}) < 2:
        return None
    return titled(
        "written",
        "Facts by when they were written",
        "Scores in % of groups of facts, right after their own batch and after the last one.",
        panels(data, facts_written(4), series_colour(data), (SAID, *SCORES[:3])),
    )


def _by_place(results: Results, arm: Arm) -> Iterator[Record]:
    cell = arm.runs[0].cell
    at = {int(str(step["index"])) + 1: int(str(step["at"])) for step in results.study.steps(cell)}
    observed = {when: results.study.scored(cell, when) for when in ("immediate", "final")}
    own = {row.case: at[row.step] for row in observed["immediate"] if row.step in at}
    width = max(1, -(-arm.condition.n // _GROUPS))
    for when, rows in observed.items():
        groups: dict[int, list[Observation]] = defaultdict(list)
        for row in rows:
            if row.case in own:
                last = -(-own[row.case] // width) * width
                groups[min(last, arm.condition.n)].append(row)
        for edits, group in sorted(groups.items()):
            yield from _scores(group, edits, when)


def _scores(rows: list[Observation], edits: int, when: str) -> Iterator[Record]:
    for name in (SAID, *SCORES[:3]):
        read = METRICS.find(name)
        one = estimate([row for row in rows if read.reads(row.kind)], name)
        if one.mean is not None:
            yield {
                "metric": name,
                "score": one.mean,
                "low": one.low,
                "high": one.high,
                "cases": one.cases,
                "edits": edits,
                "when": when,
                "series": when,
                "untouched": None,
            }


def weights(results: Results, arm: Arm) -> Chart | None:
    """‖W − W₀‖ as a share of ‖W₀‖, by facts written."""
    data = [
        {"edits": step["at"], "moved": share, "size": step["edits"]}
        for step in results.study.steps(arm.runs[0].cell)
        if (share := moved(step)) is not None
    ]
    if len(data) < 2:
        return None
    y: Spec = {"field": "moved", "type": "quantitative", "title": "‖W − W₀‖ / ‖W₀‖, %"}
    tooltip: list[Spec] = [
        {"field": "edits"},
        {"field": "size"},
        {"field": "moved", "format": ".2f"},
    ]
    body: Spec = {
        "data": {"values": data},
        "width": 620,
        "height": 170,
        "layer": steps_of({"x": facts_written(5), "y": y, "color": {"value": COLOURS[0]}}, tooltip),
    }
    return titled(
        "weights",
        "How far the weights move",
        "Norm of all edits so far as a share of the norm of the layers' own weights.",
        body,
    )
