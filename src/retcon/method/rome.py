"""ROME: one fact at a time, as a rank-one update that satisfies one hard constraint.

    minimise ‖ΔW C^½‖   subject to   ΔW k = δ        ΔW = δ (C⁻¹k̄)ᵀ / (k̄ᵀC⁻¹k)

Meng et al. 2022, arXiv:2202.05262. As published, the update aims with the key k̄ averaged over
21 contexts and holds the constraint at the key k of the bare prompt. With `consistent_keys` one
key serves for both, k = k̄, and its value becomes t₀ + δ: R-ROME, Gupta & Anumanchipalli 2024,
arXiv:2403.07175, which does not collapse when edits are carried. δ is optimised at the output of
the down-projection.
"""

from retcon.features.contexts import ContextOptions
from retcon.features.second_moments import MomentOptions
from retcon.features.target_options import TargetOptions
from retcon.method.entries import method
from retcon.method.locate_then_edit import LocateThenEdit


@method("rome", title="ROME", paper="https://arxiv.org/abs/2202.05262")
def rome(
    layers: tuple[int, ...],
    *,
    consistent_keys: bool = False,
    accumulate: bool = False,
    contexts: ContextOptions = ContextOptions(
        prefixes=20, prefix_tokens=(5, 5, 10, 10), averaging="uniform"
    ),
    targets: TargetOptions = TargetOptions(clamp=4.0, insertion="down"),
    moments: MomentOptions = MomentOptions(),
) -> LocateThenEdit:
    """One fact an update, written exactly; the original.

    Args:
        consistent_keys: aim and read with one key (R-ROME).
        accumulate: keep carried facts as hard constraints; only with consistent_keys, because the
            published update has no one key to keep.
    """
    return LocateThenEdit(
        layers=layers,
        ridge=0.0,
        contexts=contexts,
        targets=targets,
        moments=moments,
        accumulate=accumulate and consistent_keys,
        read_bare=not consistent_keys,
        exact_value=consistent_keys,
        max_batch=1,
    )
