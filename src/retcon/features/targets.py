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
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import isnan
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from retcon.edits import Edit
from retcon.errors import NotFinite
from retcon.features.contexts import locate
from retcon.features.keys import read_at_lookup
from retcon.features.prefix_cache import DeltaPlace
from retcon.features.target_loss import Losses, TargetLoss
from retcon.features.target_options import TargetOptions
from retcon.model.handle import ModelHandle
from retcon.model.structure import Outline
from retcon.progress import Progress, silent

# On a GPU: tokens in a pass beyond which it computes no faster, the share of its free memory that
# one pass may take, and texts' tokens of an edit in a step, about.
_FULL_PASS, _FREE_SHARE, _OF_AN_EDIT = 8192, 1 / 2, 32
# Ways to compute attention whose kernels are there from the beginning.
_ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
# The share of the weights that what one pass keeps for its gradient may take, at most about, and
# how many numbers that is of a token in a block: of the hidden width, and of the MLP's.
_KEPT_SHARE = 1 / 4
_KEPT_HIDDEN, _KEPT_INNER = 8, 4
# What is told while they are optimised.
TASK = "optimising targets, in steps"
# Why a descent ends: for want of steps, or by the rule that was met first.
STOPS = ("cap", "loss", "margin", "said")
# What a descent has of each edit.
_OWN = ("active", "nll", "loss", "steps", "said", "stopped")


@runtime_checkable
class Halfway(Protocol):
    """Store in which a group of edits keeps, between two passes, the state to go on from."""

    def read(self) -> Mapping[str, Tensor] | None:
        """Read the state that an earlier call has kept; None where there is none."""
        ...

    def note(self, standing: Mapping[str, Tensor]) -> None:
        """Keep how far it has come, now or when it is cut off."""
        ...


