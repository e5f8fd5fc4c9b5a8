"""Drift: how much worse a model predicts ordinary text, in which no edit has a part.

    perplexity = exp( Σ −log p(token | those before it in its passage) / number of such tokens )

Each passage is read by itself, cut to `length` tokens. Its first token has nothing before it and
is not predicted, unless the tokenizer puts a BOS token there.
"""

from collections.abc import Sequence
from math import exp, isnan
from typing import NamedTuple

from retcon.errors import InvalidSetting, NotFinite
from retcon.evaluation.inference import Estimate, Statistic
from retcon.evaluation.predictions import Ask, predict
from retcon.model.handle import ModelHandle
from retcon.model.overlay import Overlay
from retcon.progress import Progress, silent

LENGTH = 256


class PassageScore(NamedTuple):
    """Of one passage: predicted tokens, and the sum of their negative log-probabilities in nats."""

    tokens: int
    nll: float


class Perplexity(NamedTuple):
    """What a model makes of some passages, each cut to `length` tokens."""

    length: int
    passages: tuple[PassageScore, ...]

    @property
    def tokens(self) -> int:
        """How many were predicted."""
        return sum(passage.tokens for passage in self.passages)

    @property
    def nll(self) -> float:
        """Mean negative log-probability per token, in nats."""
        return sum(passage.nll for passage in self.passages) / self.tokens

    @property
    def value(self) -> float:
        """Perplexity; infinite where it is beyond all numbers."""
        return _exp(self.nll)


def perplexity(
    handle: ModelHandle,
    texts: Sequence[str],
    *,
    length: int = LENGTH,
    progress: Progress = silent,
) -> Perplexity:
    """Read some passages with the model as it is.

    Raises:
        InvalidSetting: length < 2, or no passage has two tokens.
        NotFinite: a log-probability is NaN.
    """
    if length < 2:
        raise InvalidSetting(f"Passages of {length} tokens predict nothing. Take at least 2.")
    rows = [handle.tokens.encode(text)[:length] for text in texts]
    asks = [Ask(row, 1) for row in rows if len(row) > 1]
    if not asks:
        raise InvalidSetting("No passage has two tokens, so there is nothing to predict.")

    def report(task: str, done: int, total: int) -> None:
        del task  # it is another one here
        progress("reading held-out text", done, total)

    found = predict(Overlay(handle=handle), asks, report)
    passages = tuple(PassageScore(len(seen.logp), -sum(seen.logp)) for seen in found)
    if any(isnan(passage.nll) for passage in passages):
        raise NotFinite(
            f"The log-probability of ordinary text is NaN: the model's activations overflow in "
            f"{handle.dtype}, or edits have destroyed it."
        )
    return Perplexity(length, passages)


def ratio(before: Perplexity, after: Perplexity) -> Estimate:
    """Perplexity after over perplexity before, with its 95 % interval; 1 is no drift.

    The interval is that of Σ(nllᵢ' − nllᵢ)/Σ nᵢ over passages, which are read by both and so are
    paired; `cases` is their number.

    Raises:
        ValueError: other passages were read before.
    """
    pairs = list(zip(before.passages, after.passages, strict=True))
    if any(b.tokens != a.tokens for b, a in pairs):
        raise ValueError("before and after are of different passages")
    moved = after.nll - before.nll
    influence = {
        str(i): (a.nll - b.nll - moved * b.tokens) / before.tokens for i, (b, a) in enumerate(pairs)
    }
    found = Statistic(moved, influence, len(pairs)).estimate()
    low, high = found.low, found.high
    return Estimate(
        _exp(moved),
        None if low is None else _exp(low),
        None if high is None else _exp(high),
        found.cases,
    )


def _exp(x: float) -> float:
    return exp(x) if x < 700 else float("inf")
