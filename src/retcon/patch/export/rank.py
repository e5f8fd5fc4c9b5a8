"""Change the rank of factors: fewer rows with the error that costs, or more rows, of zeros."""

from typing import NamedTuple

import torch
from torch.nn.functional import pad

from retcon.algebra.delta import LowRankDelta


class Capped(NamedTuple):
    """A change of at most so many rows, and ‖ΔW − ΔW'‖ / ‖ΔW‖ (0: nothing was lost)."""

    delta: LowRankDelta
    error: float


def capped(delta: LowRankDelta, rank: int) -> Capped:
    """The nearest change of at most that rank, by the singular values of ΔW = leftᵀ right.

    Found without ΔW: with leftᵀ = Q₁R₁ and rightᵀ = Q₂R₂ (QR), ΔW = Q₁ (R₁R₂ᵀ) Q₂ᵀ, and the
    singular values are those of the n x n matrix in the middle. In float64.
    """
    if delta.rank <= rank:
        return Capped(delta, 0.0)
    left, left_r = torch.linalg.qr(delta.left.double().mT)
    right, right_r = torch.linalg.qr(delta.right.double().mT)
    u, values, v = torch.linalg.svd(left_r @ right_r.mT, full_matrices=False)
    scale = values[:rank].sqrt()
    delta_of_rank = LowRankDelta(
        left=((left @ u[:, :rank]) * scale).mT.float().contiguous(),
        right=((right @ v[:rank].mT) * scale).mT.float().contiguous(),
    )
    whole = float(values.norm())
    return Capped(delta_of_rank, float(values[rank:].norm()) / whole if whole else 0.0)


def padded(delta: LowRankDelta, rank: int) -> LowRankDelta:
    """Add rows of zeros, so that there are `rank` rows."""
    more = (0, 0, 0, rank - delta.rank)
    return LowRankDelta(left=pad(delta.left, more), right=pad(delta.right, more))


def balanced(delta: LowRankDelta) -> LowRankDelta:
    """Scale the two rows of an edit to about equal size, which half precision needs.

    Scaled by powers of two, which float32 factors multiply by without rounding.
    """
    sizes = [factor.abs().amax(1, keepdim=True) for factor in (delta.left, delta.right)]
    exponent = ((sizes[1].log2() - sizes[0].log2()) / 2).round()
    exponent = torch.where(exponent.isfinite(), exponent, 0.0)
    return LowRankDelta(left=delta.left * exponent.exp2(), right=delta.right * (-exponent).exp2())
