"""Activations and gradients of a target behind its prompt, for methods that go by gradients.

Of each text "prompt target" the tokens count by which the target is predicted: from the prompt's
last to the target's last but one. (At the target's last token nothing is predicted any more, so
no gradient reaches it.)
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from retcon.edits import Edit
from retcon.errors import NotFinite
from retcon.model import hooks
from retcon.model.forward import Position, in_full, logits_at
from retcon.model.handle import ModelHandle
from retcon.model.tokens import Continuation, by_length
from retcon.progress import Progress, silent


class Answers(NamedTuple):
    """Activations and gradients at the tokens that predict targets; a row a token, edit by edit.

    Attributes:
        owner: edit of each row.
        keys, outputs: inputs and outputs of the edited matrix.
        gradients: of the edit's mean negative log-probability per token, with respect to that
            output.
    """

    owner: Int[Tensor, " rows"]
    keys: Mapping[int, Float64[Tensor, "rows d_in"]]
    outputs: Mapping[int, Float64[Tensor, "rows d_out"]]
    gradients: Mapping[int, Float64[Tensor, "rows d_out"]]

    def select(self, edits: slice) -> "Answers":
        """The rows of some of the edits."""
        count = int(self.owner[-1]) + 1 if len(self.owner) else 0
        first, stop, _ = edits.indices(count)
        chosen = (self.owner >= first) & (self.owner < stop)
        return Answers(
            self.owner[chosen] - first,
            *({layer: x[chosen] for layer, x in part.items()} for part in self[1:]),
        )


def continuations(model: ModelHandle, edits: Sequence[Edit]) -> list[Continuation]:
    """The tokens of each edit's prompt and target."""
    return [model.tokens.continuation(edit.text, edit.target) for edit in edits]


def target_nll(model: ModelHandle, texts: Sequence[Continuation]) -> Float[Tensor, " texts"]:
    """The mean negative log-probability per token of each target, in one pass, with its graph."""
    places = _places(texts)
    logits = in_full(logits_at(model, [text.ids[:-1] for text in texts], places))
    row = torch.tensor([row for row, _ in places], device=logits.device)
    wanted = torch.tensor([token for text in texts for token in text.target], device=logits.device)
    each = torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
    lengths = torch.tensor([len(text.target) for text in texts], device=logits.device)
    return each.new_zeros(len(texts)).index_add(0, row, each) / lengths


def read_answers(
    model: ModelHandle,
    edits: Sequence[Edit],
    layers: Sequence[int],
    micro_batch: int,
    progress: Progress = silent,
) -> tuple[Answers, Float[Tensor, " edits"]]:
    """The rows of all edits at some layers, and each edit's loss: one pass and its gradient.

    Args:
        micro_batch: tokens that run together.

    Raises:
        NotFinite: NaN or infinity in a gradient.
    """
    texts = continuations(model, edits)
    parts: dict[int, tuple[Answers, Tensor]] = {}
    for group in by_length([len(text.ids) for text in texts], micro_batch):
        progress("reading gradients", len(parts), len(edits))
        read, nll = _read(model, [texts[i] for i in group], layers)
        for place, i in enumerate(group):
            parts[i] = (read.select(slice(place, place + 1)), nll[place])
    progress("reading gradients", len(edits), len(edits))
    rows = [parts[i][0] for i in range(len(edits))]
    whole = Answers(
        torch.cat([part.owner + i for i, part in enumerate(rows)]),
        *(
            {layer: torch.cat([part[field][layer] for part in rows]) for layer in layers}
            for field in (1, 2, 3)
        ),
    )
    if not all(torch.isfinite(x).all() for x in whole.gradients.values()):
        raise NotFinite(
            f"A gradient holds NaN or infinity: {model.name}'s activations overflow in "
            f"{model.dtype}, or its weights were damaged by earlier edits. Try --dtype float32."
        )
    return whole, torch.stack([parts[i][1] for i in range(len(edits))])


def _read(
    model: ModelHandle, texts: Sequence[Continuation], layers: Sequence[int]
) -> tuple[Answers, Float[Tensor, " texts"]]:
    """One pass over some texts, and back."""
    row, position = torch.tensor(_places(texts), device=model.device).unbind(1)
    keys: dict[int, Tensor] = {}
    outputs: dict[int, Tensor] = {}
    zeros: dict[int, Tensor] = {}

    def keep(layer: int, x: Tensor) -> None:
        keys[layer] = x.detach()[row, position].double()

    def grow(layer: int, y: Tensor) -> Tensor:
        outputs[layer] = y.detach()[row, position].double()
        zeros[layer] = torch.zeros_like(y).requires_grad_()
        return y + zeros[layer]

    modules = {layer: model.site(layer).module for layer in layers}
    with ExitStack() as stack, torch.enable_grad():
        stack.enter_context(hooks.read_inputs(modules, len(texts), keep))
        for layer, module in modules.items():
            change = hooks.change_outputs([module], len(texts), lambda y, at=layer: grow(at, y))
            stack.enter_context(change)
        nll = target_nll(model, texts)
        slopes = torch.autograd.grad(nll.sum(), [zeros[layer] for layer in layers])
    gradients = {
        layer: slope[row, position].double() for layer, slope in zip(layers, slopes, strict=True)
    }
    return Answers(row, keys, outputs, gradients), nll.detach()


def _places(texts: Sequence[Continuation]) -> list[Position]:
    """Row and position of every token that predicts one of a target's."""
    return [
        (i, position)
        for i, text in enumerate(texts)
        for position in range(text.start - 1, len(text.ids) - 1)
    ]
