"""Find how many facts may be one batch, by what they cost together (the rule adaptive-energy)."""

import torch
from jaxtyping import Float64
from torch import Tensor

from retcon.algebra.preservation import Preservation
from retcon.algebra.solve import factor_gram

# How much more than its facts each by itself a batch may cost on ordinary text.
_SHARED = 0.5


def compatible(
    keys: Float64[Tensor, "n d_in"],
    residual: Float64[Tensor, "n d_out"],
    metric: Preservation,
    ridge: float,
) -> int:
    """Count the facts, from the first on, that may be one batch: the `Energy` rule.

    What writing n facts costs on ordinary text, tr(ΔW M ΔWᵀ) = tr(Rᵀ G⁻¹ (G − ρI) G⁻¹ R), grows
    as n while they are independent, and as n² where keys and residuals agree. A batch ends before
    its cost is 1.5 times that of its facts each by itself. Facts with one key, which agree
    entirely, are not parted by this: they cost less together.
    """
    white = metric.whiten(keys)
    overlap = metric.solve(white) @ white.mT
    pairs = residual @ residual.mT
    alone = overlap.diagonal() * pairs.diagonal() / (overlap.diagonal() + ridge).square()
    allowed = (1 + _SHARED) * alone.cumsum(0)
    # No batch holds two facts with one key as hard constraints.
    gram = overlap.clone()
    gram.diagonal().add_(ridge)
    factor, _, copy = factor_gram(gram, metric.lengths(keys), ridge)
    low, high = 1, len(keys) if copy is None else max(1, copy)
    # Cost over allowance need not be monotone; the largest size that bisection meets is taken.
    while low < high:
        middle = (low + high + 1) // 2
        if _energy(overlap, pairs, factor, middle) <= allowed[middle - 1]:
            low = middle
        else:
            high = middle - 1
    return low


def _energy(overlap: Tensor, pairs: Tensor, factor: Tensor, size: int) -> Tensor:
    """The cost of the first `size` facts together. factor: of G; its head is that of G's head."""
    inner = torch.cholesky_inverse(factor[:size, :size])
    return ((inner @ overlap[:size, :size] @ inner) * pairs[:size, :size]).sum()
