"""MEMIT: many facts at once, traded against what the model knew, over one or several layers.

    minimise λ ‖ΔW C^½‖² + Σ ‖ΔW kᵢ − rᵢ‖²        ΔW = Rᵀ (K C⁻¹ Kᵀ + λI)⁻¹ K C⁻¹

Meng et al. 2023, arXiv:2210.07229 (rows are edits; the paper's RKᵀ(λC + KKᵀ)⁻¹ by the
push-through identity). Over layers l₁ < … < l_m, the residual that is left at the last layer is
divided by the number of layers still to come; keys and residuals are read anew after each layer.
λ has a natural scale, E[kᵀC⁻¹k] = d_in over the text of C. Carried edits add KᵀK/λ to C
("MEMIT-seq"), so that batches of fixed keys and values add up to one big batch;
`accumulate=false` is as published.

What came after MEMIT is mostly a setting of it, and is one here: `spread=forward` (FE) and `each`
(BLUE), `anchor_norm` (NAS), `merge_subjects` (MEMIT-Merge), `process=rect` and `prune`, with and
without `feedback`. `passes` iterates the solve, as NSE does, without the rest of it.
"""

from retcon.features.contexts import ContextOptions
from retcon.features.second_moments import MomentOptions
from retcon.features.target_options import TargetOptions
from retcon.method.entries import method
from retcon.method.locate_then_edit import LocateThenEdit
from retcon.method.options import ResidualOptions, Ridge, RidgeBatch, StepOptions


@method("memit", title="MEMIT", paper="https://arxiv.org/abs/2210.07229")
def memit(
    layers: tuple[int, ...],
    *,
    ridge: Ridge = 15_000.0,
    ridge_batch: RidgeBatch = 0,
    accumulate: bool = True,
    contexts: ContextOptions = ContextOptions(),
    targets: TargetOptions = TargetOptions(),
    moments: MomentOptions = MomentOptions(),
    residuals: ResidualOptions = ResidualOptions(),
    step: StepOptions = StepOptions(),
) -> LocateThenEdit:
    """Batches of facts, softly, over one or several layers.

    Args:
        ridge: λ, the weight of what is to be preserved (published: mom2_update_weight).
        ridge_batch: the batch size that the ridge is meant for; others take it in proportion (0:
            not).
        accumulate: keep carried facts in the metric of later batches.
    """
    return LocateThenEdit(
        layers=layers,
        ridge=ridge,
        ridge_batch=ridge_batch,
        contexts=contexts,
        targets=targets,
        moments=moments,
        accumulate=accumulate,
        residuals=residuals,
        step=step,
    )
