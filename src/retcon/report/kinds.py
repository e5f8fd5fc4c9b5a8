"""Tables of carried edits of many kinds: side by side, and what tells how hard a fact is."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import polars as pl

from retcon.report.conditions import PLAIN, Arm, names_of
from retcon.report.numbers import MISSING, share, spanned
from retcon.report.results import SCORES, Results, seconds_per_edit
from retcon.report.tables import Table
from retcon.scoring.intervals import Estimate, combine, rank_correlation

# Below so many kinds of carried edits, other charts say it all.
_KINDS = 3
_MOST_ROWS = 36
_PREDICTORS = {
    "steps": "steps of its target",
    "size": "‖δ‖ / ‖t₀‖",
    "novelty": "novelty of its key",
}


def several(results: Results) -> list[list[Arm]]:
    """The carried arms of each N of which there are several kinds, by final S; most kinds first."""
    by_number: dict[int, list[Arm]] = defaultdict(list)
    for arm in results.arms:
        if arm.condition.carried and results.has(arm, "final"):
            by_number[arm.condition.n].append(arm)
    known = sorted(by_number.items(), key=lambda item: (-_kinds(item[1]), -item[0]))
    return [
        sorted(arms, key=lambda arm: -(results.estimate(arm, "final", "S").mean or 0.0))
        for _, arms in known
        if _kinds(arms) >= _KINDS
    ]


def compared(results: Results) -> list[Arm]:
    """The carried arms of the N of which there are most kinds."""
    return next(iter(several(results)), [])


def _kinds(arms: Sequence[Arm]) -> int:
    return len({arm.condition.but("batch_size", "accumulate", "ridge", "score") for arm in arms})


def kinds(results: Results) -> Table:
    """A table of every kind of carried edits, with its costs, by N; the best S first."""
    groups = several(results)
    free = [
        metric
        for metric in results.measured(
            [arm for arms in groups for arm in arms], "final", "headline"
        )
        if metric.freely
    ]
    read = (*(metric.name for metric in free), "S", *SCORES[:3])
    rows = [
        (
            f"{arm.condition.n:,}",
            names[arm.condition],
            *(share(results.estimate(arm, "final", name)) for name in read),
            _backward(results, arm),
            *_whole(results, arm),
            _seconds(results, arm),
        )
        for arms in groups
        for names in [names_of(arms)]
        for arm in arms
    ]
    note = (
        f"Final scores in %, with 95 % intervals. {PLAIN} Backward transfer: S of all facts at the "
        "end, minus S of each right after its own batch. Perplexity of held-out text, as a "
        "multiple of the untouched model's, and accuracy over the items of all tasks, minus its: "
        "first seed."
    )
    columns = (
        "N",
        "setting",
        *(metric.title for metric in free),
        "S",
        *SCORES[:3],
        "backward transfer",
        "perplexity, ×",
        "tasks, points",
        "seconds an edit",
    )
    return Table("Carried edits, kind by kind", note, columns, tuple(rows))


def _backward(results: Results, arm: Arm) -> str:
    """Final S minus immediate S, over the facts that were scored at both times."""
    if not results.has(arm, "immediate"):
        return MISSING
    ends = [results.statistic(arm, when, "S") for when in ("final", "immediate")]
    if ends[0] is None or ends[1] is None:
        return MISSING
    return spanned(combine([(1.0, ends[0]), (-1.0, ends[1])]).estimate())


def _whole(results: Results, arm: Arm) -> tuple[str, str]:
    moved, change = drift(results, arm), kept(results, arm)
    said = MISSING if moved is None else f"{moved.mean:.3f} [{moved.low:.3f}, {moved.high:.3f}]"
    return said, MISSING if change is None else spanned(change)


def _seconds(results: Results, arm: Arm) -> str:
    found = seconds_per_edit(results, arm)
    return MISSING if found is None else f"{found:.2f}"


def difficulty(results: Results) -> Table:
    """A table of how far what is known of a fact before it is written tells how it ends."""
    arms = [arm for arm in compared(results) if arm.runs][:_MOST_ROWS]
    names = names_of(arms)
    rows = [
        (
            names[arm.condition],
            *(_correlation(facts, name) for name in _PREDICTORS),
            f"{len(facts):,}",
        )
        for arm in arms
        if len(facts := _facts(results, arm.runs[0].cell)) > 3
    ]
    note = (
        "Rank correlations (Spearman) with the final margin of each fact's own prompt, "
        "log p(target) − log p(old target) a token, with 95 % intervals clustered by relation, "
        f"each by itself: one of twenty leaves 0 out by chance. First seed. {PLAIN}"
    )
    columns = ("setting", *_PREDICTORS.values(), "facts")
    return Table("What tells how hard a fact is", note, columns, tuple(rows))


def _facts(results: Results, cell: str) -> pl.DataFrame:
    """A row for each scored fact: what was known of it, and its final margin."""
    known: dict[str, list[Any]] = defaultdict(list)
    for step in _steps(results, cell):
        for name, values in (step.get("each") or {}).items():
            if name == "edit" or name in _PREDICTORS:
                known[name] += values
    margins = [
        (row.case, row.relation or f"case {row.case}", row.nll_old - row.nll_new)
        for row in results.study.scored(cell, "final")
        if row.kind == "rewrite" and row.nll_old is not None and row.nll_new is not None
    ]
    if not known or not margins:
        return pl.DataFrame()
    ends = pl.DataFrame(margins, schema=["edit", "relation", "margin"], orient="row")
    return pl.DataFrame(known).join(ends, on="edit")


def _correlation(facts: pl.DataFrame, name: str) -> str:
    """Rank correlation of what was known of facts with their margin, and its interval."""
    known = facts.filter(pl.col(name).is_not_nan())
    pairs = list(zip(known[name].to_list(), known["margin"].to_list(), strict=True))
    value, low, high, _ = rank_correlation(pairs, known["relation"].to_list())
    return MISSING if value is None else f"{value:+.2f}  [{low:+.2f}, {high:+.2f}]"


def _steps(results: Results, cell: str) -> list[Mapping[str, Any]]:
    return list(results.study.steps(cell))


def drift(results: Results, arm: Arm) -> Estimate | None:
    """Perplexity after the last batch over that before the first edit; None where not read."""
    return _change(results, arm, "perplexity")


def kept(results: Results, arm: Arm) -> Estimate | None:
    """Accuracy over all items of all tasks, after minus before, in points; None where not read."""
    return _change(results, arm, "tasks")


def _change(results: Results, arm: Arm, metric: str) -> Estimate | None:
    found = results.change(replace(arm, runs=arm.runs[:1]), ("pre", "final"), metric)
    return None if found.mean is None else found
