"""Sums of k kᵀ that are as cheap as their symmetry allows, and need no second matrix.

Only blocks on and above the diagonal are computed, which is half of the products. A block is
multiplied in the precision of the keys and added to a float64 sum at once, so that what is held
besides the sum is one block of rows, and of float32 only what one call adds is ever rounded: with
n keys a call, the relative error of a diagonal element is at most n · 2⁻²⁴ (1e-4 for 2,048), and in
practice, errors being of both signs and products being summed in parts, that of a few roundings,
whatever the number of calls.
"""

from collections.abc import Iterator

from jaxtyping import Float, Float64
from torch import Tensor

# Rows of the sum in one product: enough for matmul's full speed, few enough that the half blocks
# on the diagonal, computed whole, cost little. A narrower matrix is one plain product.
_BLOCK = 384


def add_gram(total: Float64[Tensor, "d d"], keys: Float[Tensor, "n d"]) -> None:
    """Add Σ k kᵀ to the upper triangle of a sum, in place; what lies below stays undefined."""
    for rows in _blocks(len(total)):
        product = keys[:, rows].mT @ keys[:, rows.start :]
        total[rows, rows.start :] += product.to(total.device)


def mirror(total: Float64[Tensor, "d d"]) -> None:
    """Fill the lower triangle from the upper, in place."""
    for rows in _blocks(len(total)):
        total[rows.stop :, rows] = total[rows, rows.stop :].mT
        corner = total[rows, rows]
        corner.copy_(corner.triu() + corner.triu(1).mT)


def all_finite(values: Float[Tensor, "*shape"]) -> bool:
    """True if nothing is NaN or infinite; `isfinite` would make copies to find out."""
    low, high = values.aminmax()
    return bool(low.isfinite() & high.isfinite())


def _blocks(width: int) -> Iterator[slice]:
    for start in range(0, width, _BLOCK):
        yield slice(start, min(start + _BLOCK, width))
