"""Compare a base model and a patch in it: what each says behind a text."""

from collections.abc import Sequence
from typing import NamedTuple

from retcon.model.handle import ModelHandle
from retcon.patch.patch import Patch
from retcon.scoring.exact_match import Answer, continuations, top_answers


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
    model: ModelHandle, patch: Patch, prompts: Sequence[str], *, tokens: int = 12, top: int = 3
) -> list[Beside]:
    """Let both speak behind each prompt; the model is as before afterwards.

    Args:
        tokens: length of a continuation.
        top: how many next tokens to name.

    Raises:
        PatchMismatch: the patch is for another model.
    """
    patch.check(model)
    base = _said(model, prompts, tokens, top)
    with patch.applied(model):
        edited = _said(model, prompts, tokens, top)
    return [Beside(*row) for row in zip(prompts, base, edited, strict=True)]


def _said(model: ModelHandle, prompts: Sequence[str], tokens: int, top: int) -> list[Said]:
    texts = continuations(model, prompts, new_tokens=tokens)
    return [
        Said(text, tuple(top_answers(model, prompt, top)))
        for prompt, text in zip(prompts, texts, strict=True)
    ]
