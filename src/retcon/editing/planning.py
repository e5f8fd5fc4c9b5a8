"""What an edit will need, from the configuration alone: memory, and time at this machine's rate.

    targets   edits · steps · rows · [ 2 · suffix · (parameters of blocks behind L) + 2 · head ] · 2
    moments   tokens · 2 · (parameters of blocks up to L) + tokens · 2 · d_in² per layer
    `self`    tokens · 2 · (all parameters), one token at a time

Where no δ is optimised, there are no moments, and a pass runs whole texts:

    gradients steps · text · 2 · (all parameters) · 2                 of each edit
    context   nothing is edited; scored prompts are longer by the facts before them

in FLOPs, the 2 at the end being forward and backward. Text lengths are typical ones, and the
rate is that of a float32 matrix product measured here and now, so take it as an order of size.
"""

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from retcon.activations.covariance import MomentOptions
from retcon.methods.presets import Choice
from retcon.model.architectures import Outline

_SUFFIX, _TARGET = 8, 2
# A prompt with its target, or a fact that is put before one.
_TEXT = 14
# Sampling runs one token at a time and reaches a part of the rate of large products.
_SAMPLING_SHARE = 0.5


class Costs(NamedTuple):
    """What a method costs on a model, in FLOPs, bytes and tokens, whatever the machine.

    target: of one edit, or its gradients. token: of one token forward through the whole model.
    moments, sampling: once for the layers. context: tokens put before each scored prompt.
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


class Plan(NamedTuple):
    """Bytes and seconds; moments and sampling are paid once and then cached."""

    parameters: int
    weight_bytes: int
    moment_bytes: int
    corpus_tokens: int
    gflops: float
    target_seconds: float
    moment_seconds: float
    sampling_seconds: float


def costs(outline: Outline, layers: Sequence[int], settings: Mapping[str, object]) -> Costs:
    """What editing these layers costs with a method's settings, all of them."""
    if "prefixes" not in settings:
        return _without_targets(outline, layers, settings)
    blocks = [sum(p.numel() for p in block.parameters()) for block in outline.architecture.blocks]
    parameters = sum(p.numel() for p in outline.model.parameters())
    head = sum(p.numel() for p in outline.architecture.head.parameters())
    contexts, few = _whole(settings["prefixes"]) + 1, _whole(settings["contexts_per_step"])
    # The prompts of one step, and the one at which the divergence is measured.
    rows = (min(few, contexts) if few else contexts) + 1
    behind = 2 * _SUFFIX * sum(blocks[max(layers) + 1 :]) + 2 * _TARGET * head
    sites = [outline.site(layer) for layer in layers]
    d_in = max(site.d_in for site in sites)
    wanted = MomentOptions(
        corpus_tokens=_whole(settings["corpus_tokens"]),
        tokens_per_dimension=_whole(settings["tokens_per_dimension"]),
    )
    tokens = wanted.tokens(d_in)
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
    """Of a method that goes by gradients of whole texts, or, where it has no layers, by context."""
    parameters = sum(p.numel() for p in outline.model.parameters())
    sites = [outline.architecture.sites[k] for k in layers or list(outline.architecture.sites)[:1]]
    passes = _whole(settings.get("steps", 1)) if layers else 0
    return Costs(
        parameters=parameters,
        d_in=max(site.d_in for site in sites),
        d_out=max(site.d_out for site in sites),
        corpus_tokens=0,
        moment_bytes=0,
        target=2.0 * passes * _TEXT * 2 * parameters,
        token=2.0 * parameters,
        moments=0.0,
        sampling=0.0,
        context=0 if layers else _whole(settings.get("shown", 0)) * _TEXT,
    )


def plan(outline: Outline, choice: Choice, edits: int, *, bytes_per_weight: int) -> Plan:
    """The plan of editing so many facts."""
    found = costs(outline, choice.layers, choice.settings)
    rate = measured_rate()
    return Plan(
        parameters=found.parameters,
        weight_bytes=found.parameters * bytes_per_weight,
        moment_bytes=found.moment_bytes,
        corpus_tokens=found.corpus_tokens,
        gflops=rate / 1e9,
        target_seconds=edits * found.target / rate,
        moment_seconds=found.moments / rate,
        sampling_seconds=found.sampling / rate,
    )


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
