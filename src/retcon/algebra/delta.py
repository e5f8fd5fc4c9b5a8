"""A change of a weight matrix, kept as low-rank factors."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from retcon.errors import InvalidSetting


@dataclass(frozen=True, kw_only=True)
class LowRankDelta:
    """ΔW = leftᵀ right, one row of each factor per edit; multiplied out only to be added.

    Attributes:
        left: residuals, (n, d_out).
        right: write keys, (n, d_in). Both float32, the precision in which an edit is kept, so that
            a saved edit is the edit that was made.
        shared: the rows are no edit's own, so that no edit can be taken out.
    """

    left: Float[Tensor, "n d_out"]
    right: Float[Tensor, "n d_in"]
    shared: bool = False

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
        """The part of ΔW that the given edits wrote.

        Raises:
            InvalidSetting: the rows are shared.
        """
        if self.shared:
            raise InvalidSetting(
                "This change was made by all its edits together: no row of it belongs to one of "
                "them, so it cannot be taken apart. Make it again, with the edits that are wanted."
            )
        index = torch.tensor(list(rows), dtype=torch.long, device=self.left.device)
        return LowRankDelta(left=self.left[index], right=self.right[index])

    def compact(self) -> "LowRankDelta":
        """Reduce to at most min(d_out, d_in) rows, where rows are no edit's own."""
        most = min(self.left.shape[1], self.right.shape[1])
        if not self.shared or self.rank <= most:
            return self
        return LowRankDelta.of_dense(self.dense())

    @staticmethod
    def of_dense(matrix: Float[Tensor, "d_out d_in"]) -> "LowRankDelta":
        """A change of full rank: a row for each output, or each input, whichever are fewer."""
        matrix = matrix.float()
        one = torch.eye(min(matrix.shape), device=matrix.device)
        wide = matrix.shape[0] <= matrix.shape[1]
        left, right = (one, matrix) if wide else (matrix.mT.contiguous(), one)
        return LowRankDelta(left=left, right=right, shared=True)

    @staticmethod
    def stack(deltas: Sequence["LowRankDelta"]) -> "LowRankDelta":
        """The sum of several changes of one matrix: their factors one below the other."""
        return LowRankDelta(
            left=torch.cat([delta.left for delta in deltas]),
            right=torch.cat([delta.right for delta in deltas]),
            shared=any(delta.shared for delta in deltas),
        )
