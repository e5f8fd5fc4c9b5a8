"""Settings of target optimisation, and how δ moves by them."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from retcon.errors import InvalidSetting
from retcon.features.descent import Descent, OnSphere, Walk, WithAdam
from retcon.features.prefix_cache import Insertion


@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """Settings of target optimisation; the defaults are those of MEMIT for GPT-J.

    `micro_batch` and `together` change memory, and results by rounding only. `contexts_per_step`
    and `stop_when_said` are approximations, off by default.

    Attributes:
        steps: forward passes (one more than updates).
        lr: of Adam; without effect on the sphere.
        clamp: largest ‖δ‖ / ‖t₀‖.
        kl: weight of the divergence at the subject.
        decay: weight of ‖δ‖ / ‖t₀‖².
        stop_below: an edit is done when its loss falls below this; 0 never stops.
        stop_by: the loss that is meant: the `whole` of it, or its `fit`, without the decay (which
            alone is decay · clamp / ‖t₀‖ at the clamp, and at early layers more than 0.05).
        stop_margin: an edit is done, too, when each token of its target is so many nats before the
            best other one in every context, the bare prompt too (None: never).
        insertion: where δ is added, the output of the `block` or of its `down`-projection.
        micro_batch: suffix tokens and predictions in one forward pass (0: what keeps activations
            below a quarter of the weights, and on a GPU what fills it).
        together: edits optimised side by side, on a GPU as many more as a pass has room for.
        contexts_per_step: look at so many contexts in each step, in turn, and stop by what was
            last seen of each (0: look at all). On the sphere the first step looks at all.
        stop_when_said: stop an edit, too, after so many steps in which every token of its target
            was the most probable behind every prefix (0: never; the bare prompt counts only
            where there is no prefix).
        ending: what follows the target and is a part of it, such as a full stop: "249 dollars."
            rather than "249 dollars 24900".
        descent: how δ moves, `adam` within the clamp, or turns on its `sphere`, see `descent`.
        reach: of a turn on the sphere; 1 is where the loss would come to 0 if it went on falling
            as steeply.
        largest_turn: of an edit on the sphere at first, in degrees; less once a turn went too far.
        momentum: on the sphere, the share of the last turn that is kept.
        power: on the sphere, to which each coordinate of a gradient is raised; 0: its sign.
        whiten: on the sphere, steps are taken by F^(−whiten) g in place of the gradient g, F how
            much ordinary text minds each direction (`sensitivity`); 0: by g.
    """

    steps: Annotated[int, Field(ge=1)] = 25
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.5
    clamp: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.75
    kl: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0625
    decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
    stop_below: Annotated[float, Field(ge=0)] = 0.05
    stop_by: Literal["whole", "fit"] = "whole"
    stop_margin: Annotated[float, Field(allow_inf_nan=False)] | None = None
    insertion: Insertion = "block"
    micro_batch: Annotated[int, Field(ge=0)] = 0
    together: Annotated[int, Field(ge=1)] = 32
    contexts_per_step: Annotated[int, Field(ge=0)] = 0
    stop_when_said: Annotated[int, Field(ge=0)] = 0
    ending: str = ""
    descent: Descent = "adam"
    reach: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 3.0
    largest_turn: Annotated[float, Field(gt=0, lt=180)] = 75.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.3
    power: Annotated[float, Field(ge=0, le=1)] = 1.0
    whiten: Annotated[float, Field(ge=0, le=1)] = 0.0

    def __post_init__(self) -> None:
        for name in ("reach", "largest_turn", "momentum", "power", "whiten"):
            value = getattr(self, name)
            if self.descent == "adam" and value != getattr(TargetOptions, name):
                raise InvalidSetting(
                    f"{name}={value:g} does nothing with descent=adam: it is of turns on the "
                    f"sphere. Leave it out, or set descent=sphere."
                )

    def harder(self, times: int) -> "TargetOptions":
        """The options of a further try: with each, as many steps again and half more of a clamp."""
        return replace(self, steps=self.steps * (1 + times), clamp=self.clamp * 1.5**times)

    def walk(
        self,
        delta: Float[Tensor, "edits hidden"],
        radius: Float[Tensor, "edits 1"],
        whitening: Float[Tensor, "hidden hidden"] | None = None,
    ) -> Walk:
        """The way in which δ moves.

        Args:
            delta: what is moved, a row an edit.
            radius: the clamp of each.
            whitening: of gradients, where `whiten` asks for it.
        """
        if self.descent == "adam":
            return WithAdam(delta, radius, lr=self.lr)
        return OnSphere(
            delta,
            radius,
            reach=self.reach,
            largest=self.largest_turn,
            momentum=self.momentum,
            power=self.power,
            whitening=whitening,
        )
