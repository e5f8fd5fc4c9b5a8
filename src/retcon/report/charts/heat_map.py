"""The heat map of interference: what each fact's write adds at the keys of the others."""

from collections.abc import Mapping, Sequence

from retcon.report.charts.panels import Record
from retcon.report.charts.style import FAINT, INK, Chart, Spec, titled

# In pixels: a cell, and the map at most.
_CELL, _WIDEST = 18, 720
_NAMED = 80
_CAPTION = (
    "What writing the fact of a row alone adds at the key of the fact of a column, in % of its own "
    "residual.\nA fact at its own key is left out."
)


def heat_map(
    names: Sequence[str], shares: Mapping[int, Sequence[Sequence[float]]], note: str = ""
) -> Chart:
    """Draw shares as coloured cells, a map for each layer.

    Args:
        names: of the facts, no two alike.
        shares: by layer, a row for the fact that is written.
        note: a line of the caption.
    """
    data: list[Record] = [
        {"layer": f"layer {layer}", "written": names[i], "at": names[j], "share": 100 * share}
        for layer, rows in shares.items()
        for i, row in enumerate(rows)
        for j, share in enumerate(row)
        if i != j
    ]
    greatest = max(abs(float(record["share"])) for record in data) or 1.0
    body: Spec = {
        "data": {"values": data},
        "facet": {"column": {"field": "layer", "type": "nominal", "sort": None}},
        "spec": _map(names, greatest),
    }
    caption = f"{_CAPTION}\n{note}" if note else _CAPTION
    return titled("interference", "Which fact would disturb which", caption, body)


def _map(names: Sequence[str], greatest: float) -> Spec:
    """One layer's cells.

    Args:
        greatest: where the colours end on both sides.
    """
    size = min(_CELL * len(names), _WIDEST)
    axis: Spec = {
        "domain": False,
        "ticks": False,
        "grid": False,
        "labels": len(names) <= _NAMED,
        "labelFontSize": max(6, min(11, 0.8 * size / len(names))),
        "labelLimit": 220,
        "labelColor": INK,
        "titleColor": FAINT,
    }
    place: Spec = {"type": "nominal", "scale": {"domain": list(names)}}
    colour: Spec = {
        "field": "share",
        "type": "quantitative",
        "title": "% of the residual",
        "scale": {"scheme": "blueorange", "domain": [-greatest, greatest]},
        "legend": {"gradientLength": 240, "format": ".3~g"},
    }
    return {
        "width": size,
        "height": size,
        "mark": {"type": "rect"},
        "encoding": {
            "y": {**place, "field": "written", "title": "written", "axis": axis},
            "x": {
                **place,
                "field": "at",
                "title": "at the key of",
                "axis": {**axis, "labelAngle": -60},
            },
            "color": colour,
            "tooltip": [
                {"field": "written"},
                {"field": "at"},
                {"field": "share", "format": ".1f", "title": "%"},
            ],
        },
    }
