"""A change of a weight matrix, kept as factors."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LowRankDelta:
    """ΔW = leftᵀ right, one row of each factor per edit; multiplied out only to be added.

    left: residuals, (n, d_out). right: write keys, (n, d_in). Both float32, the precision in
    which an edit is kept, so that a saved edit is the edit that was made.
    """

    left: Float[Tensor, "n d_out"]
    right: Float[Tensor, "n d_in"]

    @property
    def rank(self) -> int:
        """Number of rows; the rank of ΔW is at most this."""
        return self.left.shape[0]

    def dense(self, rows: slice = slice(None)) -> Float[Tensor, "rows d_in"]:
        """The given output rows of ΔW in float64."""
        return self.left[:, rows].double().mT @ self.right.double()

    def norm(self) -> float:
        """Frobenius norm, from the n x n Gram matrices of the factors."""
        left, right = self.left.double(), self.right.double()
        squared = ((left @ left.mT) * (right @ right.mT)).sum()
        return float(squared.clamp_min(0).sqrt())

    def select(self, rows: Sequence[int]) -> "LowRankDelta":
        """The part of ΔW that the given edits wrote."""
        index = torch.tensor(list(rows), dtype=torch.long, device=self.left.device)
        return LowRankDelta(left=self.left[index], right=self.right[index])

    @staticmethod
    def of_dense(matrix: Float[Tensor, "d_out d_in"]) -> "LowRankDelta":
        """A change of full rank: its rows, each an edit of one output, of no fact's own."""
        matrix = matrix.float()
        return LowRankDelta(left=torch.eye(len(matrix), device=matrix.device), right=matrix)

    @staticmethod
    def stack(deltas: Sequence["LowRankDelta"]) -> "LowRankDelta":
        """The sum of several changes of one matrix: their factors one below the other."""
        return LowRankDelta(
            left=torch.cat([delta.left for delta in deltas]),
            right=torch.cat([delta.right for delta in deltas]),
        )
