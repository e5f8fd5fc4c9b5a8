"""What was read of models as a whole: ordinary text and tasks, against the untouched model."""

from collections import defaultdict
from dataclasses import replace
from typing import Any

from retcon.report.conditions import Arm, names_of
from retcon.report.results import Results
from retcon.scoring.intervals import Estimate
from retcon.scoring.metrics import METRICS, change
from retcon.scoring.observations import Moment, Observation

Record = dict[str, Any]

_MEASURES = {
    "perplexity": "perplexity, times that of the untouched model",
    "tasks": "accuracy over all tasks, points",
}


def drift(results: Results, arm: Arm) -> Estimate | None:
    """Perplexity after the last batch over that before the first edit; None where not read."""
    return _change(results, arm, "perplexity")


def kept(results: Results, arm: Arm) -> Estimate | None:
    """Accuracy over all items of all tasks, after minus before, in points; None where not read."""
    return _change(results, arm, "tasks")


def over_time(results: Results) -> list[Record]:
    """Both, by how many edits had been written, for arms that were read in between; first seed."""
    read = {arm.setting: _moments(results, arm) for arm in results.arms}
    arms = [arm for arm in results.arms if len(read[arm.setting]) > 2]
    names = names_of(arms)
    found: list[Record] = []
    for arm in arms:
        moments = read[arm.setting]
        first = next(iter(moments.values()))
        steps = results.study.steps(arm.runs[0].cell)
        for (when, step), rows in moments.items():
            for name, measure in _MEASURES.items():
                one = change(first, rows, name)
                if one.mean is not None:
                    found.append(
                        {
                            "edits": steps[step - 1]["at"] if step else 0,
                            "measure": measure,
                            "value": one.mean,
                            "low": one.low,
                            "high": one.high,
                            "when": when,
                            "series": names[arm.setting],
                        }
                    )
    return found


def _moments(results: Results, arm: Arm) -> dict[Moment, list[Observation]]:
    """What was read at each time, in order."""
    read = [METRICS.find(name) for name in _MEASURES]
    found: dict[Moment, list[Observation]] = defaultdict(list)
    for values in results.study.rows(arm.runs[0].cell).iter_rows():
        row = Observation(*values)
        if any(metric.reads(row.kind) for metric in read):
            found[Moment(row.when, row.step)].append(row)
    return found


def _change(results: Results, arm: Arm, metric: str) -> Estimate | None:
    found = results.change(replace(arm, runs=arm.runs[:1]), ("pre", "final"), metric)
    return None if found.mean is None else found
