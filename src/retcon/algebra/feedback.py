"""Error feedback: what post-processing takes from one step, the next one gives back.

Rounding, pruning or clipping a step, W ← W + Π(ΔW), breaks the recursion of `metric`, which counts
on exact steps. With e = Σ (Π(ΔW) − ΔW), what W has too much, the next step aims at ΔW − e, for a ΔW
that is solved as if W were W − e. So for all steps but the last, whatever Π does is harmless
(arXiv:2605.26670, algorithm 1, whose buffer e·M needs no M in this form).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float64
from torch import Tensor

Process = Callable[[Float64[Tensor, "d_out d_in"]], Float64[Tensor, "d_out d_in"]]


def with_feedback(
    step: Float64[Tensor, "d_out d_in"], error: Float64[Tensor, "d_out d_in"], process: Process
) -> tuple[Float64[Tensor, "d_out d_in"], Float64[Tensor, "d_out d_in"]]:
    """Process an exact step, and return what is written and what W then has too much.

    Args:
        step: ΔW, solved on W − error.
        error: what W had too much before; zeros at first.
    """
    aim = step - error
    written = process(aim)
    return written, written - aim


def rounded(dtype: torch.dtype) -> Process:
    """A step kept in another precision."""
    return lambda step: step.to(dtype).to(step.dtype)


def largest(weight: Float64[Tensor, "d_out d_in"], share: float) -> Process:
    """RECT (arXiv:2401.04700): the share of entries with the largest |ΔW / W|; the others are 0."""

    def keep(step: Float64[Tensor, "d_out d_in"]) -> Float64[Tensor, "d_out d_in"]:
        relative = (step / weight).abs().nan_to_num(nan=0.0, posinf=torch.inf)
        count = max(1, round(share * relative.numel()))
        limit = relative.flatten().kthvalue(relative.numel() - count + 1).values
        return torch.where(relative >= limit, step, torch.zeros_like(step))

    return keep


def compressed(limit: float) -> Process:
    """PRUNE (arXiv:2405.16821): a singular value σ above the limit c becomes log σ − log c + c."""

    def compress(step: Float64[Tensor, "d_out d_in"]) -> Float64[Tensor, "d_out d_in"]:
        left, values, right = torch.linalg.svd(step, full_matrices=False)
        small = torch.where(values > limit, (values / limit).log() + limit, values)
        return (left * small) @ right

    return compress
