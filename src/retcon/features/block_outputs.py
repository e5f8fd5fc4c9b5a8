"""Compute what a target at one layer gives at later layers, without editing any weight."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from retcon.edits import Edit
from retcon.features.contexts import locate
from retcon.model import hooks
from retcon.model.forward import equal_length, run_until
from retcon.model.handle import ModelHandle

# Tokens in one forward pass.
_TOKENS = 4096


def replay_outputs(
    model: ModelHandle,
    edits: Sequence[Edit],
    layers: Sequence[int],
    delta: Float[Tensor, "edits hidden"],
) -> Float[Tensor, "layers edits hidden"]:
    """Block outputs at the end of each bare prompt's subject, with δ added at the first layer.

    Args:
        layers: in ascending order; δ is added to the output of the first one's block.
    """
    heads = [_head(model, edit) for edit in edits]
    blocks = {layer: model.architecture.blocks[layer] for layer in layers}
    outputs = delta.new_empty(len(layers), *delta.shape)
    for group in equal_length(heads, _TOKENS):
        own = delta[group]
        ids = torch.tensor([heads[i] for i in group])

        def add(y: Tensor, own: Tensor = own) -> Tensor:
            return torch.cat([y[:, :-1], (y[:, -1] + own.to(y)).unsqueeze(1)], dim=1)

        def keep(layer: int, y: Tensor, group: list[int] = group) -> None:
            outputs[layers.index(layer), group] = y[:, -1].to(outputs)

        with (
            hooks.change_outputs([blocks[layers[0]]], len(group), add),
            hooks.read_outputs(blocks, len(group), keep),
        ):
            run_until(model, blocks[layers[-1]], ids)
    return outputs


def _head(model: ModelHandle, edit: Edit) -> tuple[int, ...]:
    located = locate(model.tokens, edit, "")
    return tuple(located.ids[: located.lookup + 1])
