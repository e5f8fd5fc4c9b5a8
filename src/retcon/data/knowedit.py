"""KnowEdit's wiki_counterfact and wiki_recent (arXiv:2401.01286, §4).

The two sets write the same things in different shapes: parallel lists of prompts and answers, or
a list of prompts with lists of answers, each with its aliases. There any answer is right; the
first is scored token by token, and all count where text is generated. Prompts without an answer
are left out.
"""

from pydantic import BaseModel, model_validator

from retcon.data.reading import template
from retcon.edits import Case, Edit, Probe


class Lists(BaseModel):
    """Prompts, and the answer of each."""

    prompt: tuple[str, ...]
    ground_truth: tuple[str, ...]

    @model_validator(mode="after")
    def _as_many(self) -> "Lists":
        if len(self.prompt) != len(self.ground_truth):
            raise ValueError(f"{len(self.prompt)} prompts, but {len(self.ground_truth)} answers")
        return self

    def probes(self) -> list[Probe]:
        """One of each pair."""
        pairs = zip(self.prompt, self.ground_truth, strict=True)
        return [Probe(prompt=prompt, answer=answer) for prompt, answer in pairs if answer.strip()]


class Asked(BaseModel):
    """A prompt, and answers with their aliases."""

    prompt: str
    ground_truth: tuple[tuple[str, ...], ...]

    def probes(self) -> list[Probe]:
        """One, or none where it has no answer."""
        found = dict.fromkeys(name for names in self.ground_truth for name in names if name.strip())
        if not found:
            return []
        answer, *aliases = found
        return [Probe(prompt=self.prompt, answer=answer, aliases=tuple(aliases))]


class KnowEdit(BaseModel):
    """A record of either set."""

    prompt: str
    subject: str
    target_new: str
    portability: dict[str, Lists | tuple[Asked, ...]] = {}
    locality: dict[str, Lists | tuple[Asked, ...]] = {}

    def case(self, index: int) -> Case:
        """The case that a record is, under its index in the file.

        Raises:
            InvalidEdit: no edit can be made of it.
        """
        edit = Edit(
            id=str(index),
            prompt=template(self.prompt, self.subject, str(index)),
            subject=self.subject,
            target=self.target_new,
        )
        return Case(
            edit=edit, portability=_probes(self.portability), locality=_probes(self.locality)
        )


def _probes(groups: dict[str, Lists | tuple[Asked, ...]]) -> tuple[Probe, ...]:
    found: list[Probe] = []
    for group in groups.values():
        for part in (group,) if isinstance(group, Lists) else group:
            found += part.probes()
    return tuple(found)
