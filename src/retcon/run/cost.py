"""Estimate an edit's memory and time from the configuration alone.

    targets   edits · steps · rows · [ 2 · suffix · (parameters of blocks behind L) + 2 · head ] · 2
    moments   tokens · 2 · (parameters of blocks up to L) + tokens · 2 · d_in² per layer
    factor    2 · d_in³ / 3 per layer         solves  2 · edits · 2 d_in (d_in + edits + d_out)
    `self`    tokens · 2 · (all parameters), one token at a time

Where no δ is optimised, there are no moments, and a pass runs whole texts:

    gradients steps · text · 2 · (all parameters) · 2, of each edit; `finetune_lora` has half a
              contrast beside it (1.5 times, for its pass of the model as it is), and lines to write
    beside    steps · passages · 1.5 · passage · 2 · (all parameters) · 2, for each `together` edits
    context   nothing is edited; scored prompts are longer by the facts before them

in FLOPs, the 2 at the end being forward and backward, the one in front float64. Text lengths are
typical ones, and the rate is that of a float32 matrix product measured here and now, or another
that was given, so treat it as an order-of-magnitude estimate.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from retcon.features.contexts import ContextOptions
from retcon.features.contrast import facts_of_others
from retcon.features.lines import BEHIND_PAIRS, LONGER
from retcon.features.rewordings import LINES
from retcon.features.second_moments import MomentOptions
from retcon.features.targets import default_micro_batch, kept_numbers
from retcon.method.lora_training import PASSAGE
from retcon.method.presets import Recipe
from retcon.model.structure import Outline

_SUFFIX, _TARGET = 8, 2
# A prompt with its target, a fact that is put before one, or another sentence.
_TEXT = 14
# A divergence has one pass more, of the model as it is.
_DIVERGENCE = 1.5
# Sampling runs one token at a time and reaches a part of the rate of large products.
_SAMPLING_SHARE = 0.5
# Solves are in float64, which takes about twice as long; and so many arrays of edits × d_in.
_DOUBLE, _SOLVE_ARRAYS = 2, 5
# Bytes of a float32, which masters and factors are in.
_MASTER = 4


class Costs(NamedTuple):
    """Cost of a method on a model, in FLOPs, bytes and tokens, whatever the machine.

    Attributes:
        target: of one edit, or its gradients.
        beside: of ordinary text, for each `together` edits of a batch, or what is left of them.
        token: of one token forward through the whole model.
        moments: once for the layers.
        sampling: once, of the corpus `self` and of lines about other things.
        context: tokens put before each scored prompt.
    """

    parameters: int
    d_in: int
    d_out: int
    corpus_tokens: int
    moment_bytes: int
    target: float
    token: float
    moments: float
    sampling: float
    context: int = 0
    beside: float = 0.0
    together: int = 1

    def batch(self, edits: int) -> float:
        """The ordinary text of a batch of so many edits."""
        return -(-edits // self.together) * self.beside


class MemoryEstimate(NamedTuple):
    """Bytes while editing, each at its most; they are not all held at one moment.

    Attributes:
        weights: in the dtype in which they are loaded.
        moments: C, in whose memory its factor is made, of each layer.
        masters: a float32 copy of each edited matrix where weights are narrower, and the originals
            that are copied back.
        factors: of the patch, in float32.
        solve: what the closed form holds beside keys and factor of C.
        activations: what a pass keeps for the gradient of its targets.
    """

    weights: int
    moments: int
    masters: int
    factors: int
    solve: int
    activations: int

    @property
    def together(self) -> int:
        """All of it at once."""
        return sum(self)


class CostEstimate(NamedTuple):
    """Memory in bytes, times in seconds; moments, factor and sampling are paid once.

    factor: of C at each layer, each time a run begins. solves: of all facts in one batch.
    """

    parameters: int
    corpus_tokens: int
    gflops: float
    memory: MemoryEstimate
    target_seconds: float
    solve_seconds: float
    factor_seconds: float
    moment_seconds: float
    sampling_seconds: float


def costs(outline: Outline, layers: Sequence[int], settings: Mapping[str, object]) -> Costs:
    """Estimate the cost of editing these layers.

    Args:
        settings: all of the method's.
    """
    if "contexts_per_step" not in settings:
        return _without_targets(outline, layers, settings)
    blocks, parameters = outline.block_parameters, outline.parameters
    head = sum(p.numel() for p in outline.architecture.head.parameters())
    forms: Any = settings["forms"]
    contexts = ContextOptions(prefixes=_whole(settings["prefixes"]), forms=tuple(forms)).count
    few = _whole(settings["contexts_per_step"])
    # The prompts of one step, and the one at which the divergence is measured.
    rows = (min(few, contexts) if few else contexts) + 1
    behind = 2 * _SUFFIX * sum(blocks[max(layers) + 1 :]) + 2 * _TARGET * head
    sites = [outline.site(layer) for layer in layers]
    d_in = max(site.d_in for site in sites)
    options = MomentOptions(
        corpus_tokens=_whole(settings["corpus_tokens"]),
        tokens_per_dimension=_whole(settings["tokens_per_dimension"]),
    )
    tokens = options.tokens(d_in)
    return Costs(
        parameters=parameters,
        d_in=d_in,
        d_out=max(site.d_out for site in sites),
        corpus_tokens=tokens,
        # The factor takes the memory of the sum.
        moment_bytes=len(layers) * d_in**2 * 8,
        target=2.0 * _whole(settings["steps"]) * rows * behind,
        token=2.0 * parameters,
        # Half of each product k kᵀ is computed.
        moments=float(tokens) * (2 * sum(blocks[: max(layers) + 1]) + len(layers) * d_in**2),
        sampling=tokens * 2 * parameters / _SAMPLING_SHARE if settings["corpus"] == "self" else 0.0,
    )


def _without_targets(
    outline: Outline, layers: Sequence[int], settings: Mapping[str, object]
) -> Costs:
    """Estimate a method without targets: by gradients, or, where it has no layers, by context."""
    parameters = outline.parameters
    sites = [outline.architecture.sites[k] for k in layers or list(outline.architecture.sites)[:1]]
    passes = _whole(settings.get("steps", 1)) if layers else 0
    d_in = max(site.d_in for site in sites)
    own = settings.get("corpus") == "self" and settings.get("kl")
    tokens = (
        MomentOptions(corpus_tokens=_whole(settings["corpus_tokens"])).tokens(d_in) if own else 0
    )
    if settings.get("contrast"):
        tokens += sum(asking.lines * asking.tokens for asking in facts_of_others(seed=0))
    text = _whole(settings.get("passages", 0)) * PASSAGE
    return Costs(
        parameters=parameters,
        d_in=d_in,
        d_out=max(site.d_out for site in sites),
        corpus_tokens=0,
        moment_bytes=0,
        target=_gradient_tokens(settings, passes) * 2.0 * parameters,
        token=2.0 * parameters,
        moments=0.0,
        sampling=tokens * 2 * parameters / _SAMPLING_SHARE,
        context=0 if layers else _whole(settings.get("shown", 0)) * _TEXT,
        beside=2 * passes * _DIVERGENCE * text * 2.0 * parameters if settings.get("kl") else 0.0,
        together=_whole(settings.get("together", 1)),
    )


def _gradient_tokens(settings: Mapping[str, object], passes: int) -> float:
    """Tokens of an edit, forward and backward, and of the lines that are written for it."""
    trained, lines = float(_TEXT), 0
    if settings.get("contrast"):
        trained += _DIVERGENCE * _TEXT / 2
        lines += BEHIND_PAIRS
    if settings.get("rewordings"):
        lines += LINES
    return 2 * passes * trained + lines * (_TEXT + LONGER) / _SAMPLING_SHARE


def plan(
    outline: Outline, recipe: Recipe, edits: int, *, bytes_per_weight: int, rate: float
) -> CostEstimate:
    """The plan of editing so many facts in one batch at a rate of so many FLOP/s."""
    cost, layers = costs(outline, recipe.layers, recipe.settings), len(recipe.layers)
    each = cost.d_in * (cost.d_in + edits + cost.d_out)
    return CostEstimate(
        parameters=cost.parameters,
        corpus_tokens=cost.corpus_tokens,
        gflops=rate / 1e9,
        memory=_memory(outline, recipe, cost, edits, bytes_per_weight),
        target_seconds=(edits * cost.target + cost.batch(edits)) / rate,
        solve_seconds=_DOUBLE * 2 * layers * edits * each / rate,
        # Without second moments there is nothing to factor.
        factor_seconds=_DOUBLE * layers * bool(cost.corpus_tokens) * cost.d_in**3 / 3 / rate,
        moment_seconds=cost.moments / rate,
        sampling_seconds=cost.sampling / rate,
    )


def _memory(
    outline: Outline, recipe: Recipe, cost: Costs, edits: int, bytes_per_weight: int
) -> MemoryEstimate:
    layers, matrix = len(recipe.layers), cost.d_in * cost.d_out
    master = _MASTER if bytes_per_weight < _MASTER else 0
    tokens = _whole(recipe.settings.get("micro_batch", 0)) or default_micro_batch(outline)
    vocabulary = outline.model.config.get_text_config(decoder=True).vocab_size
    activations = kept_numbers(outline, behind=max(recipe.layers, default=0)) * bytes_per_weight
    return MemoryEstimate(
        weights=cost.parameters * bytes_per_weight,
        moments=cost.moment_bytes,
        masters=layers * matrix * (bytes_per_weight + master),
        factors=layers * edits * (cost.d_in + cost.d_out) * _MASTER,
        solve=8 * (_SOLVE_ARRAYS * edits * cost.d_in + 2 * edits**2),
        # Of a pass's tokens those that predict have logits too, with their gradients, in float32.
        activations=tokens * activations + _predicting(tokens) * vocabulary * 3 * _MASTER,
    )


def _predicting(tokens: int) -> int:
    """Number of predictions among so many suffix tokens and predictions."""
    return -(-tokens * _TARGET // (_SUFFIX + _TARGET))


def measured_rate(size: int = 1024, repeats: int = 5) -> float:
    """FLOP/s of a float32 matrix product on this machine, the best of a few."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        _ = left @ right
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def _whole(value: object) -> int:
    assert isinstance(value, int)
    return value
