"""Tables as plain data, for the terminal, Markdown and CSV. No cell is ever a mean of two times."""

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from retcon.escaping import cell, markdown
from retcon.files import write_whole
from retcon.report.conditions import Arm, Condition, called, describe, further, varying
from retcon.report.numbers import MISSING, fixed, share, spanned
from retcon.report.ranking import Comparison
from retcon.report.results import Results, moved, seconds_per_edit
from retcon.scoring.metrics import Metric, Place
from retcon.study.points import Point, carries
from retcon.study.study import Study, Tuned, TuningRule

_FIELDS = (
    "model",
    "dtype",
    "method",
    "layers",
    "ridge",
    "ridge_batch",
    "accumulate",
    "refresh",
    "order",
    "others",
)
_SCORES: Mapping[Place, str] = {"headline": "Scores", "table": "Further scores"}
TIMES_IN_WORDS = {
    "pre": "untouched model",
    "immediate": "right after each fact's own batch",
    "final": "after the last batch",
}


class Table(NamedTuple):
    """Cells as they are read.

    Attributes:
        note: holds for every row.
    """

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """The table with its title, for a file."""
        note = [markdown(self.note), ""] if self.note else []
        rule = "| " + " | ".join("---" for _ in self.columns) + " |"
        lines = [f"### {markdown(self.title)}", "", *note, _line(self.columns), rule]
        return "\n".join(lines + [_line(row) for row in self.rows]) + "\n"

    def csv(self) -> str:
        """Columns and rows, without title and note; no cell is a formula."""
        out = io.StringIO()
        rows = [map(cell, row) for row in (self.columns, *self.rows)]
        csv.writer(out, lineterminator="\n").writerows(rows)
        return out.getvalue()


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(markdown, cells)) + " |"


def summary(results: Results, comparisons: Sequence[Comparison]) -> list[Table]:
    """Differences, scores by time, runs, costs, tuned ridges, and what is missing."""
    tables = [
        differences_table(comparisons),
        *(scores(results, when, place) for place in _SCORES for when in TIMES_IN_WORDS),
        runs(results),
        costs(results),
        tuned(results.study),
        missing(results.study),
    ]
    return [table for table in tables if table.rows]


def differences_table(comparisons: Sequence[Comparison]) -> Table:
    """Each condition against the best of those that it is compared with, the best first."""
    rows = [
        (
            f"{one.n:,}",
            one.ranking.when,
            one.full_names[key],
            one.ranking.metric,
            share(score),
            "best" if key == one.ranking.best else _against_best(one, key),
        )
        for one in comparisons
        for key, score in one.ranking.scores.items()
    ]
    note = (
        "Paired differences to the best, in points, over the same facts. 95 % intervals are "
        "widened for all conditions that are compared: the best was picked on these facts."
    )
    columns = ("N", "scores", "condition", "metric", "score, %", "difference from the best")
    several = len({one.model for one in comparisons}) > 1
    if several:
        models = [one.model for one in comparisons for _ in one.ranking.scores]
        columns = ("model", *columns)
        rows = [(model, *row) for model, row in zip(models, rows, strict=True)]
    return Table("Differences from the best", note, columns, tuple(rows))


def _against_best(comparison: Comparison, key: Condition) -> str:
    """The difference, and whether it is told from none."""
    effect = comparison.ranking.differences.get(key)
    if effect is None:
        return MISSING
    tied = key in comparison.ranking.tied
    return f"{spanned(effect)}{', not told apart' if tied else ''}"


def scores(results: Results, when: str, shown: Place) -> Table:
    """Scores of all arms at one time, with 95 % intervals: those that are shown at one place."""
    arms, scored = scored_then(results, when, shown)
    title = f"{_SCORES[shown]}, {when} ({TIMES_IN_WORDS[when]}), %"
    titles = tuple(metric.title for metric in scored)
    if when == "pre":
        ordered = sorted(arms, key=lambda arm: (len(arm.runs), arm.condition.n))
        untouched = {(arm.condition.model, arm.condition.dtype): arm for arm in ordered}
        rows = [
            (*model, ", ".join(run.name for run in arm.runs), *_scores(results, arm, when, scored))
            for model, arm in untouched.items()
        ]
        return Table(title, "", ("model", "dtype", "seeds", "cases", *titles), tuple(rows))
    fields, note = condition_fields(arms)
    rows = [(*place(arm, arms, fields), *_scores(results, arm, when, scored)) for arm in arms]
    return Table(title, note, (*place_columns(fields), "cases", *titles), tuple(rows))


def scored_then(results: Results, when: str, shown: Place) -> tuple[list[Arm], list[Metric]]:
    """The arms that have a score at one time, and the metrics that any of them has."""
    known = [one for one in results.measured(results.arms, when, shown) if one.scored]
    return [a for a in results.arms if any(results.has(a, when, m.name) for m in known)], known


