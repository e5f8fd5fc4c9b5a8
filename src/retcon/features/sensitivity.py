"""F = E[g gᵀ]: how much ordinary text minds a change in each direction at an edited layer.

g is the gradient, at the output of the layer's down-projection, of the loss of all that follows in
its text. Of two directions that bring a fact about equally fast the one that costs ordinary text
less is F⁻¹ g, not g (the natural gradient: Amari 1998, doi:10.1162/089976698300017746). Targets of
many facts lie in the few directions in which gradients are large, and what is written for one
disturbs the next there; steps by F^(−q) g keep them apart.

The gradients of some tokens are many times as long as those of others. Each is cut to the ninth
decile of their lengths, so that F is not of a few of them.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from retcon.cache import CacheEntry, Name, recall
from retcon.errors import NotFinite, UnsupportedModel
from retcon.features.second_moments import MomentOptions, corpus_of
from retcon.model import hooks
from retcon.model import offload as offloading
from retcon.model.forward import in_full, run
from retcon.model.handle import ModelHandle
from retcon.progress import Progress, silent

# Tokens by width of the layer's output; the share of the mean eigenvalue that is added to each.
_PER_DIMENSION, _FLOOR = 4, 0.01
_DECILE = 0.9
_TASK = "reading gradients of ordinary text"


class Whitening(NamedTuple):
    """Matrix by which gradients are multiplied.

    Attributes:
        matrix: F^(−q), scaled.
        name: all that it depends on beside model, layer and q. Its last digits hang on the
            processor, so what is kept is not named by them.
    """

    matrix: Float[Tensor, "hidden hidden"]
    name: Name


def collect_sensitivity(
    model: ModelHandle,
    texts: Iterable[str],
    layer: int,
    *,
    tokens: int,
    document_tokens: int,
    progress: Progress = silent,
) -> Float64[Tensor, "hidden hidden"]:
    """F at one layer, from so many tokens of some texts, or all; the first of a text is left out.

    Raises:
        UnsupportedModel: no text has two tokens.
        NotFinite: NaN or infinity in a gradient.
    """
    gradients: list[Float[Tensor, "tokens hidden"]] = []
    seen = 0
    for text in texts:
        if seen >= tokens:
            break
        progress(_TASK, seen, tokens)
        ids = model.tokens.document(text, document_tokens)
        if len(ids) > 1:
            gradients.append(_gradients(model, ids, layer)[1:])
            seen += len(ids) - 1
    progress(_TASK, tokens, tokens)
    if not gradients:
        raise UnsupportedModel(f"No text of the corpus has two tokens for {model.name} to read.")
    rows = torch.cat(gradients).double()
    length = rows.norm(dim=1, keepdim=True)
    if not torch.isfinite(length).all():
        raise NotFinite(f"{model.name}'s gradients at layer {layer} are not finite.")
    longest = length.quantile(_DECILE)
    rows *= (longest / length.clamp_min(torch.finfo(length.dtype).tiny)).clamp_max(1)
    return rows.mT @ rows / len(rows)


def whitening(
    sensitivity: Float64[Tensor, "hidden hidden"], power: float
) -> Float[Tensor, "hidden hidden"]:
    """(F / m + 1/100)^(−power) in float32, m the mean of F's eigenvalues.

    Args:
        sensitivity: F.
        power: q.
    """
    values, vectors = torch.linalg.eigh(sensitivity)
    mean = values.mean()
    if mean <= 0:  # a model whose output does not depend on it
        return torch.eye(len(values), device=values.device)
    shares = (values / mean).clamp_min(0) + _FLOOR
    return (vectors * shares**-power @ vectors.mT).float()


def recall_whitening(
    model: ModelHandle,
    layer: int,
    layers: Sequence[int],
    options: MomentOptions,
    power: float,
    progress: Progress = silent,
) -> Whitening:
    """The whitening at one layer; F from the cache, or collected from the text that C is of.

    Args:
        layers: all that are written.
        power: q.

    Raises:
        UnsupportedModel, NotFinite: as `collect_sensitivity`.
    """
    corpus, _ = corpus_of(model, layers, options, progress)
    tokens = _PER_DIMENSION * model.site(layer).d_out

    def collect() -> Float64[Tensor, "hidden hidden"]:
        return collect_sensitivity(
            model,
            corpus.texts(),
            layer,
            tokens=tokens,
            document_tokens=options.document_tokens,
            progress=progress,
        )

    def compute(_group: list[int]) -> list[CacheEntry]:
        return [{"sensitivity": collect().cpu()}]

    text = {
        "corpus": corpus.identity,
        "tokens": tokens,
        "document_tokens": options.document_tokens,
    }
    if not model.as_loaded:
        return Whitening(whitening(collect(), power), text)
    ((entry, _),) = recall(
        "sensitivity", [{"format": 1, "model": model.identity, "layer": layer, **text}], compute
    )
    return Whitening(whitening(entry["sensitivity"], power), text)


def _gradients(
    model: ModelHandle, ids: tuple[int, ...], layer: int
) -> Float[Tensor, "tokens hidden"]:
    """The gradient of a text's loss at every token of it."""
    outputs: list[Tensor] = []

    def leaf(output: Tensor) -> Tensor:
        outputs.append(output.detach().requires_grad_())
        return outputs[0]

    with (
        torch.enable_grad(),
        offloading.read_again(model.model),
        hooks.change_outputs([model.site(layer).module], 1, leaf),
    ):
        logits = in_full(run(model, torch.tensor([ids])).logits[0, :-1])
        labels = torch.tensor(ids[1:], device=logits.device)
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, outputs)
    return in_full(gradient[0])
