"""(a) Which layer is best."""

from collections.abc import Mapping
from dataclasses import replace

from retcon.report.arms import Arm, Results
from retcon.report.findings.claims import (
    Claim,
    Finding,
    against_all,
    points,
    share,
)
from retcon.report.layers import WHEN, Recommendation, best_of, sweeps
from retcon.report.titles import called

# Of Llama-3-8B's 32 blocks, counted from 0.
PAPERS_LAYER = (1,)


def best_layer(results: Results) -> Finding:
    """Layer 1 against all others, in S of single edits."""
    found = Finding(
        key="a",
        name="The best layer",
        claim="Layer 1 (the second block) is the best place for single edits, by S.",
        paper="Llama-3-8B, MEMIT: S 94.2 at layer 1; layers 1, 2 and 3 within 0.5 points, "
        "then falling: 81.9 at layer 9, 69.4 at layer 15 (figure 1).",
        charts=("layers",),
    )
    swept = sweeps(results)
    best = [(sweep, best_of(results, sweep)) for sweep in swept]
    known = [(sweep, one) for sweep, one in best if one is not None]
    if not known:
        return found.needs("single edits at two layers or more, scored right after each edit")
    claims = [c for sweep, one in known for c in _claims(results, sweep, one)]
    text = "\n".join(_sentence(one) for _, one in known)
    explanation = (
        "Paired differences over the same facts, against every other layer, with intervals widened "
        "for all layers that are compared; the one that decides is the layer that is better, or "
        "else the one that may be better by most. Which layer is best was read off the same facts, "
        "so its S is a little flattered."
    )
    missing = None if claims else "Layer 1 is not among the layers of this study."
    waiting = max(results.waiting(next(iter(s.values())).setting, "layers") for s, _ in known)
    if claims and waiting:
        missing = f"Layers not done yet: {waiting}; until then it can only be refuted."
    return replace(
        found, effect=text, explanation=explanation, claims=tuple(claims), missing=missing
    )


def _claims(
    results: Results, sweep: Mapping[tuple[int, ...], Arm], best: Recommendation
) -> list[Claim]:
    """Layer 1 against each other one; nothing where layer 1 was not swept."""
    one = sweep.get(PAPERS_LAYER)
    others = {layers: arm for layers, arm in sweep.items() if layers != PAPERS_LAYER}
    if one is None or not others:
        return []
    waiting = results.waiting(one.setting, "layers")
    place = lambda layers: f"{_who(best)}: layer 1 − layer {_name(layers)}"  # noqa: E731
    return against_all(results, one, others, WHEN, place, waiting=waiting, primary=True)


def _sentence(best: Recommendation) -> str:
    tied = ", ".join(_name(layer) for layer in best.tied)
    rest = f"; not to be told from it: {tied}" if tied else "; every other layer is worse"
    runner = max(best.differences.values(), key=lambda d: d.mean or -100.0, default=None)
    margin = f" (the next one {points(runner)})" if runner else ""
    return f"{_who(best)}: layer {_name(best.layer)} with S {share(best.score)}{rest}{margin}."


def _who(best: Recommendation) -> str:
    return f"{called(best.method)} on {best.model}"


def _name(layers: tuple[int, ...]) -> str:
    return "+".join(map(str, layers))
