"""Spread the change that a target asks for over several layers.

Divided   the gap that is left at the last layer, by the number of layers to come (MEMIT)
Forward   targets at the first layer, whose effect is replayed through the others; each of them
          closes its own gap whole (FE, arXiv:2605.00358)
Each      targets at each layer, on the model as the layers before have become (BLUE,
          arXiv:2502.03748)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Float64
from torch import Tensor

from retcon.edits import Edit
from retcon.features.block_outputs import replay_outputs
from retcon.features.targets import Targets
from retcon.method.key_features import KeyFeatures
from retcon.model.handle import ModelHandle

Gap = Float64[Tensor, "edits hidden"]


@dataclass(frozen=True)
class Layer:
    """One of several layers, on its turn.

    Attributes:
        number: of the layer.
        done: how many layers are written before it, of `count`.
        output: reads what a block gives now at the end of each subject.
        targets: makes targets for this layer, on the model as it is now.
    """

    number: int
    done: int
    count: int
    output: Callable[[int], Gap]
    targets: Callable[[int], Targets]


@runtime_checkable
class Spread(Protocol):
    """A way to spread a change over layers."""

    def aim(self, layers: Sequence[int]) -> int:
        """The layer at whose output targets are optimised first."""
        ...

    def target_outputs(
        self,
        model: ModelHandle,
        edits: Sequence[Edit],
        layers: Sequence[int],
        delta: Float[Tensor, "edits hidden"],
    ) -> Float64[Tensor, "layers edits hidden"] | None:
        """Outputs that each block should give, where they are known from the beginning."""
        ...

    def gap(self, features: KeyFeatures, last: int, layer: Layer) -> Gap:
        """Output that a layer is to add at each subject's end.

        Args:
            last: the last of the layers.
        """
        ...


@dataclass(frozen=True)
class Divided:
    """Equal shares for the layers that are left."""

    def aim(self, layers: Sequence[int]) -> int:
        """The last layer."""
        return layers[-1]

    def target_outputs(
        self,
        model: ModelHandle,
        edits: Sequence[Edit],
        layers: Sequence[int],
        delta: Float[Tensor, "edits hidden"],
    ) -> None:
        """None: only the last block's output is known."""
        del model, edits, layers, delta

    def gap(self, features: KeyFeatures, last: int, layer: Layer) -> Gap:
        """The gap at the last layer, divided."""
        targets = features.targets
        wanted = targets.anchor.double() + targets.delta.double()
        return (wanted - layer.output(last)) / (layer.count - layer.done)


@dataclass(frozen=True)
class Forward:
    """Each layer its own gap, to what the first layer's target makes of it."""

    def aim(self, layers: Sequence[int]) -> int:
        """The first layer."""
        return layers[0]

    def target_outputs(
        self,
        model: ModelHandle,
        edits: Sequence[Edit],
        layers: Sequence[int],
        delta: Float[Tensor, "edits hidden"],
    ) -> Float64[Tensor, "layers edits hidden"]:
        """Compute the blocks' outputs when δ is added at the first."""
        return replay_outputs(model, edits, layers, delta).double()

    def gap(self, features: KeyFeatures, last: int, layer: Layer) -> Gap:
        """The whole gap at this layer."""
        del last
        assert features.target_outputs is not None
        return features.target_outputs[layer.done] - layer.output(layer.number)


@dataclass(frozen=True)
class Each:
    """Each layer its own gap, to a target of its own."""

    def aim(self, layers: Sequence[int]) -> int:
        """The first layer; the others follow on their turn."""
        return layers[0]

    def target_outputs(
        self,
        model: ModelHandle,
        edits: Sequence[Edit],
        layers: Sequence[int],
        delta: Float[Tensor, "edits hidden"],
    ) -> None:
        """None: the others' targets are made on their turn."""
        del model, edits, layers, delta

    def gap(self, features: KeyFeatures, last: int, layer: Layer) -> Gap:
        """The whole gap at this layer."""
        del last
        own = layer.targets(layer.number) if layer.done else features.targets
        return own.anchor.double() + own.delta.double() - layer.output(layer.number)


SPREADS: dict[str, Spread] = {"divided": Divided(), "forward": Forward(), "each": Each()}
