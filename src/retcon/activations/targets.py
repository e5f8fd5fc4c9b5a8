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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from math import isnan
from typing import Annotated, NamedTuple

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
from retcon.model.architectures import Outline
from retcon.model.handle import ModelHandle
from retcon.progress import Progress, silent

# The share of the weights that what one pass keeps for its gradient may take, at most about, and
# how many numbers that is of a token in a block: of the hidden width, and of the MLP's.
_KEPT_SHARE = 1 / 4
_KEPT_HIDDEN, _KEPT_INNER = 8, 4


@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """How targets are optimised; the defaults are those of MEMIT for GPT-J.

    steps: forward passes (one more than updates). lr: of Adam. clamp: largest ‖δ‖ / ‖t₀‖.
    kl: weight of the divergence at the subject. decay: weight of ‖δ‖ / ‖t₀‖². stop_below: an
    edit is done when its whole loss falls below this; 0 never stops. insertion: where δ is added,
    the output of the `block` or of its `down`-projection. micro_batch: suffix tokens and
    predictions in one forward pass (0: what keeps activations below a quarter of the weights),
    and together: edits optimised side by side; both change results by rounding only, and memory.

    Approximations, off by default: contexts_per_step: look at so many contexts in each step, in
    turn (0: at all), and stop by what was last seen of each. stop_when_said: an edit is done, too,
    in so many steps in which every token of its target was the most probable behind every prefix
    (0: never; the bare prompt is asked only where there is no prefix).
    """

    steps: Annotated[int, Field(ge=1)] = 25
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.5
    clamp: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.75
    kl: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0625
    decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
    stop_below: Annotated[float, Field(ge=0)] = 0.05
    insertion: Insertion = "block"
    micro_batch: Annotated[int, Field(ge=0)] = 0
    together: Annotated[int, Field(ge=1)] = 32
    contexts_per_step: Annotated[int, Field(ge=0)] = 0
    stop_when_said: Annotated[int, Field(ge=0)] = 0


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

    def select(self, rows: slice | list[int]) -> "Targets":
        """The targets of some of the edits."""
        return Targets._make([*(field[rows] for field in self[:-1]), self.short])

    def to(self, device: torch.device) -> "Targets":
        """The same on a device."""
        return Targets._make([*(field.to(device) for field in self[:-1]), self.short])

    @staticmethod
    def without_delta(nll: Float[Tensor, " edits"], *, steps: int) -> "Targets":
        """Of edits whose method optimises no δ: their loss in so many passes.

        seconds: 0, since none of the time is a target's.
        """
        none, zero = nll.new_zeros(len(nll), 0), torch.zeros_like(nll, dtype=torch.float32)
        return Targets(
            delta=none,
            anchor=none,
            loss=nll,
            nll=nll,
            steps=torch.full_like(nll, steps, dtype=torch.long),
            seconds=zero,
            cached=zero.bool(),
            short=False,
        )

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


def default_micro_batch(outline: Outline) -> int:
    """The `micro_batch` that 0 stands for, from a model's dimensions alone."""
    return max(1, int(_KEPT_SHARE * outline.parameters / kept_numbers(outline)))


def kept_numbers(outline: Outline, behind: int = -1) -> int:
    """About how many numbers of a token a pass keeps, in the blocks behind one (-1: in all)."""
    site = next(iter(outline.architecture.sites.values()))
    return (outline.layers - 1 - behind) * (_KEPT_HIDDEN * site.d_out + _KEPT_INNER * site.d_in)


def optimise_targets(
    handle: ModelHandle,
    edits: Sequence[Edit],
    prefixes: Sequence[str],
    layer: int,
    options: TargetOptions,
    progress: Progress = silent,
    *,
    start: Float[Tensor, "edits hidden"] | None = None,
    tied: bool = False,
) -> Targets:
    """Optimise δ for each edit, many at a time, at one layer of the model as it is now.

    start: a warm start, such as earlier targets of the same edits; δ begins at 0 without one.
    tied: one δ for all edits, which have one t₀, by the mean of their losses, until all are done.

    Raises:
        NotFinite: a loss is NaN or infinite.
    """
    if tied:
        return _optimise(handle, edits, prefixes, layer, options, start, tied=True)
    parts: list[Targets] = []
    for first in range(0, len(edits), options.together):
        progress("optimising targets", first, len(edits))
        part = slice(first, first + options.together)
        begin = None if start is None else start[part]
        parts.append(_optimise(handle, edits[part], prefixes, layer, options, begin))
    progress("optimising targets", len(edits), len(edits))
    return Targets.join(parts)