class Targets(NamedTuple):
    """Optimised vectors and how the optimisation went, one row per edit.

    Attributes:
        delta: δ.
        anchor: t₀, where δ starts from.
        loss: the whole loss in the last pass.
        nll: its first term.
        steps: passes made.
        stopped: why it ended, a place in `STOPS`; 0 for want of steps.
        seconds: what it took, an even share of its group's time, whenever that was.
        cached: whether that was in an earlier call.
        short: whether passes over suffixes could be used.
    """

    delta: Float[Tensor, "edits hidden"]
    anchor: Float[Tensor, "edits hidden"]
    loss: Float[Tensor, " edits"]
    nll: Float[Tensor, " edits"]
    steps: Int[Tensor, " edits"]
    stopped: Int[Tensor, " edits"]
    seconds: Float[Tensor, " edits"]
    cached: Bool[Tensor, " edits"]
    short: bool

    def select(self, rows: slice | list[int]) -> "Targets":
        """The targets of some of the edits."""
        return Targets._make([*(field[rows] for field in self[:-1]), self.short])

    def to(self, device: torch.device) -> "Targets":
        """Move the targets to a device."""
        return Targets._make([*(field.to(device) for field in self[:-1]), self.short])

    @staticmethod
    def join(parts: Sequence["Targets"]) -> "Targets":
        """The targets of several groups of edits, one below the other."""
        return Targets(
            delta=torch.cat([part.delta for part in parts]),
            anchor=torch.cat([part.anchor for part in parts]),
            loss=torch.cat([part.loss for part in parts]),
            nll=torch.cat([part.nll for part in parts]),
            steps=torch.cat([part.steps for part in parts]),
            stopped=torch.cat([part.stopped for part in parts]),
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


def pass_tokens(model: ModelHandle, layer: int, options: TargetOptions) -> int:
    """Suffix tokens and predictions in one pass over a model as it is placed.

    What launches a small pass on a GPU takes longer than the pass, so there the default is what
    fills it, as far as half of its free memory holds what the pass keeps.
    """
    usual = default_micro_batch(model.outline)
    tokens = options.micro_batch or usual
    if model.device.type != "cuda" or tokens != usual:
        return tokens
    free = torch.cuda.mem_get_info(model.device)[0]
    each = kept_numbers(model.outline, behind=layer) * model.dtype.itemsize
    return max(tokens, min(_FULL_PASS, int(_FREE_SHARE * free / max(1, each))))


def optimise_targets(  # noqa: PLR0913 - each is a thing of its own
    model: ModelHandle,
    edits: Sequence[Edit],
    prefixes: Sequence[str],
    layer: int,
    options: TargetOptions,
    progress: Progress = silent,
    *,
    start: Float[Tensor, "edits hidden"] | Halfway | None = None,
    tied: bool = False,
    whitening: Float[Tensor, "hidden hidden"] | None = None,
) -> Targets:
    """Optimise δ for each edit, many at a time, at one layer of the model as it is now.

    Args:
        start: a warm start, such as earlier targets of the same edits; δ begins at 0 without one.
            Or where edits that are one group keep how far they have come, and have kept it in an
            earlier call.
        tied: one δ for all edits, by the mean of their losses, until all are done, within the
            smallest of their clamps.
        whitening: of gradients, where the options' `whiten` asks for it.

    Raises:
        NotFinite: a loss is NaN or infinite.
    """
    size = len(edits) if tied or isinstance(start, Halfway) else together(model, layer, options)
    total = len(edits) * options.steps
    parts: list[Targets] = []
    for first in range(0, len(edits), size):
        part = slice(first, first + size)
        begin = start[part] if isinstance(start, Tensor) else start

        def advance(done: int, before: int = first * options.steps) -> None:
            progress(TASK, before + done, total)

        advance(0)
        group = _Group(model, edits[part], prefixes, layer, options, whitening, advance)
        parts.append(group.optimise(begin, tied=tied))
    progress(TASK, total, total)
    return Targets.join(parts)


def together(model: ModelHandle, layer: int, options: TargetOptions) -> int:
    """Number of edits that are optimised side by side."""
    if model.device.type != "cuda":
        return options.together
    return max(options.together, pass_tokens(model, layer, options) // _OF_AN_EDIT)


class _Group(NamedTuple):
    """Edits that are optimised side by side. advance: is told how many of their passes are made."""

    model: ModelHandle
    edits: Sequence[Edit]
    prefixes: Sequence[str]
    layer: int
    options: TargetOptions
    whitening: Tensor | None
    advance: Callable[[int], None]

    def optimise(
        self, start: Float[Tensor, "edits hidden"] | Halfway | None, *, tied: bool
    ) -> Targets:
        """Optimise the targets, from the beginning or from where an earlier call was cut off."""
        started = time.perf_counter()
        place, options = DeltaPlace(self.layer, self.options.insertion), self.options
        size = pass_tokens(self.model, self.layer, options)
        losses = TargetLoss(
            self.model,
            self.edits,
            self.prefixes,
            place,
            kl=options.kl,
            micro_batch=size,
            margins=options.stop_margin is not None,
            ending=options.ending,
        )
        anchor = _anchors(self.model, self.edits, place)
        halfway = None if isinstance(start, Tensor) else start
        saved = None if halfway is None else halfway.read()
        warm = start if isinstance(start, Tensor) else None
        descent = _Descent(anchor, losses, options, tied, warm, self.whitening)
        if saved is not None and "stopped" in saved:  # what earlier versions left is begun anew
            descent.go_on_from(saved)
            started -= float(saved["seconds"])
        while True:
            with _attention(self.model):
                total = descent.look(_turn(descent.passes, len(self.prefixes), options))
            if not torch.isfinite(total).all():
                raise NotFinite(_describe_not_finite(self.model, self.edits, total, self.layer))
            self.advance(descent.made)
            if descent.ended:
                break
            descent.move()
            if halfway is not None:
                halfway.note(descent.standing(time.perf_counter() - started))
        each = (time.perf_counter() - started) / len(self.edits)
        return descent.targets(each).to(self.model.site(self.layer).device)


class _Descent:
    """δ of a group on its way down.

    passes: how many were made. active: which edits are not done. nll, loss: as last seen of each,
    while it was active; steps: in how many passes. said: in how many its target was.
    """

    def __init__(
        self,
        anchor: Float[Tensor, "edits hidden"],
        losses: TargetLoss,
        options: TargetOptions,
        tied: bool,
        start: Float[Tensor, "edits hidden"] | None,
        whitening: Tensor | None = None,
    ) -> None:
        self._anchor, self._losses, self._options, self._tied = anchor, losses, options, tied
        self._scale = anchor.norm(dim=-1, keepdim=True)
        if tied:
            self._scale = self._scale.amin(0, keepdim=True).expand_as(self._scale)
        begin = torch.zeros_like(anchor) if start is None else start.to(anchor).clone()
        self._delta = begin.requires_grad_()
        self._walk = options.walk(self._delta, options.clamp * self._scale, whitening)
        self.passes = 0
        self.active = torch.ones(len(anchor), dtype=torch.bool, device=anchor.device)
        self.nll, self.loss = anchor.new_zeros(len(anchor)), anchor.new_zeros(len(anchor))
        self.steps = torch.zeros(len(anchor), dtype=torch.long, device=anchor.device)
        self.said = torch.zeros_like(self.steps)
        self.stopped = torch.zeros_like(self.steps)
        self._seen = self.nll  # of the contexts that were just seen

    @property
    def ended(self) -> bool:
        """True if no further pass is to be made."""
        return self.passes >= self._options.steps or not bool(self.active.any())

    @property
    def made(self) -> int:
        """Passes of all edits; who is done has made all of hers."""
        return int(torch.where(self.active, self.steps, self._options.steps).sum())

    def look(self, contexts: list[int]) -> Float[Tensor, " edits"]:
        """One pass: the whole loss of each edit that was not done, and the gradient.

        There is no gradient after the last pass, and a loss of 0 of those that were done.
        """
        options, active = self._options, self.active
        self.passes += 1
        if self._delta.grad is not None:
            self._delta.grad.zero_()
        last = self.passes == options.steps
        now = self._losses(self._delta, active, contexts, backward=not last)
        penalty = options.decay * self._delta.norm(dim=-1) / self._anchor.norm(dim=-1).square()
        total = now.nll + options.kl * now.kl + penalty.detach()
        self.nll = torch.where(active, now.nll, self.nll)
        self.loss = torch.where(active, total, self.loss)
        self.steps += active
        self._seen = now.seen
        self.said += now.predicted & now.complete
        why = self._why(now, total if options.stop_by == "whole" else total - penalty.detach())
        self.active = active & ~((why > 0).all() if self._tied else why > 0)
        self.stopped = torch.where(active & ~self.active, why, self.stopped)
        if not self.ended:
            penalty.sum().backward()
        return torch.where(active, total, 0)

    def _why(self, now: Losses, loss: Float[Tensor, " edits"]) -> Int[Tensor, " edits"]:
        """Which rule to stop each edit meets, a place in `STOPS`; 0 where it meets none."""
        options = self._options
        rules = {"loss": (loss < options.stop_below) & now.complete}
        if options.stop_margin is not None:
            rules["margin"] = (now.margin >= options.stop_margin) & now.complete
        if options.stop_when_said:
            rules["said"] = self.said >= options.stop_when_said
        why = torch.zeros_like(self.steps)
        for name, met in rules.items():
            why[met & (why == 0)] = STOPS.index(name)
        return why

    @torch.no_grad()
    def move(self) -> None:
        """One update of the edits that are not done."""
        delta = self._delta
        if self._tied and delta.grad is not None:
            delta.grad.copy_(delta.grad.mean(0).expand_as(delta))
        before = delta.clone()
        loss = self._seen.mean().expand_as(self._seen) if self._tied else self._seen
        self._walk.move(loss)
        delta.copy_(torch.where(self.active.unsqueeze(1), delta, before))

    def standing(self, seconds: float) -> dict[str, Tensor]:
        """State that the next pass depends on, beside what is read from the model anew."""
        own = {name: getattr(self, name) for name in _OWN}
        seen = {f"seen.{name}": value for name, value in self._losses.seen.items()}
        state = {**own, **self._walk.standing(), **seen, "delta": self._delta.detach()}
        numbers = {"passes": self.passes, "seconds": seconds}
        state |= {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}
        return {name: value.clone() for name, value in state.items()}

    @torch.no_grad()
    def go_on_from(self, state: Mapping[str, Tensor]) -> None:
        """Stand where an earlier descent of the same edits stood."""
        for name in _OWN:
            setattr(self, name, state[name].to(getattr(self, name)))
        self.passes = int(state["passes"])
        self._delta.copy_(state["delta"])
        self._walk.go_on_from(state)
        for name, value in self._losses.seen.items():
            value.copy_(state[f"seen.{name}"])

    def targets(self, seconds: float) -> Targets:
        """Targets as they are now.

        Args:
            seconds: time of each edit.
        """
        return Targets(
            delta=self._delta.detach(),
            anchor=self._anchor,
            loss=self.loss,
            nll=self.nll,
            steps=self.steps,
            stopped=self.stopped,
            seconds=torch.full_like(self.loss, seconds),
            cached=torch.zeros_like(self.active),
            short=self._losses.short,
        )


def _attention(model: ModelHandle) -> AbstractContextManager[object]:
    """Leave out cuDNN's attention, which prepares itself anew for passes of every other shape.

    On an H100 steps take half as long without it.
    """
    if model.device.type != "cuda":
        return nullcontext()
    return sdpa_kernel(_ATTENTION)


def _turn(step: int, contexts: int, options: TargetOptions) -> list[int]:
    """The contexts that a step looks at: all of them, or so many in turn."""
    if options.descent == "sphere" and step == 0:
        return [*range(contexts)]
    size = min(options.contexts_per_step or contexts, contexts)
    return sorted((step * size + i) % contexts for i in range(size))


def _anchors(
    model: ModelHandle, edits: Sequence[Edit], place: DeltaPlace
) -> Float[Tensor, "edits hidden"]:
    """t₀: what stands at the insertion point of each bare prompt."""
    block = model.architecture.blocks[place.layer]
    module = block if place.insertion == "block" else model.site(place.layer).module
    located = [locate(model.tokens, edit, "") for edit in edits]
    stood = read_at_lookup(model, located, {place.layer: module}, of_input=False)[place.layer]
    stood = stood.to(model.device)  # where token ids and the loss are, whatever the layer's is
    return stood if stood.dtype == torch.float64 else stood.float()


def _describe_not_finite(
    model: ModelHandle, edits: Sequence[Edit], total: Float[Tensor, " edits"], layer: int
) -> str:
    broken = [e.id for e, value in zip(edits, total.tolist(), strict=True) if isnan(value)]
    return (
        f"The target loss of {', '.join(broken[:5]) or 'an edit'} at layer {layer} is not finite: "
        f"{model.name}'s activations overflow in {model.dtype}, or its weights were damaged by "
        f"earlier edits. Try --dtype float32, a smaller lr, or fewer carried edits."
    )
