"""Text to tokens: where the subject ends, where the target begins, and rectangular batches.

Positions come from the character offsets of the whole string, never from the lengths of pieces
tokenised apart, and every one is checked. Batches are padded here, on the right, so that the
tokenizer's own padding side does not matter.

A word that the tokenizer does not know is as good as any other such word. So in a subject or a
target it is refused: other subjects would change with this one, and `<unk>` would be what the
model learns to say. Elsewhere in a prompt it only blurs what stands around the subject, as in any
text that the model reads, and is warned of.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Int
from tokenizers.models import Unigram
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from retcon.edits import check_whole
from retcon.errors import InvalidEdit, InvalidSetting, RetconWarning, UnsupportedModel
from retcon.model.positions import Positions
from retcon.writing_systems import blank, join, quoted

# What a target may follow without melting into it.
_SIGNS = ("a", "1", "(", "\n")
# Parts of a tokenizer that say how it was called last, and not what it does.
_CALLS = ("padding", "truncation")
# Bytes of a character, at most.
_BYTES = 4
# Characters of a long text that a message shows.
_SHOWN = 80
# The day for chat templates that tell one: else what they make would change from day to day.
_DAY = "26 Jul 2024"
# So many prompts, each with its target, are remembered: every look asks for the same ones.
_REMEMBERED = 2**16


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


class Encoded(NamedTuple):
    """A text, its token ids, and which characters each is of: none of those that were added."""

    text: str
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]

    def inside(self, start: int, end: int) -> list[int]:
        """The tokens that hold one of the characters from `start` to before `end`."""
        return [i for i, (a, b) in enumerate(self.offsets) if a < min(b, end) and b > start]


class Batch(NamedTuple):
    """Sequences of different lengths as one rectangle, padded on the right."""

    input_ids: Int[Tensor, "rows length"]
    attention_mask: Int[Tensor, "rows length"]


class Tokens:
    """A fast tokenizer, asked only for what editing needs.

    positions: those of the model that the tokens are for.

    Raises:
        UnsupportedModel: the tokenizer gives no character offsets.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, positions: Positions = Positions()
    ) -> None:
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise UnsupportedModel(
                f"The tokenizer {type(tokenizer).__name__} gives no character offsets, from which "
                f"Retcon finds the subject's last token. Use a fast tokenizer (tokenizer.json)."
            )
        self.tokenizer = tokenizer
        self.positions = positions
        self.unknown = _unknown(tokenizer)
        self.special = frozenset(int(i) for i in tokenizer.all_special_ids)
        self._told: set[str] = set()
        self._located = lru_cache(_REMEMBERED)(self._locate)
        self._continued = lru_cache(_REMEMBERED)(self._continue)

    @cached_property
    def identity(self) -> str:
        """A sha256 of what decides how text becomes tokens, and tokens text."""
        parts = json.loads(self.tokenizer.backend_tokenizer.to_str())
        rules = {name: part for name, part in parts.items() if name not in _CALLS}
        flags = {
            "special": sorted(self.special),
            "end": self.tokenizer.eos_token_id,
            "pad": self.tokenizer.pad_token_id,
            "tidy": self.tokenizer.clean_up_tokenization_spaces,
            "split": self.tokenizer.split_special_tokens,
        }
        return hashlib.sha256(json.dumps([rules, flags]).encode()).hexdigest()

    @property
    def decodes_piecewise(self) -> bool:
        """True if the text of some ids stays as it is when more follow.

        False where the tokenizer tidies up spaces in front of what follows.
        """
        return not self.tokenizer.clean_up_tokenization_spaces

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids, with whatever the tokenizer puts before a text, and nothing after it.

        Raises:
            InvalidEdit: the text is empty, no Unicode, or begins with what the tokenizer adds.
        """
        return self._encode(text).ids

    def spans(self, text: str) -> Encoded:
        """The ids of a text, and the characters that each is of.

        Raises:
            InvalidEdit: as `encode`.
        """
        return self._encode(text)

    def prompt(self, text: str) -> tuple[int, ...]:
        """Token ids of a text that something is to follow: blanks at its end belong to that.

        Raises:
            InvalidEdit: as `encode`; or it is longer than what the model can read.
        """
        ids = self.encode(text.rstrip(" "))
        self._check_length(len(ids), f"The prompt {_short(text)}")
        return ids

    def document(self, text: str, most: int) -> tuple[int, ...]:
        """The first tokens of an ordinary text, no more than the model can read."""
        ids = self.encode(text)
        if sum(i == self.unknown for i in ids) > len(ids) / 2:
            self._tell("documents", f"The tokenizer knows few of the words of {_short(text)}.")
        return ids[: self.positions.room(0, most)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def decode_begun(self, ids: Sequence[int]) -> str:
        """The text of what may go on: nothing of a last character that has not come whole.

        Some tokenizers show all bytes in a row as broken if one of their characters is.
        """
        for most in range(len(ids), max(len(ids) - _BYTES, 0), -1):
            text = self.decode(ids[:most])
            if not text.endswith("\ufffd"):
                return text
        return self.decode(ids).rstrip("\ufffd")

    def spelt(self, text: str) -> str:
        """A text as the model would say it: in the tokenizer's own form of Unicode and case.

        The text itself where it holds what the model cannot say.
        """
        ids = self.encode(text)
        return text if self.unknown in ids else self.decode(ids) or text

    def knows(self, text: str) -> bool:
        """True if the tokenizer has a token for every word of a text."""
        return self.unknown is None or self.unknown not in self.encode(text)

    def chat(self, message: str, system: str | None = None) -> str:
        """A user's message in the tokenizer's chat template, up to where the model answers.

        A system message stands before it where one is given. Without the special token that the
        tokenizer itself puts before a text. Where a template can, it asks for an answer without
        reasoning before it.

        Raises:
            InvalidSetting: there is no template, or it cannot be filled.
        """
        if not self.tokenizer.chat_template:
            raise InvalidSetting(
                "The tokenizer has no chat template, so the model cannot be asked in a chat. Leave "
                "chat out, or load an instruct version of the model."
            )
        messages = [] if system is None else [{"role": "system", "content": system}]
        try:
            text = self.tokenizer.apply_chat_template(
                [*messages, {"role": "user", "content": message}],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=False,
                date_string=_DAY,
            )
        except Exception as error:  # a template is a program that came with the model
            raise InvalidSetting(
                f"The tokenizer's chat template cannot be filled: {error}. Leave chat out, or mend "
                f"the template."
            ) from error
        return str(text).removeprefix(self._added)

    def locate(self, text: str, start: int, end: int) -> Located:
        """The token in which a subject, `text[start:end]`, ends: the last that begins in it.

        It need not hold the subject's last character: an accent may have become a part of its
        letter, or be dropped.

        Raises:
            InvalidEdit: the subject has no token, or an unknown word; the text is too long; or
                offsets and tokens of the text up to the subject's end disagree.
        """
        return self._located(text, start, end)

    def continuation(self, text: str, target: str) -> Continuation:
        """The ids of a text and of a target behind it, with a blank between where there is one.

        They begin with those of the text alone: what is scored is what the model would have to say
        behind its prompt. The target's are those of the whole string, and its own where the
        tokenizer would melt the two together, as it may in scripts without blanks.

        Raises:
            InvalidEdit: the target has an unknown word, or no tokens of its own; or both together
                are too long.
        """
        return self._continued(text, target.strip())

    def pad(self, rows: Sequence[Sequence[int]]) -> Batch:
        """A rectangle of the rows. Any id serves as padding: the mask hides it."""
        length = max(len(row) for row in rows)
        ids = torch.zeros(len(rows), length, dtype=torch.long)
        mask = torch.zeros(len(rows), length, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        return Batch(ids, mask)

    @cached_property
    def _added(self) -> str:
        """The special token that the tokenizer puts before a text; empty where it puts none."""
        encoded = self._encode("a")
        (start, end), first = encoded.offsets[0], encoded.ids[0]
        added = first in self.special and start == end
        return str(self.tokenizer.convert_ids_to_tokens(first)) if added else ""

    def _locate(self, text: str, start: int, end: int) -> Located:
        encoded = self._encode(text)
        lookup = self._last(encoded, end)
        self._check_subject(encoded, start, end)
        self._check_length(len(encoded.ids), f"The prompt {_short(text)}")
        return Located(encoded.ids, lookup)

    def _continue(self, text: str, target: str) -> Continuation:
        head, whole = self._encode(text.rstrip(" ")), self._encode(join(text, target))
        self._check_target(whole, len(whole.text) - len(target))
        self._check_prompt(head, (0, len(text)))
        ids = whole.ids
        if ids[: len(head.ids)] != head.ids or len(ids) == len(head.ids):
            ids = head.ids + self._apart(text, target)
        self._check_length(len(ids), f"The prompt {_short(text)} with the target {_short(target)}")
        return Continuation(ids, len(head.ids))

    def _encode(self, text: str) -> Encoded:
        check_whole(text)
        encoding = self.tokenizer(text, return_offsets_mapping=True)
        ids = [int(i) for i in encoding["input_ids"]]
        offsets = [(int(start), int(end)) for start, end in encoding["offset_mapping"]]
        # A special token has no characters. One at the end (some tokenizers add EOS) would stand
        # between a prompt and its target.
        while ids and ids[-1] in self.special and offsets[-1][0] == offsets[-1][1]:
            ids.pop()
            offsets.pop()
        added = bool(ids) and ids[0] in self.special and offsets[0][0] == offsets[0][1]
        if not ids or (added and ids[:1] == ids[1:2]):
            raise InvalidEdit(
                f"The text {quoted(text)} is empty or starts with the special token that the "
                f"tokenizer adds by itself. Leave special tokens out of prompts."
            )
        return Encoded(text, tuple(ids), tuple(offsets))

    def _last(self, encoded: Encoded, end: int) -> int:
        """The last token of what stands before `end`, by offsets and, where they tell, by ids."""
        inside, text = encoded.inside(0, end), encoded.text
        if not inside:
            raise InvalidEdit(f"No token of {quoted(text)} holds its subject's end.")
        head = self.encode(text[:end])
        begins = encoded.ids[: len(head)] == head
        last = len(head) - 1 if begins else inside[-1]
        # Bytes of several characters may have one span, of which only ids tell the parts.
        shared = [i for i, span in enumerate(encoded.offsets) if span == encoded.offsets[last]]
        beyond = encoded.offsets[last][1] > end and len(shared) > 1
        if inside[-1] not in (shared if begins else [last]) or (beyond and not begins):
            raise InvalidEdit(
                f"The tokenizer's offsets put the end of the subject in {quoted(text)} at token "
                f"{inside[-1]}, and its tokens of {quoted(text[:end])}, which are {len(head)}, do "
                f"not say so. Offsets of some `tokenizers` releases are wrong for some "
                f"vocabularies: update the package."
            )
        return last

    def _apart(self, text: str, target: str) -> tuple[int, ...]:
        """The tokens of a target that would melt into its prompt: those behind another text.

        Such as ends like the prompt, so that the target goes on with a word, or begins one.
        """
        gap = blank(text, target)
        for sign in (text.rstrip(" ")[-1], *_SIGNS):
            encoded = self._encode(f"{sign}{gap}{target}")
            own = encoded.inside(len(sign), len(encoded.text))
            if own and encoded.offsets[own[0]][0] >= len(sign):
                self._check_target(encoded, len(encoded.text) - len(target))
                return encoded.ids[own[0] :]
        raise InvalidEdit(
            f"The tokens of {quoted(text)} change when the target {quoted(target)} follows, so the "
            f"target's own tokens cannot be told apart. End the prompt with a whole word."
        )

    def _check_subject(self, encoded: Encoded, start: int, end: int) -> None:
        if word := self._unknown_word(encoded, start, end):
            raise InvalidEdit(
                f"The tokenizer has no token for {quoted(word)} in the subject "
                f"{quoted(encoded.text[start:end])}. To the model it is any unknown word, so every "
                f"such subject would change with this one. Write it in letters that the model "
                f"knows, or edit a model that knows these."
            )
        self._check_prompt(encoded, (0, start), (end, len(encoded.text)))

    def _check_target(self, whole: Encoded, start: int) -> None:
        if word := self._unknown_word(whole, start, len(whole.text)):
            raise InvalidEdit(
                f"The tokenizer has no token for {quoted(word)} in the target "
                f"{quoted(whole.text[start:])}, so the model cannot say it, only "
                f"{self.tokenizer.unk_token}. Write it in letters that the model knows, or edit a "
                f"model that knows these."
            )

    def _check_prompt(self, encoded: Encoded, *parts: tuple[int, int]) -> None:
        words = [word for part in parts if (word := self._unknown_word(encoded, *part))]
        if words:
            self._tell(
                "prompt",
                f"The tokenizer has no token for {quoted(words[0])} in {_short(encoded.text)}: the "
                f"model reads it as any unknown word. (Said once.)",
            )

    def _check_length(self, tokens: int, what: str) -> None:
        if said := self.positions.check(tokens, what):
            self._tell("length", f"{said} (Said once.)")

    def _unknown_word(self, encoded: Encoded, start: int, end: int) -> str | None:
        """The first of the characters from `start` to before `end` that have no token."""
        unknown = [i for i in encoded.inside(start, end) if encoded.ids[i] == self.unknown]
        if not unknown:
            return None
        first, last = encoded.offsets[unknown[0]]
        for i in unknown[1:]:
            last = max(last, encoded.offsets[i][1]) if encoded.offsets[i][0] <= last else last
        return encoded.text[max(first, start) : min(last, end)]

    def _tell(self, about: str, message: str) -> None:
        """Warn, once of each kind."""
        if about not in self._told:
            self._told.add(about)
            warnings.warn(message, RetconWarning, stacklevel=5)


def _unknown(tokenizer: PreTrainedTokenizerFast) -> int | None:
    """The token for what a tokenizer has no token for; None where it can spell everything.

    What is called so elsewhere may be a mere name, as in GPT-2, which spells by bytes.
    """
    model = tokenizer.backend_tokenizer.model
    named = tokenizer.unk_token if isinstance(model, Unigram) else model.unk_token
    return None if named is None else tokenizer.backend_tokenizer.token_to_id(str(named))


def _short(text: str) -> str:
    return quoted(text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}…{text[-_SHOWN // 2 :]}")


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
