"""Charts of scores: by layer, by batch size, by number of facts, and of older facts again."""

from collections.abc import Sequence
from typing import Any

from retcon.report import curves
from retcon.report.arms import SCORES, Results
from retcon.report.plots.style import (
    Chart,
    Spec,
    distinct,
    dodged,
    loaded,
    log2_axis,
    panels,
    series_colour,
    size_colour,
    spaced,
    titled,
)


def layers(results: Results) -> Chart | None:
    """Scores of single edits by layer."""
    data = curves.by_layer(results)
    if not data:
        return None
    swept = distinct(record["layer"] for record in data)
    x: Spec = {"field": "layer", "type": "quantitative", "title": "layer (0 is the first block)",
               "scale": {"domain": [swept[0] - 0.5, swept[-1] + 0.5], "nice": False},
               "axis": {"values": spaced(swept), "grid": False, "format": "d"}}  # fmt: skip
    return titled(
        "layers", "Single edits by layer",
        "Immediate scores in %, one edit at a time on the untouched model. Dashes: NS of the "
        "untouched model.", panels(data, x, series_colour(data)),
    )  # fmt: skip


def batch(results: Results) -> Chart | None:
    """Scores by batch size, each batch on the untouched model."""
    return _by_size(
        "batch", "Each batch on the untouched model, by batch size",
        "Immediate scores in %. Dashes: NS of the untouched model.", curves.by_batch(results),
    )  # fmt: skip


def sequential(results: Results, when: str) -> Chart | None:
    """Scores by sequential batch size at the largest N."""
    data = curves.by_sequential_size(results, when)
    n = f"{data[0]['n']:,}" if data else ""
    said = {
        "immediate": "Immediate scores in %: each fact right after its own batch.",
        "final": "Final scores in %: all facts after the last batch.",
    }[when]
    return _by_size(f"sequential-{when}", f"{n} carried facts, {when} scores by batch size",
                    said, data)  # fmt: skip


def factors(results: Results) -> Chart | None:
    """Final scores by batch size, one line for each state of the factors."""
    data = curves.by_factor(results)
    if len({record["series"] for record in data}) < 2:
        return None
    return _by_size(
        "factors", f"What moves with batch size, {data[0]['n']:,} carried facts",
        "Final scores in %, one line for each state of the factors. A level line means that batch "
        "size does nothing.", data,
    )  # fmt: skip


def _by_size(key: str, title: str, caption: str, data: Sequence[Any]) -> Chart | None:
    if len({record["batch_size"] for record in data}) < 2:
        return None
    axis, label = "batch size (log₂)", {}
    if key == "batch":  # where the weights hold one batch at a time
        axis = "batch size B (log₂), load B/d_in"
        label = {"labelExpr": loaded(data[0]["d_in"], ".1r")}
    x = log2_axis("place", axis, distinct(r["batch_size"] for r in data), **label)
    body = panels(dodged(data, "batch_size"), x, series_colour(data), seen="batch_size")
    return titled(key, title, caption, body)


def number(results: Results, when: str) -> Chart | None:
    """Scores by number of carried edits, one line a batch size; the load under each N."""
    data = curves.by_number(results, when)
    if len({record["n"] for record in data}) < 2:
        return None
    width = data[0]["d_in"]
    x = log2_axis("n", "facts N (log₂) and load N/d_in",
                  distinct(r["n"] for r in data), labelExpr=loaded(width))  # fmt: skip
    return titled(
        f"number-{when}", f"More facts, {when} scores by batch size",
        f"{when.capitalize()} scores in % of runs of N facts. d_in = {width:,}.",
        panels(data, x, size_colour()),
    )  # fmt: skip


def retention(results: Results) -> Chart | None:
    """Older facts again, by how many were written since."""
    data = curves.retained(results)
    if not data:
        return None
    x = log2_axis("since", "facts written since (log₂)", distinct(r["since"] for r in data))
    return titled(
        "retention", "What later edits do to earlier ones",
        "Retention scores in %: earlier facts, scored again after 2, 4, 8, … batches.",
        panels(data, x, size_colour(), SCORES[:3]),
    )  # fmt: skip
