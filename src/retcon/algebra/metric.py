"""The metric M of an edit: what it costs to move a weight matrix along each input direction.

M = M₀ + Σ kₚ kₚᵀ / ρ: a base metric, mostly the second moment C of the keys of ordinary text, plus
the keys that earlier edits have written, weighted as they were when they were written. Everything
happens on whitened keys a (`whitening`), in which M is I + Aₚᵀ Aₚ / ρ and

    M⁻¹  =  I − Bᵀ B,      B ← [B; G^(-½) A (I − BᵀB)],      G = A (I − BᵀB) Aᵀ + ρ I

with G^(-½) the inverse Cholesky factor: a block Cholesky recursion that needs no new
factorisation of M, and that for ρ = 0 leaves B an orthonormal basis of what was written, so that
past edits become hard constraints. Where B has more rows than half of its width, I − BᵀB itself is
kept, so that the cost of a batch stops growing with what came before.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64
from torch import Tensor

from retcon.algebra.whitening import Cholesky, Projection, Whitening
from retcon.errors import InvalidSetting

# Rows of B, as a share of d_in, beyond which the d_in × d_in matrix I − BᵀB is cheaper.
_DENSE_FROM = 1 / 2


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A positive definite metric on key space, in whitened coordinates.

    whitening: the coordinates. written: the rows B above, (m, d_in), as long as they are few.
    inverse: I − BᵀB, (d_in, d_in), once they are many; B has no rows then. count: keys written.
    hard: whether all of them were written with ρ = 0, which makes I − BᵀB a projection.
    """

    whitening: Whitening
    written: Float64[Tensor, "m d_in"]
    inverse: Float64[Tensor, "d_in d_in"] | None = None
    count: int = 0
    hard: bool = True

    @classmethod
    def of(
        cls,
        moment: Float64[Tensor, "d_in d_in"],
        *,
        jitter: float = 1e-8,
        overwrite: bool = False,
    ) -> "Metric":
        """M₀ = C + jitter, factored (`Cholesky.of`).

        Raises:
            NotFinite, SingularCovariance: as `Cholesky.of`.
        """
        return cls.over(Cholesky.of(moment, jitter=jitter, overwrite=overwrite), moment)

    @classmethod
    def on_null_space(
        cls, moment: Float64[Tensor, "d_in d_in"], threshold: float, *, relative: bool = False
    ) -> "Metric":
        """M₀ = I on the null space of C, and infinite elsewhere (`Projection.null_space`).

        Raises:
            NotFinite, InvalidSetting: as `Projection.null_space`.
        """
        return cls.over(Projection.null_space(moment, threshold, relative=relative), moment)

    @classmethod
    def identity(cls, like: Float64[Tensor, "d_in d_in"]) -> "Metric":
        """M₀ = I."""
        return cls.over(Projection.identity(like), like)

    @classmethod
    def over(cls, whitening: Whitening, like: Float64[Tensor, "d_in d_in"]) -> "Metric":
        """A base metric with nothing written."""
        return cls(whitening=whitening, written=like.new_zeros(0, whitening.width))

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
        free = self._solve(white)
        # A projection: the second pass restores the orthogonality that one pass loses in
        # floating point where a new key is nearly a combination of old ones.
        return self._solve(free) if self.hard and self.count else free

    def remember(self, rows: Float64[Tensor, "n d_in"], ridge: float) -> "Metric":
        """The metric after keys were written with `ridge`: M + KᵀK/ρ, or its limit at ρ = 0.

        rows: what the keys add to B, G^(-½) A (I − BᵀB), which writing them has computed.
        """
        grown = replace(self, count=self.count + len(rows), hard=self.hard and ridge == 0)
        if self.inverse is None and len(self.written) + len(rows) <= _DENSE_FROM * self.width:
            return replace(grown, written=torch.cat([self.written, rows]))
        inverse = torch.addmm(self._dense(), rows.mT, rows, alpha=-1)
        return replace(grown, written=self.written[:0], inverse=inverse)

    def forget(self, keys: Float64[Tensor, "n d_in"], ridge: float) -> "Metric":
        """The metric as if keys that were written with `ridge` never had been: M − KᵀK/ρ.

        Raises:
            InvalidSetting: ρ = 0, of which the limit has lost what else was in these directions.
        """
        if ridge == 0:
            raise InvalidSetting(
                "A fact that was written as a hard constraint (ridge 0) cannot be taken out of the "
                "metric alone. Write with a ridge > 0, or solve for the remaining facts anew."
            )
        free = self.solve(self.whiten(keys))
        rest = -(free @ self.whiten(keys).mT)
        rest.diagonal().add_(ridge)
        factor = torch.linalg.cholesky(rest)
        rows = torch.linalg.solve_triangular(factor, free, upper=False)
        inverse = torch.addmm(self._dense(), rows.mT, rows)
        return replace(
            self, written=self.written[:0], inverse=inverse, count=self.count - len(keys)
        )

    def _solve(self, white: Float64[Tensor, "n d_in"]) -> Float64[Tensor, "n d_in"]:
        if self.inverse is not None:
            return white @ self.inverse
        return white - (white @ self.written.mT) @ self.written

    def _dense(self) -> Float64[Tensor, "d_in d_in"]:
        """I − BᵀB."""
        if self.inverse is not None:
            return self.inverse
        identity = torch.eye(self.width, dtype=self.written.dtype, device=self.written.device)
        return torch.addmm(identity, self.written.mT, self.written, alpha=-1)
