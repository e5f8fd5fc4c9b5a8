"""The metric M of an edit: what it costs to move a weight matrix along each input direction.

M = C + Σ kₚ kₚᵀ / ρ: the second moment C of the keys of ordinary text, plus the keys that earlier
edits have written, weighted as they were when they were written. C is factored once, C = L Lᵀ,
and everything else happens on whitened keys a = L⁻¹ k, in which M is I + Aₚᵀ Aₚ / ρ and

    M⁻¹  =  I − Bᵀ B,      B ← [B; G^(-½) A (I − BᵀB)],      G = A (I − BᵀB) Aᵀ + ρ I

with G^(-½) the inverse Cholesky factor: a block Cholesky recursion that needs no new
factorisation of M, and that for ρ = 0 leaves B an orthonormal basis of what was written, so that
past edits become hard constraints.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from retcon.algebra.gram import all_finite
from retcon.errors import NotFinite, SingularCovariance


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A positive definite metric on key space, in whitened coordinates.

    factor: lower Cholesky factor L of C + jitter, (d_in, d_in).
    written: the rows B above, (m, d_in); m is the number of keys written so far.
    jitter: what was added to the diagonal of C, in absolute units.
    hard: whether all written keys were written with ρ = 0, which makes I − BᵀB a projection.
    """

    factor: Float64[Tensor, "d_in d_in"]
    written: Float64[Tensor, "m d_in"]
    jitter: float
    hard: bool = True

    @classmethod
    def of(
        cls,
        moment: Float64[Tensor, "d_in d_in"],
        *,
        jitter: float = 1e-8,
        overwrite: bool = False,
    ) -> "Metric":
        """Factor C = E[k kᵀ] after adding `jitter` times its mean diagonal to the diagonal.

        overwrite: leave the factor in the memory of C, so that no second d_in × d_in matrix exists.

        Raises:
            NotFinite: NaN or infinity in C.
            SingularCovariance: C is not positive definite even so.
        """
        if not all_finite(moment):
            raise NotFinite(
                "The second moments hold NaN or infinity: the model's activations on the corpus "
                "are not finite. Try dtype float32 and another corpus."
            )
        absolute = jitter * float(moment.diagonal().mean())
        factor = (moment if overwrite else moment.clone()).mT
        factor.diagonal().add_(absolute)
        # LAPACK wants columns one behind the other: given a transposed matrix it copies nothing.
        failed = torch.empty((), dtype=torch.int32, device=factor.device)
        torch.linalg.cholesky_ex(factor, out=(factor, failed))
        if int(failed) or not all_finite(factor.diagonal()):
            raise SingularCovariance(
                f"The second moments are not positive definite with a jitter of {jitter:g} of "
                f"their mean diagonal (pivot {int(failed)} of {len(moment)} failed). Collect them "
                f"from more tokens, or raise the jitter (--set jitter=1e-6)."
            )
        return cls(factor=factor, written=moment.new_zeros(0, len(moment)), jitter=absolute)

    @property
    def width(self) -> int:
        """d_in."""
        return len(self.factor)

    def whiten(self, keys: Float64[Tensor, "n d_in"]) -> Float64[Tensor, "n d_in"]:
        """A = L⁻¹ k for each row."""
        return torch.linalg.solve_triangular(self.factor, keys.mT, upper=False).mT

    def solve(self, white: Float64[Tensor, "n d_in"]) -> Float64[Tensor, "n d_in"]:
        """(I − BᵀB) a for each whitened row: M⁻¹ in whitened coordinates."""
        free = white - (white @ self.written.mT) @ self.written
        if self.hard:
            # A projection: the second pass restores the orthogonality that one pass loses in
            # floating point where a new key is nearly a combination of old ones.
            free = free - (free @ self.written.mT) @ self.written
        return free

    def unwhiten(self, white: Float64[Tensor, "n d_in"]) -> Float64[Tensor, "n d_in"]:
        """L⁻ᵀ a for each row: back to the coordinates in which a delta is written."""
        return torch.linalg.solve_triangular(self.factor.mT, white.mT, upper=True).mT

    def remember(self, rows: Float64[Tensor, "n d_in"], ridge: float) -> "Metric":
        """The metric after keys were written with `ridge`: M + KᵀK/ρ, or its limit at ρ = 0.

        rows: what the keys add to B, G^(-½) A (I − BᵀB), which writing them has computed.
        """
        return Metric(
            factor=self.factor,
            written=torch.cat([self.written, rows]),
            jitter=self.jitter,
            hard=self.hard and ridge == 0,
        )
