"""Charts of carried edits: methods side by side, facts as they age, batch sizes as they adapt."""

from retcon.report import general, lifelong
from retcon.report.arms import SCORES, Results
from retcon.report.names import PLAIN
from retcon.report.plots.style import (
    COLOURS,
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
    steps_of,
    titled,
)

_LABELS: Spec = {"labelLimit": 520, "labelFontSize": 11, "title": None, "grid": False}


def side_by_side(results: Results) -> Chart | None:
    """Final scores of every kind of carried edits."""
    data = lifelong.side_by_side(results)
    if not data:
        return None
    y: Spec = {"field": "setting", "type": "nominal", "sort": {"field": "place"}, "axis": _LABELS}
    x: Spec = {"type": "quantitative", "title": "%", "scale": {"zero": False}}
    told = [
        {"field": "setting"},
        *({"field": f, "format": ".1f"} for f in ("score", "low", "high")),
    ]
    panels = [
        {
            "title": metric, "width": 118, "height": {"step": 21},
            "transform": [{"filter": f"datum.metric === '{metric}'"}],
            "layer": [
                {"mark": {"type": "rule", "strokeWidth": 1.5, "color": COLOURS[i]},
                 "encoding": {"y": _first(y, i), "x": {**x, "field": "low"},
                              "x2": {"field": "high"}}},
                {"mark": {"type": "circle", "size": 62, "opacity": 1, "color": COLOURS[i]},
                 "encoding": {"y": _first(y, i), "x": {**x, "field": "score"}, "tooltip": told}},
            ],
        }
        for i, metric in enumerate(("S", *SCORES[:3]))
    ]  # fmt: skip
    body: Spec = {"data": {"values": data}, "hconcat": panels, "spacing": 12}
    return titled(
        "side-by-side", "Carried edits, kind by kind",
        f"Final scores in %, best S first; bars are 95 % intervals.\n{PLAIN}",
        body,
    )  # fmt: skip


def _first(y: Spec, panel: int) -> Spec:
    """Names stand beside the first panel alone."""
    return y if panel == 0 else {**y, "axis": {**_LABELS, "labels": False, "ticks": False}}


def decisions(results: Results) -> Chart | None:
    """Batch sizes over time, where a rule decides; and where targets were made anew."""
    data = lifelong.decisions(results)
    if not data:
        return None
    x = facts_written(4)
    y: Spec = {"field": "size", "type": "quantitative", "title": "facts in the batch"}
    told: list[Spec] = [{"field": f} for f in ("edits", "size", "tried", "refreshed", "note")]
    layer: list[Spec] = [
        {"transform": [{"filter": "datum.refreshed"}],
         "mark": {"type": "rule", "color": "#E69F00", "opacity": 0.55}, "encoding": {"x": x}},
        *steps_of({"x": x, "y": y, "color": {"value": COLOURS[0]}}, told),
        {"transform": [{"filter": "datum.tried > 0"}],
         "mark": {"type": "point", "shape": "triangle-down", "size": 70, "filled": True,
                  "color": COLOURS[1]}, "encoding": {"x": x, "y": y, "tooltip": told}},
    ]  # fmt: skip
    body = by_setting(data, {"width": 285, "height": 150, "layer": layer})
    body["resolve"] = {"scale": {"y": "independent"}}
    return titled(
        "decisions", "What adapts, as facts are written",
        "Facts in each batch; lines: targets made anew; triangles: larger batches were taken back "
        f"first.\n{PLAIN}", body,
    )  # fmt: skip


def ridges(results: Results) -> Chart | None:
    """λ as facts are written, where it follows what has been spent."""
    data = lifelong.ridges(results)
    if not data:
        return None
    x = facts_written(5)
    y: Spec = {"field": "ridge", "type": "quantitative", "title": "λ",
               "scale": {"zero": False}, "axis": {"tickCount": 5}}  # fmt: skip
    told: list[Spec] = [{"field": "series"}, {"field": "edits"},
                        *({"field": f, "format": ".4~g"} for f in ("ridge", "energy"))]  # fmt: skip
    colour = {**series_colour(data), "legend": {"columns": 1, "title": None}}
    layer = steps_of({"x": x, "y": y, "color": colour}, told)
    return titled(
        "ridges", "How λ follows what has been spent",
        "λ of each batch, raised where the energy of the whole change is above its budget, "
        f"first seed.\n{PLAIN}",
        {"data": {"values": data}, "width": 620, "height": 220, "layer": layer},
    )  # fmt: skip


