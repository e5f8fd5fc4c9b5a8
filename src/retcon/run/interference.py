"""Predict which facts get into each other's way, before any is written: from their keys alone.

Writing fact i alone changes the output at the key of fact j by sᵢⱼ rᵢ, where rᵢ is its residual and
the share sᵢⱼ follows from the keys, the metric and the ridge (`algebra.solve.shares`):

    sᵢⱼ = kᵢᵀM⁻¹kⱼ / (kᵢᵀM⁻¹kᵢ + ρ)

That is exact for one fact at a time at one layer, and so for facts that are carried while earlier
keys are forgotten. A batch, and carried facts whose keys are kept, take such changes into account,
at a cost that grows with them. No target is optimised.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from retcon.edits import Edit
from retcon.errors import InvalidEdit, InvalidSetting
from retcon.features.contexts import check_texts
from retcon.method.base import Interferes
from retcon.method.presets import Recipe, resolve
from retcon.model.handle import ModelHandle
from retcon.progress import Progress, silent


class Pair(NamedTuple):
    """A share: what `writing` adds at the key of `at`, in units of its own residual."""

    layer: int
    writing: Edit
    at: Edit
    share: float


@dataclass(frozen=True, eq=False)
class Interference:
    """Predicted interference of some edits.

    Attributes:
        recipe: the method, layers and settings that it is for.
        edits: the edits, in their order.
        shares: by layer; row i is what writing edit i alone adds at the key of each, in units of
            its own residual. The diagonal is the share that arrives at its own.
    """

    recipe: Recipe
    edits: tuple[Edit, ...]
    shares: Mapping[int, Float64[Tensor, "edits edits"]]

    def others(self, layer: int) -> Float64[Tensor, "edits edits"]:
        """The shares of a layer with 0 on the diagonal."""
        return self.shares[layer].clone().fill_diagonal_(0)

    def disturbance(self, layer: int) -> Float64[Tensor, " edits"]:
        """Root of the sum of squares of all that the others add at each edit's key.

        It is what the output there moves by, in units of a residual, where residuals are equally
        long and of independent directions.
        """
        return self.others(layer).norm(dim=0)

    def disturbed(self) -> list[tuple[Edit, float]]:
        """Each edit with its disturbance, at the layer where that is greatest; the most first."""
        greatest = torch.stack([self.disturbance(layer) for layer in self.shares]).amax(0)
        order = greatest.argsort(descending=True, stable=True).tolist()
        return [(self.edits[i], float(greatest[i])) for i in order]

    def pairs(self, most: int | None = None) -> list[Pair]:
        """Pairs of two edits, the strongest first.

        Args:
            most: how many; None: all.
        """
        layers, count = list(self.shares), len(self.edits)
        every = torch.stack([self.others(layer) for layer in layers])
        wanted = len(layers) * count * (count - 1)
        # The diagonals are none of them, whatever else is 0.
        size = every.abs()
        size.diagonal(dim1=1, dim2=2).fill_(-1)
        order = size.flatten().argsort(descending=True, stable=True)
        chosen = order[: wanted if most is None else min(most, wanted)].tolist()
        places = [divmod(place, count * count) for place in chosen]
        return [
            Pair(
                layers[layer],
                self.edits[place // count],
                self.edits[place % count],
                float(every[layer].flatten()[place]),
            )
            for layer, place in places
        ]


def interference(
    model: ModelHandle,
    edits: Sequence[Edit],
    *,
    method: str | None = None,
    layers: Sequence[int] | None = None,
    settings: Mapping[str, object] | None = None,
    progress: Progress = silent,
) -> Interference:
    """Predict what writing each edit alone does at the keys of the others.

    It takes one short pass over the prompts, once second moments are there. The model stays as it
    is.

    Args:
        model: a model.
        edits: at least two.
        method, layers, settings: as of `edit`.
        progress: is told what is done.

    Raises:
        InvalidEdit: fewer than two edits, or one that this model's tokens cannot tell.
        UnknownName, InvalidSetting: a method, layer or setting that does not exist or fit, or with
            which interference is not known before.
    """
    if len(edits) < 2:
        raise InvalidEdit(
            f"Interference is between facts, and there {'is one' if edits else 'are none'}. Give "
            f"at least two."
        )
    recipe = resolve(model.outline, method=method, layers=layers, settings=settings)
    chosen = recipe.build()
    if not isinstance(chosen, Interferes):
        raise InvalidSetting(
            f"{recipe.name} solves for no keys, so what one fact does at another's is not known "
            f"before. Take a method that does: rome, emmet, memit, encore, alphaedit or lyaplock."
        )
    check_texts(model.tokens, edits)
    state = chosen.setup.begin(model, progress)
    shares = chosen.shares(model, edits, state, progress)
    return Interference(recipe, tuple(edits), {layer: one.cpu() for layer, one in shares.items()})
