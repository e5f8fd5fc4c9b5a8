"""All charts of a report: those that fit what a study varies, and those of its findings."""

from collections.abc import Sequence

from retcon.report.agreement import Agreement
from retcon.report.charts import carried, effects, rankings, sizes, weights
from retcon.report.charts.by_layer import layers
from retcon.report.charts.style import Chart
from retcon.report.findings import Finding, by_set
from retcon.report.ranking import Comparison
from retcon.report.results import Results


def all_charts(
    results: Results,
    comparisons: Sequence[Comparison],
    agreements: Sequence[Agreement],
    findings: Sequence[Finding],
) -> dict[str, Chart]:
    """Every chart for which there are data, by its key; those of findings go before others."""
    of_findings = [
        effects.verdicts(findings),
        *(chart for finding in findings for chart in finding.charts.values()),
        *(draw(results) for each, _ in by_set(findings) for draw in each.charts),
    ]
    first = {chart.key: chart for chart in of_findings if chart is not None}
    others = [chart for chart in _neutral(results, comparisons, agreements) if chart is not None]
    return first | {chart.key: chart for chart in others if chart.key not in first}


def _neutral(
    results: Results, comparisons: Sequence[Comparison], agreements: Sequence[Agreement]
) -> list[Chart | None]:
    """The charts of any study. Conditions of the first comparison stand for all."""
    side_by_side = carried.side_by_side(results)
    of_first = (
        [
            effects.differences(comparisons[0]),
            None if side_by_side else effects.conditions(results, comparisons[0]),
        ]
        if comparisons
        else []
    )
    return [
        *of_first,
        *(draw(one) for one in agreements[:1] for draw in (rankings.ranks, rankings.alike)),
        layers(results),
        sizes.batch(results),
        *(sizes.sequential(results, when) for when in ("immediate", "final")),
        *(sizes.number(results, when) for when in ("immediate", "final")),
        sizes.retention(results),
        sizes.factors(results),
        side_by_side,
        carried.ages(results),
        carried.as_a_whole(results),
        carried.decisions(results),
        carried.ridges(results),
        weights.pareto(results),
        weights.norms(results),
        weights.tuning(results),
    ]
