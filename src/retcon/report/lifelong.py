"""What is told of carried edits by many methods: side by side, over time, and fact by fact."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from math import atanh, isnan, sqrt, tanh
from typing import Any

import polars as pl

from retcon.evaluation.metrics import estimate
from retcon.evaluation.rows import Row
from retcon.report.arms import Arm, Results, Setting, describe, varying
from retcon.report.curves import scored
from retcon.report.tables import MISSING, Table

Record = dict[str, Any]

# Below so many kinds of carried edits, other charts say it all.
_KINDS = 3
_MOST_BARS, _MOST_MAPS, _AGES = 36, 6, 8
_PREDICTORS = {
    "steps": "steps of its target",
    "size": "‖δ‖ / ‖t₀‖",
    "novelty": "novelty of its key",
}


def compared(results: Results) -> list[Arm]:
    """The carried arms of the largest N, where they are of several kinds, by final S."""
    arms = [arm for arm in results.arms if arm.setting.carried and results.has(arm, "final")]
    most = max((arm.setting.n for arm in arms), default=0)
    arms = [arm for arm in arms if arm.setting.n == most]
    kinds = {arm.setting.but("batch_size", "accumulate", "ridge", "score") for arm in arms}
    if len(kinds) < _KINDS:
        return []
    return sorted(arms, key=lambda arm: -(results.estimate(arm, "final", "S").mean or 0.0))


def side_by_side(results: Results) -> list[Record]:
    """Final scores of every kind of carried edits, the best S first."""
    arms = compared(results)
    names = _names(arms)
    return [
        {**record, "setting": names[arm.setting], "place": place}
        for place, arm in enumerate(arms[:_MOST_BARS])
        for record in scored(results, arm, "final")
    ]


def decisions(results: Results) -> list[Record]:
    """Sizes of batches over time where they adapt, and where targets were made anew."""
    arms = [a for a in results.arms if a.setting.rule or (a.setting.refresh or "")[:5] == "stale"]
    names = _names(arms)
    return [
        {
            "edits": step["at"], "size": step["edits"], "tried": step.get("tried") or 0,
            "refreshed": bool(step.get("refreshed")), "setting": names[arm.setting],
            "note": step.get("note") or "",
        }
        for arm in arms
        for step in results.study.steps(arm.runs[0].cell)
    ]  # fmt: skip


def ages(results: Results) -> list[Record]:
    """ES of facts by when they were written and when they were asked again."""
    kept = [arm for arm in compared(results) if "retention" in arm.point.when]
    names = _names(kept)
    return [
        {**record, "setting": names[arm.setting]}
        for arm in kept[:_MOST_MAPS]
        for record in _aged(results, arm)
    ]


def _aged(results: Results, arm: Arm) -> Iterator[Record]:
    cell = arm.runs[0].cell
    written = {step["index"] + 1: int(step["at"]) for step in _steps(results, cell)}
    width = max(1, -(-arm.setting.n // _AGES))
    own = {row.case: written[row.step] for row in results.study.scored(cell, "immediate")}
    found: dict[tuple[int, int], list[Row]] = defaultdict(list)
    for when in ("immediate", "retention", "final"):
        for row in results.study.scored(cell, when):
            if row.kind == "rewrite" and row.case in own and row.step in written:
                found[(own[row.case] - 1) // width, written[row.step]].append(row)
    for (age, asked), rows in sorted(found.items()):
        mean = estimate(rows, "ES").mean
        if mean is not None:
            yield {"since": f"{age * width + 1:,}–{(age + 1) * width:,}", "age": age,
                   "asked": asked, "score": mean, "cases": len({r.case for r in rows})}  # fmt: skip


def difficulty(results: Results) -> Table:
    """Whether anything that is known of a fact before it is written tells how it ends."""
    arms = [arm for arm in compared(results) if arm.runs][:_MOST_BARS]
    names = _names(arms)
    rows = [
        (
            names[arm.setting],
            *(_correlation(facts, name) for name in _PREDICTORS),
            f"{len(facts):,}",
        )
        for arm in arms
        if len(facts := _facts(results, arm.runs[0].cell)) > 3
    ]
    note = (
        "Rank correlations (Spearman) with the final margin of each fact's own prompt, "
        "log p(target) − log p(old target) a token, with 95 % intervals; first seed."
    )
    columns = ("setting", *_PREDICTORS.values(), "facts")
    return Table("What tells how hard a fact is", note, columns, tuple(rows))


def _facts(results: Results, cell: str) -> pl.DataFrame:
    """A row for each scored fact: what was known of it, and its final margin."""
    known: dict[str, list[Any]] = defaultdict(list)
    for step in _steps(results, cell):
        for name, values in (step.get("each") or {}).items():
            known[name] += values
    margins = {
        row.case: row.nll_old - row.nll_new
        for row in results.study.scored(cell, "final")
        if row.kind == "rewrite" and row.nll_old is not None
    }
    if not known or not margins:
        return pl.DataFrame()
    ends = pl.DataFrame({"edit": list(margins), "margin": list(margins.values())})
    return pl.DataFrame(known).join(ends, on="edit")


def _correlation(facts: pl.DataFrame, name: str) -> str:
    asked = facts.filter(pl.col(name).is_not_nan())
    value = asked.select(pl.corr(name, "margin", method="spearman")).item() if len(asked) else None
    if value is None or isnan(value) or len(asked) < 4:
        return MISSING
    around, half = atanh(max(-0.999999, min(0.999999, value))), 1.96 / sqrt(len(asked) - 3)
    return f"{value:+.2f}  [{tanh(around - half):+.2f}, {tanh(around + half):+.2f}]"


def _steps(results: Results, cell: str) -> list[Mapping[str, Any]]:
    return list(results.study.steps(cell))


def _names(arms: Sequence[Arm]) -> dict[Setting, str]:
    """Settings in words, by what tells them apart."""
    fields = dict.fromkeys(("method", *varying(arms, "score")))
    return {arm.setting: describe(arm.setting, fields) or "all" for arm in arms}
