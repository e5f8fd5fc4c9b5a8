"""KnowEdit (arXiv:2401.01286, §4), and the flat records that editing toolkits take.

Sets of this family write the same things in different shapes. What stays (`locality`) and what
follows (`portability`) are groups of prompts with answers, or a pair of flat keys, as
`locality_prompt` and `locality_ground_truth`; answers are parallel to prompts, or one prompt has
several, each with its aliases. There any answer is right: the first is scored token by token, and
all count where text is generated. Prompts without an answer are left out. `ground_truth` is the
old answer, `rephrase_prompt` one paraphrase or several.
"""

from collections.abc import Iterable
from typing import Annotated

from pydantic import BeforeValidator, model_validator

from retcon.data.parsing import Record, Texts, template
from retcon.data.sets import Place, dataset
from retcon.edits import Case, Edit, Probe

# What a toolkit puts where there is no old answer.
_NO_ANSWER = "<|endoftext|>"


def _text(value: object) -> object:
    """CounterFact's {"str": …} as its text."""
    return value["str"] if isinstance(value, dict) and "str" in value else value


def _listed(value: object) -> object:
    return value if isinstance(value, list) else [] if value is None else [value]


# A name and its aliases; answers are a list of such, or one, or one name.
Names = Texts
Answers = Annotated[tuple[Names, ...], BeforeValidator(_listed)]
Text = Annotated[str, BeforeValidator(_text)]


class Asked(Record):
    """Prompts with an answer each, or one prompt with any number of answers."""

    prompt: Texts
    ground_truth: Answers

    @model_validator(mode="after")
    def _as_many(self) -> "Asked":
        if len(self.prompt) != 1 and len(self.prompt) != len(self.ground_truth):
            raise ValueError(f"{len(self.prompt)} prompts, but {len(self.ground_truth)} answers")
        return self

    def probes(self) -> list[Probe]:
        """One for each prompt that has an answer."""
        several = len(self.prompt) > 1
        answers = self.ground_truth if several else [_names(self.ground_truth)]
        pairs = zip(self.prompt, map(_distinct, answers), strict=False)
        return [
            Probe(prompt=prompt, answer=names[0], aliases=tuple(names[1:]))
            for prompt, names in pairs
            if names
        ]


Groups = dict[str, Annotated[tuple[Asked, ...], BeforeValidator(_listed)]]


def _names(answers: Iterable[Iterable[str]]) -> list[str]:
    return [name for names in answers for name in names]


def _distinct(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name for name in names if name.strip()))


class KnowEdit(Record):
    """A record of such a set."""

    ignored = frozenset({"cond", "pred", "pararel_idx"})
    prompt: str
    subject: str
    target_new: Text
    case_id: int | str | None = None
    ground_truth: Answers = ()
    target_true: Text | None = None
    rephrase_prompt: Texts = ()
    rephrase: Texts = ()
    relation_id: str | None = None
    portability: Groups | None = None
    locality: Groups | None = None

    @model_validator(mode="before")
    @classmethod
    def _grouped(cls, record: object) -> object:
        """Flat pairs as a group like the others."""
        if not isinstance(record, dict):
            return record
        record = dict(record)
        for name in ("locality", "portability"):
            prompts, answers = f"{name}_prompt", f"{name}_ground_truth"
            flat = {key: record.pop(key) for key in (prompts, answers) if record.get(key)}
            if len(flat) == 1:
                (there,) = flat
                raise ValueError(f"{there} needs {answers if there == prompts else prompts} too")
            if flat:
                question = {"prompt": flat[prompts], "ground_truth": flat[answers]}
                record[name] = {**(record.get(name) or {}), prompts: question}
        return record

    def case(self, index: int) -> Case:
        """The case that a record is, under its own id or its index in the file.

        Raises:
            InvalidEdit: no edit can be made of it.
        """
        identity = str(index if self.case_id is None else self.case_id)
        edit = Edit(
            id=identity,
            prompt=template(self.prompt, self.subject, identity),
            subject=self.subject,
            target=self.target_new,
            target_old=self._old(),
        )
        return Case(
            edit=edit,
            paraphrases=(*self.rephrase_prompt, *self.rephrase),
            relation=self.relation_id,
            portability=_probes(self.portability),
            locality=_probes(self.locality),
        )

    def _old(self) -> str | None:
        """The first old answer that is one, and is not the new one."""
        said = [*_names(self.ground_truth), self.target_true or ""]
        known = (_NO_ANSWER, self.target_new.strip())
        return next((name for name in _distinct(said) if name.strip() not in known), None)


def _probes(groups: Groups | None) -> tuple[Probe, ...]:
    asked = (one for group in (groups or {}).values() for one in group)
    return tuple(probe for one in asked for probe in one.probes())


@dataset("knowedit", record=KnowEdit, recognises=lambda said: "target_new" in said)
def knowedit(record: KnowEdit, place: Place) -> list[Case]:
    """The case of a record."""
    return [record.case(place.index)]
