"""Targets: for each edit the vector δ that makes the model say its target.

    minimise   mean over contexts of −(1/|o|) Σₜ log p(oₜ | context, o₍<t₎)      target o
             + kl · KL(p(· | "{subject} is a") ‖ the same before)     at the subject's end
             + decay · ‖δ‖ / ‖t₀‖²           subject to ‖δ‖ ≤ clamp · ‖t₀‖

with δ added at the subject's last token to the output of a block (MEMIT, arXiv:2210.07229 §4.3)
or of its down-projection (ROME, arXiv:2202.05262 §3.1), t₀ being what stood there. Adam, `steps`
passes and `steps` − 1 updates. Edits are independent, so many are optimised at once, each with
its own clamp and its own stop.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import Annotated, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from retcon.activations.contexts import locate
from retcon.activations.keys import read_at_lookup
from retcon.activations.losses import TargetLoss
from retcon.activations.prefix import Insertion, Place
from retcon.edits import Edit
from retcon.errors import NotFinite
from retcon.model.handle import ModelHandle
from retcon.progress import Progress, silent

# Precision of the matrix products of target optimisation, in PyTorch's words.
MatmulPrecision = Literal["highest", "high", "medium"]


@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """How targets are optimised; the defaults are those of MEMIT for GPT-J.

    steps: forward passes (one more than updates). lr: of Adam. clamp: largest ‖δ‖ / ‖t₀‖.
    kl: weight of the divergence at the subject. decay: weight of ‖δ‖ / ‖t₀‖². stop_below: an
    edit is done when its whole loss falls below this; 0 never stops. insertion: where δ is added,
    the output of the `block` or of its `down`-projection. micro_batch: suffix tokens in one
    forward pass, and together: edits optimised side by side; both change results by rounding
    only, and memory.
    """

    steps: Annotated[int, Field(ge=1)] = 25
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.5
    clamp: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.75
    kl: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0625
    decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
    stop_below: Annotated[float, Field(ge=0)] = 0.05
    insertion: Insertion = "block"
    micro_batch: Annotated[int, Field(ge=1)] = 256
    together: Annotated[int, Field(ge=1)] = 32


class Targets(NamedTuple):
    """Optimised vectors and how the optimisation went, one row per edit.

    delta: δ. anchor: t₀, where δ starts from. loss: the whole loss in the last pass; nll: its
    first term. steps: passes made. seconds: what it took, an even share of its group's time,
    whenever that was. cached: whether that was in an earlier call. short: whether passes over
    suffixes could be used.
    """

    delta: Float[Tensor, "edits hidden"]
    anchor: Float[Tensor, "edits hidden"]
    loss: Float[Tensor, " edits"]
    nll: Float[Tensor, " edits"]
    steps: Int[Tensor, " edits"]
    seconds: Float[Tensor, " edits"]
    cached: Bool[Tensor, " edits"]
    short: bool

    def select(self, rows: slice) -> "Targets":
        """The targets of some of the edits."""
        return Targets._make([*(field[rows] for field in self[:-1]), self.short])

    @staticmethod
    def join(parts: Sequence["Targets"]) -> "Targets":
        """The targets of several groups of edits, one below the other."""
        return Targets(
            delta=torch.cat([part.delta for part in parts]),
            anchor=torch.cat([part.anchor for part in parts]),
            loss=torch.cat([part.loss for part in parts]),
            nll=torch.cat([part.nll for part in parts]),
            steps=torch.cat([part.steps for part in parts]),
            seconds=torch.cat([part.seconds for part in parts]),
            cached=torch.cat([part.cached for part in parts]),
            short=all(part.short for part in parts),
        )


def optimise_targets(
    handle: ModelHandle,
    edits: Sequence[Edit],
    prefixes: Sequence[str],
    layer: int,
    options: TargetOptions,
    progress: Progress = silent,
) -> Targets:
    """Optimise δ for each edit, many at a time, at one layer of the model as it is now.

    Raises:
        NotFinite: a loss is NaN or infinite.
    """
    parts: list[Targets] = []
    for start in range(0, len(edits), options.together):
        progress("optimising targets", start, len(edits))
        group = edits[start : start + options.together]
        parts.append(_optimise(handle, group, prefixes, layer, options))
    progress("optimising targets", len(edits), len(edits))
    return Targets.join(parts)


def _optimise(
    handle: ModelHandle,
    edits: Sequence[Edit],
    prefixes: Sequence[str],
    layer: int,
    options: TargetOptions,
) -> Targets:
    """One group of edits, side by side."""
    started = time.perf_counter()
    place = Place(layer, options.insertion)
    losses = TargetLoss(
        handle, edits, prefixes, place, kl=options.kl, micro_batch=options.micro_batch
    )
    anchor = _anchors(handle, edits, place)
    delta = torch.zeros_like(anchor, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=options.lr)
    limit = options.clamp * anchor.norm(dim=-1, keepdim=True)
    active = torch.ones(len(edits), dtype=torch.bool, device=anchor.device)
    nll, loss = anchor.new_zeros(len(edits)), anchor.new_zeros(len(edits))
    steps = torch.zeros(len(edits), dtype=torch.long, device=anchor.device)
    for step in range(options.steps):
        last = step == options.steps - 1
        adam.zero_grad(set_to_none=False)
        now = losses(delta, active, backward=not last)
        penalty = options.decay * delta.norm(dim=-1) / anchor.norm(dim=-1).square()
        total = now.nll + options.kl * now.kl + penalty.detach()
        if not torch.isfinite(total[active]).all():
            raise NotFinite(_describe_not_finite(handle, edits, total, layer))
        nll, loss = torch.where(active, now.nll, nll), torch.where(active, total, loss)
        steps += active
        active &= total >= options.stop_below
        if last or not active.any():
            break
        penalty.sum().backward()
        with torch.no_grad():
            before = delta.clone()
            adam.step()
            norm = delta.norm(dim=-1, keepdim=True)
            clamped = delta * (limit / norm.clamp_min(1e-30)).clamp_max(1)
            delta.copy_(torch.where(active.unsqueeze(1), clamped, before))
    seconds = torch.full_like(loss, (time.perf_counter() - started) / len(edits))
    cached = torch.zeros_like(active)
    return Targets(delta.detach(), anchor, loss, nll, steps, seconds, cached, losses.short)


def _anchors(
    handle: ModelHandle, edits: Sequence[Edit], place: Place
) -> Float[Tensor, "edits hidden"]:
    """t₀: what stands at the insertion point of each bare prompt."""
    block = handle.architecture.blocks[place.layer]
    module = block if place.insertion == "block" else handle.site(place.layer).module
    located = [locate(handle.tokens, edit, "") for edit in edits]
    stood = read_at_lookup(handle, located, {place.layer: module}, of_input=False)[place.layer]
    return stood if stood.dtype == torch.float64 else stood.float()


def _describe_not_finite(
    handle: ModelHandle, edits: Sequence[Edit], total: Float[Tensor, " edits"], layer: int
) -> str:
    broken = [e.id for e, value in zip(edits, total.tolist(), strict=True) if isnan(value)]
    return (
        f"The target loss of {', '.join(broken[:5]) or 'an edit'} at layer {layer} is not finite: "
        f"{handle.name}'s activations overflow in {handle.dtype}, or its weights were damaged by "
        f"earlier edits. Try --dtype float32, a smaller lr, or fewer carried edits."
    )