def _optimise(
    handle: ModelHandle,
    edits: Sequence[Edit],
    prefixes: Sequence[str],
    layer: int,
    options: TargetOptions,
    start: Float[Tensor, "edits hidden"] | None,
    *,
    tied: bool = False,
) -> Targets:
    """One group of edits, side by side."""
    started = time.perf_counter()
    place = Place(layer, options.insertion)
    size = options.micro_batch or default_micro_batch(handle.outline)
    losses = TargetLoss(handle, edits, prefixes, place, kl=options.kl, micro_batch=size)
    anchor = _anchors(handle, edits, place)
    scale = anchor.norm(dim=-1, keepdim=True)
    delta = (
        torch.zeros_like(anchor) if start is None else start.to(anchor).clone()
    ).requires_grad_()
    adam = torch.optim.Adam([delta], lr=options.lr)
    active = torch.ones(len(edits), dtype=torch.bool, device=anchor.device)
    nll, loss = anchor.new_zeros(len(edits)), anchor.new_zeros(len(edits))
    steps = torch.zeros(len(edits), dtype=torch.long, device=anchor.device)
    said = torch.zeros_like(steps)
    for step, contexts in zip(range(options.steps), _turns(len(prefixes), options), strict=False):
        last = step == options.steps - 1
        adam.zero_grad(set_to_none=False)
        now = losses(delta, active, contexts, backward=not last)
        penalty = options.decay * delta.norm(dim=-1) / anchor.norm(dim=-1).square()
        total = now.nll + options.kl * now.kl + penalty.detach()
        if not torch.isfinite(total[active]).all():
            raise NotFinite(_describe_not_finite(handle, edits, total, layer))
        nll, loss = torch.where(active, now.nll, nll), torch.where(active, total, loss)
        steps += active
        said += now.said & now.complete
        done = now.complete & (total < options.stop_below)
        if options.stop_when_said:
            done |= said >= options.stop_when_said
        active &= ~(done.all() if tied else done)
        if last or not active.any():
            break
        penalty.sum().backward()
        with torch.no_grad():
            if tied and delta.grad is not None:
                delta.grad.copy_(delta.grad.mean(0).expand_as(delta))
            before = delta.clone()
            adam.step()
            norm = delta.norm(dim=-1, keepdim=True)
            clamped = delta * (options.clamp * scale / norm.clamp_min(1e-30)).clamp_max(1)
            delta.copy_(torch.where(active.unsqueeze(1), clamped, before))
    seconds = torch.full_like(loss, (time.perf_counter() - started) / len(edits))
    cached = torch.zeros_like(active)
    made = Targets(delta.detach(), anchor, loss, nll, steps, seconds, cached, losses.short)
    return made.to(handle.site(layer).device)


def _turns(contexts: int, options: TargetOptions) -> Iterator[list[int]]:
    """The contexts that each step looks at: all of them, or so many in turn."""
    size = min(options.contexts_per_step or contexts, contexts)
    for first in count(0, size):
        yield sorted((first + i) % contexts for i in range(size))


def _anchors(
    handle: ModelHandle, edits: Sequence[Edit], place: Place
) -> Float[Tensor, "edits hidden"]:
    """t₀: what stands at the insertion point of each bare prompt."""
    block = handle.architecture.blocks[place.layer]
    module = block if place.insertion == "block" else handle.site(place.layer).module
    located = [locate(handle.tokens, edit, "") for edit in edits]
    stood = read_at_lookup(handle, located, {place.layer: module}, of_input=False)[place.layer]
    stood = stood.to(handle.device)  # where token ids and the loss are, whatever the layer's is
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