def _scores(results: Results, arm: Arm, when: str, scored: Sequence[Metric]) -> tuple[str, ...]:
    """The number of cases that were scored, and each score."""
    estimates = [results.estimate(arm, when, metric.name) for metric in scored]
    cases = max(one.cases for one in estimates)
    cells = (metric.scale.told(one) for metric, one in zip(scored, estimates, strict=True))
    return (f"{cases:,}", *cells)


def runs(results: Results) -> Table:
    """S of each run of the arms that have several: what other facts, or other draws, are worth."""
    arms = [arm for arm in results.arms if len(arm.runs) > 1]
    rows: list[tuple[str, ...]] = []
    for arm, text in zip(arms, words(arms), strict=True):
        when = "final" if results.has(arm, "final") else "immediate"
        alone = {run.name: replace(arm, runs=(run,)) for run in arm.runs}
        each = {name: results.estimate(one, when, "S").mean for name, one in alone.items()}
        values = [value for value in each.values() if value is not None]
        if values:
            by_seed = "; ".join(f"{name}: {fixed(value, 1)}" for name, value in each.items())
            size = f"{arm.condition.batch_size:,}", f"{arm.condition.n:,}"
            rows.append((*size, text, when, fixed(max(values) - min(values), 1), by_seed))
    columns = ("batch", "N", "setting", "when", "largest − smallest", "S by seed, %")
    note = "Seeds of the facts, and in brackets of prefixes and corpus where they are not 0."
    return Table("Runs of one arm", note, columns, tuple(rows))


def condition_fields(arms: Sequence[Arm]) -> tuple[tuple[str, ...], str]:
    """The fields in which arms differ, as columns; those in which they agree, as a note."""
    fields = tuple(f for f in varying(arms, "batch_size", "n", "carried", "score") if f in _FIELDS)
    if not arms:
        return fields, ""
    held = [f for f in ("model", "method", "layers", "dtype", "ridge", "order") if f not in fields]
    return fields, f"Throughout: {describe(arms[0].condition, held)}." if held else ""


def place_columns(fields: Sequence[str]) -> tuple[str, ...]:
    """The columns that say where an arm stands."""
    return ("schedule", "batch", "N", "load", *_names(fields), "seeds")


def words(arms: Sequence[Arm]) -> list[str]:
    """Describe each arm by what tells it from the others; batch size and N aside.

    Layer, precision, order and further settings are named only where most arms have others.
    """
    fields, _ = condition_fields(arms)
    usual = {
        f: Counter(getattr(a.condition, f) for a in arms).most_common(1)[0][0]
        for f in ("layers", "dtype", "order", "others")
        if arms
    }
    texts: list[str] = []
    for arm in arms:
        named = [f for f in fields if f not in usual or getattr(arm.condition, f) != usual[f]]
        known = describe(arm.condition, [f for f in named if f != "others"])
        extra = further(arm, arms) if "others" in named else ""
        texts.append(", ".join(part for part in (_schedule(arm), known, extra) if part))
    return [_shorter(one) for one in texts]


def _shorter(text: str) -> str:
    for long, short in (("hard constraint", "hard"), ("past keys ", "keys "), ("_", " ")):
        text = text.replace(long, short)
    return text


def _schedule(arm: Arm) -> str:
    if arm.condition.carried:
        return "sequential"
    return "batch" if arm.condition.batch_size > 1 else "single"


def _names(fields: Sequence[str]) -> list[str]:
    names = {
        "accumulate": "past keys",
        "refresh": "targets",
        "ridge": "λ",
        "ridge_batch": "λ per",
        "layers": "layer",
    }
    return [names.get(field, field) for field in fields]


def place(arm: Arm, among: Sequence[Arm], fields: Sequence[str]) -> tuple[str, ...]:
    """Cells of an arm in the columns of `place_columns`."""
    s = arm.condition
    texts = {
        "layers": "+".join(map(str, s.layers)),
        "accumulate": {None: MISSING, True: "kept", False: "forgotten"}[s.accumulate],
        "refresh": {None: MISSING, "never": "frozen", "each-batch": "refreshed"}.get(
            s.refresh, s.refresh or MISSING
        ),
        "ridge_batch": f"{s.ridge_batch:,} facts" if s.ridge_batch else "batch",
        "method": called(s.method),
        "others": further(arm, among) or MISSING,
    }
    return (
        _schedule(arm),
        f"{s.batch_size:,}",
        f"{s.n:,}",
        f"{arm.load:.3f}",
        *(texts.get(field, str(getattr(s, field))) for field in fields),
        ", ".join(run.name for run in arm.runs),
    )


