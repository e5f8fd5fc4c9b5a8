"""Free greedy generation behind a prompt, and whether it says an answer."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from retcon.model.forward import run
from retcon.model.generate import greedy
from retcon.model.handle import ModelHandle
from retcon.model.overlay import Overlay
from retcon.model.tokens import Tokens
from retcon.progress import Progress, silent
from retcon.scoring.teacher_forced import Ask, Prediction
from retcon.writing_systems import begins_with, plain

# A target may be said in other tokens than it is spelt in, and must end where a word ends, which
# may be told by a character of several bytes.
_EXTRA_TOKENS = 2
_BYTES = 4


def draft(tokens: Tokens, text: str, target: str, owner: int = 0) -> Ask:
    """The target as a guess at what will be generated behind a text, and one token more.

    Greedy generation goes along with a guess for as long as each of its tokens is the most
    probable one: one teacher-forced pass tells how far, and the token that comes then
    (speculative decoding, arXiv:2211.17192, at temperature 0).
    """
    guess = tokens.continuation(text, target)
    # The last id of an Ask is never fed, so any will do.
    return Ask((*guess.ids, 0), guess.start, owner)


def exact_matches(
    overlay: Overlay,
    wanted: Sequence[Sequence[str]],
    drafts: Sequence[Ask],
    predictions: Sequence[Prediction],
    progress: Progress = silent,
) -> list[bool]:
    """Tell for each draft whether one of its answers is said, as whole words.

    Text is generated only where the draft does not decide. Whole where the script has words; both
    as the tokenizer spells them. This is stricter than teacher-forced accuracy, which forgives a
    target's later tokens for an error in the first, and which takes "Englishman" for "English".
    (The Mirage of Model Editing, arXiv:2502.11177, shows how far the two can be apart.)

    Args:
        overlay: the model, and updates over it.
        wanted: per draft, the answer that it drafts and whatever else counts.
        drafts: guesses of what is said, see `draft`.
        predictions: of the drafts.
        progress: is told how many texts are generated.
    """
    tokens = overlay.model.tokens
    spelt = [[plain(tokens.spelt(answer)) for answer in answers] for answers in wanted]
    verdicts: list[bool | None] = [None] * len(wanted)
    if tokens.decodes_piecewise:
        for i, (answers, ask, seen) in enumerate(zip(spelt, drafts, predictions, strict=True)):
            guess = ask.ids[ask.start : -1]
            # Behind a token that ends texts nothing would be generated.
            if not tokens.special.isdisjoint(guess):
                continue
            begun = tokens.decode_begun(_begun(guess, seen.top))
            verdicts[i] = _any(_decided(begun, answer) for answer in answers)
    open_ = [i for i, verdict in enumerate(verdicts) if verdict is None]
    generated = greedy(
        overlay,
        [drafts[i].ids[: drafts[i].start] for i in open_],
        [_length(tokens, drafts[i], wanted[i]) for i in open_],
        [drafts[i].owner for i in open_],
        progress,
    )
    for i, ids in zip(open_, generated, strict=True):
        text = tokens.decode_begun(ids)
        verdicts[i] = any(begins_with(plain(text), answer) for answer in spelt[i])
    return [bool(verdict) for verdict in verdicts]


def continuations(
    model: ModelHandle,
    texts: Sequence[str],
    *,
    new_tokens: int = 8,
    progress: Progress = silent,
) -> list[str]:
    """Generate the greedy continuation of each text, for a person to read.

    Args:
        model: the model.
        texts: prompts.
        new_tokens: length of a continuation, in tokens.
        progress: is told how many are generated.
    """
    heads = [model.tokens.prompt(text) for text in texts]
    lengths, owners = [new_tokens] * len(texts), [0] * len(texts)
    generated = greedy(Overlay(model=model), heads, lengths, owners, progress)
    return [model.tokens.decode_begun(ids) for ids in generated]


class Answer(NamedTuple):
    """A next token and its probability."""

    text: str
    probability: float


def top_answers(model: ModelHandle, text: str, k: int = 3) -> list[Answer]:
    """The k most probable next tokens behind a text."""
    with torch.no_grad():
        last = run(model, torch.tensor([model.tokens.prompt(text)])).logits[0, -1]
    likely = last.float().softmax(-1).topk(k)
    return [
        Answer(model.tokens.decode([int(i)]).strip(), float(p))
        for p, i in zip(likely.values, likely.indices, strict=True)
    ]


def _length(tokens: Tokens, ask: Ask, answers: Sequence[str]) -> int:
    """Tokens for the longest answer: the drafted one as drafted, others by themselves; and more."""
    others = [len(tokens.encode(answer)) for answer in answers[1:]]
    drafted = ask.ids[ask.start : -1]
    in_bytes = any("\ufffd" in tokens.decode([i]) for i in drafted)
    return max(len(drafted), *others, 0) + _EXTRA_TOKENS + in_bytes * _BYTES


def _any(verdicts: Iterable[bool | None]) -> bool | None:
    """Three-valued any(): True if any verdict is True, False if all are False, else None."""
    known = list(verdicts)
    return True if True in known else None if None in known else False


def _begun(guess: Sequence[int], top: Sequence[int]) -> Sequence[int]:
    """The first tokens of the greedy continuation: those guessed right, and the next one."""
    right = 0
    while right < len(guess) and guess[right] == top[right]:
        right += 1
    return top[: right + 1]


def _decided(begun: str, wanted: str) -> bool | None:
    """True or False if a text that begins so begins with an answer; None where that is open."""
    text = plain(begun)
    if text == wanted and begun[-1:].isspace():
        return True
    if len(text) > len(wanted) or not wanted.startswith(text):
        return begins_with(text, wanted)
    return None
