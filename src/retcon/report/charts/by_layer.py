"""The chart of single edits by layer."""

from collections.abc import Iterable

from retcon.report.charts.panels import Record, panels, scored
from retcon.report.charts.style import Chart, Spec, distinct, series_colour, spaced, titled
from retcon.report.conditions import called
from retcon.report.layers import sweeps
from retcon.report.results import Results


def layers(results: Results) -> Chart | None:
    """Scores of single edits by layer, one line a method."""
    data = by_layer(results)
    if not data:
        return None
    swept = distinct(record["layer"] for record in data)
    x: Spec = {
        "field": "layer",
        "type": "quantitative",
        "title": "layer (0 is the first block)",
        "scale": {"domain": [swept[0] - 0.5, swept[-1] + 0.5], "nice": False},
        "axis": {"values": spaced(swept), "grid": False, "format": "d"},
    }
    return titled(
        "layers",
        "Single edits by layer",
        "Immediate scores in %, one edit at a time on the untouched model. Dashes: NS of the "
        "untouched model.",
        panels(data, x, series_colour(data)),
    )


def by_layer(results: Results) -> list[Record]:
    """Scores by layer and method; of each model and method those of the largest sweep."""
    swept = {
        (condition.model, condition.method): sweep
        for sweep in reversed(sweeps(results))
        for condition in [next(iter(sweep.values())).condition]
    }
    return [
        record
        for (model, method), sweep in sorted(swept.items())
        for places, arm in sweep.items()
        if len(places) == 1
        for record in scored(
            results, arm, "immediate", layer=places[0], series=_who(model, method, swept)
        )
    ]


def _who(model: str, method: str, among: Iterable[tuple[str, str]]) -> str:
    several = len({name for name, _ in among}) > 1
    return f"{called(method)}, {model}" if several else called(method)
