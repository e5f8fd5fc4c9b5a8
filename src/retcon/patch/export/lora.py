"""A patch as LoRA factors that PEFT, vLLM and llama.cpp all read the same way.

ΔW = leftᵀ right is B A with B = leftᵀ (d_out, r) and A = right (r, d_in). PEFT scales it by
alpha / r of each module, vLLM by one alpha / r for all, llama.cpp by alpha / rank(tensor). Every
layer therefore gets the same number of rows, the missing ones of zeros, and alpha = r: the scale
is 1 for all three.
"""

from collections.abc import Mapping
from typing import Annotated, NamedTuple

import torch
from pydantic import Field

from retcon.algebra.delta import LowRankDelta
from retcon.errors import InvalidSetting, NotExportable, PatchMismatch
from retcon.model.structure import Outline
from retcon.patch.export import ExportTable
from retcon.patch.export.rank import balanced, capped, padded
from retcon.patch.patch import Patch

# The largest rank, as an option; None: all rows are kept.
Rank = Annotated[int, Field(ge=1)] | None
# The ranks that vLLM can be started with (--max-lora-rank).
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


class Lora(NamedTuple):
    """Factors of one rank for all layers, and by layer the share of ΔW that a rank cap lost."""

    rank: int
    deltas: Mapping[int, LowRankDelta]
    errors: Mapping[int, float]

    @property
    def truncated(self) -> bool:
        """True if anything was lost."""
        return any(self.errors.values())

    @property
    def vllm_rank(self) -> int | None:
        """The least `--max-lora-rank` that serves it; None: vLLM does not."""
        return next((rank for rank in VLLM_RANKS if rank >= self.rank), None)


def lora_of(
    patch: Patch, outline: Outline, *, dtype: torch.dtype, max_rank: int | None = None
) -> Lora:
    """The factors for a model of that structure.

    Raises:
        NotExportable: the patch changes nothing.
        PatchMismatch: it does not fit the model's matrices.
        InvalidSetting: a rank below 1.
    """
    check_shapes(patch, outline)
    if max_rank is not None and max_rank < 1:
        raise InvalidSetting(f"The largest rank must be at least 1, not {max_rank}.")
    parts = {
        layer: capped(delta, delta.rank if max_rank is None else max_rank)
        for layer, delta in patch.deltas.items()
    }
    rank = max(part.delta.rank for part in parts.values())
    deltas = {layer: padded(part.delta, rank) for layer, part in parts.items()}
    if dtype != torch.float32:
        deltas = {layer: balanced(delta) for layer, delta in deltas.items()}
    return Lora(rank, deltas, {layer: part.error for layer, part in parts.items()})


def check_shapes(patch: Patch, outline: Outline) -> None:
    """Refuse a patch without changes, or with changes that are not of this model's matrices.

    Raises:
        NotExportable, PatchMismatch: so it is.
        UnknownName, UnsupportedModel: the model has no such layer, or none that can be edited.
    """
    if not patch.deltas:
        raise NotExportable(
            "The patch changes nothing, so there is nothing to export: the model is the base model."
        )
    for layer, delta in patch.deltas.items():
        site = outline.site(layer)
        shape = (delta.left.shape[1], delta.right.shape[1])
        if shape != (site.d_out, site.d_in):
            raise PatchMismatch(
                f"The patch changes a matrix of {shape[0]} x {shape[1]} in layer {layer}; that of "
                f"{outline.name} is {site.d_out} x {site.d_in}. Name the model it was made for "
                f"({patch.about.model})."
            )


def told(lora: Lora) -> ExportTable:
    """The factors of each layer, to be shown."""
    rows = [[str(k), str(lora.rank), f"{100 * error:.2f}"] for k, error in lora.errors.items()]
    return ExportTable("Factors", ["layer", "rank", "lost by the rank cap, in % of ‖ΔW‖"], rows)


def recorded(lora: Lora) -> dict[str, object]:
    """The factors, for a record."""
    return {"rank": lora.rank, "errors": {str(k): v for k, v in lora.errors.items()}}
