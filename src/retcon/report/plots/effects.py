"""Charts of effects with their intervals, of trade-offs, of ‖ΔW‖, and of tuned ridges."""

from collections.abc import Sequence
from typing import Any

from retcon.report import curves
from retcon.report.arms import SCORES, Results
from retcon.report.findings.claims import MARGIN, Finding
from retcon.report.plots.style import (
    INK,
    PRECISION,
    PRESERVATION,
    VERDICTS,
    Chart,
    Spec,
    by_setting,
    distinct,
    dodged,
    facts_written,
    front_line,
    log2_axis,
    seconds_size,
    series_colour,
    size_colour,
    titled,
)

_POINTS = "points of the score"


def verdicts(findings: Sequence[Finding]) -> Chart | None:
    """All effects that decide, with their intervals."""
    data = curves.deciding(findings)
    if not data:
        return None
    colour: Spec = {
        "field": "verdict", "type": "nominal", "title": None,
        "scale": {"domain": list(VERDICTS), "range": list(VERDICTS.values())},
    }  # fmt: skip
    body = _forest(data, "claim", colour)
    return titled(
        "verdicts", "The effects that decide",
        f"Points, with 95 % intervals. The band is ±{MARGIN:.0f} point, the smallest effect of "
        "interest.", body,
    )  # fmt: skip


def methods(findings: Sequence[Finding]) -> Chart | None:
    """Paired differences between methods on single edits."""
    data = curves.effects(findings, "d")
    if not data:
        return None
    first, n = data[0]["place"], data[0]["n"]
    shown = [record for record in data if (record["place"], record["n"]) == (first, n)]
    colour = {"value": "#0072B2"}
    body = {
        "data": {"values": shown},
        "facet": {"field": "metric", "type": "nominal", "sort": list(SCORES), "title": None},
        "columns": 4,
        "spacing": 26,
        "spec": {
            "width": 180,
            "height": {"step": 34, "for": "position"},
            "layer": _bars(shown, "pair", colour),
        },
    }
    return titled(
        "methods", f"Methods against each other on single edits, {first}",
        f"Paired differences of immediate scores, in points. The band is ±{MARGIN:.0f} point.",
        body,
    )  # fmt: skip


def _forest(data: Sequence[Any], field: str, colour: Spec) -> Spec:
    return {
        "data": {"values": list(data)},
        "width": 480,
        "height": {"step": 30, "for": "position"},
        "layer": _bars(data, field, colour),
    }


def _bars(data: Sequence[Any], field: str, colour: Spec) -> list[Spec]:
    """Effects as dots with intervals, one row each, the margin as a band, zero as a line."""
    y: Spec = {
        "field": field, "type": "nominal", "sort": None, "title": None,
        "axis": {"labelLimit": 520, "labelColor": INK, "domain": False, "ticks": False,
                 "grid": True, "labelPadding": 10},
    }  # fmt: skip
    x: Spec = {"type": "quantitative", "title": _POINTS, "axis": {"grid": False, "tickCount": 6}}
    told = [{"field": field, "title": "effect of"}, *(
        {"field": f, "format": "+.2f", "title": f} for f in ("effect", "low", "high")
    ), {"field": "when"}]  # fmt: skip
    legend: Spec | None = {} if len({record["when"] for record in data}) > 1 else None
    several: Spec = {"field": "when", "type": "nominal", "title": None, "legend": legend,
               "scale": {"domain": ["immediate", "final"],
                         "range": ["circle", "diamond"]}}  # fmt: skip
    beside: Spec = {"field": "when", "sort": None}
    return [
        {"mark": {"type": "rect", "color": "#f1efe9"},
         "encoding": {"x": {"datum": -MARGIN, **x}, "x2": {"datum": MARGIN}}},
        {"mark": {"type": "rule", "color": "#9aa0a8"}, "encoding": {"x": {"datum": 0, **x}}},
        {"mark": {"type": "rule", "strokeWidth": 2},
         "encoding": {"y": y, "yOffset": beside, "x": {**x, "field": "low"},
                      "x2": {"field": "high"}, "color": colour}},
        {"mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
         "encoding": {"y": y, "yOffset": beside, "x": {**x, "field": "effect"},
                      "color": colour, "shape": several, "tooltip": told}},
    ]  # fmt: skip


def turned(rows: Sequence[curves.Record]) -> list[curves.Record]:
    """Effects of factors, each with its line; of several changes of one factor the first."""
    first: dict[str, str] = {}
    named = [{**row, "series": f"{row['factor']}, {row['place']}"} for row in rows]
    return [r for r in named if first.setdefault(r["series"], r["change"]) == r["change"]]


