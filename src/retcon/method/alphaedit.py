"""AlphaEdit: write only where ordinary text has no activation.

    ΔW = Rᵀ K P (P KᵀK P + P KₚᵀKₚ P + ρ I)⁻¹        P = U Uᵀ, U spanning C's small eigenvalues

Fang et al. 2024, arXiv:2410.02355 (rows are edits). In the one equation M⁻¹ = P and the past keys
Kₚ are accumulated; ρ is the released L2. The threshold is an *absolute* eigenvalue, 2e-2 in the
released code (1e-2 in the text), so what it keeps depends on the scale of a model's activations: on
Llama-3-8B it protects a few dozen of 14,336 directions, on another model all or none. The number of
directions that are left is recorded with each run; `null_relative=true` measures the threshold in
units of the mean eigenvalue. `anchor_norm=equal` is NAS (arXiv:2602.02543) but for its anchor: here
that is from the first batch (`method.norm_anchor`).
"""

from retcon.features.contexts import ContextOptions
from retcon.features.second_moments import MomentOptions
from retcon.features.target_options import TargetOptions
from retcon.method.entries import method
from retcon.method.locate_then_edit import LocateThenEdit
from retcon.method.options import PreservationOptions, ResidualOptions, Ridge, RidgeBatch


@method("alphaedit", title="AlphaEdit", paper="https://arxiv.org/abs/2410.02355")
def alphaedit(
    layers: tuple[int, ...],
    *,
    ridge: Ridge = 10.0,
    ridge_batch: RidgeBatch = 0,
    accumulate: bool = True,
    metric: PreservationOptions = PreservationOptions(base="null-space"),
    contexts: ContextOptions = ContextOptions(),
    targets: TargetOptions = TargetOptions(),
    moments: MomentOptions = MomentOptions(),
    residuals: ResidualOptions = ResidualOptions(),
) -> LocateThenEdit:
    """Batches of facts in the null space of ordinary text.

    Args:
        ridge: ρ, of ‖ΔW‖² in the null space.
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
