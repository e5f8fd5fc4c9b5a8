"""What the model says by itself: free greedy generation behind a prompt."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from retcon.edits import Edit
from retcon.model.handle import ModelHandle
from retcon.model.sampling import greedy

# A target may be said in other tokens than it is spelt in, and must end where a word ends.
_EXTRA_TOKENS = 2


def says_target(handle: ModelHandle, edits: Sequence[Edit]) -> list[bool]:
    """Whether the greedy continuation of each bare prompt begins with the target, as whole words.

    Stricter than teacher-forced accuracy, which forgives a target's later tokens for an error in
    the first, and which takes "Englishman" for "English". (The Mirage of Model Editing,
    arXiv:2502.11177, shows how far the two can be apart.)
    """
    heads = [handle.tokens.encode(edit.text) for edit in edits]
    lengths = [
        len(handle.tokens.continuation(edit.text, edit.target).target) + _EXTRA_TOKENS
        for edit in edits
    ]
    said = greedy(handle, heads, lengths)
    return [
        _begins_with(handle.tokens.decode(ids), edit.target)
        for ids, edit in zip(said, edits, strict=True)
    ]


def continuations(handle: ModelHandle, texts: Sequence[str], *, new_tokens: int = 8) -> list[str]:
    """The greedy continuation of each text, for a person to read."""
    heads = [handle.tokens.encode(text) for text in texts]
    return [handle.tokens.decode(ids) for ids in greedy(handle, heads, [new_tokens] * len(texts))]


class Answer(NamedTuple):
    """A next token and its probability."""

    text: str
    probability: float


def top_answers(handle: ModelHandle, text: str, k: int = 3) -> list[Answer]:
    """The k most probable next tokens behind a text."""
    ids = torch.tensor([handle.tokens.encode(text)], device=handle.device)
    with torch.no_grad():
        last = handle.model(input_ids=ids, use_cache=False).logits[0, -1]
    found = last.float().softmax(-1).topk(k)
    return [
        Answer(handle.tokens.decode([int(i)]).strip(), float(p))
        for p, i in zip(found.values, found.indices, strict=True)
    ]


def _begins_with(text: str, target: str) -> bool:
    said, wanted = " ".join(text.split()), " ".join(target.split())
    return said.startswith(wanted) and not said[len(wanted) : len(wanted) + 1].isalnum()
