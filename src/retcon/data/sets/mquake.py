"""MQuAKE: questions of several hops about edited facts (arXiv:2305.14795).

A record rewrites one fact or several, and asks three questions whose answer follows from all of
them. Records share facts, and a fact should be written once: here a case is a fact, under the id
"record.place" of where it first stands, and a record's questions are portability probes of its
last fact, which need the others.
"""

from collections.abc import Sequence
from typing import NamedTuple

from pydantic import Field

from retcon.data.parsing import Record
from retcon.data.sets import Place, dataset
from retcon.data.sets.counterfact import Rewrite
from retcon.edits import Case, Probe


class MquakeFact(Rewrite):
    # The same fact in sentences, for methods that edit by those.
    ignored = frozenset({"fact_new", "fact_new_uns", "verify_unsfact_GPT", "unsfact_triplets_GPT"})
    question: str | None = None


class Mquake(Record):
    """A record of MQuAKE, or of AKEW's MQuAKE-CF."""

    # Each hop alone, the answer before the edit, and all of it as triples.
    ignored = frozenset({"answer", "answer_alias", "single_hops", "new_single_hops", "orig"})
    case_id: int
    requested_rewrite: tuple[MquakeFact, ...] = Field(min_length=1)
    questions: tuple[str, ...]
    new_answer: str
    new_answer_alias: tuple[str, ...] = ()


class _Name(NamedTuple):
    """Identity of a rewrite: rewrites with equal names are the same fact."""

    prompt: str
    subject: str
    target: str

    @classmethod
    def of(cls, fact: MquakeFact) -> "_Name":
        return cls(fact.prompt, fact.subject, fact.target_new.text)


def mquake_cases(records: Sequence[Mquake]) -> list[Case]:
    """The distinct facts of all records, in their order.

    Raises:
        InvalidEdit: no edit can be made of one.
    """
    facts: dict[_Name, tuple[str, MquakeFact]] = {}
    probes: dict[_Name, list[Probe]] = {}
    for record in records:
        for place, fact in enumerate(record.requested_rewrite):
            facts.setdefault(_Name.of(fact), (f"{record.case_id}.{place}", fact))
        *others, last = (_Name.of(fact) for fact in record.requested_rewrite)
        needs = tuple(dict.fromkeys(facts[name][0] for name in others if name != last))
        probes.setdefault(last, []).extend(_probes(record, needs))
    return [
        Case(
            edit=fact.edit(identity),
            paraphrases=() if fact.question is None else (fact.question,),
            relation=fact.relation_id,
            portability=tuple(probes.get(name, ())),
        )
        for name, (identity, fact) in facts.items()
    ]


def _probes(record: Mquake, needs: tuple[str, ...]) -> list[Probe]:
    aliases = tuple(alias for alias in record.new_answer_alias if alias.strip())
    return [
        Probe(prompt=question, answer=record.new_answer, aliases=aliases, needs=needs)
        for question in record.questions
    ]


@dataset(
    "mquake",
    record=Mquake,
    recognises=lambda said: isinstance(said.get("requested_rewrite"), list),
    together=mquake_cases,
)
def mquake(record: Mquake, place: Place) -> list[Case]:
    """The facts of a record, by themselves."""
    del place
    return mquake_cases([record])
