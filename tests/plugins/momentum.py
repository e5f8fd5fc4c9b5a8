"""Momentum: a gradient step on the edited matrix, which goes on in the direction of the last ones.

    Vₜ = β Vₜ₋₁ − lr Σ gᵢ hᵢᵀ        ΔW = Vₜ

h: what the matrix takes at the tokens by which a target is predicted; g: the gradient of the
target's mean negative log-probability with respect to what it gives there. The velocity V is the
state that is carried from batch to batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from retcon.algebra.delta import LowRankDelta
from retcon.edits import Edit
from retcon.features.gradients import read_answers
from retcon.method.base import NoFeatures, Report, Update
from retcon.method.entries import method
from retcon.model.handle import ModelHandle
from retcon.progress import Progress, silent


class Velocity(NamedTuple):
    """The state, and the increment: V of each layer after a batch, and how many there were."""

    by_layer: Mapping[int, Tensor]
    batches: int


@dataclass(frozen=True)
class AtRest:
    """All that the beginning depends on."""

    layers: tuple[int, ...]

    def begin(self, model: ModelHandle, progress: Progress = silent) -> Velocity:
        """No velocity yet."""
        del progress
        shapes = {layer: model.master(layer).double() for layer in self.layers}
        return Velocity({layer: torch.zeros_like(w) for layer, w in shapes.items()}, 0)


@dataclass(frozen=True, kw_only=True)
class Momentum:
    """Settings as of `momentum`."""

    layers: tuple[int, ...]
    lr: float
    beta: float
    max_batch: int | None = None

    @property
    def setup(self) -> AtRest:
        """The layers."""
        return AtRest(self.layers)

    @property
    def shares_rows(self) -> bool:
        """Yes: a step is of all edits together."""
        return True

    def features(
        self, model: ModelHandle, edits: Sequence[Edit], state: Velocity,
        progress: Progress = silent,
    ) -> NoFeatures:  # fmt: skip
        """Nothing: gradients are read on the weights that a batch finds."""
        return NoFeatures(tuple(edits))

    def solve(
        self, model: ModelHandle, features: NoFeatures, state: Velocity,
        progress: Progress = silent,
    ) -> Update[Velocity]:  # fmt: skip
        """The step of each layer."""
        answers, nll = read_answers(model, features.edits, self.layers, 512, progress)
        velocity = {
            layer: self.beta * state.by_layer[layer]
            - self.lr * answers.gradients[layer].mT @ answers.keys[layer]
            for layer in self.layers
        }
        return Update(
            ids=tuple(edit.id for edit in features.edits),
            deltas={layer: LowRankDelta.of_dense(v) for layer, v in velocity.items()},
            increment=Velocity(velocity, state.batches + 1),
            report=Report(
                batch={"loss": float(nll.mean())},
                layer={"velocity": {layer: float(v.norm()) for layer, v in velocity.items()}},
            ),
        )

    def carry(self, state: Velocity, increment: Velocity) -> Velocity:
        """The velocity after the batch."""
        return increment


@method("momentum", title="Momentum", paper="https://doi.org/10.1016/0041-5553(64)90137-5")
def momentum(
    layers: tuple[int, ...],
    *,
    lr: Annotated[float, Field(gt=0)] = 1e-3,
    beta: Annotated[float, Field(ge=0, lt=1)] = 0.9,
) -> Momentum:
    """Batches of facts by a gradient step with momentum.

    lr: how far along the gradient. beta: how much of the last step is kept.
    """
    return Momentum(layers=layers, lr=lr, beta=beta)
