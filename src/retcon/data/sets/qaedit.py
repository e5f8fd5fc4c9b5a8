"""QAEdit: questions that people ask, with their true answers (arXiv:2502.11177, §3).

Records as in the authors' repository (https://github.com/WanliYoung/Revisit-Editing-Evaluation):
`prompt`, a question; `subject`, words of it; `target`, the answer that is written, which is true;
`rephrase`; `locality`, a list of questions (`loc`) of Natural Questions with their answers
(`loc_ans`); `source` (NQ, TQA, SQA) and an `id` within it. There is no old answer, and so no ES.

Questions are asked as they are published: those of `loc` have no question mark.
"""

from retcon.data.parsing import Record, Texts, template
from retcon.data.sets import Place, dataset
from retcon.edits import Case, Edit, Probe


class Unrelated(Record):
    """A question whose answer has to stay."""

    loc: str
    loc_ans: str

    def probe(self) -> Probe:
        """Make a probe of it."""
        return Probe(prompt=self.loc, answer=self.loc_ans)


class QaEdit(Record):
    """A record of QAEdit."""

    prompt: str
    subject: str
    target: str
    rephrase: Texts
    locality: tuple[Unrelated, ...]
    source: str | None = None
    id: int | str | None = None

    def case(self, index: int) -> Case:
        """The case that a record is, under its source and id, or its index in the file.

        Raises:
            InvalidEdit: no edit can be made of it.
        """
        known = [str(part) for part in (self.source, self.id) if part is not None]
        identity = str(index) if self.id is None else "-".join(known)
        return Case(
            edit=Edit(
                id=identity,
                prompt=template(self.prompt, self.subject, identity),
                subject=self.subject,
                target=self.target,
            ),
            paraphrases=self.rephrase,
            locality=tuple(one.probe() for one in self.locality),
        )


@dataset(
    "qaedit",
    record=QaEdit,
    recognises=lambda said: {"prompt", "target", "rephrase", "locality"} <= said.keys(),
)
def qaedit(record: QaEdit, place: Place) -> list[Case]:
    """The case of a record."""
    return [record.case(place.index)]
