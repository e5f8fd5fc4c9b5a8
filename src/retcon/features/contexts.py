"""The contexts in which a fact is read and optimised: the bare prompt, prefixes, ways of asking.

A context is a text in which `{}` is the place of the prompt; without one the prompt stands behind
it. Prefixes are short continuations of five common words, sampled by the *unedited* model under a
seed, as in MEMIT (arXiv:2210.07229, released code). Ways of asking put the prompt where a question
stands, so that the answer does not follow it at once:

    question   "Question: The capital of France is?", a line, "Answer:"
    chat       the prompt as a user's message, and as the beginning of an answer, in the
               tokenizer's chat template

All of them are part of a run's record.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from jaxtyping import Float64
from pydantic import Field
from torch import Tensor

from retcon.edits import Edit
from retcon.model.generate import sample
from retcon.model.handle import ModelHandle
from retcon.model.tokens import Located, Tokens

_SEED_WORDS = ("The", "Therefore", "Because", "I", "You")
_TOP_K = 5

# What every generator of random numbers takes, a thousand of them from each.
Seed = Annotated[int, Field(ge=-(2**31), lt=2**31)]
Averaging = Literal["halves", "uniform"]
Form = Literal["question", "chat"]
_PLACE = "{}"
# Contexts of each form.
_TEXTS: Mapping[Form, int] = {"question": 1, "chat": 2}


@dataclass(frozen=True, kw_only=True)
class ContextOptions:
    """Settings of contexts: how many there are, and how their keys are averaged.

    Attributes:
        prefixes: sampled prefixes beside the bare prompt.
        prefix_tokens: their lengths, taken in turn, seed word included.
        averaging: `halves` gives the bare prompt half of the weight (MEMIT, EMMET), `uniform` the
            same weight as each prefix (ROME).
        forms: ways of asking in which the prompt is put, beside the prefixes.
        lookup: the token at which a fact is written: the last of its `subject`, or of its `prompt`,
            so that facts about one subject have a key each. The target then has no term for what
            stands behind the subject (kl=0).
        seed: of the sampling.
    """

    prefixes: Annotated[int, Field(ge=0)] = 5
    prefix_tokens: Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(min_length=1)] = (10,)
    averaging: Averaging = "halves"
    forms: tuple[Form, ...] = ()
    lookup: Literal["subject", "prompt"] = "subject"
    seed: Seed = 0

    @property
    def count(self) -> int:
        """Number of contexts, the bare prompt among them."""
        return 1 + self.prefixes + sum(_TEXTS[form] for form in self.forms)

    def read(self, edit: Edit) -> Edit:
        """The edit with the subject at whose end its key is read."""
        return edit.whole if self.lookup == "prompt" else edit

    def weights(self, contexts: int) -> Float64[Tensor, " contexts"]:
        """Weight of each context in the averaged key, the bare prompt first; they sum to 1."""
        if self.averaging == "uniform" or contexts == 1:
            return torch.full((contexts,), 1 / contexts, dtype=torch.float64)
        rest = torch.full((contexts - 1,), 0.5 / (contexts - 1), dtype=torch.float64)
        return torch.cat([rest.new_tensor([0.5]), rest])


class PrefixDraw(NamedTuple):
    """All that decides a prefix beside the model.

    Attributes:
        word: that it begins with.
        tokens: its length, those of the word included.
        seed: of the sampling.
        top_k: how many tokens each is drawn from.
    """

    word: str
    tokens: int
    seed: int
    top_k: int = _TOP_K


def draws_of(options: ContextOptions) -> list[PrefixDraw]:
    """Tell how each of the `options.prefixes` prefixes is drawn."""
    words, lengths = _SEED_WORDS, options.prefix_tokens
    return [
        PrefixDraw(
            words[i % len(words)],
            lengths[(i // len(words)) % len(lengths)],
            options.seed * 1_000 + i,
        )
        for i in range(options.prefixes)
    ]


def sample_prefix(model: ModelHandle, draw: PrefixDraw) -> str:
    """Sample a text that stands before a prompt."""
    prompt = model.tokens.encode(draw.word)
    (text,) = sample(
        model,
        prompt,
        count=1,
        new_tokens=max(1, draw.tokens - len(prompt)),
        seed=draw.seed,
        top_k=draw.top_k,
    )
    return text.replace("{", " ").replace("}", " ").rstrip() + ". "


def sample_prefixes(model: ModelHandle, options: ContextOptions) -> tuple[str, ...]:
    """The contexts of a prompt: none, then `options.prefixes` sampled prefixes, and its forms.

    Raises:
        InvalidSetting: a chat is asked for, and the tokenizer has no chat template.
    """
    prefixes = (sample_prefix(model, draw) for draw in draws_of(options))
    return ("", *prefixes, *forms_of(model.tokens, options))


def forms_of(tokens: Tokens, options: ContextOptions) -> tuple[str, ...]:
    """The ways of asking among the contexts.

    Raises:
        InvalidSetting: a chat is asked for, and the tokenizer has no chat template.
    """
    return tuple(text for form in options.forms for text in _FORMS[form](tokens))


def _asked(tokens: Tokens) -> list[str]:
    """The question in plain text."""
    del tokens
    return [f"Question: {_PLACE}?\nAnswer:"]


def _in_a_chat(tokens: Tokens) -> list[str]:
    """The prompt as a user's message, and as the beginning of the answer to another one."""
    return [tokens.chat(f"{_PLACE}?"), tokens.chat("Tell me something.") + _PLACE]


_FORMS: Mapping[Form, Callable[[Tokens], list[str]]] = {"question": _asked, "chat": _in_a_chat}


def around(context: str, prompt: str) -> str:
    """The prompt in a context."""
    before, _, after = context.partition(_PLACE)
    return before + prompt + after


def locate(tokens: Tokens, edit: Edit, context: str) -> Located:
    """Tokens of the prompt in a context, and where its subject ends."""
    before = len(context.partition(_PLACE)[0])
    text = around(context, edit.text)
    return tokens.locate(text, before + edit.subject_start, before + edit.subject_end)


def check_texts(tokens: Tokens, edits: Sequence[Edit]) -> None:
    """Refuse, before any work is done, edits that cannot be told in tokens.

    Raises:
        InvalidEdit: unknown words in a subject or target, or more tokens than the model can read.
    """
    for edit in edits:
        locate(tokens, edit, "")
        for target in (edit.target, edit.target_old):
            if target is not None:
                tokens.continuation(edit.text, target)


def locate_all(tokens: Tokens, edits: Sequence[Edit], contexts: Sequence[str]) -> list[Located]:
    """Every edit in every context, the contexts of one edit side by side."""
    return [locate(tokens, edit, context) for edit in edits for context in contexts]
