"""Keys: the input of an edited matrix at the last token of the subject.

A key depends on nothing behind that token, so texts are cut there, and texts that are equal up
to there are run once: their keys are equal to the last bit, which is how colliding edits are
told from similar ones.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from retcon.edits import Edit
from retcon.errors import NotFinite
from retcon.features.contexts import locate_all
from retcon.model.forward import at_last_token
from retcon.model.handle import ModelHandle
from retcon.model.tokens import Located
from retcon.progress import Progress, silent

# Tokens in one forward pass; the passes end at the deepest layer that is read.
_TOKENS = 4096
_TASK = "reading keys"


def read_keys(
    model: ModelHandle,
    edits: Sequence[Edit],
    prefixes: Sequence[str],
    layers: Sequence[int],
    weights: Float64[Tensor, "*averages contexts"],
    progress: Progress = silent,
) -> dict[int, Float64[Tensor, "*averages edits d_in"]]:
    """The averaged key of each edit at each layer, from one pass for all layers and averages.

    Raises:
        NotFinite: NaN or infinity in an activation.
    """
    located = locate_all(model.tokens, edits, prefixes)
    modules = {layer: model.site(layer).module for layer in layers}
    read = read_at_lookup(model, located, modules, of_input=True, progress=progress)
    average: dict[int, Tensor] = {}
    for layer, rows in read.items():
        contexts = rows.double().view(len(edits), len(prefixes), -1)
        average[layer] = torch.einsum("...c,ecd->...ed", weights.to(contexts.device), contexts)
        if not torch.isfinite(average[layer]).all():
            raise NotFinite(
                f"The keys at layer {layer} hold NaN or infinity: {model.name}'s activations are "
                f"not finite in {model.dtype}. Try --dtype float32."
            )
    return average


def read_at_lookup(
    model: ModelHandle,
    located: Sequence[Located],
    modules: Mapping[int, nn.Module],
    *,
    of_input: bool,
    progress: Progress = silent,
) -> dict[int, Float[Tensor, "texts width"]]:
    """Input or output of each module (by layer) at the lookup token of each text."""
    heads = [text.ids[: text.lookup + 1] for text in located]
    distinct = sorted(set(heads), key=lambda ids: (len(ids), ids))

    def advance(done: int) -> None:
        progress(_TASK, done, len(distinct))

    read = at_last_token(model, distinct, modules, of_input=of_input, most=_TOKENS, advance=advance)
    advance(len(distinct))
    place = {ids: i for i, ids in enumerate(distinct)}
    order = torch.tensor([place[ids] for ids in heads])
    return {layer: rows[order] for layer, rows in read.items()}
