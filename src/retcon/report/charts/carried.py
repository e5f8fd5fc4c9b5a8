"""Charts of carried edits: kinds side by side, facts as they age, batch sizes as they adapt."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from retcon.report.charts.panels import SAID, Record, scored
from retcon.report.charts.style import (
    COLOURS,
    Chart,
    Spec,
    by_setting,
    distinct,
    facts_written,
    line_with_intervals,
    series_colour,
    steps_of,
    titled,
)
from retcon.report.conditions import PLAIN, Arm, names_of
from retcon.report.kinds import compared
from retcon.report.results import SCORES, Results
from retcon.scoring.metrics import METRICS, change, estimate
from retcon.scoring.observations import Moment, Observation

_LABELS: Spec = {"labelLimit": 520, "labelFontSize": 11, "title": None, "grid": False}
_MEASURES = {
    "perplexity": "perplexity, times that of the untouched model",
    "tasks": "accuracy over all tasks, points",
}
_MOST_BARS, _MOST_MAPS, _AGES = 36, 6, 8


def side_by_side(results: Results) -> Chart | None:
    """Final scores of every kind of carried edits, the best S first."""
    arms = compared(results)
    names = names_of(arms)
    data = [
        {**record, "setting": names[arm.condition], "place": place}
        for place, arm in enumerate(arms[:_MOST_BARS])
        for record in scored(results, arm, "final")
    ]
    if not data:
        return None
    return titled(
        "side-by-side",
        "Carried edits, kind by kind",
        f"Final scores in %, best S first; bars are 95 % intervals.\n{PLAIN}",
        rows_of_scores(data),
    )


def rows_of_scores(data: list[Record]) -> Spec:
    """A panel for each score, with a row for each setting in the order of its `place`."""
    shown = {record["metric"] for record in data}
    known = [metric for metric in (SAID, "S", *SCORES[:3]) if metric in shown]
    panels = [_panel(metric, named=metric == known[0]) for metric in known]
    return {"data": {"values": data}, "hconcat": panels, "spacing": 12}


_PANEL_COLOURS: Mapping[str, str] = dict(zip(("S", *SCORES[:3], SAID), COLOURS, strict=False))


def _panel(metric: str, *, named: bool) -> Spec:
    """Scores of a metric, a row a setting; names stand beside one panel alone."""
    axis = _LABELS if named else {**_LABELS, "labels": False, "ticks": False}
    y: Spec = {"field": "setting", "type": "nominal", "sort": {"field": "place"}, "axis": axis}
    x: Spec = {"type": "quantitative", "title": "%", "scale": {"zero": False}}
    colour = _PANEL_COLOURS[metric]
    tooltip = [
        {"field": "setting"},
        *({"field": field, "format": ".1f"} for field in ("score", "low", "high")),
    ]
    return {
        "title": metric,
        "width": 118,
        "height": {"step": 21},
        "transform": [{"filter": f"datum.metric === '{metric}'"}],
        "layer": [
            {
                "mark": {"type": "rule", "strokeWidth": 1.5, "color": colour},
                "encoding": {"y": y, "x": {**x, "field": "low"}, "x2": {"field": "high"}},
            },
            {
                "mark": {"type": "circle", "size": 62, "opacity": 1, "color": colour},
                "encoding": {"y": y, "x": {**x, "field": "score"}, "tooltip": tooltip},
            },
        ],
    }


def decisions(results: Results) -> Chart | None:
    """Batch sizes over time, where a rule decides; and where targets were made anew."""
    arms = [
        a for a in results.arms if a.condition.rule or (a.condition.refresh or "")[:5] == "stale"
    ]
    names = names_of(arms)
    data = [
        {
            "edits": step["at"],
            "size": step["edits"],
            "tried": step.get("tried") or 0,
            "refreshed": bool(step.get("refreshed")),
            "setting": names[arm.condition],
            "note": step.get("note") or "",
        }
        for arm in arms
        for step in results.study.steps(arm.runs[0].cell)
    ]
    if not data:
        return None
    x = facts_written(4)
    y: Spec = {"field": "size", "type": "quantitative", "title": "facts in the batch"}
    tooltip: list[Spec] = [{"field": f} for f in ("edits", "size", "tried", "refreshed", "note")]
    layer: list[Spec] = [
        {
            "transform": [{"filter": "datum.refreshed"}],
            "mark": {"type": "rule", "color": COLOURS[4], "opacity": 0.55},
            "encoding": {"x": x},
        },
        *steps_of({"x": x, "y": y, "color": {"value": COLOURS[0]}}, tooltip),
        {
            "transform": [{"filter": "datum.tried > 0"}],
            "mark": {
                "type": "point",
                "shape": "triangle-down",
                "size": 70,
                "filled": True,
                "color": COLOURS[1],
            },
            "encoding": {"x": x, "y": y, "tooltip": tooltip},
        },
    ]
    body = by_setting(data, {"width": 285, "height": 150, "layer": layer})
    body["resolve"] = {"scale": {"y": "independent"}}
    return titled(
        "decisions",
        "What adapts, as facts are written",
        "Facts in each batch; lines: targets made anew; triangles: larger batches were taken back "
        f"first.\n{PLAIN}",
        body,
    )


def ridges(results: Results) -> Chart | None:
    """λ over time, of kinds for which it follows the energy spent: where it was ever raised."""
    followed = [
        (arm, steps)
        for arm in results.arms
        for steps in [_steps(results, arm.runs[0].cell)]
        if any(step.get("energy") for step in steps) and len({s["ridge"] for s in steps}) > 1
    ]
    names = names_of([arm for arm, _ in followed])
    data = [
        {
            "edits": step["at"],
            "ridge": step["ridge"],
            "series": names[arm.condition],
            "energy": max(step["energy"].values()),
        }
        for arm, steps in followed
        for step in steps
    ]
    if not data:
        return None
    y: Spec = {
        "field": "ridge",
        "type": "quantitative",
        "title": "λ",
        "scale": {"zero": False},
        "axis": {"tickCount": 5},
    }
    tooltip: list[Spec] = [
        {"field": "series"},
        {"field": "edits"},
        *({"field": field, "format": ".4~g"} for field in ("ridge", "energy")),
    ]
    encoding: Spec = {"x": facts_written(5), "y": y, "color": _colour(data)}
    body: Spec = {
        "data": {"values": data},
        "width": 620,
        "height": 220,
        "layer": steps_of(encoding, tooltip),
    }
    return titled(
        "ridges",
        "How λ follows what has been spent",
        "λ of each batch, raised where the energy of the whole change is above its budget, "
        f"first seed.\n{PLAIN}",
        body,
    )


def over_time(results: Results) -> list[Record]:
    """Perplexity and task accuracy by edits written, of arms read in between; first seed."""
    read = {arm.condition: _moments(results, arm) for arm in results.arms}
    arms = [arm for arm in results.arms if len(read[arm.condition]) > 2]
    names = names_of(arms)
    records: list[Record] = []
    for arm in arms:
        moments = read[arm.condition]
        first = next(iter(moments.values()))
        steps = results.study.steps(arm.runs[0].cell)
        for (when, step), rows in moments.items():
            for name, measure in _MEASURES.items():
                one = change(first, rows, name)
                if one.mean is not None:
                    records.append(
                        {
                            "edits": steps[step - 1]["at"] if step else 0,
                            "measure": measure,
                            "value": one.mean,
                            "low": one.low,
                            "high": one.high,
                            "when": when,
                            "series": names[arm.condition],
                        }
                    )
    return records


def _moments(results: Results, arm: Arm) -> dict[Moment, list[Observation]]:
    """Observations of the model as a whole by time, in order."""
    read = [METRICS.find(name) for name in _MEASURES]
    by_moment: dict[Moment, list[Observation]] = defaultdict(list)
    for values in results.study.rows(arm.runs[0].cell).iter_rows():
        row = Observation(*values)
        if any(metric.reads(row.kind) for metric in read):
            by_moment[Moment(row.when, row.step)].append(row)
    return by_moment


def as_a_whole(results: Results) -> Chart | None:
    """Perplexity of ordinary text and accuracy over tasks, by edits written."""
    data = over_time(results)
    if not data:
        return None
    y: Spec = {"field": "value", "type": "quantitative", "title": None, "scale": {"zero": False}}
    encoding: Spec = {"x": facts_written(5), "y": y, "color": _colour(data)}
    tooltip = [
        {"field": "series"},
        {"field": "edits"},
        {"field": "when"},
        *({"field": field, "format": ".3f"} for field in ("value", "low", "high")),
    ]
    layer = line_with_intervals(encoding, tooltip)
    body: Spec = {
        "data": {"values": data},
        "facet": {"field": "measure", "type": "nominal", "title": None, "sort": "descending"},
        "columns": 2,
        "spacing": 54,
        "spec": {"width": 420, "height": 220, "layer": layer},
        "resolve": {"scale": {"y": "independent"}},
    }
    return titled(
        "as-a-whole",
        "The model as a whole, as facts are written",
        "Held-out text and common tasks, against the untouched model; bars are 95 % intervals, "
        f"first seed.\n{PLAIN}",
        body,
    )


def _colour(data: list[Record]) -> Spec:
    """A colour for each series, whose names stand one below the other."""
    return {**series_colour(data), "legend": {"columns": 1, "title": None}}


def ages(results: Results) -> Chart | None:
    """ES of facts by when they were written and when they were asked again."""
    asked_again = [arm for arm in compared(results) if "retention" in arm.point.when]
    names = names_of(asked_again)
    data = [
        {**record, "setting": names[arm.condition]}
        for arm in asked_again[:_MOST_MAPS]
        for record in _by_age(results, arm)
    ]
    if not data:
        return None
    rows = [since for _, since in distinct((record["age"], record["since"]) for record in data)]
    encoding: Spec = {
        "x": {
            "field": "asked",
            "type": "ordinal",
            "title": "facts written when asked",
            "axis": {"labelAngle": 0, "labelOverlap": True},
        },
        "y": {"field": "since", "type": "ordinal", "sort": rows, "title": "fact number"},
        "color": {
            "field": "score",
            "type": "quantitative",
            "title": "ES, %",
            "scale": {"scheme": "blues", "zero": False},
        },
        "tooltip": [
            {"field": "since", "title": "facts"},
            {"field": "asked"},
            {"field": "score", "format": ".1f"},
            {"field": "cases"},
        ],
    }
    mark = {"type": "rect", "stroke": "white", "strokeWidth": 1}
    return titled(
        "ages",
        "Whether facts last",
        "ES in % of facts (rows: when they were written) at checkpoints (columns), first seed; "
        f"the best six by S.\n{PLAIN}",
        by_setting(data, {"width": 260, "height": 150, "mark": mark, "encoding": encoding}),
    )


def _by_age(results: Results, arm: Arm) -> Iterator[Record]:
    cell = arm.runs[0].cell
    written = {step["index"] + 1: int(step["at"]) for step in _steps(results, cell)}
    width = max(1, -(-arm.condition.n // _AGES))
    own = {row.case: written[row.step] for row in results.study.scored(cell, "immediate")}
    groups: dict[tuple[int, int], list[Observation]] = defaultdict(list)
    for when in ("immediate", "retention", "final"):
        for row in results.study.scored(cell, when):
            if row.kind == "rewrite" and row.case in own and row.step in written:
                groups[(own[row.case] - 1) // width, written[row.step]].append(row)
    for (age, asked), rows in sorted(groups.items()):
        mean = estimate(rows, "ES").mean
        if mean is not None:
            yield {
                "since": f"{age * width + 1:,}–{(age + 1) * width:,}",
                "age": age,
                "asked": asked,
                "score": mean,
                "cases": len({row.case for row in rows}),
            }


def _steps(results: Results, cell: str) -> list[Mapping[str, Any]]:
    return list(results.study.steps(cell))
