"""Teacher-forced predictions: what a model gives the tokens that follow many texts.

A causal model's prediction at a position depends on nothing behind it. So a text that begins
another need not be run: a prompt and its one-token target are read off the same prompt with a
longer target, and the two one-token targets of a prompt off one position. No cache is handed
from pass to pass, so that this holds for every architecture. The output head computes only the
positions that are read, each once.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from retcon.model.forward import in_full, logits_at
from retcon.model.overlay import Overlay
from retcon.model.tokens import by_length
from retcon.progress import Progress, silent

# Tokens in one forward pass: as many as it takes to keep a CPU's matrix products busy, and no
# more, since texts of one pass are padded to the longest.
_TOKENS = 256

Ids = tuple[int, ...]


class Ask(NamedTuple):
    """Ids of which those from `start` on are to be predicted.

    Attributes:
        ids: all of them, in order.
        start: index of the first that is predicted.
        owner: index of the overlay's update that the text is under.
    """

    ids: Ids
    start: int
    owner: int = 0


class Prediction(NamedTuple):
    """Prediction of each asked token, given those before it.

    Attributes:
        logp: log-probability of the token, in nats.
        top: the most probable token.
    """

    logp: tuple[float, ...]
    top: Ids


class _Row(NamedTuple):
    """A text that is run, and which of the asked ones are read off it."""

    owner: int
    ids: Ids
    asks: list[int]


def predict(overlay: Overlay, asks: Sequence[Ask], progress: Progress = silent) -> list[Prediction]:
    """Predict the tokens of each ask, in their order.

    Args:
        overlay: the model, and updates over it.
        asks: texts, and the tokens in them to predict.
        progress: is told how many are done.
    """
    predictions: dict[int, Prediction] = {}
    rows = _rows(asks)
    for group in by_length([len(row.ids) for row in rows], _TOKENS):
        progress("scoring prompts", len(predictions), len(asks))
        predictions |= _predict(overlay, [rows[i] for i in group], asks)
    progress("scoring prompts", len(predictions), len(asks))
    return [predictions[i] for i in range(len(asks))]


def _rows(asks: Sequence[Ask]) -> list[_Row]:
    """The texts that begin no other one of their owner's, and what is read off each."""
    order = sorted(range(len(asks)), key=lambda i: (asks[i].owner, asks[i].ids[:-1]), reverse=True)
    rows: list[_Row] = []
    for i in order:
        # In this order, whatever begins with a text stands right before it.
        fed, owner = asks[i].ids[:-1], asks[i].owner
        if not rows or rows[-1].owner != owner or rows[-1].ids[: len(fed)] != fed:
            rows.append(_Row(owner, fed, []))
        rows[-1].asks.append(i)
    return rows


def _predict(
    overlay: Overlay, rows: Sequence[_Row], asks: Sequence[Ask]
) -> Iterator[tuple[int, Prediction]]:
    """Run some rows in one pass and read off what was asked of them."""
    places: dict[tuple[int, int], int] = {}
    for i, row in enumerate(rows):
        for ask in (asks[index] for index in row.asks):
            for position in range(ask.start - 1, len(ask.ids) - 1):
                places.setdefault((i, position), len(places))
    logits = _logits(overlay, rows, list(places))
    logp = logits.log_softmax(-1)
    top = logits.argmax(-1).tolist()
    for i, row in enumerate(rows):
        for index in row.asks:
            ids, start, _ = asks[index]
            at = [places[i, position] for position in range(start - 1, len(ids) - 1)]
            values = logp[at, list(ids[start:])].tolist()
            yield index, Prediction(tuple(values), tuple(top[place] for place in at))


def _logits(
    overlay: Overlay, rows: Sequence[_Row], places: Sequence[tuple[int, int]]
) -> Float[Tensor, "places vocabulary"]:
    """Logits at some (row, position), in float32 at least."""
    with torch.no_grad(), overlay.over([row.owner for row in rows]):
        return in_full(logits_at(overlay.model, [row.ids for row in rows], places))
