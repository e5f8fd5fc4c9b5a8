"""ENCORE: MEMIT that stops optimising in time, and penalises the norm of each step.

    minimise λ ‖ΔW C^½‖² + μ ‖ΔW‖² + Σ ‖ΔW kᵢ − rᵢ‖²      over the batch and all carried facts

Gupta et al. 2025, arXiv:2502.01636. Two parts: the norm penalty μ, which makes M = C + (μ/λ)I, and
"most-probable early stopping": a target is done when each of its tokens is the most probable one.
As in the released code that is asked behind every prefix, and not of the bare prompt, and the
second step that finds it so is the last (`prob_cutoff` −2). The paper's λ and μ are for Llama-3-8B;
on another model μ = 20 means what it does beside that model's C.
"""

from retcon.features.contexts import ContextOptions
from retcon.features.second_moments import MomentOptions
from retcon.features.target_options import TargetOptions
from retcon.method.entries import method
from retcon.method.locate_then_edit import LocateThenEdit
from retcon.method.options import PreservationOptions, ResidualOptions, Ridge, RidgeBatch


@method("encore", title="ENCORE", paper="https://arxiv.org/abs/2502.01636")
def encore(
    layers: tuple[int, ...],
    *,
    ridge: Ridge = 15_000.0,
    ridge_batch: RidgeBatch = 0,
    accumulate: bool = True,
    metric: PreservationOptions = PreservationOptions(plain=20.0),
    contexts: ContextOptions = ContextOptions(),
    targets: TargetOptions = TargetOptions(stop_when_said=2),
    moments: MomentOptions = MomentOptions(),
    residuals: ResidualOptions = ResidualOptions(),
) -> LocateThenEdit:
    """MEMIT with early stopping and a norm penalty.

    Args:
        ridge: λ.
        ridge_batch: the batch size that the ridge is meant for (0: any).
        accumulate: keep carried facts in the metric of later batches.
    """
    return LocateThenEdit(
        layers=layers,
        ridge=ridge,
        ridge_batch=ridge_batch,
        accumulate=accumulate,
        metric=metric,
        contexts=contexts,
        targets=targets,
        moments=moments,
        residuals=residuals,
    )
