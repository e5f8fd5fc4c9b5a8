"""Panels of scores, one for each metric: their data, and how they are drawn."""

from collections.abc import Iterator, Sequence
from typing import Any

from retcon.report.charts.style import Spec
from retcon.report.conditions import Arm
from retcon.report.results import SCORES, Results

Record = dict[str, Any]
# The share of prompts behind which the target is said freely.
SAID = "said"


def scored(results: Results, arm: Arm, when: str, **about: object) -> Iterator[Record]:
    """ES, PS, NS and S of an arm at one time, and what it says freely where that was observed.

    With NS goes that of the untouched model.
    """
    for metric in (SAID, *SCORES):
        score = results.estimate(arm, when, metric)
        if score.mean is None:
            continue
        before = results.estimate(arm, "pre", metric).mean if metric == "NS" else None
        yield {
            "metric": metric,
            "score": score.mean,
            "low": score.low,
            "high": score.high,
            "cases": score.cases,
            "untouched": before,
            "when": when,
            "load": arm.load,
            **about,
        }


def panels(
    data: Sequence[Any],
    x: Spec,
    colour: Spec,
    metrics: Sequence[str] = (SAID, *SCORES),
    seen: str | None = None,
) -> Spec:
    """One panel a score: lines with their intervals; a click in the legend singles a line out.

    Args:
        seen: the field that says in the tooltip where on the x axis a dot stands.
    """
    shown = [m for m in metrics if any(record["metric"] == m for record in data)]
    tooltip = [
        {"field": colour["field"], "title": "line"},
        {"field": seen or x["field"], "title": x["title"]},
        *({"field": field, "title": field, "format": ".1f"} for field in ("score", "low", "high")),
        {"field": "when"},
        {"field": "cases"},
        *([{"field": "load", "format": ".3f"}] if "load" in data[0] else []),
    ]
    layers = [*_lines(x, colour, tooltip), *_room(x)]
    if any(record["untouched"] is not None for record in data):
        layers = [_UNTOUCHED, *layers]
    return {
        "data": {"values": ranged(data)},
        "facet": {"field": "metric", "type": "nominal", "sort": shown, "title": None},
        "columns": 4,
        "spacing": 54,
        "bounds": "flush",
        "spec": {"width": 204, "height": 200, "layer": layers},
        "resolve": {"scale": {"y": "independent"}},
    }


_UNTOUCHED: Spec = {
    "mark": {"type": "rule", "strokeDash": [4, 4], "color": "#9aa0a8"},
    "encoding": {"y": {"field": "untouched", "aggregate": "mean"}},
}


def _lines(x: Spec, colour: Spec, tooltip: Sequence[Spec]) -> list[Spec]:
    """Intervals, lines and dots; those of a name that was clicked on stand out."""
    score: Spec = {
        "field": "score",
        "type": "quantitative",
        "title": None,
        "scale": {"zero": False, "nice": 5},
        "axis": {"tickCount": 5},
    }
    faded: Spec = {"condition": {"param": "chosen", "value": 1}, "value": 0.12}
    encoding: Spec = {"x": x, "y": score, "color": colour, "opacity": faded}
    ends: Spec = {"y": {**score, "field": "low"}, "y2": {"field": "high"}}
    chosen = {
        "name": "chosen",
        "select": {"type": "point", "fields": [colour["field"]]},
        "bind": "legend",
    }
    return [
        {"mark": {"type": "rule", "strokeWidth": 1.5}, "encoding": {**encoding, **ends}},
        {"mark": {"type": "line", "strokeWidth": 2}, "encoding": encoding},
        {
            "mark": {"type": "circle", "size": 48, "opacity": 1},
            "params": [chosen],
            "encoding": {**encoding, "tooltip": tooltip},
        },
    ]


def ranged(data: Sequence[Any], least: float = 4.0) -> list[Any]:
    """The data with the ends of its panel's axis: scores that are all alike still span something.

    Ends are those of the intervals, `least` points apart or more, and never above 100.
    """
    ends: dict[str, tuple[float, float]] = {}
    for record in data:
        known = [v for f in ("score", "low", "high") if (v := record[f]) is not None]
        low, high = ends.get(record["metric"], (100.0, 0.0))
        ends[record["metric"]] = min(low, *known), max(high, *known)
    for metric, (low, high) in ends.items():
        short = max(0.0, least - (high - low))
        top = min(100.0, high + short / 2)
        ends[metric] = max(0.0, min(low, top - least)), top
    return [{**r, "bottom": ends[r["metric"]][0], "top": ends[r["metric"]][1]} for r in data]


def _room(x: Spec) -> list[Spec]:
    """Marks that cannot be seen and hold a panel's axis open."""
    return [
        {
            "mark": {"type": "point", "opacity": 0, "tooltip": False},
            "encoding": {"x": x, "y": {"field": end, "type": "quantitative"}},
        }
        for end in ("bottom", "top")
    ]
