"""The report of a batch, how its targets went and how much was written, and of colliding keys."""

from jaxtyping import Float64
from torch import Tensor

from retcon.algebra.solve import Collision
from retcon.algebra.whitening import Projection
from retcon.errors import CollidingEdits
from retcon.features.targets import STOPS, Targets
from retcon.method.base import Report
from retcon.method.key_features import KeyFeatures
from retcon.method.key_state import KeyState
from retcon.method.solvers import Learned
from retcon.method.written_facts import Rows


def report_of(
    targets: Targets,
    learned: Learned,
    state: KeyState,
    novelty: Float64[Tensor, " edits"],
    reached: Float64[Tensor, " edits"],
) -> Report:
    """Report how targets were optimised, and which share of them was written.

    novelty: of each edit's key the share that was new; the smallest counts for the batch (at ρ = 0,
    0 collides). reached: of each residual the share that was written at the last layer,
    1 − ‖ΔW k − r‖ / ‖r‖. directions: how many a null space has left to write in.
    """
    bases = {k: metric.base for k, metric in state.memory.preservations.items()}
    size = targets.delta.norm(dim=-1) / targets.anchor.norm(dim=-1)
    return Report(
        batch={
            "loss": float(targets.loss.mean()),
            "target_steps": float(targets.steps.float().mean()),
            "targets_capped": float((targets.stopped == 0).sum()),
            "short_passes": targets.short,
            "ridge": learned.ridge,
            "reached": float(reached.mean()),
            "novelty": float(novelty.min()),
        },
        layer={
            "energy": learned.energy,
            "directions": {k: m.rank for k, m in bases.items() if isinstance(m, Projection)},
        },
        edit={
            "steps": targets.steps.double().tolist(),
            "stopped": [STOPS[why] for why in targets.stopped.tolist()],
            "size": [round(x, 4) for x in size.tolist()],
            "novelty": [round(x, 6) for x in novelty.tolist()],
            "reached": [round(x, 6) for x in reached.tolist()],
        },
    )


def name_collision(
    collision: Collision, features: KeyFeatures, rows: Rows, state: KeyState, layer: int
) -> CollidingEdits:
    """Add the names of the two edits to the error."""
    second = features.edits[rows.new[collision.second]]
    if collision.first is not None:
        first = features.edits[rows.new[collision.first]]
        other = f"{first.id!r} ({first.subject})"
    else:
        other = f"one of the {len(state.written)} edits written before"
    return CollidingEdits(
        f"Edit {second.id!r} ({second.subject}) has the same key at layer {layer} as {other}: "
        f"cosine {collision.cosine:.6f}. A hard constraint (ridge 0) cannot write two values at "
        f"one key. Drop one of them, put them into different batches without accumulation, or set "
        f"a ridge > 0 (--set ridge=…, which is memit)."
    )
