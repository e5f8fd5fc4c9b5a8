"""LyapLock: MEMIT whose ridge grows when what was to be preserved has moved too far.

    minimise λ w_t tr(D C Dᵀ) + Σ over all facts so far ‖D kᵢ − uᵢ‖²        D = W − W₀
    w_{t+1} = max(1, w_t + D_t / (α D_1) − 1)                             D_t = tr(D C Dᵀ) after t

Wang et al. 2025, arXiv:2505.15702. Its virtual queue, written out, is this integral controller of
the ridge: as long as the mean square change on ordinary text is below α times what the first batch
has cost, w falls towards 1; above, it rises. All facts are solved for again with each batch, by
sums (`algebra.cumulative`), which is what lets the ridge change. The released code estimates D with
statistics of its own; D on M₀ is the same number. It stores the values that were reached as those
of earlier facts, here they are those that were wanted, so that with w = 1 it equals carried MEMIT.
"""

from retcon.features.contexts import ContextOptions
from retcon.features.second_moments import MomentOptions
from retcon.features.target_options import TargetOptions
from retcon.method.entries import method
from retcon.method.locate_then_edit import LocateThenEdit
from retcon.method.options import ResidualOptions, Ridge, StepOptions


@method("lyaplock", title="LyapLock", paper="https://arxiv.org/abs/2505.15702")
def lyaplock(
    layers: tuple[int, ...],
    *,
    ridge: Ridge = 1_000.0,
    contexts: ContextOptions = ContextOptions(),
    targets: TargetOptions = TargetOptions(),
    moments: MomentOptions = MomentOptions(),
    residuals: ResidualOptions = ResidualOptions(),
    step: StepOptions = StepOptions(budget=60.0),
) -> LocateThenEdit:
    """Carried batches under a budget for what is to be preserved.

    Args:
        ridge: λ at the beginning.
    """
    return LocateThenEdit(
        layers=layers,
        ridge=ridge,
        contexts=contexts,
        targets=targets,
        moments=moments,
        residuals=residuals,
        step=step,
    )
