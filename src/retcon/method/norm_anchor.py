"""Norm-anchored values (NAS, arXiv:2602.02543): an edit may turn a value, but not lengthen it.

    a = mean ‖mᵢ + δᵢ‖ over the first batch, its longest 5 % apart        v = a (m + δ) / ‖m + δ‖

with m what the edited matrix gives at the subject's last token. The paper takes a from 1,000 facts
of another sample, on the clean model; here it is the first batch, which needs no other data, and
has to be large enough to have a mean: with the paper's own batches of one fact, a would be that
fact's length, and of fewer than 20 there is a warning.
"""

import warnings

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from retcon.errors import RetconWarning

_TRIMMED = 0.05
# A value that is so many times longer than the anchor is no value.
_LEFT_OUT = 2.0
# Of fewer facts the mean length is these facts' own.
_FEW = 20


def length_of(
    values: Float64[Tensor, "edits hidden"], delta: Float[Tensor, "edits hidden"]
) -> float:
    """The anchor a, by some edits on the clean model; with a warning where they are few."""
    if len(values) < _FEW:
        warnings.warn(
            f"anchor_norm takes the length of all values from the first batch, and that has "
            f"{len(values)} facts (NAS: 1,000). Make the first batch larger, {_FEW} at least, or "
            f"set anchor_norm=off.",
            RetconWarning,
            stacklevel=2,
        )
    lengths = (values + delta.double()).norm(dim=-1).sort().values
    return float(lengths[: max(1, round((1 - _TRIMMED) * len(lengths)))].mean())


def anchored(
    values: Float64[Tensor, "edits hidden"],
    delta: Float[Tensor, "edits hidden"],
    length: float,
    *,
    cap: bool,
) -> Float[Tensor, "edits hidden"]:
    """δ such that m + δ has the anchor's length, or with `cap` at most that; 0 if left out."""
    value = values + delta.double()
    norm = value.norm(dim=-1, keepdim=True)
    scale = (length / norm.clamp_min(1e-30)).clamp_max(1.0 if cap else torch.inf)
    turned = scale * value - values
    return torch.where(norm > _LEFT_OUT * length, torch.zeros_like(turned), turned).to(delta)
