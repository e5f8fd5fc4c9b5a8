"""Keys and targets of some edits: the features that locate-then-edit methods read from a model."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from retcon.edits import Edit
from retcon.features.targets import Targets


class KeyFeatures(NamedTuple):
    """Enough, at one layer, to edit without the model.

    Attributes:
        edits: the edits.
        targets: δ of each, and how it was found.
        keys: averaged over contexts, at the first edited layer.
        bare: the keys of the bare prompts there.
        outputs: what W, as it was then, gave at the key whose value the target changes (the bare
            prompt's for ROME, else the averaged one), so that outputs + δ is the wanted value
            whatever becomes of W. None where several layers are edited, whose residuals are read
            from the model.
        target_outputs: output that each block should give at the subject, where each layer has
            a target of its own.
        values: output of the last edited matrix there, where the length of values is anchored.
    """

    edits: tuple[Edit, ...]
    targets: Targets
    keys: Float64[Tensor, "edits d_in"]
    bare: Float64[Tensor, "edits d_in"]
    outputs: Float64[Tensor, "edits d_out"] | None
    target_outputs: Float64[Tensor, "layers edits hidden"] | None = None
    values: Float64[Tensor, "edits hidden"] | None = None

    @property
    def cached(self) -> Bool[Tensor, " edits"]:
        """True for each target that was read from the cache."""
        return self.targets.cached

    @property
    def seconds(self) -> Float[Tensor, " edits"]:
        """The time that each target took when it was optimised."""
        return self.targets.seconds

    def select(self, rows: slice | list[int]) -> "KeyFeatures":
        """The features of some of the edits."""
        places = range(len(self.edits))[rows] if isinstance(rows, slice) else rows
        return KeyFeatures(
            tuple(self.edits[place] for place in places),
            self.targets.select(rows),
            self.keys[rows],
            self.bare[rows],
            None if self.outputs is None else self.outputs[rows],
            None if self.target_outputs is None else self.target_outputs[:, rows],
            None if self.values is None else self.values[rows],
        )

    def put(self, places: Sequence[int], other: "KeyFeatures") -> "KeyFeatures":
        """The features, with those of some edits taken from others that were read alike.

        Args:
            places: of these edits, in the order of `other`.
        """

        def both(own: Tensor | None, others: Tensor | None, dim: int = 0) -> Tensor | None:
            return None if own is None or others is None else torch.cat([own, others], dim)

        keys, bare = both(self.keys, other.keys), both(self.bare, other.bare)
        assert keys is not None and bare is not None
        joined = KeyFeatures(
            (*self.edits, *other.edits),
            Targets.join([self.targets, other.targets]),
            keys,
            bare,
            both(self.outputs, other.outputs),
            both(self.target_outputs, other.target_outputs, dim=1),
            both(self.values, other.values),
        )
        new = {place: len(self.edits) + i for i, place in enumerate(places)}
        return joined.select([new.get(place, place) for place in range(len(self.edits))])
