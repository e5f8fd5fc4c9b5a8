"""The tables of a report as a terminal of 100 columns can show them; the page has them whole."""

from collections import Counter
from collections.abc import Sequence

from retcon.report.conditions import Arm
from retcon.report.findings import Finding, FindingSet, by_set
from retcon.report.numbers import MISSING, spanned
from retcon.report.observed import change, times_of, unknown
from retcon.report.results import Results
from retcon.report.tables import Table, costs_of, missing, scored_then, tuned, words
from retcon.scoring.intervals import Estimate
from retcon.scoring.metrics import UNABLE, Metric, metrics, unable

# Columns that a terminal has room for.
_FURTHER = 2


def brief(results: Results, findings: Sequence[Finding]) -> list[Table]:
    """Verdicts, what is said freely, scores, costs, ridges, and what is still missing."""
    tables = [
        *(_verdicts(*each) for each in by_set(findings)),
        *(
            _scores(results, when, freely=freely)
            for when in ("immediate", "final")
            for freely in (True, False)
        ),
        _observed(results),
        _costs(results),
        tuned(results.study),
        missing(results.study),
        unknown(results),
    ]
    return [table for table in tables if table.rows]


def _verdicts(of: FindingSet, findings: Sequence[Finding]) -> Table:
    rows: list[tuple[str, ...]] = []
    for finding in findings:
        name = f"({finding.key}) {finding.title}"
        if not finding.times:
            rows.append((name, MISSING, "no data", finding.missing or MISSING))
        for i, when in enumerate(finding.times):
            effects = "\n".join(spanned(effect.estimate) for effect in finding.deciding(when))
            rows.append(("" if i else name, when, finding.verdict_at(when), effects))
    columns = ("claim", "scores", "verdict", "effect in points, 95 %")
    return Table(of.title, "", columns, tuple(rows))


def _scores(results: Results, when: str, *, freely: bool) -> Table:
    """Headline scores, of free generation or the others.

    There are further ones where edits cannot be compared with what was said before.
    """
    arms, scored = scored_then(results, when, "headline")
    shown = [metric for metric in scored if metric.freely is freely]
    if not freely and not any(metric.kind == "rewrite" for metric in shown):
        more, further = scored_then(results, when, "table")
        arms = more or arms
        shown += [metric for metric in further if not metric.freely][:_FURTHER]
    arms = [arm for arm in arms if any(results.has(arm, when, one.name) for one in shown)]
    rows = [
        (*_place(arm), name, *_cells([results.estimate(arm, when, one.name) for one in shown]))
        for arm, name in zip(arms, words(arms), strict=True)
    ]
    columns = ("batch", "N", "load", "setting", "cases", *(one.title for one in shown))
    title = "Said freely" if freely else "Scores"
    text = f"{title}, {when}, % ± half of the 95 % interval{_usual(arms)}"
    return Table(text, "", columns, tuple(rows))


def _cells(estimates: Sequence[Estimate]) -> tuple[str, ...]:
    return (f"{max(one.cases for one in estimates):,}", *map(_about, estimates))


def _observed(results: Results) -> Table:
    """Observations beside scores: at the last time, and below it the change."""
    read = [
        metric
        for metric in metrics("headline", "table", scored=False)
        if any(times_of(results, arm, metric) for arm in results.arms)
    ]
    arms = [arm for arm in results.arms if any(times_of(results, arm, m) for m in read)]
    rows = [
        (*_place(arm), name, *(_last(results, arm, metric) for metric in read))
        for arm, name in zip(arms, words(arms), strict=True)
    ]
    titles = (f"{m.title}{m.scale.unit and f', {m.scale.unit}'}" for m in read)
    title = "Beside prompts: at the end, and the change with its 95 % interval"
    return Table(title, "", ("batch", "N", "load", "setting", *titles), tuple(rows))


def _last(results: Results, arm: Arm, metric: Metric) -> str:
    times = times_of(results, arm, metric)
    if not times:
        return MISSING
    level = results.estimate(arm, times[-1], metric.name)
    moved = change(results, arm, metric)
    mark = unable(metric, lambda name: results.estimate(arm, "pre", name)) and f"\n{UNABLE}"
    if moved == MISSING:
        return f"{metric.scale.told(level)}{mark}"
    return f"{metric.scale.told(level._replace(low=None, high=None))}\n{moved}{mark}"


def _usual(arms: Sequence[Arm]) -> str:
    """The layer that is not named because most have it."""
    if not arms:
        return ""
    layers = Counter(arm.condition.layers for arm in arms).most_common(1)[0][0]
    return f"; layer {'+'.join(map(str, layers))} where none is named"


def _costs(results: Results) -> Table:
    arms = results.arms
    rows = [
        (*_place(arm), name, *costs_of(results, arm))
        for arm, name in zip(arms, words(arms), strict=True)
    ]
    columns = ("batch", "N", "load", "setting", "s/edit", "‖ΔW‖/‖W‖, %", "written, %", "GiB")
    return Table("Costs", "", columns, tuple(rows))


def _place(arm: Arm) -> tuple[str, str, str]:
    return f"{arm.condition.batch_size:,}", f"{arm.condition.n:,}", f"{arm.load:.3f}"


def _about(score: Estimate) -> str:
    if score.mean is None:
        return MISSING
    if score.low is None or score.high is None:
        return f"{score.mean:.1f}"
    return f"{score.mean:.1f} ±{max(score.mean - score.low, score.high - score.mean):.1f}"
