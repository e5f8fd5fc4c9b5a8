"""Charts of effects with their intervals, a row each: what decides verdicts, and what differs."""

from collections.abc import Sequence

from retcon.report.charts.carried import rows_of_scores
from retcon.report.charts.panels import Record, scored
from retcon.report.charts.style import COLOURS, INK, VERDICTS, Chart, Spec, titled
from retcon.report.conditions import varying
from retcon.report.findings import Finding
from retcon.report.ranking import Comparison
from retcon.report.results import Results
from retcon.report.verdicts import MARGIN

BLUE: Spec = {"value": COLOURS[0]}
_BAND = f"The band is ±{MARGIN:.0f} point"
_MOST_ROWS = 30


def verdicts(findings: Sequence[Finding]) -> Chart | None:
    """All effects that decide a verdict."""
    data: list[Record] = [
        {
            "claim": f"({finding.key}) {effect.text}",
            "effect": effect.estimate.mean,
            "low": effect.estimate.low,
            "high": effect.estimate.high,
            "when": effect.when,
            "verdict": effect.verdict,
        }
        for finding in findings
        for effect in finding.effects
        if effect.decides and effect.estimate.mean is not None
    ]
    if not data:
        return None
    scale = {"domain": list(VERDICTS), "range": list(VERDICTS.values())}
    colour: Spec = {"field": "verdict", "type": "nominal", "title": None, "scale": scale}
    return titled(
        "verdicts",
        "The effects that decide",
        f"Points, with 95 % intervals. {_BAND}, the smallest effect of interest.",
        _forest(data, "claim", colour),
    )


def differences(comparison: Comparison) -> Chart | None:
    """The conditions of a comparison against the best of them."""
    ranking = comparison.ranking
    data: list[Record] = [
        {
            "condition": comparison.names[key],
            "effect": effect.mean,
            "low": effect.low,
            "high": effect.high,
            "when": ranking.when,
        }
        for key, effect in [*ranking.differences.items()][:_MOST_ROWS]
    ]
    if not data:
        return None
    return titled(
        "differences",
        f"{ranking.metric.replace('_', ' ')} against that of the best: "
        f"{comparison.names[ranking.best]}",
        f"Paired differences of {ranking.when} scores over {comparison.n:,} facts, in points. "
        f"{_BAND}.{_usual(comparison)}",
        _forest(data, "condition", BLUE),
    )


def conditions(results: Results, comparison: Comparison) -> Chart | None:
    """Scores of the conditions of a comparison, where they are no points on an axis."""
    arms = [*comparison.arms.values()]
    if len(varying(arms)) < 2 and set(varying(arms)) <= {"layers", "batch_size"}:
        return None
    when, keys = comparison.ranking.when, [*comparison.ranking.scores][:_MOST_ROWS]
    data = [
        {**record, "setting": comparison.names[key], "place": place}
        for place, key in enumerate(keys)
        for record in scored(results, comparison.arms[key], when)
    ]
    if not data:
        return None
    title = f"Scores of the {len(keys)} conditions that are compared"
    caption = (
        f"{when.capitalize()} scores in %, {comparison.n:,} facts, the best first; bars are 95 % "
        f"intervals.{_usual(comparison)}"
    )
    return titled("conditions", title, caption, rows_of_scores(data))


def _usual(comparison: Comparison) -> str:
    """A line of a caption: all that goes without saying in the names of conditions."""
    return f"\nUnless named: {comparison.usual}." if comparison.usual else ""


def _forest(data: Sequence[Record], field: str, colour: Spec) -> Spec:
    return {
        "data": {"values": list(data)},
        "width": 480,
        "height": {"step": 30, "for": "position"},
        "layer": bars(data, field, colour),
    }


def bars(data: Sequence[Record], field: str, colour: Spec) -> list[Spec]:
    """Effects as dots with intervals, one row each, the margin as a band, zero as a line."""
    y: Spec = {
        "field": field,
        "type": "nominal",
        "sort": None,
        "title": None,
        "axis": {
            "labelLimit": 520,
            "labelColor": INK,
            "domain": False,
            "ticks": False,
            "grid": True,
            "labelPadding": 10,
        },
    }
    x: Spec = {
        "type": "quantitative",
        "title": "points of the score",
        "axis": {"grid": False, "tickCount": 6},
    }
    tooltip = [
        {"field": field, "title": "effect of"},
        *({"field": f, "format": "+.2f", "title": f} for f in ("effect", "low", "high")),
        {"field": "when"},
    ]
    several = len({record["when"] for record in data}) > 1
    shape: Spec = {
        "field": "when",
        "type": "nominal",
        "title": None,
        "legend": {} if several else None,
        "scale": {"domain": ["immediate", "final"], "range": ["circle", "diamond"]},
    }
    place: Spec = {"y": y, "yOffset": {"field": "when", "sort": None}, "color": colour}
    return [
        {
            "mark": {"type": "rect", "color": "#f1efe9"},
            "encoding": {"x": {"datum": -MARGIN, **x}, "x2": {"datum": MARGIN}},
        },
        {"mark": {"type": "rule", "color": "#9aa0a8"}, "encoding": {"x": {"datum": 0, **x}}},
        {
            "mark": {"type": "rule", "strokeWidth": 2},
            "encoding": {**place, "x": {**x, "field": "low"}, "x2": {"field": "high"}},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
            "encoding": {
                **place,
                "x": {**x, "field": "effect"},
                "shape": shape,
                "tooltip": tooltip,
            },
        },
    ]
