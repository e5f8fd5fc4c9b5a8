"""The metric M of an edit: the cost of moving a weight matrix along each input direction.

M = M₀ + Σ kₚ kₚᵀ / ρ: a base metric, mostly the second moment C of the keys of ordinary text, plus
the keys that earlier edits have written, weighted as they were when they were written. Everything
happens on whitened keys a (`whitening`), in which M is I + Aₚᵀ Aₚ / ρ and

    M⁻¹  =  I − Bᵀ B,      B ← [B; G^(-½) A (I − BᵀB)],      G = A (I − BᵀB) Aᵀ + ρ I

with G^(-½) the inverse Cholesky factor: a block Cholesky recursion that needs no new
factorisation of M, and that for ρ = 0 leaves B an orthonormal basis of what was written, so that
past edits become hard constraints. For ρ > 0 the rows of B are absorbed into the coordinates where
they are many (`whitening.Root`), so that the cost of a batch stops growing with what came before.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64
from torch import Tensor

from retcon.algebra.whitening import Cholesky, Projection, Root, Whitening, energy

# Rows of B, as a share of d_in, beyond which they are absorbed: that takes a d_in × d_in matrix,
# so few facts in a wide matrix should not bring it about.
_ABSORBED_FROM = 1 / 8


@dataclass(frozen=True, kw_only=True)
class Preservation:
    """A positive definite metric on key space, in whitened coordinates.

    Attributes:
        base: the coordinates of M₀.
        whitening: those in use, which may have absorbed written keys.
        written: the rows B above, (m, d_in), of keys that have not been absorbed.
        count: keys written.
        hard: whether all of them were written with ρ = 0, which makes I − BᵀB a projection.
        soft: whether none was, so that they can be absorbed.
    """

    base: Whitening
    whitening: Whitening
    written: Float64[Tensor, "m d_in"]
    count: int = 0
    hard: bool = True
    soft: bool = True

    @classmethod
    def of(
        cls,
        moment: Float64[Tensor, "d_in d_in"],
        *,
        jitter: float = 1e-8,
        overwrite: bool = False,
    ) -> "Preservation":
        """M₀ = C + jitter, factored (`Cholesky.of`).

        Raises:
            NotFinite, SingularCovariance: as `Cholesky.of`.
        """
        return cls.over(Cholesky.of(moment, jitter=jitter, overwrite=overwrite), moment)

    @classmethod
    def on_null_space(
        cls, moment: Float64[Tensor, "d_in d_in"], threshold: float, *, relative: bool = False
    ) -> "Preservation":
        """M₀ = I on the null space of C, and infinite elsewhere (`Projection.null_space`).

        Raises:
            NotFinite, InvalidSetting: as `Projection.null_space`.
        """
        return cls.over(Projection.null_space(moment, threshold, relative=relative), moment)

    @classmethod
    def identity(cls, like: Float64[Tensor, "d_in d_in"]) -> "Preservation":
        """M₀ = I."""
        return cls.over(Projection.identity(like), like)

    @classmethod
    def over(cls, whitening: Whitening, like: Float64[Tensor, "d_in d_in"]) -> "Preservation":
        """A base metric with nothing written."""
        empty = like.new_zeros(0, whitening.width)
        return cls(base=whitening, whitening=whitening, written=empty)

    @property
    def width(self) -> int:
        """d_in."""
        return self.whitening.width

    def whiten(self, keys: Float64[Tensor, "n d_in"]) -> Float64[Tensor, "n d_in"]:
        """The whitened keys a."""
        return self.whitening.whiten(keys)

    def unwhiten(self, white: Float64[Tensor, "n d_in"]) -> Float64[Tensor, "n d_in"]:
        """Back to the coordinates in which a delta is written."""
        return self.whitening.unwhiten(white)

    def solve(self, white: Float64[Tensor, "n d_in"]) -> Float64[Tensor, "n d_in"]:
        """(I − BᵀB) a for each whitened row: M⁻¹ in whitened coordinates."""
        if not len(self.written):
            return white
        free = white - (white @ self.written.mT) @ self.written
        if self.hard:
            # A projection: the second pass restores the orthogonality that one pass loses in
            # floating point where a new key is nearly a combination of old ones.
            free = free - (free @ self.written.mT) @ self.written
        return free

    def lengths(self, keys: Float64[Tensor, "n d_in"]) -> Float64[Tensor, " n"]:
        """kᵀM₀⁻¹k of each row, whatever has been written."""
        return self.base.whiten(keys).square().sum(-1)

    def energy(self, change: Float64[Tensor, "d_out d_in"]) -> float:
        """tr(D M₀ Dᵀ) of a change, whatever has been written."""
        return energy(self.base.weigh(change))

    def remember(self, rows: Float64[Tensor, "n d_in"], ridge: float) -> "Preservation":
        """The metric after keys were written with `ridge`: M + KᵀK/ρ, or its limit at ρ = 0.

        Args:
            rows: what the keys add to B, G^(-½) A (I − BᵀB), which writing them has computed.
        """
        grown = replace(
            self,
            count=self.count + len(rows),
            hard=self.hard and ridge == 0,
            soft=self.soft and ridge > 0,
        )
        if isinstance(self.whitening, Root):
            return replace(grown, whitening=self.whitening.after(rows))
        grown = replace(grown, written=torch.cat([self.written, rows]))
        many = len(grown.written) > _ABSORBED_FROM * self.width
        return grown._absorbed() if many and grown.soft else grown

    def _absorbed(self) -> "Preservation":
        """Absorb B into the coordinates; the metric stays the same."""
        root = Root.of(self.whitening)
        if len(self.written):
            root = root.after(self.written)
        return replace(self, whitening=root, written=self.written[:0])
