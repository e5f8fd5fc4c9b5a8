"""Orders of the same facts by how alike their keys are.

clustered   facts with similar keys one behind the other, so that they meet in one batch
dispersed   facts with similar keys as far apart as may be, so that they meet across batches

Where past keys are kept and targets frozen, order makes no difference; where targets are made
anew, a fact is disturbed by later ones with keys like its own.
"""

from collections.abc import Sequence
from math import sqrt
from typing import Literal

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from retcon.edits import Case
from retcon.features.remember import recall_keys
from retcon.model.handle import ModelHandle
from retcon.progress import Progress, silent

ByKeys = Literal["clustered", "dispersed"]

_ROUNDS = 20


def by_keys(
    model: ModelHandle,
    cases: Sequence[Case],
    layer: int,
    order: ByKeys,
    progress: Progress = silent,
) -> list[Case]:
    """The cases in another order, by the keys of their bare prompts in the untouched model."""
    edits = [case.edit for case in cases]
    bare = torch.ones(1, 1, dtype=torch.float64)
    keys = recall_keys(model, edits, ("",), layer, bare, progress)[0]
    return [cases[i] for i in arranged(keys, order)]


def arranged(keys: Float64[Tensor, "n d_in"], order: ByKeys) -> list[int]:
    """Indices of the keys in that order; inside a cluster as they were given."""
    labels = clusters(keys, max(1, round(sqrt(len(keys)))))
    members = [
        [i for i, label in enumerate(labels.tolist()) if label == cluster]
        for cluster in range(int(labels.max()) + 1)
    ]
    if order == "clustered":
        return [i for cluster in members for i in cluster]
    # The next one is always of the cluster of which the largest share still waits.
    places = [((j + 0.5) / len(own), i) for own in members for j, i in enumerate(own)]
    return [i for _, i in sorted(places)]


def clusters(keys: Float64[Tensor, "n d_in"], count: int) -> Int[Tensor, " n"]:
    """Spherical k-means: the cluster of each key. Centres start at keys far from each other."""
    unit = torch.nn.functional.normalize(keys, dim=-1)
    chosen = [0]
    nearest = unit @ unit[0]
    for _ in range(count - 1):
        chosen.append(int(nearest.argmin()))
        nearest = torch.maximum(nearest, unit @ unit[chosen[-1]])
    centres = unit[chosen]
    labels = (unit @ centres.mT).argmax(-1)
    for _ in range(_ROUNDS):
        sums = torch.zeros_like(centres).index_add(0, labels, unit)
        centres = torch.nn.functional.normalize(sums, dim=-1)
        before, labels = labels, (unit @ centres.mT).argmax(-1)
        if torch.equal(before, labels):
            break
    return labels
