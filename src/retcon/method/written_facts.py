"""The facts that are in the weights already, and which edits of a batch are written.

A fact that is edited again gets its new value in the place of the old one. Of two edits of one fact
in a batch, the last counts.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from retcon.method.base import NONE


class WrittenFacts(NamedTuple):
    """Facts in the weights and in M, known so that editing one again replaces it.

    Attributes:
        names: of the facts, as a method tells them apart.
        ridges: ρ with which each was written.
        values: by layer, what W should give at their keys.
    """

    names: tuple[str, ...]
    ridges: Float64[Tensor, " facts"]
    values: Mapping[int, Float64[Tensor, "facts d_out"]]

    def with_batch(
        self,
        names: Sequence[str],
        ridge: float,
        values: Mapping[int, Float64[Tensor, "edits d_out"]],
        rows: "Rows",
    ) -> "WrittenFacts":
        """The facts after a batch.

        Args:
            names, values: of its edits, and rows: what became of them.
        """
        merged: dict[int, Tensor] = {}
        for layer, outputs in values.items():
            before = self.values.get(layer, outputs[:0]).clone()
            before[rows.places] = outputs[rows.again]
            merged[layer] = torch.cat([before, outputs[rows.new]])
        ridges = torch.cat([self.ridges, self.ridges.new_full((len(rows.new),), ridge)])
        return WrittenFacts(self.names + tuple(names[i] for i in rows.new), ridges, merged)


NO_FACTS = WrittenFacts((), torch.zeros(0, dtype=torch.float64), NONE)


class Rows(NamedTuple):
    """Places of the edits of a batch, by what becomes of them.

    Attributes:
        new: those that are written as facts of their own.
        again: those of a fact that is written already.
        places: of these, where it is among the written facts.

    Others are superseded by a later edit, or by one with their key and target.
    """

    new: list[int]
    again: list[int]
    places: list[int]

    @classmethod
    def of(cls, names: Sequence[str], facts: WrittenFacts) -> "Rows":
        """The last edit of each fact counts; where nothing is written, nothing is replaced."""
        live = sorted({name: i for i, name in enumerate(names)}.values())
        where = {name: i for i, name in enumerate(facts.names)}
        again = [i for i in live if names[i] in where]
        new = [i for i in live if names[i] not in where]
        return cls(new, again, [where[names[i]] for i in again])

    @property
    def written(self) -> list[int]:
        """Edits that are written, in their order."""
        return sorted([*self.new, *self.again])
