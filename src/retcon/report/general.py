"""What was read of models as a whole: ordinary text and tasks, against the untouched model."""

from typing import Any

from retcon.report.conditions import Arm, names_of
from retcon.report.results import Results
from retcon.scoring.intervals import Estimate
from retcon.scoring.readings import Reading, change_over_all, ratio

Record = dict[str, Any]


def drift(results: Results, arm: Arm) -> Estimate | None:
    """Perplexity after the last batch over that before the first edit; None where not read."""
    ends = _ends(results, arm)
    return None if ends is None else _ratio(*ends)


def kept(results: Results, arm: Arm) -> Estimate | None:
    """Accuracy over all items of all tasks, after minus before, in points; None where not read."""
    ends = _ends(results, arm)
    return None if ends is None else _change(*ends)


def over_time(results: Results) -> list[Record]:
    """Both, by how many edits had been written, for arms that were read in between; first seed."""
    arms = [arm for arm in results.arms if len(results.study.general(arm.runs[0].cell)) > 2]
    names = names_of(arms)
    found: list[Record] = []
    for arm in arms:
        first, *later = results.study.general(arm.runs[0].cell)
        for one in (first, *later):
            for measure, value in (
                ("perplexity, times that of the untouched model", _ratio),
                ("accuracy over all tasks, points", _change),
            ):
                estimate = value(first.reading, one.reading)
                if estimate is not None and estimate.mean is not None:
                    found.append({
                        "edits": one.at, "measure": measure, "value": estimate.mean,
                        "low": estimate.low, "high": estimate.high, "when": one.when,
                        "series": names[arm.setting],
                    })  # fmt: skip
    return found


def _ends(results: Results, arm: Arm) -> tuple[Reading, Reading] | None:
    found = results.study.general(arm.runs[0].cell)
    finals = [one.reading for one in found if one.when == "final"]
    return (found[0].reading, finals[-1]) if finals else None


def _ratio(before: Reading, after: Reading) -> Estimate | None:
    if before.perplexity is None or after.perplexity is None:
        return None
    return ratio(before.perplexity, after.perplexity)


def _change(before: Reading, after: Reading) -> Estimate | None:
    if not before.abilities:
        return None
    return change_over_all(before.abilities, after.abilities)
