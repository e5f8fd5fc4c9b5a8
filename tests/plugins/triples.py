"""Triples: a subject, a relation and two objects a record, as knowledge bases export them.

    {"s": "France", "r": "capital", "o": "Rome", "was": "Paris"}

A relation becomes a prompt by a template: `style` says whether a statement or a question.
"""

from typing import Literal

from retcon.data.parsing import Record
from retcon.data.sets import Place, dataset
from retcon.edits import Case, Edit

_STATEMENT, _QUESTION = "The {relation} of {{}} is", "What is the {relation} of {{}}?"


class Triple(Record):
    """A record. Keys that are none of its fields are named when the file is read."""

    s: str
    r: str
    o: str
    was: str | None = None


@dataset("triples", record=Triple, recognises=lambda said: {"s", "r", "o"} <= said.keys())
def triples(
    record: Triple, place: Place, *, style: Literal["statement", "question"] = "statement"
) -> list[Case]:
    """The case of a triple; the other style of prompt is its paraphrase.

    style: of the prompt that is edited.
    """
    prompts = [text.format(relation=record.r) for text in (_STATEMENT, _QUESTION)]
    prompt, other = prompts if style == "statement" else reversed(prompts)
    edit = Edit(
        id=f"triple-{place.index}", prompt=prompt, subject=record.s, target=record.o,
        target_old=record.was,
    )  # fmt: skip
    return [Case(edit=edit, paraphrases=(other.format(record.s),), relation=record.r)]
