"""Adapting: whether batches whose size a rule chooses end better than batches of one size."""

from collections.abc import Iterator, Sequence

from retcon.report.charts.effects import BLUE, bars
from retcon.report.charts.style import Chart, Spec, titled
from retcon.report.conditions import Arm, describe
from retcon.report.findings import Outcome, finding, needs
from retcon.report.numbers import points
from retcon.report.results import Results
from retcon.report.verdicts import Effect, judge_higher, measure


def gains(effects: Sequence[Effect]) -> Chart:
    """Each pair as a dot with its interval."""
    data = [
        {
            "pair": effect.about["pair"],
            "effect": effect.estimate.mean,
            "low": effect.estimate.low,
            "high": effect.estimate.high,
            "when": effect.when,
        }
        for effect in effects
    ]
    body: Spec = {
        "data": {"values": data},
        "width": 420,
        "height": {"step": 30, "for": "position"},
        "layer": bars(data, "pair", BLUE),
    }
    caption = "Final ES of batches that adapt minus that of batches of one size, in points."
    return titled("adapting", "What a rule for batch sizes gains", caption, body)


@finding(
    "adapting",
    title="Batches that adapt",
    claim="Batches whose size a rule chooses end with a higher ES than batches of one size.",
    measured="Paired differences over the same facts, after the last batch.",
)
def adapting(results: Results) -> Outcome:
    """Every pair of conditions that differ in how large their batches are."""
    effects = [
        effect
        for chosen, fixed in _pairs(results)
        for pair in [f"{_name(chosen)} − {_name(fixed)}"]
        if (
            effect := measure(
                results,
                f"{pair}, ES",
                [(1.0, chosen), (-1.0, fixed)],
                "final",
                "ES",
                judge_higher,
                decides=True,
                pair=pair,
            )
        )
    ]
    if not effects:
        return needs("carried edits in batches of one size, and in such that adapt, of equal N")
    summary = "\n".join(f"{e.text}: {points(e.estimate)}." for e in effects)
    return Outcome(effects, summary, charts=[gains(effects)])


def _pairs(results: Results) -> Iterator[tuple[Arm, Arm]]:
    for chosen in results.arms:
        for fixed in results.arms:
            alike = chosen.condition.but("rule", "batch_size") == fixed.condition.but(
                "rule", "batch_size"
            )
            if chosen.condition.rule and not fixed.condition.rule and alike:
                yield chosen, fixed


def _name(arm: Arm) -> str:
    return describe(arm.condition, ("rule", "batch_size"))
