"""Forward passes: the only place, beside `generate`, where the network of a loaded model is run.

Whole texts of unlike length are padded on the right; what looks at one token at the end of each
takes texts of one length together, so that nothing is padded. The output head computes only the
positions that are read. (`behaviour` runs networks before they are loaded, to see what they do.)
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.cache_utils import Cache

from retcon.model import hooks
from retcon.model.handle import ModelHandle
from retcon.model.tokens import Batch

# A row of a batch, and a position in it.
Position = tuple[int, int]
Ids = tuple[int, ...]


def run(
    model: ModelHandle,
    ids: Int[Tensor, "rows length"],
    mask: Int[Tensor, "rows seen"] | None = None,
    *,
    positions: Int[Tensor, "rows length"] | None = None,
    cache: Cache | None = None,
    keep_cache: bool = False,
) -> Any:
    """One pass over token ids: what the network of transformers returns.

    Args:
        model: as it is now, hooks and all.
        ids: the tokens.
        mask: 0 where a token is filling; with a cache, of its tokens too. None: nowhere.
        positions: of the tokens, where they are not 0, 1, 2, …
        cache: keys and values of what stands before.
        keep_cache: return keys and values.
    """
    device = model.device
    given: dict[str, object] = {} if mask is None else {"attention_mask": mask.to(device)}
    if positions is not None:
        given["position_ids"] = positions.to(device)
    if cache is not None:
        given["past_key_values"] = cache
    return model.model(input_ids=ids.to(device), use_cache=keep_cache, **given)


def run_batch(model: ModelHandle, batch: Batch, *, keep_cache: bool = False) -> Any:
    """One pass over padded texts, as `run`."""
    return run(model, batch.input_ids, batch.attention_mask, keep_cache=keep_cache)


def logits_at(
    model: ModelHandle, texts: Sequence[Sequence[int]], places: Sequence[Position]
) -> Float[Tensor, "places vocabulary"]:
    """Logits at some positions of padded texts, in the dtype of the model, with their graph."""
    with reading_at(model, places):
        return run_batch(model, model.tokens.pad(texts)).logits[0]


def head_inputs_at(
    model: ModelHandle, texts: Sequence[Sequence[int]], places: Sequence[Position]
) -> Float[Tensor, "places h"]:
    """Inputs of the output head at some positions of padded texts: all that logits depend on."""
    inputs: list[Tensor] = []
    gather = _gathering(model, places)

    def keep(hidden: Float[Tensor, "rows length h"]) -> Float[Tensor, "1 1 h"]:
        inputs.append(gather(hidden))
        return hidden[:1, :1]

    with hooks.change_input(model.architecture.head, keep):
        run_batch(model, model.tokens.pad(texts))
    return inputs[0]


def logits_beside(
    model: ModelHandle,
    texts: Sequence[Sequence[int]],
    places: Sequence[Position],
    inputs: Float[Tensor, "others h"],
) -> Float[Tensor, "both vocabulary"]:
    """Logits at some positions of padded texts, and behind these those of other inputs of the head.

    Whatever the model does to logits is done to both.
    """
    gather = _gathering(model, places)

    def beside(hidden: Float[Tensor, "rows length h"]) -> Float[Tensor, "1 both h"]:
        return torch.cat([gather(hidden), inputs.to(hidden)]).unsqueeze(0)

    with hooks.change_input(model.architecture.head, beside):
        return run_batch(model, model.tokens.pad(texts)).logits[0]


def reading_at(model: ModelHandle, places: Sequence[Position]) -> AbstractContextManager[None]:
    """Let the output head see some positions only: logits inside are (1, places, vocabulary)."""
    gather = _gathering(model, places)
    return hooks.change_input(model.architecture.head, lambda hidden: gather(hidden).unsqueeze(0))


def _gathering(
    model: ModelHandle, places: Sequence[Position]
) -> Callable[[Float[Tensor, "rows length h"]], Float[Tensor, "places h"]]:
    """A function that takes some positions of a batch."""
    row, position = torch.tensor(places, device=model.device).unbind(1)

    def gather(hidden: Float[Tensor, "rows length h"]) -> Float[Tensor, "places h"]:
        there = hidden.device
        return hidden[row.to(there), position.to(there)]

    return gather


def reading_little(model: ModelHandle) -> AbstractContextManager[None]:
    """Let the output head see one position, where its own work is not wanted."""
    return hooks.change_input(model.architecture.head, lambda hidden: hidden[:1, :1])


def in_full(logits: Tensor) -> Tensor:
    """Logits in float32 at least."""
    return logits if logits.dtype == torch.float64 else logits.float()


def run_until(
    model: ModelHandle,
    module: nn.Module,
    ids: Int[Tensor, "rows length"],
    mask: Int[Tensor, "rows length"] | None = None,
) -> None:
    """A pass, without gradients, that ends as soon as a module has returned."""
    hooks.run_until(module, lambda: run(model, ids, mask))


def at_last_token(
    model: ModelHandle,
    texts: Sequence[Ids],
    modules: Mapping[int, nn.Module],
    *,
    of_input: bool,
    most: int,
    advance: Callable[[int], None] = lambda _done: None,
) -> dict[int, Float[Tensor, "texts width"]]:
    """Input or output of each module (by layer) at the last token of each text.

    Args:
        model: as it is now.
        texts: sorted by length.
        modules: by layer; a pass ends at the deepest.
        of_input: their input, rather than their output.
        most: tokens in one pass.
        advance: is told before each pass how many texts are done.
    """
    collected: dict[int, list[Tensor]] = {layer: [] for layer in modules}
    deepest = modules[max(modules)]

    def keep(layer: int, x: Tensor) -> None:
        collected[layer].append(x[:, -1])

    done = 0
    for group in equal_length(texts, most):
        advance(done)
        done += len(group)
        reading = hooks.read_inputs if of_input else hooks.read_outputs
        with reading(modules, len(group), keep):
            run_until(model, deepest, torch.tensor([texts[i] for i in group]))
    return {layer: torch.cat(parts) for layer, parts in collected.items()}


def equal_length(texts: Sequence[Sequence[int]], most: int) -> Iterator[list[int]]:
    """Indices of texts of one length, shortest first, of at most so many tokens together."""
    group: list[int] = []
    for i in sorted(range(len(texts)), key=lambda i: len(texts[i])):
        length = len(texts[i])
        if group and (len(texts[group[0]]) != length or len(group) * length >= most):
            yield group
            group = []
        group.append(i)
    if group:
        yield group
