"""Plain facts: `prompt`, with its subject in braces, and `target`; all else may be left out."""

from pydantic import ConfigDict

from retcon.data.parsing import Record, template
from retcon.data.sets import Place, dataset
from retcon.edits import Case, Edit, Probe


class Strict(Record):
    """A record of our own form: a key that it does not have is a mistake."""

    model_config = ConfigDict(extra="forbid")


class Answered(Strict):
    """A prompt with an answer of its own."""

    prompt: str
    answer: str
    aliases: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    def probe(self) -> Probe:
        """Make a probe of it."""
        return Probe(**self.model_dump())


class PlainFact(Strict):
    """A line of the plain form."""

    prompt: str
    target: str
    id: str | int | None = None
    subject: str | None = None
    target_old: str | None = None
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()
    openings: tuple[str, ...] = ()
    portability: tuple[Answered, ...] = ()
    locality: tuple[Answered, ...] = ()
    relation: str | None = None
    questions: tuple[str, ...] = ()

    def case(self, number: int) -> Case:
        """The case that a line is, under its own id or its number in the file.

        Raises:
            InvalidEdit: no edit can be made of it.
        """
        return Case(
            edit=self._edit(str(self.id) if self.id is not None else f"fact-{number}"),
            paraphrases=self.paraphrases,
            neighbours=self.neighbours,
            openings=self.openings,
            relation=self.relation,
            portability=tuple(asked.probe() for asked in self.portability),
            locality=tuple(asked.probe() for asked in self.locality),
            questions=self.questions,
        )

    def _edit(self, identity: str) -> Edit:
        if self.subject is None:
            return Edit.parse(self.prompt, self.target, id=identity, target_old=self.target_old)
        return Edit(
            id=identity,
            prompt=template(self.prompt, self.subject, identity),
            subject=self.subject,
            target=self.target,
            target_old=self.target_old,
        )


@dataset("plain", record=PlainFact, recognises=lambda said: "prompt" in said)
def plain(record: PlainFact, place: Place) -> list[Case]:
    """The case of a line."""
    return [record.case(place.number)]
