"""A close look at one fact: what a model says of it and of what is beside it, with probabilities.

The same prompts are looked at before an edit and after it, so that the two can stand side by side.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import exp
from typing import NamedTuple

from retcon.data.wordings import questions_of
from retcon.edits import Case
from retcon.model.handle import ModelHandle
from retcon.progress import Progress, silent
from retcon.run.compare import Said, posed, said
from retcon.scoring.exact_match import top_answers
from retcon.scoring.metrics.forms import forms_of
from retcon.scoring.score import score_targets

# The kinds of prompts, in their order.
PROMPT, PARAPHRASE, NEGATED, NEIGHBOUR = "prompt", "paraphrase", "negated", "neighbour"
PROBE, QUESTION, CHAT = "probe", "question", "chat"
# Tokens of a continuation and of an answer, and how many next tokens are named.
_GOES_ON, _ANSWERS, _TOP = 12, 32, 6
# Tokens and characters in which a word ends, and what is no part of it.
_WORD, _LONGEST, _MARKS = 8, 40, ".,;:!?\"'()[]“”‘’"


class Watched(NamedTuple):
    """A prompt that is looked at.

    Attributes:
        kind: see above.
        shown: as a person reads it.
        text: as the model reads it.
        answers: those whose probabilities are told, the one that is wanted first.
    """

    kind: str
    shown: str
    text: str
    answers: tuple[str, ...]


class Sight(NamedTuple):
    """A continuation of a prompt, and the probability of each watched answer.

    Probabilities are means over an answer's tokens: exp(−mean NLL per token).
    """

    said: Said
    probabilities: tuple[float, ...]


class LookupPlace(NamedTuple):
    """The tokens of a prompt as texts, and which of them is the subject's last: the lookup token.

    Attributes:
        subject: numbers of the first token of the subject and of the lookup token.
    """

    tokens: tuple[str, ...]
    subject: tuple[int, int]


def place_of(model: ModelHandle, case: Case) -> LookupPlace:
    """Where a fact is looked up.

    Raises:
        InvalidEdit: the model's tokens cannot tell.
    """
    edit, tokens = case.edit, model.tokens
    lookup = tokens.locate(edit.text, edit.subject_start, edit.subject_end).lookup
    spans = tokens.spans(edit.text)
    first = min([*spans.inside(edit.subject_start, edit.subject_end), lookup])
    texts = [edit.text[start:end] for start, end in spans.offsets]
    named = [
        text or str(tokens.tokenizer.decode([i])) for text, i in zip(texts, spans.ids, strict=True)
    ]
    return LookupPlace(tuple(named), (first, lookup))


def own_answers(model: ModelHandle, prompts: Sequence[str]) -> list[str]:
    """The first word that a model says behind each prompt, as it is now.

    Where its writing has no blanks, or it says none, it is the most probable next token that
    is not blank.
    """
    words = [one.text.split()[:1] for one in said(model, prompts, _WORD, 1)] if prompts else []
    plain = [word[0].strip(_MARKS) if word and len(word[0]) <= _LONGEST else "" for word in words]
    return [
        word or next((one.text for one in top_answers(model, prompt, _TOP) if one.text.strip()), "")
        for word, prompt in zip(plain, prompts, strict=True)
    ]


def with_old(model: ModelHandle, case: Case) -> Case:
    """The case with what the model says now as the old answer, where nobody has told one."""
    edit = case.edit
    if edit.target_old is not None:
        return case
    (own,) = own_answers(model, [edit.text])
    old = own if own and own != edit.target else None
    return replace(case, edit=replace(edit, target_old=old))


def watched(model: ModelHandle, case: Case) -> list[Watched]:
    """The prompts by which a fact is looked at, and those beside it.

    A neighbour whose true answer nobody has told is watched for what the model says now.

    Args:
        model: as it is before the edit.
        case: a fact.
    """
    case = with_old(model, case)
    edit, told = case.edit, case.edit.target_old
    answers = (edit.target,) if told is None else (edit.target, told)
    rows = [Watched(PROMPT, edit.text, edit.text, answers)]
    rows += [Watched(PARAPHRASE, text, text, answers) for text in case.paraphrases]
    if negation := forms_of(case).get("form negated"):
        text = negation.statement.prompt
        rows.append(Watched(NEGATED, text, text, answers))
    for text, own in zip(case.neighbours, own_answers(model, case.neighbours), strict=True):
        # What the model says may be blanks alone, such as a new line: no answer to be scored.
        own_or_new = tuple(dict.fromkeys([own or edit.target, edit.target]))
        rows.append(Watched(NEIGHBOUR, text, text, own_or_new))
    probes = (*case.portability, *case.locality)
    rows += [Watched(PROBE, one.prompt, one.prompt, (one.answer,)) for one in probes]
    return [*rows, *_asked(model, case, answers)]


def look_at(
    model: ModelHandle, rows: Sequence[Watched], progress: Progress = silent
) -> list[Sight]:
    """Let a model speak behind each prompt, as it is now.

    Args:
        model: with or without an edit in its weights.
        rows: the prompts.
        progress: is told how many answers are scored.
    """
    asked = [row for row in rows if row.kind in (QUESTION, CHAT)]
    others = [row for row in rows if row not in asked]
    spoken = dict(
        zip(others, said(model, [r.text for r in others], _GOES_ON, _TOP, progress), strict=True)
    )
    spoken |= zip(
        asked, said(model, [r.text for r in asked], _ANSWERS, _TOP, progress), strict=True
    )
    pairs = [(row.text, answer) for row in rows for answer in row.answers]
    scores = iter(score_targets(model, pairs, progress=progress))
    return [Sight(spoken[row], tuple(exp(-next(scores).nll) for _ in row.answers)) for row in rows]


def _asked(model: ModelHandle, case: Case, answers: tuple[str, ...]) -> list[Watched]:
    """The fact's questions in plain text, and in a chat where the tokenizer has a template.

    In a chat a fact without a question is asked by its own prompt.
    """
    questions = list(questions_of(case))[:1]
    put = [(QUESTION, "question", questions)]
    if model.tokens.tokenizer.chat_template:
        put.append((CHAT, "chat", questions or [case.edit.text]))
    return [
        Watched(kind, shown, text, answers)
        for kind, way, texts in put
        for shown, text in zip(texts, posed(model.tokens, texts, way), strict=True)
    ]
