"""The one equation behind ROME, EMMET and MEMIT."""

from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from retcon.algebra.preservation import Preservation
from retcon.errors import CapacityExceeded, CollidingEdits, InvalidSetting, NotFinite

# Below this share of its own (squared, whitened) length a key counts as a copy of the keys before
# it. Keys of equal text in one batch are equal to the last bit; between batches they differ by
# float32 rounding, which an ill-conditioned C stretches to about 1e-8.
_SAME_KEY = 1e-7


class Collision(CollidingEdits):
    """Two rows with one key. `first` is None where it is a key of an earlier batch."""

    def __init__(self, first: int | None, second: int, cosine: float) -> None:
        self.first, self.second, self.cosine = first, second, cosine
        earlier = "an earlier batch" if first is None else f"row {first}"
        super().__init__(f"row {second} has the key of {earlier} (cosine {cosine:.6f})")


class Solution(NamedTuple):
    """The solution of the equation.

    Attributes:
        rows: A.
        novelty: how much of each key was new (1) or a copy (0).
        memory: the rows that the keys add to the metric's B, for `Preservation.remember`.
    """

    rows: Float64[Tensor, "n d_in"]
    memory: Float64[Tensor, "n d_in"]
    novelty: Float64[Tensor, " n"]


def write_keys(
    keys: Float64[Tensor, "n d_in"],
    metric: Preservation,
    ridge: float,
    *,
    read: Float64[Tensor, "n d_in"] | None = None,
) -> Solution:
    """Rows aᵢ such that ΔW = Σ rᵢ aᵢᵀ writes the residual rᵢ at the key kᵢ and moves little else.

        A = (K M⁻¹ Kᵀ + ρ I)⁻¹ K M⁻¹   minimises   ‖ΔW M^½‖² + (1/ρ) Σ ‖ΔW kᵢ − rᵢ‖²

    With ρ = 0 the constraint ΔW kᵢ = rᵢ is hard: EMMET (arXiv:2403.14236), and ROME for n = 1.
    With ρ = λ it is MEMIT's (λC + KᵀK)⁻¹ (arXiv:2210.07229), by the push-through identity.
    `read` are the keys at which a hard constraint must hold where they are not the keys that aim
    the update: A = (K M⁻¹ K_readᵀ)⁻¹ K M⁻¹, ROME as published (arXiv:2202.05262).

    Raises:
        Collision: ρ = 0 and a key is (numerically) a combination of others.
        CapacityExceeded: ρ = 0 and more keys than dimensions.
        NotFinite: NaN or infinity in a key.
    """
    if ridge < 0:
        raise InvalidSetting(f"The ridge must be 0 or more, not {ridge:g}.")
    if not torch.isfinite(keys).all():
        raise NotFinite("A key holds NaN or infinity: the model's activations are not finite.")
    if ridge == 0 and len(keys) + metric.count > metric.width:
        raise CapacityExceeded(
            f"{len(keys)} facts after {metric.count} earlier ones do not fit as hard "
            f"constraints: a matrix with d_in = {metric.width} holds at most {metric.width}. "
            f"Use a ridge > 0 (memit) or fewer facts."
        )
    white = metric.whiten(keys)
    free = metric.solve(white)
    gram = free @ white.mT
    gram.diagonal().add_(ridge)
    factor, novelty, copy = factor_gram(gram, metric.lengths(keys), ridge)
    if copy is not None:
        raise _collision(white, free, copy)
    # G⁻¹ = G^(-½)ᵀ G^(-½): half of the solution is what the metric remembers.
    memory = torch.linalg.solve_triangular(factor, free, upper=False)
    if read is None:
        solution = torch.linalg.solve_triangular(factor.mT, memory, upper=True)
    else:
        solution = torch.linalg.solve(free @ metric.whiten(read).mT, free)
    return Solution(metric.unwhiten(solution), memory, novelty)


