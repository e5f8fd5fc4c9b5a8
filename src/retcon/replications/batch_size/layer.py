"""(a) The best layer."""

from collections.abc import Mapping
from dataclasses import replace

from retcon.replications.batch_size.paper import BATCH_SIZE, PAPERS_LAYER
from retcon.report.charts.by_layer import layers
from retcon.report.conditions import Arm, called
from retcon.report.findings import Outcome, finding, needs
from retcon.report.layers import WHEN, Recommendation, best_of, recommended, sweeps
from retcon.report.numbers import points, share
from retcon.report.results import Results
from retcon.report.verdicts import Effect, measure_best


@finding(
    "a",
    set=BATCH_SIZE,
    title="The best layer",
    claim="Layer 1 (the second block) is the best place for single edits, by S.",
    source="Llama-3-8B, MEMIT: S 94.2 at layer 1; layers 1, 2 and 3 within 0.5 points, "
    "then falling: 81.9 at layer 9, 69.4 at layer 15 (figure 1).",
    measured="Paired differences over the same facts, against every other layer, with intervals "
    "widened for all layers that are compared; the one that decides is the layer that is better, "
    "or else the one that may be better by most. Which layer is best was read off the same facts, "
    "so its S is a little flattered.",
)
def best_layer(results: Results) -> Outcome:
    """Layer 1 against all others, in S of single edits."""
    ranked = [(sweep, best_of(results, sweep)) for sweep in sweeps(results)]
    known = [(sweep, best) for sweep, best in ranked if best is not None]
    if not known:
        return needs("single edits at two layers or more, scored right after each edit")
    effects = [effect for sweep, best in known for effect in _effects(results, sweep, best)]
    outcome = Outcome(
        effects,
        "\n".join(_sentence(best) for _, best in known),
        charts=[layers(results)],
        tables=[recommended(results)],
    )
    if not effects:
        return replace(outcome, missing="Layer 1 is not among the layers of this study.")
    pending = max(
        results.waiting(next(iter(sweep.values())).condition, "layers") for sweep, _ in known
    )
    if not pending:
        return outcome
    missing = f"Layers not done yet: {pending}; until then it can only be refuted."
    return replace(outcome, missing=missing)


def _effects(
    results: Results, sweep: Mapping[tuple[int, ...], Arm], best: Recommendation
) -> list[Effect]:
    """Layer 1 against each other one; nothing where layer 1 was not swept."""
    one = sweep.get(PAPERS_LAYER)
    others = {place: arm for place, arm in sweep.items() if place != PAPERS_LAYER}
    if one is None or not others:
        return []
    pending = results.waiting(one.condition, "layers")
    text = lambda place: f"{_who(best)}: layer 1 − layer {_name(place)}"  # noqa: E731
    return measure_best(results, one, others, WHEN, text, pending=pending, decides=True)


def _sentence(best: Recommendation) -> str:
    tied = ", ".join(_name(layer) for layer in best.tied)
    rest = (
        f"; statistically indistinguishable from it: {tied}"
        if tied
        else "; every other layer is worse"
    )
    runner = max(best.differences.values(), key=lambda d: d.mean or -100.0, default=None)
    margin = f" (the next one {points(runner)})" if runner else ""
    return f"{_who(best)}: layer {_name(best.layer)} with S {share(best.score)}{rest}{margin}."


def _who(best: Recommendation) -> str:
    return f"{called(best.method)} on {best.model}"


def _name(place: tuple[int, ...]) -> str:
    return "+".join(map(str, place))
