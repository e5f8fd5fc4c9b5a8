"""CounterFact: https://rome.baulab.info/data (Meng et al. 2022, §3.3)."""

from pydantic import Field

from retcon.data.parsing import NewQuestion, Record
from retcon.data.sets import Place, dataset
from retcon.edits import Case, Edit


class Target(Record):
    ignored = frozenset({"id"})
    text: str = Field(alias="str")


class Rewrite(Record):
    ignored = frozenset({"prompt_full"})
    prompt: str
    subject: str
    relation_id: str | None = None
    target_new: Target
    target_true: Target

    def edit(self, identity: str) -> Edit:
        """The edit that a rewrite asks for.

        Raises:
            InvalidEdit: the prompt does not hold {} once, or something is empty.
        """
        return Edit(
            id=identity,
            prompt=self.prompt,
            subject=self.subject,
            target=self.target_new.text,
            target_old=self.target_true.text,
        )


class CounterFact(Record):
    """A record as it is published, or with a question whose answer follows (arXiv:2305.13172)."""

    # Prompts that the new target fits as well, about other subjects: no score is made of them.
    ignored = frozenset({"pararel_idx", "attribute_prompts"})
    case_id: int
    requested_rewrite: Rewrite
    paraphrase_prompts: tuple[str, ...]
    neighborhood_prompts: tuple[str, ...]
    generation_prompts: tuple[str, ...] = ()
    portability: NewQuestion | None = None

    def case(self) -> Case:
        """The case that a record is."""
        return Case(
            edit=self.requested_rewrite.edit(str(self.case_id)),
            paraphrases=self.paraphrase_prompts,
            neighbours=self.neighborhood_prompts,
            # Records repeat them.
            openings=tuple(dict.fromkeys(self.generation_prompts)),
            relation=self.requested_rewrite.relation_id,
            portability=() if self.portability is None else (self.portability.probe(),),
        )


@dataset(
    "counterfact",
    record=CounterFact,
    recognises=lambda said: isinstance(said.get("requested_rewrite"), dict),
)
def counterfact(record: CounterFact, place: Place) -> list[Case]:
    """The case of a record, under its own id."""
    del place
    return [record.case()]
