"""Charts of the effects that findings have measured."""

from collections.abc import Mapping, Sequence

from retcon.report.charts.effects import BLUE, bars
from retcon.report.charts.panels import Record
from retcon.report.charts.style import (
    Chart,
    Spec,
    distinct,
    dodged,
    line_with_intervals,
    log2_axis,
    series_colour,
    titled,
)
from retcon.report.results import SCORES
from retcon.report.verdicts import MARGIN, Effect


def between_methods(effects: Sequence[Effect]) -> Chart | None:
    """Paired differences between methods on single edits."""
    data = _records(effects)
    if not data:
        return None
    first, n = data[0]["place"], data[0]["n"]
    shown = [record for record in data if (record["place"], record["n"]) == (first, n)]
    height = {"step": 34, "for": "position"}
    body: Spec = {
        "data": {"values": shown},
        "facet": {"field": "metric", "type": "nominal", "sort": list(SCORES), "title": None},
        "columns": 4,
        "spacing": 26,
        "spec": {"width": 180, "height": height, "layer": bars(shown, "pair", BLUE)},
    }
    return titled(
        "methods",
        f"Methods against each other on single edits, {first}",
        f"Paired differences of immediate scores, in points. The band is ±{MARGIN:.0f} point.",
        body,
    )


def turned_on(effects: Sequence[Effect]) -> Chart | None:
    """Scores with a factor on minus those with it off, by batch size."""
    levels = [effect for effect in effects if effect.about.get("kind") == "level"]
    data = by_factor(_records(levels))
    if not data:
        return None
    x = log2_axis("place", "batch size (log₂)", distinct(r["batch_size"] for r in data))
    data = dodged(data, "batch_size")
    y: Spec = {
        "field": "effect",
        "type": "quantitative",
        "title": None,
        "scale": {"nice": 5},
        "axis": {"tickCount": 5},
    }
    encoding: Spec = {"x": x, "y": y, "color": series_colour(data)}
    tooltip = [
        {"field": "text", "title": "effect"},
        *({"field": field, "format": "+.2f"} for field in ("effect", "low", "high")),
    ]
    layer: list[Spec] = [
        {"mark": {"type": "rule", "color": "#9aa0a8"}, "encoding": {"y": {"datum": 0}}},
        *line_with_intervals(encoding, tooltip),
    ]
    body: Spec = {
        "data": {"values": data},
        "facet": {"field": "metric", "type": "nominal", "sort": list(SCORES), "title": None},
        "columns": 4,
        "spacing": 54,
        "bounds": "flush",
        "spec": {"width": 204, "height": 200, "layer": layer},
        "resolve": {"scale": {"y": "independent"}},
    }
    return titled(
        "effects",
        "What turning one factor on does, by batch size",
        "Paired differences of final scores in points: the factor on minus the factor off, all "
        "else equal.",
        body,
    )


def in_favour(effects: Sequence[Effect], colours: Mapping[str, str]) -> Chart | None:
    """Points that each score gives the bigger batch.

    Args:
        colours: by answer.
    """
    data: list[Record] = [
        {
            "score": effect.about["score"],
            "setting": effect.about["setting"],
            "answer": effect.about["answer"],
            "effect": effect.about["gain"],
            "low": effect.about["gain_low"],
            "high": effect.about["gain_high"],
            "when": effect.when,
        }
        for effect in effects
        if effect.about.get("gain") is not None
    ]
    if not data:
        return None
    colour: Spec = {
        "field": "answer",
        "type": "nominal",
        "title": None,
        "scale": {"domain": list(colours), "range": list(colours.values())},
        "legend": {"columns": 4},
    }
    height = {"step": 30, "for": "position"}
    body: Spec = {
        "data": {"values": data},
        "facet": {"field": "setting", "type": "nominal", "sort": None, "title": None},
        "columns": 1,
        "spacing": 34,
        "spec": {"width": 520, "height": height, "layer": bars(data, "score", colour)},
    }
    return titled(
        "answers",
        "Is a bigger batch better, score by score?",
        "Points by which the largest batches beat the mean of smaller ones, right of 0 where they "
        f"are better. The band is ±{MARGIN:.0f} point.",
        body,
    )


def by_factor(rows: Sequence[Record]) -> list[Record]:
    """Effects of factors, each with its line; of several changes of one factor the first."""
    first: dict[str, str] = {}
    named = [{**row, "series": f"{row['factor']}, {row['place']}"} for row in rows]
    return [r for r in named if first.setdefault(r["series"], r["change"]) == r["change"]]


def _records(effects: Sequence[Effect]) -> list[Record]:
    return [
        {
            **effect.about,
            "metric": effect.metric,
            "effect": effect.estimate.mean,
            "low": effect.estimate.low,
            "high": effect.estimate.high,
            "when": effect.when,
            "text": effect.text,
        }
        for effect in effects
        if effect.estimate.mean is not None
    ]
