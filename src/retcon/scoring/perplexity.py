"""Drift: how much worse a model predicts ordinary text, in which no edit has a part.

    perplexity = exp( Σ −log p(token | those before it in its passage) / number of such tokens )

Each passage is read by itself, cut to `length` tokens. Its first token has nothing before it and
is not predicted, unless the tokenizer puts a BOS token there.
"""

from collections.abc import Sequence
from math import isnan

from retcon.errors import InvalidSetting, NotFinite
from retcon.model.handle import ModelHandle
from retcon.model.overlay import Overlay
from retcon.progress import Progress, silent
from retcon.scoring.observations import PASSAGE, Moment, Observation
from retcon.scoring.teacher_forced import Ask, predict

LENGTH = 256


def read_passages(
    model: ModelHandle,
    texts: Sequence[str],
    moment: Moment = Moment("pre"),
    *,
    length: int = LENGTH,
    progress: Progress = silent,
) -> list[Observation]:
    """Read some passages with the model as it is; the metric `perplexity` is read off the rows.

    Args:
        model: the model.
        texts: a passage each.
        moment: of the rows.
        length: tokens after which a passage is cut off.
        progress: is told how many passages are read.

    Returns:
        A row a passage, its NLL in nats a token.

    Raises:
        InvalidSetting: length < 2, or no passage has two tokens.
        NotFinite: a log-probability is NaN.
    """
    if length < 2:
        raise InvalidSetting(f"Passages of {length} tokens predict nothing. Take at least 2.")
    rows = [model.tokens.document(text, length) for text in texts]
    asks = [Ask(row, 1) for row in rows if len(row) > 1]
    if not asks:
        raise InvalidSetting("No passage has two tokens, so there is nothing to predict.")

    def report(task: str, done: int, total: int) -> None:
        del task  # it is another one here
        progress("reading held-out text", done, total)

    predictions = predict(Overlay(model=model), asks, report)
    means = [-sum(seen.logp) / len(seen.logp) for seen in predictions]
    if any(map(isnan, means)):
        raise NotFinite(
            f"The log-probability of ordinary text is NaN: the model's activations overflow in "
            f"{model.dtype}, or edits have destroyed it."
        )
    return [
        Observation(f"passage {i}", None, PASSAGE, i, *moment, nll_new=mean, n_new=len(seen.logp))
        for i, (mean, seen) in enumerate(zip(means, predictions, strict=True))
    ]
