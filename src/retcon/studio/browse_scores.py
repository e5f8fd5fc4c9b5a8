"""Tables of one cell: its scores by time, its settings, its batches, and what the model says."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from retcon.errors import DamagedCell
from retcon.report.conditions import Arm
from retcon.report.numbers import MISSING, fixed
from retcon.report.results import Results, moved
from retcon.report.tables import TIMES_IN_WORDS, Table
from retcon.scoring.metrics import UNABLE, Place, metrics, unable
from retcon.studio.browse_grid import GridRow
from retcon.study.study import Study

# So many batches are shown at most.
_BATCHES = 200


def scores_of(results: Results, arm: Arm) -> list[Table]:
    """Scores of a cell, a row a metric and a column a time: the main ones, and the further ones."""
    shown = metrics("headline", "table")
    times = [w for w in TIMES_IN_WORDS if any(results.has(arm, w, m.name) for m in shown)]
    words = "; ".join(f"{when}: {TIMES_IN_WORDS[when]}" for when in times)
    note = f"Means with 95 % intervals, clustered by relation. {words}."
    titles: Mapping[str, Place] = {"Scores": "headline", "Further scores": "table"}
    return [
        Table(title, note, ("score", *times), tuple(_scores(results, arm, place, times)))
        for title, place in titles.items()
    ]


def _scores(
    results: Results, arm: Arm, place: Place, times: Sequence[str]
) -> Iterator[tuple[str, ...]]:
    for metric in metrics(place):
        levels = [results.estimate(arm, when, metric.name) for when in times]
        if any(one.mean is not None for one in levels):
            mark = unable(metric, lambda name: results.estimate(arm, "pre", name)) and f", {UNABLE}"
            title = f"{metric.title}{metric.scale.unit and f', {metric.scale.unit}'}{mark}"
            yield (title, *(metric.scale.told(one) for one in levels))


def about(study: Study, cell: str, row: GridRow) -> Table:
    """Settings of a cell, and what made it."""
    named = [("cell", cell), ("block", ", ".join(row.blocks)), ("state", row.state.words)]
    try:
        finished = study.finished_cell(cell) if study.is_done(cell) else None
        resolved = {} if finished is None else finished.resolved()
        environment = {} if finished is None else finished.environment()
        weights = None if finished is None else finished.weights()
    except DamagedCell as error:
        return Table("What it is", "", ("", "value"), (*named, ("damage", str(error))))
    values = {
        **_flat(resolved, ""),
        "sha256 of the edited weights": weights,
        **_flat(environment, "made with "),
    }
    known = ((name, _told(value)) for name, value in values.items() if value is not None)
    return Table("What it is", "", ("", "value"), (*named, *known))


def _flat(record: Mapping[str, Any], before: str) -> dict[str, Any]:
    """A record with the entries of its records beside the others."""
    flat: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{before}{name}: ")
        else:
            flat[f"{before}{name}"] = value
    return flat


def _told(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or MISSING
    return str(value)


def batches(study: Study, cell: str) -> Table:
    """The batches of a cell whose edits are carried; of very many, one in several."""
    steps = study.steps(cell)
    every = -(-len(steps) // _BATCHES)
    rows = [
        (
            f"{int(str(step['index'])) + 1:,}",
            f"{step['at']:,}",
            f"{step['edits']:,}",
            fixed(float(str(step["seconds"])), 1),
            fixed(moved(step), 2),
            str(step.get("note") or "") or MISSING,
        )
        for step in steps[:: every or 1]
    ]
    columns = ("batch", "facts written", "in the batch", "seconds", "‖W − W₀‖ / ‖W₀‖, %", "note")
    shown = f"One in {every} of {len(steps):,} batches is shown. " if every > 1 else ""
    note = f"{shown}Seconds as if nothing had been in the cache."
    return Table("Batches", note, columns, tuple(rows) if len(rows) > 1 else ())


def said_before_and_after(study: Study, cell: str) -> Table:
    """A few facts with what the model says before and after, where that was kept."""
    columns = ("prompt", "new target", "old target", "before", "after all edits")
    keys = ("prompt", "target", "target_old", "before", "after")
    rows = [tuple(one.get(key) or MISSING for key in keys) for one in study.examples(cell)]
    return Table("In the model's words", "Greedy continuations.", columns, tuple(rows))
