"""Solve again for all facts written so far with every batch: the cumulative form.

    minimise  ρ ‖D M₀^½‖² + Σ over all facts ‖D kᵢ − uᵢ‖²       D = W − W₀,  uᵢ = vᵢ − W₀ kᵢ

With S = Σ aᵢ aᵢᵀ and B = Σ uᵢ aᵢᵀ on whitened keys a, D = B (ρI + S)⁻¹ there: the cost does not
depend on how many facts there are. With one ρ throughout it equals the recursion of `metric`. It
allows what that does not: a ρ that changes with time (LyapLock, arXiv:2505.15702), facts that are
taken out or get another value, and weights that something else has changed in between.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from retcon.algebra.whitening import Whitening, energy
from retcon.errors import InvalidSetting


class Change(NamedTuple):
    """D, and what it costs: energy = tr(D M₀ Dᵀ), the mean square change on ordinary text."""

    total: Float64[Tensor, "d_out d_in"]
    energy: float


class Cumulative(NamedTuple):
    """The sums over all facts.

    Attributes:
        keys: S, (d_in, d_in).
        pairs: B, (d_out, d_in).
        count: facts.
    """

    whitening: Whitening
    keys: Float64[Tensor, "d_in d_in"]
    pairs: Float64[Tensor, "d_out d_in"]
    count: int = 0

    @classmethod
    def over(cls, whitening: Whitening, weight: Float64[Tensor, "d_out d_in"]) -> "Cumulative":
        """Start with no facts, for a matrix of the shape and dtype of `weight`."""
        width = whitening.width
        return cls(whitening, weight.new_zeros(width, width), torch.zeros_like(weight))

    def add(
        self, keys: Float64[Tensor, "n d_in"], values: Float64[Tensor, "n d_out"]
    ) -> "Cumulative":
        """Add facts.

        Args:
            values: uᵢ, the output that D should give at each key.
        """
        return self._summed(keys, values, 1)

    def remove(
        self, keys: Float64[Tensor, "n d_in"], values: Float64[Tensor, "n d_out"]
    ) -> "Cumulative":
        """Take out facts that were added with the same keys and values."""
        return self._summed(keys, values, -1)

    def solve(self, ridge: float) -> Change:
        """The whole change since W₀.

        Raises:
            InvalidSetting: ρ = 0: hard constraints need each fact, not their sums.
        """
        if ridge <= 0:
            raise InvalidSetting(
                "The cumulative form needs a ridge > 0: sums over facts do not tell hard "
                "constraints apart."
            )
        system = self.keys.clone()
        system.diagonal().add_(ridge)
        factor = torch.linalg.cholesky(system)
        white = torch.cholesky_solve(self.pairs.mT, factor).mT
        return Change(self.whitening.unwhiten(white), energy(white))

    def _summed(
        self, keys: Float64[Tensor, "n d_in"], values: Float64[Tensor, "n d_out"], sign: int
    ) -> "Cumulative":
        white = self.whitening.whiten(keys)
        return self._replace(
            keys=torch.addmm(self.keys, white.mT, white, alpha=sign),
            pairs=torch.addmm(self.pairs, values.mT, white, alpha=sign),
            count=self.count + sign * len(keys),
        )
