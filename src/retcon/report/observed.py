"""Tables of what was observed beside scores of prompts: text, tasks, metrics of one's own."""

from retcon.report.conditions import Arm
from retcon.report.numbers import MISSING
from retcon.report.results import Results
from retcon.report.tables import (
    TIMES_IN_WORDS,
    Table,
    condition_fields,
    place,
    place_columns,
)
from retcon.scoring.metrics import METRICS, UNABLE, Metric, metrics, unable

_OF_FORMS = (
    f" Where the model {UNABLE}, before any edit it is right about its own old answers no better "
    f"than by chance, and its scores say nothing of edits."
)


def observed(results: Results) -> list[Table]:
    """A table of each such metric, with its change against the untouched model."""
    tables = [_table(results, one) for one in metrics("headline", "table", scored=False)]
    return [table for table in (*tables, unknown(results)) if table.rows]


def unknown(results: Results) -> Table:
    """Metrics that the study observed, and that nothing here enters: a plugin has to be named."""
    study = results.study
    names = dict.fromkeys(name for point in study.points for name in point.metrics)
    why = (
        f"a plugin of the study enters it ({', '.join(study.record.plugins)}): "
        f"retcon --plugin FILE study report DIR"
    )
    rows = [(name, why) for name in names if name not in METRICS.all()]
    return Table("Metrics that are not shown", "", ("metric", "why"), tuple(rows))


def times_of(results: Results, arm: Arm, metric: Metric) -> list[str]:
    """The times at which a metric was observed."""
    return [when for when in TIMES_IN_WORDS if results.has(arm, when, metric.name)]


def _table(results: Results, metric: Metric) -> Table:
    arms = [arm for arm in results.arms if times_of(results, arm, metric)]
    times = [w for w in TIMES_IN_WORDS if any(results.has(arm, w, metric.name) for arm in arms)]
    fields, note = condition_fields(arms)
    rows = [(*place(arm, arms, fields), *_cells(results, arm, metric, times)) for arm in arms]
    better = f" {metric.better.capitalize()} is better." if metric.better else ""
    unit = f" In {metric.scale.unit}." if metric.scale.unit else ""
    text = (
        f"{metric.about}{better}{unit} Intervals are of 95 %; changes are paired over the same "
        f"cases.{_OF_FORMS if metric.control else ''} {note}"
    )
    columns = (*place_columns(fields), "cases", *(TIMES_IN_WORDS[w] for w in times), "change")
    return Table(metric.title, text.strip(), columns, tuple(rows))


def _cells(results: Results, arm: Arm, metric: Metric, times: list[str]) -> tuple[str, ...]:
    levels = [results.estimate(arm, when, metric.name) for when in times]
    cases = next((f"{one.cases:,}" for one in reversed(levels) if one.mean is not None), MISSING)
    told = [metric.scale.told(level) for level in levels]
    if unable(metric, lambda name: results.estimate(arm, "pre", name)):
        told[0] += f", {UNABLE}"
    return (cases, *told, change(results, arm, metric))


def change(results: Results, arm: Arm, metric: Metric) -> str:
    """The change since the untouched model, at the last time at which the metric was observed."""
    times = times_of(results, arm, metric)
    if len(times) < 2 or times[0] != "pre":
        return MISSING
    return metric.scale.change_told(results.change(arm, ("pre", times[-1]), metric.name))
