"""zsRE question answering, in the files that MEND prepared (arXiv:2110.11309, §5.1).

What is written differs by file and by paper. Evaluation files hold two answers: `answers[0]`,
from the data set and so usually true, is what ROME and MEMIT write (arXiv:2210.07229, §5.2);
`alt`, another model's counterfactual, is what MEND writes, and what questions of portability
presuppose. Training files without `answers` hold only `alt`, which there is the true answer.

Locality is a question of Natural Questions with its own answer. Its prefix "nq question: " stays,
as in ROME's and MEMIT's code; a question mark is added only where there is none, since training
files already have it.
"""

from typing import Literal

from retcon.data.parsing import NewQuestion, Record, template
from retcon.data.sets import Place, dataset
from retcon.edits import Case, Edit, Probe
from retcon.errors import InvalidEdit

ZsreTarget = Literal["answers", "alt"]


class Zsre(Record):
    """A record of an evaluation or a training file."""

    # What a model said, and the edit in another notation.
    ignored = frozenset({"pred", "cond"})
    src: str
    subject: str
    rephrase: str
    alt: str
    loc: str
    loc_ans: str
    answers: tuple[str, ...] = ()
    case_id: int | None = None
    portability: NewQuestion | None = None

    def case(self, index: int, target: ZsreTarget) -> Case:
        """The case that a record is, under its own id or its index in the file.

        Raises:
            InvalidEdit: no edit can be made of it, or it has no counterfactual to write.
        """
        identity = str(index if self.case_id is None else self.case_id)
        if target == "alt" and not self.answers:
            raise InvalidEdit(
                f"Edit {identity!r}: a record without `answers` has its true answer in `alt`, and "
                f"no counterfactual. Leave the choice of the target out."
            )
        written = self.answers[0] if self.answers and target == "answers" else self.alt
        return Case(
            edit=Edit(
                id=identity,
                prompt=template(self.src, self.subject, identity),
                subject=self.subject,
                target=written,
            ),
            paraphrases=(self.rephrase,),
            portability=self._portability() if target == "alt" else (),
            locality=(Probe(prompt=_question(self.loc), answer=self.loc_ans),),
        )

    def _portability(self) -> tuple[Probe, ...]:
        return () if self.portability is None else (self.portability.probe(),)


def _question(text: str) -> str:
    return text if text.endswith("?") else f"{text}?"


@dataset("zsre", record=Zsre, recognises=lambda said: bool({"src", "loc"} & said.keys()))
def zsre(record: Zsre, place: Place, *, target: ZsreTarget = "answers") -> list[Case]:
    """The case of a record.

    Args:
        target: what is written of a record that has both: `answers`, the first of them, or `alt`.
    """
    return [record.case(place.index, target)]
