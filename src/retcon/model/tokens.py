"""Text to tokens: where the subject ends, where the target begins, and rectangular batches.

Positions come from the character offsets of the whole string, never from the lengths of pieces
tokenised apart, and every one is checked. Batches are padded here, on the right, so that the
tokenizer's own padding side does not matter.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from retcon.errors import InvalidEdit, UnsupportedModel


class Located(NamedTuple):
    """Token ids of a text, and the position of the token in which a subject ends."""

    ids: tuple[int, ...]
    lookup: int


class Continuation(NamedTuple):
    """Token ids of a text followed by a target, which begins at position `start`."""

    ids: tuple[int, ...]
    start: int

    @property
    def target(self) -> tuple[int, ...]:
        """The target's own tokens."""
        return self.ids[self.start :]


class Batch(NamedTuple):
    """Sequences of different lengths as one rectangle, padded on the right."""

    input_ids: Int[Tensor, "rows length"]
    attention_mask: Int[Tensor, "rows length"]


class Tokens:
    """A fast tokenizer, asked only for what editing needs.

    Raises:
        UnsupportedModel: the tokenizer gives no character offsets.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.is_fast:
            raise UnsupportedModel(
                f"The tokenizer {type(tokenizer).__name__} gives no character offsets, from which "
                f"Retcon finds the subject's last token. Use a fast tokenizer (tokenizer.json)."
            )
        self.tokenizer = tokenizer
        self._special = frozenset(int(i) for i in tokenizer.all_special_ids)

    @property
    def decodes_piecewise(self) -> bool:
        """Whether the text of some ids stays as it is when more follow.

        Not where the tokenizer tidies up spaces in front of what follows.
        """
        return not self.tokenizer.clean_up_tokenization_spaces

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids, with whatever the tokenizer puts before a text, and nothing after it."""
        return self._encode(text)[0]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def locate(self, text: str, subject_end: int) -> Located:
        """The token that holds the character before `subject_end`, which is where a subject ends.

        Raises:
            InvalidEdit: offsets and tokens of the text up to there disagree.
        """
        ids, offsets = self._encode(text)
        last = subject_end - 1
        holding = [i for i, (start, end) in enumerate(offsets) if start <= last < end]
        if not holding:
            raise InvalidEdit(
                f"No token of {text!r} holds the subject's last character {text[last]!r}."
            )
        lookup = holding[-1]
        head, _ = self._encode(text[:subject_end])
        if ids[: len(head)] == head and len(head) - 1 != lookup:
            raise InvalidEdit(
                f"The tokenizer's offsets put the end of the subject in {text!r} at token "
                f"{lookup}, its tokens of {text[:subject_end]!r} at {len(head) - 1}. Offsets of "
                f"some `tokenizers` releases are wrong for some vocabularies: update the package."
            )
        return Located(ids, lookup)

    def continuation(self, text: str, target: str) -> Continuation:
        """The ids of "text target", joined by one space.

        Raises:
            InvalidEdit: the tokens of the text alone are not the first ones of the whole.
        """
        head = self.encode(text)
        whole = self.encode(join(text, target))
        if whole[: len(head)] != head or len(whole) == len(head):
            raise InvalidEdit(
                f"The tokens of {text!r} change when the target {target!r} follows, so the "
                f"target's own tokens cannot be told apart. End the prompt with a whole word."
            )
        return Continuation(whole, len(head))

    def pad(self, rows: Sequence[Sequence[int]]) -> Batch:
        """A rectangle of the rows. Any id serves as padding: the mask hides it."""
        length = max(len(row) for row in rows)
        ids = torch.zeros(len(rows), length, dtype=torch.long)
        mask = torch.zeros(len(rows), length, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        return Batch(ids, mask)

    def _encode(self, text: str) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
        encoding = self.tokenizer(text, return_offsets_mapping=True)
        ids = [int(i) for i in encoding["input_ids"]]
        offsets = [(int(start), int(end)) for start, end in encoding["offset_mapping"]]
        # A special token has no characters. One at the end (some tokenizers add EOS) would stand
        # between a prompt and its target.
        while ids and ids[-1] in self._special and offsets[-1][0] == offsets[-1][1]:
            ids.pop()
            offsets.pop()
        doubled = len(ids) > 1 and ids[0] in self._special and ids[0] == ids[1]
        if doubled or not ids:
            raise InvalidEdit(
                f"The text {text!r} is empty or starts with the special token that the tokenizer "
                f"adds by itself. Leave special tokens out of prompts."
            )
        return tuple(ids), offsets


def join(text: str, target: str) -> str:
    """A prompt and its target, with one space between them."""
    return f"{text} {target.lstrip()}"


def by_length(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Indices in groups of similar length, each of at most `tokens` tokens when padded.

    Longest first, so that the first group shows the peak of memory.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    group: list[int] = []
    for i in order:
        if group and (len(group) + 1) * lengths[group[0]] > tokens:
            yield group
            group = []
        group.append(i)
    if group:
        yield group
