"""Charts by batch size, by number of facts, and of older facts again.

If there are several families, the plainest is drawn, or the first by another `rank`.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from retcon.report.charts.panels import Record, panels, scored
from retcon.report.charts.style import (
    Chart,
    distinct,
    dodged,
    loaded,
    log2_axis,
    series_colour,
    size_colour,
    titled,
)
from retcon.report.conditions import Arm
from retcon.report.families import (
    Family,
    Rank,
    by_size,
    carried_by_size,
    largest,
    leading,
    name_of,
    plainness,
    states,
)
from retcon.report.results import SCORES, Results
from retcon.scoring.metrics import estimate
from retcon.scoring.observations import Observation


def batch(results: Results, rank: Rank = plainness) -> Chart | None:
    """Scores by batch size, each batch on the untouched model."""
    curves = leading(by_size(results, carried=False, when="immediate", rank=rank))
    return _by_size(
        "batch",
        "Each batch on the untouched model, by batch size",
        "Immediate scores in %. Dashes: NS of the untouched model.",
        _sizes(results, curves, "immediate"),
    )


def sequential(results: Results, when: str, rank: Rank = plainness) -> Chart | None:
    """Scores by sequential batch size at the largest N."""
    curves = leading(largest(carried_by_size(results, when, rank)))
    data = _sizes(results, curves, when)
    number = f"{data[0]['n']:,}" if data else ""
    caption = {
        "immediate": "Immediate scores in %: each fact right after its own batch.",
        "final": "Final scores in %: all facts after the last batch.",
    }[when]
    title = f"{number} carried facts, {when} scores by batch size"
    return _by_size(f"sequential-{when}", title, caption, data)


def factors(results: Results, rank: Rank = plainness) -> Chart | None:
    """Final scores by batch size, one line for each state of what moves with it."""
    curves = [c for c in carried_by_size(results, "final", rank) if len(c) > 1]
    data = _sizes(results, states(curves), "final")
    if len({record["series"] for record in data}) < 2:
        return None
    return _by_size(
        "factors",
        f"What moves with batch size, {data[0]['n']:,} carried facts",
        "Final scores in %, one line for each state of the factors. A level line means that batch "
        "size does nothing.",
        data,
    )


def _sizes(results: Results, curves: Sequence[Family], when: str) -> list[Record]:
    return [
        record
        for curve in curves
        for size, arm in curve.items()
        for record in scored(
            results,
            arm,
            when,
            batch_size=size,
            n=arm.condition.n,
            d_in=arm.point.capacity,
            series=name_of(curve, curves),
        )
    ]


def _by_size(key: str, title: str, caption: str, data: Sequence[Record]) -> Chart | None:
    if len({record["batch_size"] for record in data}) < 2:
        return None
    axis, label = "batch size (log₂)", {}
    if key == "batch":  # where the weights hold one batch at a time
        axis = "batch size B (log₂), load B/d_in"
        label = {"labelExpr": loaded(data[0]["d_in"], ".1r")}
    x = log2_axis("place", axis, distinct(r["batch_size"] for r in data), **label)
    body = panels(dodged(data, "batch_size"), x, series_colour(data), seen="batch_size")
    return titled(key, title, caption, body)


def number(results: Results, when: str, rank: Rank = plainness) -> Chart | None:
    """Scores by number of carried edits, one line a batch size; the load under each N."""
    data = _by_number(results, when, rank)
    if len({record["n"] for record in data}) < 2:
        return None
    width = data[0]["d_in"]
    numbers = distinct(record["n"] for record in data)
    x = log2_axis("n", "facts N (log₂) and load N/d_in", numbers, labelExpr=loaded(width))
    return titled(
        f"number-{when}",
        f"More facts, {when} scores by batch size",
        f"{when.capitalize()} scores in % of runs of N facts. d_in = {width:,}.",
        panels(data, x, size_colour()),
    )


def _by_number(results: Results, when: str, rank: Rank) -> list[Record]:
    groups: dict[tuple[object, ...], dict[tuple[int, int], Arm]] = defaultdict(dict)
    for arm in sorted(results.arms, key=lambda arm: rank(arm.condition)):
        if arm.condition.carried and results.has(arm, when):
            place = arm.condition.n, arm.condition.batch_size
            groups[arm.condition.across_n()].setdefault(place, arm)
    several = [[*arms.values()] for arms in groups.values() if _in_line([*arms.values()])]
    return [
        record
        for arms in several[:1]
        for arm in sorted(arms, key=lambda arm: (arm.condition.batch_size, arm.condition.n))
        for record in scored(
            results,
            arm,
            when,
            n=arm.condition.n,
            batch_size=arm.condition.batch_size,
            d_in=arm.point.capacity,
        )
    ]


def _in_line(arms: Sequence[Arm]) -> bool:
    """True if a batch size has been run at two N: dots alone show no trend."""
    sizes = Counter(arm.condition.batch_size for arm in arms)
    return max(sizes.values()) > 1


def retention(results: Results, rank: Rank = plainness) -> Chart | None:
    """Older facts again, by how many were written since."""
    data = _retained(results, rank)
    if not data:
        return None
    x = log2_axis("since", "facts written since (log₂)", distinct(r["since"] for r in data))
    return titled(
        "retention",
        "What later edits do to earlier ones",
        "Retention scores in %: earlier facts, scored again after 2, 4, 8, … batches.",
        panels(data, x, size_colour(), SCORES[:3]),
    )


def _retained(results: Results, rank: Rank) -> list[Record]:
    """ES, PS, NS by how many facts were written since (powers of two)."""
    data: list[Record] = []
    for arm in _scored_again(results, rank):
        groups: dict[int, list[Observation]] = defaultdict(list)
        for run in arm.runs:
            for since, row in _aged(results, run.cell, arm.condition.batch_size):
                case, relation = f"{run.name} {row.case}", row.relation or f"case {row.case}"
                groups[since].append(row._replace(case=case, relation=relation))
        for since, rows in sorted(groups.items()):
            for metric in SCORES[:3]:
                score = estimate(rows, metric)
                if score.mean is not None:
                    data.append(
                        {
                            "metric": metric,
                            "score": score.mean,
                            "low": score.low,
                            "high": score.high,
                            "cases": score.cases,
                            "since": since,
                            "batch_size": arm.condition.batch_size,
                            "when": "retention",
                            "untouched": None,
                        }
                    )
    return data


def _scored_again(results: Results, rank: Rank) -> list[Arm]:
    """The arms with retention, in the first setting that has some."""
    families = [
        [arm for arm in curve.values() if "retention" in arm.point.when]
        for curve in largest(carried_by_size(results, "immediate", rank))
    ]
    return next((arms for arms in families if arms), [])


def _aged(results: Results, cell: str, size: int) -> Iterator[tuple[int, Observation]]:
    """Rows of retention, each with the facts written since its own batch, as a power of two."""
    own = {row.case: row.step for row in results.study.scored(cell, "immediate")}
    for row in results.study.scored(cell, "retention"):
        if row.case in own and row.step > own[row.case]:
            since = (row.step - own[row.case]) * size
            yield 1 << (since.bit_length() - 1), row
