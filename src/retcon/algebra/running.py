"""Mean and spread of rows that come in batches, coordinate by coordinate.

Number, mean and sum of squared deviations of two sets of rows give those of both (Chan, Golub &
LeVeque 1983, The American Statistician 37(3)), so nothing is lost and no row is kept.
"""

import torch
from jaxtyping import Float64
from torch import Tensor


def with_rows(
    running: Float64[Tensor, "3 width"] | None, rows: Float64[Tensor, "n width"]
) -> Float64[Tensor, "3 width"]:
    """Number, mean and sum of squared deviations of each coordinate, with more rows.

    running: of the rows before; None: there were none.
    """
    mean = rows.mean(0)
    own = torch.stack([torch.full_like(mean, len(rows)), mean, (rows - mean).square().sum(0)])
    if running is None:
        return own
    total, gap = running[0] + own[0], own[1] - running[1]
    return torch.stack(
        [
            total,
            running[1] + gap * own[0] / total,
            running[2] + own[2] + gap.square() * running[0] * own[0] / total,
        ]
    )


def normalised(
    rows: Float64[Tensor, "n width"], running: Float64[Tensor, "3 width"]
) -> Float64[Tensor, "n width"]:
    """(x − mean) / deviation of each coordinate, the deviation with n − 1; 0 where it is 0."""
    deviation = (running[2] / (running[0] - 1).clamp_min(1)).sqrt()
    return torch.where(deviation > 0, (rows - running[1]) / deviation, 0.0)