def pareto(results: Results) -> Chart | None:
    """Precision, preservation and seconds of every kind; those on the front are named."""
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    data = [
        {**r, "series": r["setting"].split(",")[0], "letter": next(letters, "") * r["front"]}
        for r in sorted(
            lifelong.trade_offs(results), key=lambda r: (-r["front"], r["preservation"])
        )
    ]
    if not data:
        return None
    told = [{"field": "setting"}, *(
        {"field": f, "format": ".1f"} for f in ("preservation", "precision")
    ), {"field": "seconds", "format": ".2f", "title": "seconds an edit"}]  # fmt: skip
    place: Spec = {"x": PRESERVATION, "y": PRECISION}
    layer: list[Spec] = [
        front_line(),
        {"mark": {"type": "point", "filled": True, "opacity": 0.85},
         "encoding": {**place, "color": series_colour(data), "size": seconds_size(50),
                      "tooltip": told}},
        {"transform": FRONT,
         "mark": {"type": "text", "fontSize": 10, "fontWeight": "bold", "color": INK},
         "encoding": {**place, "text": {"field": "letter"}}},
    ]  # fmt: skip
    names: Spec = {
        "transform": FRONT, "height": {"step": 18}, "width": 10, "view": {"stroke": None},
        "mark": {"type": "text", "align": "left", "fontSize": 11, "limit": 620, "color": INK},
        "encoding": {"y": {"field": "letter", "type": "nominal", "title": None,
                           "axis": {"domain": False, "ticks": False, "labelFontWeight": "bold"}},
                     "text": {"field": "setting"}},
    }  # fmt: skip
    chart: Spec = {"width": 700, "height": 360, "layer": layer}
    return titled(
        "pareto", "Precision against preservation, kind by kind",
        "Final scores at the N of most kinds. Dashed and lettered: those that no other beats in "
        f"both.\n{PLAIN}", {"data": {"values": data}, "vconcat": [chart, names], "spacing": 14},
    )  # fmt: skip


def as_a_whole(results: Results) -> Chart | None:
    """Perplexity of ordinary text and accuracy over tasks, by edits written."""
    data = general.over_time(results)
    if not data:
        return None
    x = facts_written(5)
    y: Spec = {"field": "value", "type": "quantitative", "title": None, "scale": {"zero": False}}
    told = [{"field": "series"}, {"field": "edits"}, {"field": "when"},
            *({"field": f, "format": ".3f"} for f in ("value", "low", "high"))]  # fmt: skip
    colour = {**series_colour(data), "legend": {"columns": 1, "title": None}}
    layer: list[Spec] = [
        {"mark": {"type": "rule", "strokeWidth": 1.5},
         "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"},
                      "color": colour}},
        {"mark": {"type": "line", "strokeWidth": 2}, "encoding": {"x": x, "y": y, "color": colour}},
        {"mark": {"type": "circle", "size": 48, "opacity": 1},
         "encoding": {"x": x, "y": y, "color": colour, "tooltip": told}},
    ]  # fmt: skip
    body: Spec = {
        "data": {"values": data},
        "facet": {"field": "measure", "type": "nominal", "title": None, "sort": "descending"},
        "columns": 2, "spacing": 54,
        "spec": {"width": 420, "height": 220, "layer": layer},
        "resolve": {"scale": {"y": "independent"}},
    }  # fmt: skip
    return titled(
        "as-a-whole", "The model as a whole, as facts are written",
        "Held-out text and common tasks, against the untouched model; bars are 95 % intervals, "
        f"first seed.\n{PLAIN}", body,
    )  # fmt: skip


def ages(results: Results) -> Chart | None:
    """ES by when a fact was written and when it was asked again."""
    data = lifelong.ages(results)
    if not data:
        return None
    rows = [since for _, since in distinct((record["age"], record["since"]) for record in data)]
    mark = {"type": "rect", "stroke": "white", "strokeWidth": 1}
    encoding: Spec = {
        "x": {"field": "asked", "type": "ordinal", "title": "facts written when asked",
              "axis": {"labelAngle": 0, "labelOverlap": True}},
        "y": {"field": "since", "type": "ordinal", "sort": rows, "title": "fact number"},
        "color": {"field": "score", "type": "quantitative", "title": "ES, %",
                  "scale": {"scheme": "blues", "zero": False}},
        "tooltip": [{"field": "since", "title": "facts"}, {"field": "asked"},
                    {"field": "score", "format": ".1f"}, {"field": "cases"}],
    }  # fmt: skip
    body = by_setting(data, {"width": 260, "height": 150, "mark": mark, "encoding": encoding})
    return titled(
        "ages", "Whether facts last",
        "ES in % of facts (rows: when they were written) at checkpoints (columns), first seed; "
        f"the best six by S.\n{PLAIN}", body,
    )  # fmt: skip
