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
from retcon.model import hooks
from retcon.model.handle import ModelHandle
from retcon.model.tokens import Located
from retcon.progress import Progress, silent

# Tokens in one forward pass; the passes end at the deepest layer that is read.
_TOKENS = 4096
_TASK = "reading keys"


def read_keys(
    handle: ModelHandle,
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
    located = locate_all(handle.tokens, edits, prefixes)
    modules = {layer: handle.site(layer).module for layer in layers}
    read = read_at_lookup(handle, located, modules, of_input=True, progress=progress)
    average: dict[int, Tensor] = {}
    for layer, rows in read.items():
        contexts = rows.double().view(len(edits), len(prefixes), -1)
        average[layer] = torch.einsum("...c,ecd->...ed", weights.to(contexts.device), contexts)
        if not torch.isfinite(average[layer]).all():
            raise NotFinite(
                f"The keys at layer {layer} hold NaN or infinity: {handle.name}'s activations are "
                f"not finite in {handle.dtype}. Try --dtype float32."
            )
    return average


def read_at_lookup(
    handle: ModelHandle,
    located: Sequence[Located],
    modules: Mapping[int, nn.Module],
    *,
    of_input: bool,
    progress: Progress = silent,
) -> dict[int, Float[Tensor, "texts width"]]:
    """Input or output of each module (by layer) at the lookup token of each text."""
    heads = [text.ids[: text.lookup + 1] for text in located]
    distinct = sorted(set(heads), key=lambda ids: (len(ids), ids))
    collected: dict[int, list[Tensor]] = {layer: [] for layer in modules}
    deepest = modules[max(modules)]

    def keep(layer: int, x: Tensor) -> None:
        collected[layer].append(x[:, -1])

    done = 0
    for group in _equal_length(distinct):
        progress(_TASK, done, len(distinct))
        done += len(group)
        ids = torch.tensor(group, device=handle.device)
        reading = hooks.read_inputs if of_input else hooks.read_outputs
        with reading(modules, len(group), keep):
            hooks.run_until(deepest, lambda ids=ids: handle.model(input_ids=ids, use_cache=False))
    progress(_TASK, done, len(distinct))
    place = {ids: i for i, ids in enumerate(distinct)}
    order = torch.tensor([place[ids] for ids in heads])
    return {layer: torch.cat(parts)[order] for layer, parts in collected.items()}


def _equal_length(rows: Sequence[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Sorted rows in groups of one length, so that nothing is padded."""
    groups: list[list[tuple[int, ...]]] = []
    for row in rows:
        last = groups[-1] if groups else []
        if last and len(last[0]) == len(row) and len(last) * len(row) < _TOKENS:
            last.append(row)
        else:
            groups.append([row])
    return groups
