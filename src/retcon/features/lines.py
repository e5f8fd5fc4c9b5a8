"""Lines that the model itself writes behind a few examples, under a seed."""

from collections.abc import Sequence
from typing import NamedTuple

from retcon.edits import Edit
from retcon.model.generate import sample
from retcon.model.handle import ModelHandle
from retcon.model.tokens import Tokens

_FIRST = "Sentence: "
# Lines about a fact behind some pairs, tokens by which they may be longer than it, and how many
# each is drawn from.
BEHIND_PAIRS, LONGER, _TOP_K = 16, 12, 20


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


def behind_pairs(
    tokens: Tokens, edit: Edit, pairs: Sequence[tuple[str, str]], second: str, seed: int
) -> Asking:
    """Ask for a second sentence about a fact, as those of some pairs follow their first ones.

    Args:
        tokens: of the model that is asked.
        edit: the fact.
        pairs: of a first and a second sentence each.
        second: what stands before each second sentence.
        seed: of the sampling.
    """
    fact = f"{edit.text} {edit.target}"
    shown = "".join(f"{_FIRST}{one}\n{second} {other}\n\n" for one, other in pairs)
    new_tokens = len(tokens.encode(fact)) + LONGER
    return Asking(f"{shown}{_FIRST}{fact}.\n{second}", new_tokens, BEHIND_PAIRS, seed, _TOP_K)


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
