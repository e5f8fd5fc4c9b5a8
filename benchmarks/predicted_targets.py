"""How well a target's direction is foretold by targets that are solved already.

    python benchmarks/predicted_targets.py [--facts 512] [--held-out 128] [--layer 1]

SmolLM2-135M on CounterFact: targets by three of six contexts a step, which are read from the cache
where a study has left them there. Printed are mean cosines, over the held-out facts, between
δ/‖δ‖ and what may stand in for it before a pass is made: the mean direction of the other facts; the
unembedding of the target's first token; ridge regressions on the other facts, from t₀/‖t₀‖, from
that unembedding and from both, each with the best of five ridges, chosen in hindsight. Beside them
stand pairs of facts with one target and with one prompt, and the first gradient, which costs a
pass.
"""

from collections.abc import Sequence
from itertools import combinations

import torch
from jaxtyping import Float64
from torch import Tensor

from machine import cases, parser_of
from retcon.cli.console import quiet_libraries
from retcon.edits import Edit
from retcon.features.contexts import ContextOptions, sample_prefixes
from retcon.features.remember import recall_targets
from retcon.features.targets import TargetOptions, optimise_targets
from retcon.model.handle import ModelHandle
from retcon.model.load import load
from targets import LAYER, MICRO_BATCH

RULE = TargetOptions(contexts_per_step=3, lr=1.0, stop_below=0.1, micro_batch=MICRO_BATCH)
# One move from 0 on the sphere: against the gradient of all contexts.
ONE_GRADIENT = TargetOptions(descent="sphere", steps=2, stop_below=0.0, micro_batch=MICRO_BATCH)
RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
Rows = Float64[Tensor, "facts width"]


def unit(rows: Tensor) -> Tensor:
    """Vectors at length 1, in float64."""
    return torch.nn.functional.normalize(rows.double(), dim=-1)


def unembeddings(model: ModelHandle, edits: Sequence[Edit]) -> Rows:
    """The direction that the head gives to the first token of each target."""
    first = [model.tokens.continuation(edit.text, edit.target).target[0] for edit in edits]
    (head,) = model.architecture.head.parameters()
    return unit(head.detach()[first])


def cosine(predicted: Tensor, wanted: Tensor) -> float:
    """Mean cosine of rows."""
    return float((unit(predicted) * wanted).sum(-1).mean())


def regressed(read: Rows, wanted: Rows, held_out: int) -> float:
    """The best cosine of a ridge regression on all rows but the last ones, over the last ones."""
    here, there = read[:-held_out], read[-held_out:]
    mean = wanted[:-held_out].mean(0)
    gram = here @ here.mT
    found: list[float] = []
    for ridge in RIDGES:
        eye = torch.eye(len(here), dtype=torch.float64)
        weights = torch.linalg.solve(gram + ridge * eye, wanted[:-held_out] - mean)
        found.append(cosine(mean + there @ here.mT @ weights, wanted[-held_out:]))
    return max(found)


def alike(wanted: Rows, names: Sequence[str]) -> float:
    """Mean cosine of pairs of facts with one name."""
    pairs = [(i, j) for i, j in combinations(range(len(names)), 2) if names[i] == names[j]]
    return sum(float(wanted[i] @ wanted[j]) for i, j in pairs) / max(1, len(pairs))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--facts", type=int, default=512)
    parser.add_argument("--held-out", type=int, default=128)
    parser.add_argument("--layer", type=int, default=LAYER)
    chosen = parser.parse_args(arguments)
    quiet_libraries()
    model = load(chosen.model)
    edits = [case.edit for case in cases(chosen.facts, seed=0)]
    prefixes = sample_prefixes(model, ContextOptions())
    targets = recall_targets(model, edits, prefixes, chosen.layer, RULE)
    wanted, anchor, held_out = unit(targets.delta), unit(targets.anchor), chosen.held_out
    head = unembeddings(model, edits)
    own = optimise_targets(model, edits[-held_out:], prefixes, chosen.layer, ONE_GRADIENT)
    clamp = targets.delta.norm(dim=-1) / targets.anchor.norm(dim=-1) > 0.99 * RULE.clamp
    last = wanted[-held_out:]
    for name, value in (
        ("the mean direction", cosine(wanted[:-held_out].mean(0).expand_as(last), last)),
        ("the target's unembedding", cosine(head[-held_out:], last)),
        ("regressed from t₀", regressed(anchor, wanted, held_out)),
        ("regressed from the unembedding", regressed(head, wanted, held_out)),
        ("regressed from both", regressed(torch.cat([anchor, head], 1), wanted, held_out)),
        ("another fact with the same target", alike(wanted, [e.target for e in edits])),
        ("another fact with the same prompt", alike(wanted, [e.prompt for e in edits])),
        ("the first gradient, of all contexts", cosine(own.delta, last)),
        ("share of targets at the clamp", float(clamp.double().mean())),
    ):
        print(f"{name:40} {value:6.3f}", flush=True)


if __name__ == "__main__":
    main()
