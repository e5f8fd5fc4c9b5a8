"""Wordings: a fact as a question, and as a sentence the other way round, by its relation.

They are the rows of wordings.toml, written for Retcon.
"""

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from retcon.edits import Case

_QUESTION_MARKS = ("?", "？", "؟")


class Wording(NamedTuple):
    """Templates of a relation.

    Attributes:
        question: {} is the subject; the object is the answer.
        reverse: {} is the object; the subject follows.
    """

    question: str
    reverse: str


@cache
def wordings() -> Mapping[str, Wording]:
    """All rows of wordings.toml, by relation."""
    text = (files("retcon.data") / "wordings.toml").read_text(encoding="utf-8")
    return {relation: Wording(**row) for relation, row in tomllib.loads(text).items()}


def questions_of(case: Case) -> tuple[str, ...]:
    """Questions that an edit's target answers; none where nobody has worded one.

    They are the case's own; else those of its prompts that are questions, as in zsRE; else the one
    of its relation.
    """
    if case.questions:
        return case.questions
    prompts = (case.edit.text, *case.paraphrases)
    if asked := tuple(text for text in prompts if text.rstrip().endswith(_QUESTION_MARKS)):
        return asked
    wording = wordings().get(case.relation or "")
    return () if wording is None else (wording.question.replace("{}", case.edit.subject),)


def reverse_of(case: Case, answer: str) -> str | None:
    """The sentence that names an answer of a case, and that its subject ends."""
    wording = wordings().get(case.relation or "")
    return None if wording is None else wording.reverse.replace("{}", answer)
