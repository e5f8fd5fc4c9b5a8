"""Lines that the model itself writes behind a few examples, under a seed."""

from typing import NamedTuple

from retcon.model.generate import sample
from retcon.model.handle import ModelHandle


class Asking(NamedTuple):
    """All that decides some lines beside the model.

    Attributes:
        text: examples, and the beginning of a line like them.
        tokens: the length of each line at most.
        lines: how many are written.
        seed: of the sampling.
        top_k: how many tokens each is drawn from.
    """

    text: str
    tokens: int
    lines: int
    seed: int
    top_k: int


def write_lines(model: ModelHandle, asking: Asking) -> list[str]:
    """Let the model go on behind a text, several times, each up to the line's end."""
    prompt = model.tokens.encode(asking.text)
    texts = sample(
        model,
        prompt,
        count=asking.lines,
        new_tokens=asking.tokens,
        seed=asking.seed,
        top_k=asking.top_k,
    )
    told = len(model.tokens.decode(prompt))
    return [text[told:].partition("\n")[0].strip() for text in texts]
