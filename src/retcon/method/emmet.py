"""EMMET: many facts at once, each written exactly.

    minimise ‖ΔW C^½‖   subject to   ΔW kᵢ = δᵢ for all i        ΔW = Rᵀ (K C⁻¹ Kᵀ)⁻¹ K C⁻¹

Gupta, Sajnani & Anumanchipalli 2024, arXiv:2403.14236 (rows are edits). With one fact this is
ROME with one key throughout, which is what the study arXiv:2405.00664 calls ROME. The "stabilised"
form of the released code, (K (wC)⁻¹ Kᵀ + αI)⁻¹, is exactly MEMIT with λ = wα: set `ridge` to that.
"""

from retcon.features.contexts import ContextOptions
from retcon.features.second_moments import MomentOptions
from retcon.features.target_options import TargetOptions
from retcon.method.entries import method
from retcon.method.locate_then_edit import LocateThenEdit
from retcon.method.options import ResidualOptions, Ridge, RidgeBatch


@method("emmet", title="EMMET", paper="https://arxiv.org/abs/2403.14236")
def emmet(
    layers: tuple[int, ...],
    *,
    ridge: Ridge = 0.0,
    ridge_batch: RidgeBatch = 0,
    accumulate: bool = True,
    merge_subjects: bool = False,
    tie_subjects: bool = False,
    contexts: ContextOptions = ContextOptions(),
    targets: TargetOptions = TargetOptions(),
    moments: MomentOptions = MomentOptions(),
) -> LocateThenEdit:
    """Batches of facts, each written exactly (hard constraints).

    Args:
        ridge: ρ; above 0 the constraints soften and the method is MEMIT with λ = ρ.
        ridge_batch: the batch size that the ridge is meant for; others take it in proportion (0:
            not).
        accumulate: keep carried facts as constraints of later batches.
        merge_subjects: facts with one key get one target, for all of them, as in MEMIT-Merge.
        tie_subjects: facts about one subject get one target, whatever stands before it.
    """
    return LocateThenEdit(
        layers=layers,
        ridge=ridge,
        ridge_batch=ridge_batch,
        contexts=contexts,
        targets=targets,
        moments=moments,
        accumulate=accumulate,
        residuals=ResidualOptions(merge_subjects=merge_subjects, tie_subjects=tie_subjects),
    )