def switched(findings: Sequence[Finding]) -> Chart | None:
    """What turning one factor does to S, by batch size."""
    data = turned(curves.effects(findings, "f", kind="level"))
    if not data:
        return None
    x = log2_axis("place", "batch size (log₂)", distinct(r["batch_size"] for r in data))
    data = dodged(data, "batch_size")
    y: Spec = {"field": "effect", "type": "quantitative", "title": None,
               "scale": {"nice": 5}, "axis": {"tickCount": 5}}  # fmt: skip
    colour = series_colour(data)
    told = [{"field": "text", "title": "effect"}, *(
        {"field": f, "format": "+.2f"} for f in ("effect", "low", "high")
    )]  # fmt: skip
    layer: list[Spec] = [
        {"mark": {"type": "rule", "color": "#9aa0a8"}, "encoding": {"y": {"datum": 0}}},
        {"mark": {"type": "rule", "strokeWidth": 1.5},
         "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"},
                      "color": colour}},
        {"mark": {"type": "line", "strokeWidth": 2}, "encoding": {"x": x, "y": y, "color": colour}},
        {"mark": {"type": "circle", "size": 48, "opacity": 1},
         "encoding": {"x": x, "y": y, "color": colour, "tooltip": told}},
    ]  # fmt: skip
    body = {
        "data": {"values": data},
        "facet": {"field": "metric", "type": "nominal", "sort": list(SCORES), "title": None},
        "columns": 4,
        "spacing": 54,
        "bounds": "flush",
        "spec": {"width": 204, "height": 200, "layer": layer},
        "resolve": {"scale": {"y": "independent"}},
    }
    return titled(
        "effects", "What turning one factor on does, by batch size",
        "Paired differences of final scores in points: the factor on minus the factor off, all "
        "else equal.", body,
    )  # fmt: skip


def pareto(results: Results) -> Chart | None:
    """Precision, preservation, batch size and seconds in one picture."""
    data = curves.trade_offs(results)
    if len(data) < 2:
        return None
    told = [{"field": "setting"}, {"field": "batch_size", "title": "batch size"}, *(
        {"field": f, "format": ".1f"} for f in ("preservation", "precision")
    ), {"field": "seconds", "format": ".2f", "title": "seconds an edit"},
        {"field": "when"}]  # fmt: skip
    shape: Spec = {"field": "setting", "type": "nominal", "title": "setting",
                   "legend": {"columns": 2, "labelLimit": 330}}  # fmt: skip
    layer: list[Spec] = [
        front_line(),
        {"mark": {"type": "point", "filled": True, "opacity": 0.9},
         "encoding": {
             "x": PRESERVATION, "y": PRECISION, "color": size_colour(), "tooltip": told,
             "shape": shape, "size": seconds_size(60),
         }},
    ]  # fmt: skip
    body = {"data": {"values": data}, "width": 700, "height": 330, "layer": layer}
    return titled(
        "pareto", "Precision against preservation, by batch size and seconds",
        "Final scores at the largest N, every setting. Dashed: settings that no other beats in "
        "both.", body,
    )  # fmt: skip


def norms(results: Results) -> Chart | None:
    """How far the weights have moved, by edits written."""
    data = curves.norms(results)
    if not data:
        return None
    x = facts_written(4)
    y: Spec = {"field": "moved", "type": "quantitative", "title": "‖W − W₀‖ / ‖W₀‖, %"}
    told = [{"field": "setting"}, {"field": "batch_size", "title": "batch size"},
            {"field": "edits"}, {"field": "moved", "format": ".2f"}]  # fmt: skip
    enc: Spec = {"x": x, "y": y, "color": size_colour(), "tooltip": told}
    layer: list[Spec] = [
        {"mark": {"type": "line", "strokeWidth": 2}, "encoding": enc},
        {"mark": {"type": "circle", "size": 26, "opacity": 1}, "encoding": enc},
    ]
    body = by_setting(data, {"width": 285, "height": 170, "layer": layer})
    return titled(
        "norms", "How far the weights move",
        "Norm of all edits so far as a share of the norm of the layer's own weights, first seed.",
        body,
    )  # fmt: skip


def tuning(results: Results) -> Chart | None:
    """S by ridge, where ridges were tuned."""
    data = curves.tuning(results)
    if not data:
        return None
    x: Spec = {"field": "ridge", "type": "quantitative", "title": "ridge λ (log)",
               "scale": {"type": "log"},
               "axis": {"grid": False, "values": distinct(r["ridge"] for r in data),
                        "format": "~s"}}  # fmt: skip
    y: Spec = {"field": "score", "type": "quantitative", "title": "S, %", "scale": {"zero": False}}
    colour = series_colour(data)
    layer: list[Spec] = [
        {"mark": {"type": "line", "strokeWidth": 2}, "encoding": {"x": x, "y": y, "color": colour}},
        {"mark": {"type": "circle", "size": 50, "opacity": 1},
         "encoding": {"x": x, "y": y, "color": colour,
                      "tooltip": [{"field": "series"}, {"field": "ridge"},
                                  {"field": "score", "format": ".1f"}]}},
        {"transform": [{"filter": "datum.chosen"}],
         "mark": {"type": "point", "size": 220, "strokeWidth": 2},
         "encoding": {"x": x, "y": y, "color": colour}},
    ]  # fmt: skip
    body = {"data": {"values": data}, "width": 520, "height": 230, "layer": layer}
    return titled(
        "tuning", "Where ridges were tuned",
        f"S in %, on {data[0]['n']:,} facts kept for this under their seed. Ringed: the chosen "
        "ridge.", body,
    )  # fmt: skip
