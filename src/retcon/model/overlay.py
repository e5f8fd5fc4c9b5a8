"""Score updates without writing them: each is laid over the outputs of rows of its own.

A row of a batch that belongs to update i sees y + Lᵢᵀ Rᵢ x in the place of y = Wx at every site
that the update changes. So the prompts of many single edits run in one pass, where writing each
into the weights would run them one edit at a time.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from retcon.algebra.delta import LowRankDelta
from retcon.model import hooks
from retcon.model.handle import ModelHandle

Deltas = Mapping[int, LowRankDelta]
UNCHANGED: Deltas = MappingProxyType({})

# Rank per update up to which rows may carry their own: each takes rank · (d_in + d_out) numbers,
# and as many multiplications per token, of what a matrix of its own would take.
_MOST_RANK = 8


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """A model as each of some updates would leave it; without updates, the model as it is.

    Raises:
        NotFinite, UnsupportedModel: an update that could not be written either.
    """

    model: ModelHandle
    updates: Sequence[Deltas] = ()

    def __post_init__(self) -> None:
        for deltas in self.updates:
            self.model.check(deltas)

    @property
    def applicable(self) -> bool:
        """True if overlaid updates give the scores of written weights, and cost less.

        Rows see updates unrounded, and so do weights only where they are their own masters: in
        half precision what would be saved is the rounded matrix, which has to be written.
        """
        ranks = [delta.rank for deltas in self.updates for delta in deltas.values()]
        return not ranks or (self.model.weights_are_masters and max(ranks) <= _MOST_RANK)

    @contextmanager
    def over(self, owners: Sequence[int]) -> Generator[None, None, None]:
        """Run batches whose row r belongs to update `owners[r]`."""
        layers = sorted({layer for deltas in self.updates for layer in deltas})
        factors = {layer: self._factors(layer, owners) for layer in layers}

        def change(layer: int, x: Float[Tensor, "rows positions d_in"]) -> Tensor:
            left, right = factors[layer]
            return (x @ right.mT) @ left

        modules = {layer: self.model.site(layer).module for layer in layers}
        with hooks.add_to_outputs(modules, len(owners), change):
            yield

    def _factors(
        self, layer: int, owners: Sequence[int]
    ) -> tuple[Float[Tensor, "rows rank d_out"], Float[Tensor, "rows rank d_in"]]:
        """Both factors of each row's update; where one is of lower rank, or none, zeros."""
        site = self.model.site(layer)
        deltas = [self.updates[owner].get(layer) for owner in owners]
        rank = max((delta.rank for delta in deltas if delta is not None), default=0)
        kind, device = site.dtype, site.device
        left = torch.zeros(len(owners), rank, site.d_out, dtype=kind, device=device)
        right = torch.zeros(len(owners), rank, site.d_in, dtype=kind, device=device)
        for row, delta in enumerate(deltas):
            if delta is not None:
                left[row, : delta.rank] = delta.left
                right[row, : delta.rank] = delta.right
        return left, right
