"""Charts as Vega-Lite specifications: plain data, drawn by the page and as PNG and SVG."""

from collections.abc import Sequence

from retcon.report.arms import Results
from retcon.report.findings.claims import Finding
from retcon.report.plots import effects, lifelong, scores
from retcon.report.plots.style import Chart

__all__ = ["Chart", "all_charts"]


def all_charts(results: Results, findings: Sequence[Finding]) -> dict[str, Chart]:
    """Every chart for which there are data, by name."""
    made = [
        effects.verdicts(findings),
        scores.layers(results),
        scores.batch(results),
        *(scores.sequential(results, when) for when in ("immediate", "final")),
        *(scores.number(results, when) for when in ("immediate", "final")),
        scores.retention(results),
        effects.methods(findings),
        scores.factors(results),
        effects.switched(findings),
        lifelong.side_by_side(results),
        lifelong.ages(results),
        lifelong.as_a_whole(results),
        lifelong.decisions(results),
        lifelong.ridges(results),
        lifelong.pareto(results) or effects.pareto(results),
        effects.norms(results),
        effects.tuning(results),
    ]
    return {chart.key: chart for chart in made if chart is not None}
