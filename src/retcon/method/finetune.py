"""Fine-tuning under a bound: the baseline that everybody has (FT-L).

    minimise over ΔW   (1/n) Σᵢ −(1/|oᵢ|) Σₜ log p(oᵢₜ | promptᵢ, oᵢ₍<t₎)     subject to |ΔW| ≤ ε
                                                                            in every element

Zhu et al. 2020, arXiv:2012.00363, as ROME (arXiv:2202.05262, "FT+L") set it up: Adam on the edited
matrix alone, the change clamped into the box after each step, until the loss is below a threshold.
Defaults are ROME's for GPT-2 XL: 25 steps, lr 5e-4, ε 5e-4, at layer 0 (ε 5e-5 for GPT-J); it stops
at 1e-2 in the released code, which is followed, and at 0.03 in the text. The released code takes
the facts of a batch one after the other, and predicts a target's tokens all at once from the
prompt's last; here a step sees all of them, teacher-forced.

From where the box is measured is left open where edits are carried. `bound=batch` is what the
released code does when it is called again: from the weights that the batch finds, so that T batches
may move an element by Tε. `bound=run` is the paper's: from the weights before the first. With
`epsilon` large enough never to bind it is plain fine-tuning of one matrix.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from retcon.algebra.delta import LowRankDelta
from retcon.edits import Edit
from retcon.errors import NotFinite
from retcon.features.gradients import continuations, target_nll
from retcon.features.targets import default_micro_batch
from retcon.method.base import NoFeatures, Report, Update
from retcon.method.entries import method
from retcon.method.options import NotNegative, Positive
from retcon.model import hooks
from retcon.model.handle import ModelHandle
from retcon.model.tokens import Continuation, by_length
from retcon.progress import Progress, silent

_TASK = "fine-tuning, in steps"
Changes = Mapping[int, Float[Tensor, "d_out d_in"]]


@dataclass(frozen=True, kw_only=True)
class BoxSetup:
    """The layers, and from where their boxes are measured."""

    layers: tuple[int, ...]
    bound: Literal["batch", "run"]

    def begin(self, model: ModelHandle, progress: Progress = silent) -> Changes:
        """Check the layers, and keep W₀ where the box is measured from it.

        Raises:
            UnsupportedModel: a layer cannot be edited.
        """
        del progress
        for layer in self.layers:
            model.site(layer)
        return {k: model.master(k).clone() for k in self.layers if self.bound == "run"}


@dataclass(frozen=True, kw_only=True)
class FineTune:
    """Adam on the edited matrices, inside a box. Settings as of `finetune`.

    The state is W₀, where the box is measured from it; batches add nothing to it.
    """

    layers: tuple[int, ...]
    steps: int
    lr: float
    epsilon: float
    bound: Literal["batch", "run"]
    stop_below: float
    micro_batch: int
    max_batch: int | None = None

    @property
    def setup(self) -> BoxSetup:
        """The layers and the bound."""
        return BoxSetup(layers=self.layers, bound=self.bound)

    @property
    def shares_rows(self) -> bool:
        """Yes: all edits of a batch made the change together."""
        return True

    def features(
        self, model: ModelHandle, edits: Sequence[Edit], state: Changes, progress: Progress = silent
    ) -> NoFeatures:
        """Read nothing: all work depends on which facts are in a batch together."""
        del model, state, progress
        return NoFeatures(tuple(edits))

    def solve(
        self, model: ModelHandle, features: NoFeatures, state: Changes, progress: Progress = silent
    ) -> Update[None]:
        """Optimise the change of all layers together; the model itself is not touched.

        Raises:
            NotFinite: the loss is NaN or infinite.
        """
        changes, loss, steps = self._optimised(model, features.edits, state, progress)
        return Update(
            ids=tuple(edit.id for edit in features.edits),
            deltas={k: LowRankDelta.of_dense(change) for k, change in changes.items()},
            increment=None,
            report=Report(batch={"loss": loss, "target_steps": float(steps)}),
        )

    def carry(self, state: Changes, increment: None) -> Changes:
        """Return the state unchanged: what has been written is in the weights."""
        del increment
        return state

    def _optimised(
        self, model: ModelHandle, edits: Sequence[Edit], start: Changes, progress: Progress
    ) -> tuple[Changes, float, int]:
        """The change of each layer, the last loss, and the steps it took."""
        texts = continuations(model, edits)
        changes = {k: torch.zeros_like(model.master(k)).requires_grad_() for k in self.layers}
        boxes = {k: self._box(model, start, k) for k in self.layers}
        adam = torch.optim.Adam(changes.values(), lr=self.lr)
        loss, step = 0.0, 0
        for step in range(1, self.steps + 1):
            progress(_TASK, step - 1, self.steps)
            adam.zero_grad()
            loss = self._loss(model, texts, changes)
            if not isfinite(loss):
                raise NotFinite(
                    f"The loss of fine-tuning layer {', '.join(map(str, self.layers))} is not "
                    f"finite after {step - 1} steps: {model.name}'s activations overflow in "
                    f"{model.dtype}, or its weights were damaged by earlier edits. Try --dtype "
                    f"float32, or a smaller lr."
                )
            if loss < self.stop_below:
                break
            adam.step()
            with torch.no_grad():
                for layer, change in changes.items():
                    change.clamp_(*boxes[layer])
        progress(_TASK, self.steps, self.steps)
        return {k: change.detach() for k, change in changes.items()}, loss, step

    def _loss(self, model: ModelHandle, texts: Sequence[Continuation], changes: Changes) -> float:
        """The mean over all texts, under the changes; its gradient is added to theirs."""
        total = 0.0
        modules = {layer: model.site(layer).module for layer in changes}
        size = self.micro_batch or default_micro_batch(model.outline)
        for group in by_length([len(text.ids) for text in texts], size):

            def add(layer: int, x: Tensor) -> Tensor:
                return (x.to(changes[layer].dtype) @ changes[layer].mT).to(x.dtype)

            with torch.enable_grad(), hooks.add_to_outputs(modules, len(group), add):
                nll = target_nll(model, [texts[i] for i in group]).sum() / len(texts)
                nll.backward()
            total += float(nll.detach())
        return total

    def _box(
        self, model: ModelHandle, start: Changes, layer: int
    ) -> tuple[Float[Tensor, "d_out d_in"], Float[Tensor, "d_out d_in"]]:
        """Between what each element of the change may lie."""
        now = model.master(layer)
        moved = now - start.get(layer, now).to(now)
        return -self.epsilon - moved, self.epsilon - moved


@method("finetune", title="FT-L", paper="https://arxiv.org/abs/2012.00363")
def finetune(
    layers: tuple[int, ...],
    *,
    steps: Annotated[int, Field(ge=1)] = 25,
    lr: Positive = 5e-4,
    epsilon: Positive = 5e-4,
    bound: Literal["batch", "run"] = "batch",
    stop_below: NotNegative = 1e-2,
    micro_batch: Annotated[int, Field(ge=0)] = 0,
) -> FineTune:
    """Batches of facts by gradient descent on the same matrix, inside a box.

    Args:
        steps: of Adam, at most.
        lr: its rate.
        epsilon: how far any element of W may be moved, from the weights that a `batch` finds or
            those before the `run`: bound.
        stop_below: the loss at which it stops (0: never).
        micro_batch: tokens in one forward pass (0: what keeps activations below a quarter of the
            weights); it changes results by rounding only.
    """
    return FineTune(
        layers=layers,
        steps=steps,
        lr=lr,
        epsilon=epsilon,
        bound=bound,
        stop_below=stop_below,
        micro_batch=micro_batch,
    )
