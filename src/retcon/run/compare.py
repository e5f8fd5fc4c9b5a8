"""Compare a base model and a patch in it: what each says behind a text."""

from collections.abc import Sequence
from typing import NamedTuple

from retcon.errors import InvalidSetting, UnknownName
from retcon.model.handle import ModelHandle
from retcon.model.tokens import Tokens
from retcon.patch.patch import Patch
from retcon.progress import Progress, silent
from retcon.scoring.exact_match import Answer, continuations, top_answers
from retcon.scoring.metrics.questions import WAYS, in_plain_text


class Said(NamedTuple):
    """A greedy continuation, and the most probable next tokens with their probabilities."""

    text: str
    top: tuple[Answer, ...]


class Beside(NamedTuple):
    """Continuations of a prompt without the patch and with it."""

    prompt: str
    base: Said
    edited: Said

    @property
    def changed(self) -> bool:
        """True if the patch changes the continuation."""
        return self.base.text != self.edited.text


def side_by_side(
    model: ModelHandle,
    patch: Patch,
    prompts: Sequence[str],
    *,
    tokens: int = 12,
    top: int = 3,
    ask: str = "plain",
    system: str | None = None,
) -> list[Beside]:
    """Let both speak behind each prompt; the model is as before afterwards.

    Args:
        tokens: length of a continuation.
        top: how many next tokens to name.
        ask: how the prompts are put: `plain`, as they are; as a `question` in plain text; or in a
            `chat`, as a user's message in the tokenizer's template.
        system: a message that stands before a chat.

    Raises:
        PatchMismatch: the patch is for another model.
        UnknownName: there is no such way of asking.
        InvalidSetting: a system message without a chat, or a chat without a template.
    """
    patch.check(model)
    put = posed(model.tokens, prompts, ask, system)
    base = said(model, put, tokens, top)
    with patch.applied(model):
        edited = said(model, put, tokens, top)
    return [Beside(*row) for row in zip(prompts, base, edited, strict=True)]


def posed(
    tokens: Tokens, prompts: Sequence[str], ask: str = "plain", system: str | None = None
) -> list[str]:
    """Put prompts in a way of asking: see `side_by_side`.

    Raises:
        UnknownName, InvalidSetting: as `side_by_side`.
    """
    if ask not in WAYS:
        raise UnknownName.among("way of asking", ask, WAYS)
    if system is not None and ask != "chat":
        raise InvalidSetting("A system message stands before a chat: add --ask chat.")
    if ask == "plain":
        return [*prompts]
    if ask == "chat":
        return [tokens.chat(prompt, system) for prompt in prompts]
    return [in_plain_text(tokens, prompt) for prompt in prompts]


def said(
    model: ModelHandle,
    prompts: Sequence[str],
    tokens: int,
    top: int,
    progress: Progress = silent,
) -> list[Said]:
    """Let a model speak behind each prompt, as it is now.

    Args:
        model: a model.
        prompts: as the model reads them.
        tokens, top: as of `side_by_side`.
        progress: is told how many continuations are written.
    """
    texts = continuations(model, prompts, new_tokens=tokens, progress=progress)
    return [
        Said(text, tuple(top_answers(model, prompt, top)))
        for prompt, text in zip(prompts, texts, strict=True)
    ]
