"""Charts as Vega-Lite specifications: plain data, drawn by the page and as PNG and SVG.

Colours are those of Okabe and Ito, told apart by colour-blind readers; ordered things (batch
sizes) take an ordered scale. Bars are 95 % intervals.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

Spec = dict[str, Any]

INK, FAINT, GRID = "#22262b", "#6b7280", "#e8e6e1"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4d4d4d", "#8c6d31")
_METHODS = {"MEMIT": 0, "EMMET": 1, "ROME": 2}
VERDICTS = {
    "reproduced": "#00795a",
    "not reproduced": "#b3430a",
    "inconclusive": "#8a8f98",
}
FONT = "Inter, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"

CONFIG: Spec = {
    "font": FONT,
    "background": "white",
    "view": {"stroke": None},
    "title": {
        "anchor": "start",
        "fontSize": 15,
        "fontWeight": 600,
        "color": INK,
        "offset": 14,
        "subtitleColor": FAINT,
        "subtitleFontSize": 12,
        "subtitlePadding": 5,
    },
    "axis": {
        "gridColor": GRID,
        "domainColor": "#b9bcc2",
        "tickColor": "#b9bcc2",
        "labelColor": FAINT,
        "titleColor": INK,
        "titleFontWeight": 500,
        "labelFontSize": 11,
        "titleFontSize": 12,
        "titlePadding": 8,
        "labelPadding": 4,
    },
    "header": {"labelFontSize": 13, "labelFontWeight": 600, "labelColor": INK, "title": None},
    "legend": {
        "orient": "bottom",
        "labelColor": INK,
        "titleColor": FAINT,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": 500,
        "labelLimit": 420,
        "symbolSize": 90,
        "columns": 3,
        "offset": 14,
    },
}


class Chart(NamedTuple):
    """A chart: its name, what it shows and how to read it, and its specification."""

    key: str
    title: str
    caption: str
    spec: Spec


def titled(key: str, title: str, caption: str, body: Spec) -> Chart:
    """A chart with its title and caption in it, the latter in lines."""
    spec = {"title": {"text": title, "subtitle": caption.split("\n")}, "config": CONFIG, **body}
    return Chart(key, title, caption, spec)


def distinct(values: Iterable[Any]) -> list[Any]:
    """Each value once, in order."""
    return sorted(set(values))


def log2_axis(field: str, title: str, values: Sequence[int], **axis: object) -> Spec:
    """A place on a log₂ axis that is labelled where there are data."""
    ends = [min(values) / 1.25, max(values) * 1.25]
    crowded = len(values) > 5 and max(values) >= 1000
    return {
        "field": field,
        "type": "quantitative",
        "title": title,
        "scale": {"type": "log", "base": 2, "domain": ends, "nice": False},
        "axis": {
            "values": spaced(values),
            "grid": False,
            "labelFlush": False,
            "labelOverlap": "greedy",
            "labelFontSize": 8.5 if crowded else 11,
            **axis,
        },
    }


def loaded(d_in: int, load: str = ".2f") -> str:
    """Labels of two lines: how many facts, and how full they make the matrix."""
    return f"[format(datum.value, ','), format(datum.value / {d_in}, '{load}')]"


def spaced(values: Sequence[int], most: int = 8) -> list[int]:
    """At most so many labels, the last among them."""
    every = -(-len(values) // most)
    return list(reversed(list(reversed(values))[::every]))


def dodged(data: Sequence[Any], field: str) -> list[Any]:
    """The data with a `place` each, a little beside `field`, so that no series hides another."""
    names = _ordered(data)
    step, middle = min(0.12, 0.6 / len(names)), (len(names) - 1) / 2
    return [
        {**record, "place": record[field] * 2 ** (step * (names.index(record["series"]) - middle))}
        for record in data
    ]


def _ordered(data: Sequence[Any]) -> list[str]:
    """The series, methods in one order so that each has its colour in all charts."""
    names = dict.fromkeys(record["series"] for record in data)
    return sorted(names, key=lambda name: _METHODS.get(name.split(",")[0], len(_METHODS)))


def series_colour(data: Sequence[Any]) -> Spec:
    """One colour for each method or setting, in the order of the data."""
    names = _ordered(data)
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(names))]
    scale: Spec = {"domain": names, "range": colours}
    legend: Spec | None = {"columns": 1 if max(map(len, names)) > 45 else 3, "title": None}
    return {"field": "series", "type": "nominal", "scale": scale, "legend": legend}


def size_colour() -> Spec:
    """Batch sizes from light to dark."""
    return {
        "field": "batch_size",
        "type": "ordinal",
        "title": "batch size",
        "scale": {"scheme": {"name": "viridis", "extent": [0.92, 0.05]}},
        "legend": {"columns": 8, "labelExpr": "format(datum.value, ',')"},
    }


PRESERVATION: Spec = {
    "field": "preservation",
    "type": "quantitative",
    "scale": {"zero": False},
    "title": "preservation: final NS, %",
}
PRECISION: Spec = {
    "field": "precision",
    "type": "quantitative",
    "scale": {"zero": False},
    "title": "precision: harmonic mean of final ES and PS, %",
}
FRONT: Sequence[Spec] = ({"filter": "datum.front"},)


def front_line() -> Spec:
    """The line through what nothing beats in both precision and preservation."""
    mark = {"type": "line", "color": FAINT, "strokeDash": [4, 4], "interpolate": "step-after"}
    encoding: Spec = {"x": PRESERVATION, "y": PRECISION, "order": {"field": "preservation"}}
    return {"transform": FRONT, "mark": mark, "encoding": encoding}


def seconds_size(least: int) -> Spec:
    """Seconds an edit as the area of a dot, the smallest of `least` square pixels."""
    scale: Spec = {"range": [least, 420], "zero": False}
    return {
        "field": "seconds",
        "type": "quantitative",
        "title": "seconds an edit",
        "scale": scale,
        "legend": {"tickCount": 3},
    }


def facts_written(ticks: int) -> Spec:
    """An x axis of facts written so far."""
    axis: Spec = {"grid": False, "tickCount": ticks}
    return {"field": "edits", "type": "quantitative", "title": "facts written", "axis": axis}


def line_with_intervals(encoding: Spec, tooltip: Sequence[Spec]) -> list[Spec]:
    """A line with a dot and an interval, from `low` to `high`, at each value."""
    ends: Spec = {"y": {**encoding["y"], "field": "low"}, "y2": {"field": "high"}}
    return [
        {"mark": {"type": "rule", "strokeWidth": 1.5}, "encoding": {**encoding, **ends}},
        {"mark": {"type": "line", "strokeWidth": 2}, "encoding": encoding},
        {
            "mark": {"type": "circle", "size": 48, "opacity": 1},
            "encoding": {**encoding, "tooltip": tooltip},
        },
    ]


def steps_of(encoding: Spec, tooltip: Sequence[Spec]) -> list[Spec]:
    """A line in steps, for values that hold from one batch to the next, with a dot at each."""
    return [
        {"mark": {"type": "line", "interpolate": "step-before"}, "encoding": encoding},
        {
            "mark": {"type": "circle", "size": 26, "opacity": 1},
            "encoding": {**encoding, "tooltip": tooltip},
        },
    ]


def by_setting(data: Sequence[Any], panel: Spec) -> Spec:
    """One small panel for each setting, three side by side."""
    header: Spec = {"labelFontSize": 11, "labelExpr": "split(datum.label, ', ')"}
    facet: Spec = {"field": "setting", "type": "nominal", "title": None, "sort": None}
    return {
        "data": {"values": data},
        "facet": {**facet, "header": header},
        "columns": 3,
        "spacing": 30,
        "spec": panel,
    }
