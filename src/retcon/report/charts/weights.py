"""Charts of what edits cost: precision against preservation, ‖ΔW‖, and where ridges were tuned."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from retcon.report.charts.panels import Record
from retcon.report.charts.style import (
    FRONT,
    INK,
    PRECISION,
    PRESERVATION,
    Chart,
    Spec,
    by_setting,
    distinct,
    facts_written,
    front_line,
    seconds_size,
    series_colour,
    size_colour,
    titled,
)
from retcon.report.conditions import PLAIN, Arm, called, describe, names_of, varying
from retcon.report.families import Rank, carried_by_size, largest, plainness, shared, states
from retcon.report.kinds import compared
from retcon.report.results import SCORES, Results, moved, seconds_per_edit
from retcon.study.points import carries


def pareto(results: Results, rank: Rank = plainness) -> Chart | None:
    """Precision against preservation: of every kind of carried edits, or by batch size."""
    return _pareto_of_kinds(results) or _pareto_by_size(results, rank)


def _pareto_by_size(results: Results, rank: Rank) -> Chart | None:
    curves = largest(carried_by_size(results, "final", rank))
    arms = list({arm.condition: arm for curve in curves for arm in curve.values()}.values())
    fields = ("method", *(f for f in varying(arms, "batch_size", "score") if f != "method"))
    data = priced(results, [(arm, describe(arm.condition, fields)) for arm in arms])
    if len(data) < 2:
        return None
    tooltip = [
        {"field": "setting"},
        {"field": "batch_size", "title": "batch size"},
        *({"field": field, "format": ".1f"} for field in ("preservation", "precision")),
        {"field": "seconds", "format": ".2f", "title": "seconds an edit"},
        {"field": "when"},
    ]
    shape: Spec = {
        "field": "setting",
        "type": "nominal",
        "title": "setting",
        "legend": {"columns": 2, "labelLimit": 330},
    }
    dots: Spec = {
        "mark": {"type": "point", "filled": True, "opacity": 0.9},
        "encoding": {
            "x": PRESERVATION,
            "y": PRECISION,
            "color": size_colour(),
            "tooltip": tooltip,
            "shape": shape,
            "size": seconds_size(60),
        },
    }
    body: Spec = {
        "data": {"values": data},
        "width": 700,
        "height": 330,
        "layer": [front_line(), dots],
    }
    return titled(
        "pareto",
        "Precision against preservation, by batch size and seconds",
        "Final scores at the largest N, every setting. Dashed: settings that no other beats in "
        "both.",
        body,
    )


def _pareto_of_kinds(results: Results) -> Chart | None:
    """Every kind, baselines among them; those on the front have a letter and are named."""
    arms = compared(results)
    names = names_of(arms)
    points = priced(results, [(arm, names[arm.condition]) for arm in arms])
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    data = [
        {**r, "series": r["setting"].split(",")[0], "letter": next(letters, "") * r["front"]}
        for r in sorted(points, key=lambda r: (-r["front"], r["preservation"]))
    ]
    if not data:
        return None
    tooltip = [
        {"field": "setting"},
        *({"field": field, "format": ".1f"} for field in ("preservation", "precision")),
        {"field": "seconds", "format": ".2f", "title": "seconds an edit"},
    ]
    place: Spec = {"x": PRESERVATION, "y": PRECISION}
    layer: list[Spec] = [
        front_line(),
        {
            "mark": {"type": "point", "filled": True, "opacity": 0.85},
            "encoding": {
                **place,
                "color": series_colour(data),
                "size": seconds_size(50),
                "tooltip": tooltip,
            },
        },
        {
            "transform": FRONT,
            "mark": {"type": "text", "fontSize": 10, "fontWeight": "bold", "color": INK},
            "encoding": {**place, "text": {"field": "letter"}},
        },
    ]
    chart: Spec = {"width": 700, "height": 360, "layer": layer}
    body: Spec = {"data": {"values": data}, "vconcat": [chart, _names_on_front()], "spacing": 14}
    return titled(
        "pareto",
        "Precision against preservation, kind by kind",
        "Final scores at the N of most kinds. Dashed and lettered: those that no other beats in "
        f"both.\n{PLAIN}",
        body,
    )


def _names_on_front() -> Spec:
    axis: Spec = {"domain": False, "ticks": False, "labelFontWeight": "bold"}
    return {
        "transform": FRONT,
        "height": {"step": 18},
        "width": 10,
        "view": {"stroke": None},
        "mark": {"type": "text", "align": "left", "fontSize": 11, "limit": 620, "color": INK},
        "encoding": {
            "y": {"field": "letter", "type": "nominal", "title": None, "axis": axis},
            "text": {"field": "setting"},
        },
    }


def priced(results: Results, named: Sequence[tuple[Arm, str]]) -> list[Record]:
    """Final precision and preservation of arms, and seconds; `front`: nothing beats them in both.

    Precision is the harmonic mean of ES and PS, preservation is NS.
    """
    records: list[Record] = []
    for arm, name in named:
        es, ps, ns = (results.estimate(arm, "final", metric) for metric in SCORES[:3])
        if es.mean and ps.mean and ns.mean is not None:
            records.append(
                {
                    "precision": 2 / (1 / es.mean + 1 / ps.mean),
                    "preservation": ns.mean,
                    "low": ns.low,
                    "high": ns.high,
                    "batch_size": arm.condition.batch_size,
                    "seconds": seconds_per_edit(results, arm),
                    "setting": name,
                    "when": "final",
                }
            )
    ordered = sorted(records, key=lambda r: (-r["preservation"], -r["precision"]))
    best = [-1.0, *accumulate((r["precision"] for r in ordered), max)]
    return [
        {**record, "front": record["precision"] > before}
        for record, before in zip(ordered, best, strict=False)
    ]


def norms(results: Results, rank: Rank = plainness) -> Chart | None:
    """‖W − W₀‖ as a share of ‖W₀‖ by edits written."""
    data = _norms(results, rank)
    if not data:
        return None
    encoding: Spec = {
        "x": facts_written(4),
        "y": {"field": "moved", "type": "quantitative", "title": "‖W − W₀‖ / ‖W₀‖, %"},
        "color": size_colour(),
        "tooltip": [
            {"field": "setting"},
            {"field": "batch_size", "title": "batch size"},
            {"field": "edits"},
            {"field": "moved", "format": ".2f"},
        ],
    }
    layer: list[Spec] = [
        {"mark": {"type": "line", "strokeWidth": 2}, "encoding": encoding},
        {"mark": {"type": "circle", "size": 26, "opacity": 1}, "encoding": encoding},
    ]
    return titled(
        "norms",
        "How far the weights move",
        "Norm of all edits so far as a share of the norm of the layer's own weights, first seed.",
        by_setting(data, {"width": 285, "height": 170, "layer": layer}),
    )


def _norms(results: Results, rank: Rank) -> list[Record]:
    curves = states(carried_by_size(results, "final", rank))
    arms = [arm for curve in curves for arm in curve.values()]
    fields = varying(arms, "batch_size", "method", "score")
    return [
        {"edits": step["at"], "moved": share, "batch_size": size, "setting": condition}
        for curve in curves
        for condition in [describe(shared(curve), fields) or "all"]
        for size, arm in curve.items()
        for step in _thinned(results.study.steps(arm.runs[0].cell))
        if (share := moved(step)) is not None
    ]


def _thinned(steps: Sequence[Mapping[str, Any]], most: int = 60) -> list[Mapping[str, Any]]:
    every = max(1, len(steps) // most)
    kept = list(steps[::every])
    return kept if kept and kept[-1] is steps[-1] else [*kept, *steps[-1:]]


def tuning(results: Results) -> Chart | None:
    """S by ridge, for each ridge that was tuned; the one that was taken has a ring."""
    data = [
        {
            "ridge": ridge,
            "score": score,
            "chosen": ridge == one.ridge,
            "series": f"{called(one.method)}, batches of {one.batch_size:,}"
            f"{', carried' * carries(one.schedule)}, seed {one.seed}",
            "model": one.model,
            "n": one.n,
        }
        for one in results.study.tuned
        for ridge, score in zip(one.ridges, one.scores, strict=True)
        if score is not None
    ]
    if not data:
        return None
    x: Spec = {
        "field": "ridge",
        "type": "quantitative",
        "title": "ridge λ (log)",
        "scale": {"type": "log"},
        "axis": {"grid": False, "values": distinct(r["ridge"] for r in data), "format": "~s"},
    }
    y: Spec = {"field": "score", "type": "quantitative", "title": "S, %", "scale": {"zero": False}}
    encoding: Spec = {"x": x, "y": y, "color": series_colour(data)}
    tooltip = [{"field": "series"}, {"field": "ridge"}, {"field": "score", "format": ".1f"}]
    layer: list[Spec] = [
        {"mark": {"type": "line", "strokeWidth": 2}, "encoding": encoding},
        {
            "mark": {"type": "circle", "size": 50, "opacity": 1},
            "encoding": {**encoding, "tooltip": tooltip},
        },
        {
            "transform": [{"filter": "datum.chosen"}],
            "mark": {"type": "point", "size": 220, "strokeWidth": 2},
            "encoding": encoding,
        },
    ]
    return titled(
        "tuning",
        "Where ridges were tuned",
        f"S in %, on {data[0]['n']:,} facts kept for this under their seed. Ringed: the chosen "
        "ridge.",
        {"data": {"values": data}, "width": 520, "height": 230, "layer": layer},
    )
