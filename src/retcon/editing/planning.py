"""What an edit will need, from the configuration alone: memory, and time at this machine's rate.

    targets   edits · steps · rows · [ 2 · suffix · (parameters of blocks behind L) + 2 · head ] · 2
    moments   tokens · 2 · (parameters of blocks up to L) + tokens · 2 · d_in² per layer
    `self`    tokens · 2 · (all parameters), one token at a time

in FLOPs, the 2 at the end being forward and backward. Text lengths are typical ones, and the
rate is that of a float32 matrix product measured here and now, so take it as an order of size.
"""

import time
from typing import NamedTuple

import torch

from retcon.activations.covariance import MomentOptions
from retcon.methods.presets import Choice
from retcon.model.architectures import Outline

_SUFFIX, _TARGET = 8, 2
# Sampling runs one token at a time and reaches a part of the rate of large products.
_SAMPLING_SHARE = 0.5


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


def plan(outline: Outline, choice: Choice, edits: int, *, bytes_per_weight: int) -> Plan:
    """The plan of editing so many facts."""
    blocks = [sum(p.numel() for p in block.parameters()) for block in outline.architecture.blocks]
    parameters = sum(p.numel() for p in outline.model.parameters())
    head = sum(p.numel() for p in outline.architecture.head.parameters())
    deepest = max(choice.layers)
    values = choice.settings
    rows, steps = _whole(values["prefixes"]) + 2, _whole(values["steps"])
    target = steps * rows * (2 * _SUFFIX * sum(blocks[deepest + 1 :]) + 2 * _TARGET * head) * 2
    d_in = max(outline.site(layer).d_in for layer in choice.layers)
    wanted = MomentOptions(
        corpus_tokens=_whole(values["corpus_tokens"]),
        tokens_per_dimension=_whole(values["tokens_per_dimension"]),
    )
    tokens = wanted.tokens(d_in)
    # Half of each product k kᵀ is computed; the factor takes the memory of the sum.
    moments = tokens * (2 * sum(blocks[: deepest + 1]) + len(choice.layers) * d_in**2)
    sampled = tokens * 2 * parameters if values["corpus"] == "self" else 0
    rate = measured_rate()
    return Plan(
        parameters=parameters,
        weight_bytes=parameters * bytes_per_weight,
        moment_bytes=len(choice.layers) * d_in**2 * 8,
        corpus_tokens=tokens,
        gflops=rate / 1e9,
        target_seconds=edits * target / rate,
        moment_seconds=moments / rate,
        sampling_seconds=sampled / rate / _SAMPLING_SHARE,
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