def costs(results: Results) -> Table:
    """Seconds, ‖ΔW‖, share of residuals written and memory, by arm."""
    fields, note = condition_fields(results.arms)
    arms = results.arms
    rows = [(*place(arm, arms, fields), *costs_of(results, arm)) for arm in arms]
    columns = (
        *place_columns(fields),
        "seconds an edit",
        "‖W − W₀‖ / ‖W₀‖, %",
        "residual written, %",
        "peak memory, GiB",
    )
    return Table("Costs", note, columns, tuple(rows))


def costs_of(results: Results, arm: Arm) -> tuple[str, ...]:
    """The four numbers of an arm's costs: seconds, ‖ΔW‖, the share of residuals written, GiB."""
    steps = results.study.steps(arm.runs[0].cell)
    reached = [float(str(s["reached"])) for s in steps if s.get("reached") is not None]
    memory = [int(str(s["peak_memory"])) for s in steps if s.get("peak_memory") is not None]
    return (
        fixed(seconds_per_edit(results, arm), 2),
        fixed(moved(steps[-1]) if steps else None, 2),
        fixed(100 * sum(reached) / len(reached), 1) if reached else MISSING,
        fixed(max(memory) / 2**30, 2) if memory else MISSING,
    )


def tuned(study: Study) -> Table:
    """The ridges that were chosen: for whom, on how many facts, and S of each candidate."""
    rows = [
        (
            one.model,
            called(one.method),
            "+".join(map(str, one.layers)),
            _written(one),
            str(one.seed),
            f"{one.ridge:g}" + (f", the {one.edge}" if one.edge else ""),
            f"{one.n:,}",
            "; ".join(f"{r:g}: {fixed(s, 1)}" for r, s in zip(one.ridges, one.scores, strict=True)),
        )
        for one in study.tuned
    ]
    rules = [said for rule, said in _RULES.items() if any(o.rule == rule for o in study.tuned)]
    edges = " Beyond the smallest or the largest candidate there may be better ones."
    note = (
        "Tuned on the last facts of each seed's order, scored nowhere else under it; "
        f"{' or '.join(rules)} was taken.{edges * any(one.edge for one in study.tuned)}"
    )
    columns = ("model", "method", "layer", "batch", "seed", "chosen λ", "facts", "S by λ, %")
    return Table("Tuned ridges", note, columns, tuple(rows))


_RULES: Mapping[TuningRule, str] = {
    "largest S": "the ridge of the highest S",
    "one standard error": "the largest ridge whose S is within one standard error of the highest, "
    "by the difference over the same facts (carried facts: at the end)",
}


def _written(one: Tuned) -> str:
    """The batches in which the facts were written by which a ridge was chosen."""
    text = f"{one.batch_size:,}"
    if carries(one.schedule):
        text += f", carried, {one.schedule}" if "adaptive" in one.schedule else ", carried"
    refresh = {"each-batch": "", "never": ", frozen"}.get(one.refresh, f", {one.refresh}")
    return text + refresh


def missing(study: Study) -> Table:
    """Points that were refused, with the reason, and points that are not done yet; alike in one."""
    groups: dict[tuple[str, ...], list[Point]] = defaultdict(list)
    for p in study.points:
        if p.refused or not study.is_done(p.cell):
            why = p.refused or ("waits for its ridge" if p.cell is None else "not done yet")
            groups[p.block, called(p.method), p.schedule, why].append(p)
    rows = [
        (
            block,
            method,
            schedule,
            _list(p.batch_size for p in points),
            _list(p.n for p in points),
            _layers(points),
            _list(p.seed for p in points),
            f"{len(points):,}",
            why,
        )
        for (block, method, schedule, why), points in groups.items()
    ]
    columns = ("block", "method", "schedule", "batch", "N", "layer", "seed", "points", "why")
    return Table("Points without scores", "", columns, tuple(rows))


def _layers(points: Sequence[Point]) -> str:
    alone = all(len(p.layers) == 1 for p in points)
    if alone:
        return _list(p.layers[0] for p in points)
    return ", ".join(dict.fromkeys("+".join(map(str, p.layers)) for p in points))


def _list(numbers: Iterable[int]) -> str:
    """Distinct numbers in order, runs of three or more as a range: 1, 4, 7–29."""
    runs: list[list[int]] = []
    for value in sorted(set(numbers)):
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    ranges = [
        f"{run[0]:,}–{run[-1]:,}" if len(run) > 2 else ", ".join(f"{v:,}" for v in run)
        for run in runs
    ]
    return ", ".join(ranges)


def export(study: Study, path: Path) -> Path:
    """Write one Parquet file of all rows, each beside the columns of its point."""
    rows = study.all_rows()
    # For archives: slower to write, and no slower to read.
    write_whole(path, lambda work: rows.write_parquet(work, compression_level=19))
    return path
