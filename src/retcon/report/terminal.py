"""The tables of a report as a terminal of 100 columns can show them; the page has them whole."""

from collections import Counter
from collections.abc import Sequence

from retcon.report.conditions import Arm
from retcon.report.findings import Finding, FindingSet, by_set
from retcon.report.numbers import MISSING, spanned
from retcon.report.results import SCORES, Results
from retcon.report.tables import Table, costs_of, missing, tuned, words
from retcon.scoring.intervals import Estimate


def brief(results: Results, findings: Sequence[Finding]) -> list[Table]:
    """Verdicts, scores right after and in the end, costs, ridges, and what is still missing."""
    tables = [
        *(_verdicts(*each) for each in by_set(findings)),
        *(_scores(results, when) for when in ("immediate", "final")),
        _costs(results),
        tuned(results.study),
        missing(results.study),
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


def _scores(results: Results, when: str) -> Table:
    arms = [arm for arm in results.arms if results.has(arm, when)]
    rows = [
        (*_place(arm), said, f"{results.estimate(arm, when, 'ES').cases:,}",
         *(_about(results.estimate(arm, when, metric)) for metric in SCORES))
        for arm, said in zip(arms, words(arms), strict=True)
    ]  # fmt: skip
    columns = ("batch", "N", "load", "setting", "cases", *SCORES)
    title = f"Scores, {when}, % ± half of the 95 % interval{_usual(arms)}"
    return Table(title, "", columns, tuple(rows))


def _usual(arms: Sequence[Arm]) -> str:
    """The layer that is not named because most have it."""
    if not arms:
        return ""
    layers = Counter(arm.setting.layers for arm in arms).most_common(1)[0][0]
    return f"; layer {'+'.join(map(str, layers))} where none is named"


def _costs(results: Results) -> Table:
    arms = results.arms
    rows = [
        (*_place(arm), said, *costs_of(results, arm))
        for arm, said in zip(arms, words(arms), strict=True)
    ]
    columns = ("batch", "N", "load", "setting", "s/edit", "‖ΔW‖/‖W‖, %", "written, %", "GiB")
    return Table("Costs", "", columns, tuple(rows))


def _place(arm: Arm) -> tuple[str, str, str]:
    return f"{arm.setting.batch_size:,}", f"{arm.setting.n:,}", f"{arm.load:.3f}"


def _about(score: Estimate) -> str:
    if score.mean is None:
        return MISSING
    if score.low is None or score.high is None:
        return f"{score.mean:.1f}"
    return f"{score.mean:.1f} ±{max(score.mean - score.low, score.high - score.mean):.1f}"
