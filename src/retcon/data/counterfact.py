"""CounterFact: https://rome.baulab.info/data (Meng et al. 2022, §3.3)."""

from pydantic import BaseModel, Field

from retcon.edits import Case, Edit


class Target(BaseModel):
    text: str = Field(alias="str")


class Rewrite(BaseModel):
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


class CounterFact(BaseModel):
    """A record as it is published."""

    case_id: int
    requested_rewrite: Rewrite
    paraphrase_prompts: tuple[str, ...]
    neighborhood_prompts: tuple[str, ...]
    generation_prompts: tuple[str, ...] = ()

    def case(self) -> Case:
        """The case that a record is."""
        return Case(
            edit=self.requested_rewrite.edit(str(self.case_id)),
            paraphrases=self.paraphrase_prompts,
            neighbours=self.neighborhood_prompts,
            # Records repeat them.
            openings=tuple(dict.fromkeys(self.generation_prompts)),
            relation=self.requested_rewrite.relation_id,
        )
