"""Let a model say by itself what lies around its facts, before and after they are written.

Probes of a data set ask whether right answers stay right. A typed fact has none, and what a model
says of a subject need not be right to be worth keeping. So it is asked in its own words:

    of the fact's subject, and of the old answer    "I think that Paris is known for …"
    of its neighbours, two at most                  as the data set asks

It goes on greedily, some tokens, and the text has *moved* if those words are less than a tenth as
probable with the edits as they were without. A comma in a full stop's place moves nothing; what the
model would no longer say does, right or not. It finds where to look, and is no score.
"""

import re
from collections.abc import Sequence
from math import exp, log
from typing import NamedTuple

from retcon.data.cases import in_order, seeded
from retcon.edits import Case
from retcon.errors import InvalidEdit, first_few
from retcon.model.handle import ModelHandle
from retcon.progress import Progress, silent
from retcon.scoring.exact_match import continuations
from retcon.scoring.score import score_targets

_ABOUT = "I think that {} is known for"
# How many facts are looked around, of more a hash chooses; neighbours of each; tokens that count.
_FACTS, _NEIGHBOURS, _TOKENS = 40, 2, 4
# Words have moved that are less probable than by this factor.
_SHARE = 0.1
# The words in capitals, or the number, that an answer begins with.
_NAME = re.compile(r"\s*((?:[A-Z0-9][\w'’-]*\s?)+)")


class OwnWords(NamedTuple):
    """Answer of a model, in its own words, to a text about a fact's surroundings.

    Attributes:
        id: of the fact.
        prompt, text: what it goes on from, and with.
        logp: of that text, in nats.
    """

    id: str
    prompt: str
    text: str
    logp: float


class Remark(NamedTuple):
    """A text that has moved.

    Attributes:
        id, prompt, before: of the fact, and what the model went on with.
        after: what it goes on with now.
        share: how probable the words of before are now, by what they were.
    """

    id: str
    prompt: str
    before: str
    after: str
    share: float


class Remarks(NamedTuple):
    """Texts that have moved, and how many were looked at."""

    moved: tuple[Remark, ...]
    of: int

    def told(self) -> str:
        """Say which have moved; empty where none has."""
        if not self.moved:
            return ""
        names = [f"{one.prompt!r} ({one.before} → {one.after})" for one in self.moved]
        return (
            f"Of {self.of:,} texts about the subjects, old answers and neighbours the model would "
            f"hardly go on with {len(self.moved):,} as it did before: {first_few(names)}."
        )

    def record(self) -> dict[str, object]:
        """All of it, for JSON."""
        return {"moved": [one._asdict() for one in self.moved], "of": self.of}


def own_words(
    model: ModelHandle, cases: Sequence[Case], progress: Progress = silent
) -> tuple[OwnWords, ...]:
    """Let a model say what it knows around some facts.

    Args:
        model: the model, before they are written.
        cases: the facts; of more than forty a hash chooses forty.
        progress: is told how many texts are written.
    """
    some = in_order(cases, seeded(0))[:_FACTS]
    spoken = _goes_on(model, [case.edit.text for case in some], progress)
    owners: dict[str, str] = {}
    for case, answer in zip(some, spoken, strict=True):
        for text in _around(case, answer):
            if _can_be_read(model, text):
                owners.setdefault(text, case.edit.id)
    answers = zip(owners, _goes_on(model, [*owners], progress), strict=True)
    texts = [one for one in answers if _can_be_scored(model, *one)]
    said = zip(texts, _logp(model, texts, progress), strict=True)
    return tuple(OwnWords(owners[prompt], prompt, text, logp) for (prompt, text), logp in said)


def remarks(model: ModelHandle, before: Sequence[OwnWords], progress: Progress = silent) -> Remarks:
    """Compare what a model would say now with what it said before.

    Args:
        model: the model, with edits.
        before: as `own_words` gave it for the model without.
        progress: is told how many texts are written.
    """
    now = _logp(model, [(one.prompt, one.text) for one in before], progress)
    fallen = [(one, logp - one.logp) for one, logp in zip(before, now, strict=True)]
    moved = [(one, change) for one, change in fallen if change < log(_SHARE)]
    after = _goes_on(model, [one.prompt for one, _ in moved], progress)
    return Remarks(
        tuple(
            Remark(one.id, one.prompt, _words(one.text), _words(text), exp(change))
            for (one, change), text in zip(moved, after, strict=True)
        ),
        len(before),
    )


def _goes_on(model: ModelHandle, texts: Sequence[str], progress: Progress) -> list[str]:
    return continuations(model, texts, new_tokens=_TOKENS, progress=progress) if texts else []


def _logp(model: ModelHandle, texts: Sequence[tuple[str, str]], progress: Progress) -> list[float]:
    scored = score_targets(model, texts, progress=progress) if texts else []
    return [-one.nll * one.tokens for one in scored]


def _can_be_read(model: ModelHandle, text: str) -> bool:
    """True unless it has words that the tokenizer does not know, or is too long."""
    try:
        return model.tokens.knows(text) and bool(model.tokens.prompt(text))
    except InvalidEdit:
        return False


def _can_be_scored(model: ModelHandle, prompt: str, text: str) -> bool:
    """True unless there is no text, or it comes apart where it is read again."""
    try:
        return bool(text.strip()) and bool(model.tokens.continuation(prompt, text))
    except InvalidEdit:
        return False


def _words(text: str) -> str:
    return " ".join(text.split())


def _around(case: Case, answer: str) -> list[str]:
    """The texts around a fact. answer: what the model says behind its prompt."""
    edit, name = case.edit, _NAME.match(answer)
    old = edit.target_old or (name[1].strip() if name else None)
    about = [_ABOUT.format(one) for one in (edit.subject.strip(), old) if one]
    return [*about, *case.neighbours[:_NEIGHBOURS]]