def shares(
    keys: Float64[Tensor, "n d_in"],
    metric: Preservation,
    ridge: float,
    *,
    read: Float64[Tensor, "n d_in"] | None = None,
    passes: int = 1,
) -> Float64[Tensor, "n n"]:
    """Shares sᵢⱼ of its residual that each key, written alone, adds at every key: ΔW kⱼ = sᵢⱼ rᵢ.

        sᵢⱼ = kᵢᵀM⁻¹kⱼ / (kᵢᵀM⁻¹kᵢ + ρ)

    That is aᵢᵀkⱼ with the aᵢ of `write_keys` for one row; sᵢᵢ is 1 at ρ = 0. With keys at which
    outputs are read that are not those that aim (ROME as published), sᵢⱼ = k̄ᵢᵀM⁻¹kⱼ / k̄ᵢᵀM⁻¹kᵢ.
    Where what a solve has left is asked for again, in P passes in all, row i is
    1 + (1 − sᵢᵢ) + … + (1 − sᵢᵢ)^(P−1) times that.

    Args:
        keys, metric, ridge, read: as of `write_keys`.
        passes: P.

    Raises:
        InvalidSetting: the metric leaves nothing of a key to write in, and ρ is 0.
    """
    moved = metric.solve(metric.whiten(keys)) @ metric.whiten(keys if read is None else read).mT
    alone = moved.diagonal() + ridge
    if not alone.all():
        row = int((alone == 0).nonzero()[0])
        raise InvalidSetting(
            f"Row {row} cannot be written: the metric leaves nothing of its key to write in, and "
            f"the constraint is hard. Set a ridge > 0."
        )
    once = moved / alone.unsqueeze(1)
    left = 1 - once.diagonal()
    return once * torch.stack([left**n for n in range(passes)]).sum(0).unsqueeze(1)


class Factored(NamedTuple):
    """The Cholesky factor of a Gram matrix K M⁻¹ Kᵀ + ρ I, and what its pivots say of the keys.

    Attributes:
        novelty: how much of each key was new (1) or a copy (0) of the keys before it.
        copy: the first row that is a copy where none is allowed, that is with ρ = 0; from there on
            neither factor nor novelty mean anything.
    """

    factor: Float64[Tensor, "n n"]
    novelty: Float64[Tensor, " n"]
    copy: int | None


def factor_gram(
    gram: Float64[Tensor, "n n"], lengths: Float64[Tensor, " n"], ridge: float
) -> Factored:
    """Factor a Gram matrix, and decide by the pivots' share which keys are copies of others.

    Whether a factorisation fails depends on how one processor rounds, so that alone decides
    nothing: a pivot below `_SAME_KEY` of its key's length is a copy on every machine.

    Args:
        lengths: kᵀM₀⁻¹k of each key.
    """
    factor, failed = torch.linalg.cholesky_ex(gram)
    pivots = factor.diagonal().square() - ridge
    # A key of which the metric leaves nothing to write in is a copy of what is kept.
    novelty = (pivots / lengths).nan_to_num(nan=0.0).clamp_min(0)
    stop = int(failed)
    if stop:
        novelty[stop - 1 :] = 0
    # A ridge that the diagonal's own rounding hides is none.
    hard = ridge <= len(gram) * torch.finfo(gram.dtype).eps * float(lengths.max())
    copies = (novelty < _SAME_KEY).nonzero()
    copy = int(copies[0]) if len(copies) and (hard or stop) else None
    return Factored(factor, novelty, copy)


def _collision(
    white: Float64[Tensor, "n d_in"], free: Float64[Tensor, "n d_in"], second: int
) -> Collision:
    """Name the row whose pivot vanished, and the row it is most like."""
    unit = torch.nn.functional.normalize(white, dim=-1)
    cosines = unit[:second] @ unit[second]
    kept = float(free[second].norm() / white[second].norm())
    if second == 0 or kept < _SAME_KEY**0.5:
        return Collision(None, second, (1 - min(kept, 1.0) ** 2) ** 0.5)
    first = int(cosines.argmax())
    return Collision(first, second, float(cosines[first]))
