"""Coordinates in which a base metric is the identity: a factored C, a null space of it, or none.

Everything that is remembered of earlier edits happens in these coordinates, whatever they are, so
a method that preserves other things than ordinary text differs here and nowhere else.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from retcon.algebra.gram import all_finite
from retcon.errors import InvalidSetting, NotFinite, SingularCovariance


@dataclass(frozen=True, kw_only=True)
class Cholesky:
    """a = L⁻¹ k with C + jitter = L Lᵀ: moving W costs what it changes on ordinary text.

    Attributes:
        factor: L, (d_in, d_in).
        jitter: what was added to the diagonal of C, in absolute units.
    """

    factor: Float64[Tensor, "d_in d_in"]
    jitter: float

    @classmethod
    def of(
        cls, moment: Float64[Tensor, "d_in d_in"], *, jitter: float, overwrite: bool
    ) -> "Cholesky":
        """Factor C after adding `jitter` times its mean diagonal to the diagonal.

        Args:
            overwrite: leave the factor in the memory of C, so that no second d_in × d_in matrix
                exists.

        Raises:
            NotFinite: NaN or infinity in C.
            SingularCovariance: C is not positive definite even so.
        """
        check_moment(moment)
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
        return cls(factor=factor, jitter=absolute)

    @property
    def like(self) -> Tensor:
        """A tensor of the right type and place."""
        return self.factor

    @property
    def width(self) -> int:
        """d_in."""
        return len(self.factor)

    def whiten(self, keys: Float64[Tensor, "n d_in"]) -> Float64[Tensor, "n d_in"]:
        """L⁻¹ k for each row."""
        return torch.linalg.solve_triangular(self.factor, keys.mT, upper=False).mT

    def unwhiten(self, white: Float64[Tensor, "n d_in"]) -> Float64[Tensor, "n d_in"]:
        """L⁻ᵀ a for each row: back to the coordinates in which a delta is written."""
        return torch.linalg.solve_triangular(self.factor.mT, white.mT, upper=True).mT

    def weigh(self, rows: Float64[Tensor, "n d_in"]) -> Float64[Tensor, "n d_in"]:
        """Lᵀ d for each row of a change: the inverse of `unwhiten`."""
        return rows @ self.factor


@dataclass(frozen=True, kw_only=True)
class Projection:
    """a = U Uᵀ k: directions outside the span of U cost everything, those inside the same.

    Attributes:
        basis: orthonormal rows, (q, d_in), of U, or of its complement where that is smaller.
        inside: whether they are of U. With no rows of a complement, nothing is projected: M₀ = I.
    """

    basis: Float64[Tensor, "q d_in"]
    inside: bool

    @classmethod
    def identity(cls, like: Float64[Tensor, "d_in d_in"]) -> "Projection":
        """Every direction costs the same."""
        return cls(basis=like.new_zeros(0, len(like)), inside=False)

    @classmethod
    def null_space(
        cls, moment: Float64[Tensor, "d_in d_in"], threshold: float, *, relative: bool
    ) -> "Projection":
        """The directions in which C has eigenvalues below a threshold.

        Args:
            relative: in units of C's mean eigenvalue, rather than of the model's activations.

        Raises:
            NotFinite: NaN or infinity in C.
            InvalidSetting: there are none.
        """
        check_moment(moment)
        values, vectors = torch.linalg.eigh(moment)
        limit = threshold * float(values.mean()) if relative else threshold
        free = int((values < limit).sum())
        if not free:
            raise InvalidSetting(
                f"No direction of the keys has a second moment below {limit:.3g} (the smallest is "
                f"{float(values[0]):.3g}), so nothing may be written. Raise null_threshold."
            )
        inside = free <= len(values) - free
        chosen = vectors[:, :free] if inside else vectors[:, free:]
        return cls(basis=chosen.mT.contiguous(), inside=inside)

    @property
    def like(self) -> Tensor:
        """A tensor of the right type and place."""
        return self.basis

    @property
    def width(self) -> int:
        """d_in."""
        return self.basis.shape[1]

    @property
    def rank(self) -> int:
        """Number of directions that are left to write in."""
        return len(self.basis) if self.inside else self.width - len(self.basis)

    def whiten(self, keys: Float64[Tensor, "n d_in"]) -> Float64[Tensor, "n d_in"]:
        """U Uᵀ k for each row."""
        within = (keys @ self.basis.mT) @ self.basis
        return within if self.inside else keys - within

    def unwhiten(self, white: Float64[Tensor, "n d_in"]) -> Float64[Tensor, "n d_in"]:
        """Project once more, so that what is kept stays untouched to round-off."""
        return self.whiten(white)

    def weigh(self, rows: Float64[Tensor, "n d_in"]) -> Float64[Tensor, "n d_in"]:
        """Project rows of a change: what lies outside of the span of U is round-off."""
        return self.whiten(rows)


@dataclass(frozen=True, kw_only=True)
class Root:
    """a = T k with M⁻¹ = Tᵀ T: a metric that has absorbed keys, at a cost that does not grow.

    Attributes:
        root: T, (d_in, d_in).
    """

    root: Float64[Tensor, "d_in d_in"]

    @classmethod
    def of(cls, whitening: "Whitening") -> "Root":
        """The coordinates themselves."""
        if isinstance(whitening, Root):
            return whitening
        return cls(root=whitening.unwhiten(torch.eye(whitening.width).to(whitening.like)))

    @property
    def like(self) -> Tensor:
        """A tensor of the right type and place."""
        return self.root

    @property
    def width(self) -> int:
        """d_in."""
        return len(self.root)

    def whiten(self, keys: Float64[Tensor, "n d_in"]) -> Float64[Tensor, "n d_in"]:
        """T k for each row."""
        return keys @ self.root.mT

    def unwhiten(self, white: Float64[Tensor, "n d_in"]) -> Float64[Tensor, "n d_in"]:
        """Tᵀ a for each row."""
        return white @ self.root

    def weigh(self, rows: Float64[Tensor, "n d_in"]) -> Float64[Tensor, "n d_in"]:
        """T⁻ᵀ d for each row of a change: the inverse of `unwhiten`."""
        return torch.linalg.solve(self.root, rows, left=False)

    def after(self, rows: Float64[Tensor, "n d_in"]) -> "Root":
        """Coordinates of Tᵀ (I − YᵀY) T, Y the rows.

        I − YᵀY = EᵀE with E = I − Yᵀ (I + Cᵀ)⁻¹ Y and C the Cholesky factor of I − YYᵀ: the
        square-root update of Kalman filters (Andrews 1968), which keeps M⁻¹ positive.
        """
        rest = -(rows @ rows.mT)
        # Where ρ is next to nothing, rounding must not make it less.
        rest.diagonal().add_(1 + len(rows) * torch.finfo(rows.dtype).eps)
        factor = torch.linalg.cholesky(rest).mT
        factor.diagonal().add_(1)
        moved = torch.linalg.solve_triangular(factor, rows @ self.root, upper=True)
        return Root(root=torch.addmm(self.root, rows.mT, moved, alpha=-1))


# A linear map of keys, k ↦ a, whose transpose times itself is M₀⁻¹.
Whitening = Cholesky | Projection | Root


def energy(white: Float64[Tensor, "d_out d_in"]) -> float:
    """tr(D M₀ Dᵀ), the mean square change on ordinary text.

    Args:
        white: D, weighed.
    """
    return float(white.square().sum())


def check_moment(moment: Float64[Tensor, "d_in d_in"]) -> None:
    """Raise NotFinite where there is NaN or infinity in C."""
    if not all_finite(moment):
        raise NotFinite(
            "The second moments hold NaN or infinity: the model's activations on the corpus "
            "are not finite. Try dtype float32 and another corpus."
        )
