"""MQuAKE: questions of several hops about edited facts (arXiv:2305.14795).

A record rewrites one fact or several, and asks three questions whose answer follows from all of
them. Records share facts, and a fact should be written once: here a case is a fact, under the id
"record.place" of where it first stands, and a record's questions are portability probes of its
last fact, which need the others.

Of the records as they were first published a third to three quarters are faulty (Zhong et al.,
"MQuAKE-Remastered", ICLR 2025). One fault can be told from a file: where an edit contradicts a hop
of another record's questions, no model that holds all edits can answer these. A warning counts
them.
"""

import warnings
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from pydantic import Field

from retcon.data.parsing import Record
from retcon.data.sets import Place, dataset
from retcon.data.sets.counterfact import Rewrite
from retcon.edits import Case, Probe
from retcon.errors import RetconWarning

# Keys by which records of MQuAKE-Remastered are told from these.
SPLITS = frozenset({"split", "6334_split"})


class MquakeFact(Rewrite):
    # The same fact in sentences, for methods that edit by those.
    ignored = frozenset({"fact_new", "fact_new_uns", "verify_unsfact_GPT", "unsfact_triplets_GPT"})
    question: str | None = None


class Chain(Record):
    """The hops of a record's questions after the edits, in ids of Wikidata and in words."""

    # The hops before the edits, and the edits among them.
    ignored = frozenset({"triples", "triples_labeled", "edit_triples", "edit_triples_idx"})
    new_triples: tuple[tuple[str, ...], ...] = ()
    new_triples_labeled: tuple[tuple[str, ...], ...] = ()


class Hop(NamedTuple):
    """A fact: subject and target in words, and the id of the relation."""

    subject: str
    relation: str | None
    target: str


class Mquake(Record):
    """A record of MQuAKE, or of AKEW's MQuAKE-CF."""

    # Each hop alone, and the answer before the edit.
    ignored = frozenset({"answer", "answer_alias", "single_hops", "new_single_hops"})
    case_id: int
    requested_rewrite: tuple[MquakeFact, ...] = Field(min_length=1)
    questions: tuple[str, ...]
    new_answer: str
    new_answer_alias: tuple[str, ...] = ()
    orig: Chain = Chain()

    @property
    def hops(self) -> list[Hop]:
        """The facts on the way to its answer; none where the record does not tell them."""
        pairs = zip(self.orig.new_triples, self.orig.new_triples_labeled, strict=False)
        return [Hop(words[0], ids[1], words[-1]) for ids, words in pairs if len(ids) > 1 and words]

    @property
    def edits(self) -> list[Hop]:
        """The facts that it rewrites."""
        return [
            Hop(fact.subject, fact.relation_id, fact.target_new.text)
            for fact in self.requested_rewrite
        ]


class _Name(NamedTuple):
    """Identity of a rewrite: rewrites with equal names are the same fact."""

    prompt: str
    subject: str
    target: str

    @classmethod
    def of(cls, fact: MquakeFact) -> "_Name":
        return cls(fact.prompt, fact.subject, fact.target_new.text)


def mquake_cases(records: Sequence[Mquake]) -> list[Case]:
    """The distinct facts of all records, in their order, with a warning of how many are faulty.

    Raises:
        InvalidEdit: no edit can be made of one.
    """
    told = sum(bool(record.hops) for record in records)
    count = (
        f"of the {told:,} records here that tell their hops, {sum(contradicted(records)):,} ask "
        f"for an answer that an edit of the same file contradicts"
        if told
        else "none of the records here tells its hops (orig), so that they cannot be counted"
    )
    warnings.warn(
        f"MQuAKE has faulty records: {count}. Take MQuAKE-Remastered, which is read as well.",
        RetconWarning,
        stacklevel=4,
    )
    return facts_of(records)


def contradicted(records: Sequence[Mquake]) -> list[bool]:
    """Tell of each record whether an edit of any record gives one of its hops another target.

    Equal are the subject in words and the relation's id, as in the code of MQuAKE-Remastered.
    """
    targets: defaultdict[tuple[str, str | None], set[str]] = defaultdict(set)
    for record in records:
        for edit in record.edits:
            targets[edit.subject, edit.relation].add(edit.target)
    return [
        any(targets[hop.subject, hop.relation] - {hop.target} for hop in record.hops)
        for record in records
    ]


def facts_of(records: Sequence[Mquake], silent: Sequence[bool] = ()) -> list[Case]:
    """The distinct facts of all records, in their order.

    Args:
        silent: of each record, whether its questions are left out; without it none are.

    Raises:
        InvalidEdit: no edit can be made of one.
    """
    facts: dict[_Name, tuple[str, MquakeFact]] = {}
    probes: dict[_Name, list[Probe]] = {}
    for record, left_out in zip(records, silent or [False] * len(records), strict=True):
        for place, fact in enumerate(record.requested_rewrite):
            facts.setdefault(_Name.of(fact), (f"{record.case_id}.{place}", fact))
        if left_out:
            continue
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
    recognises=lambda said: (
        isinstance(said.get("requested_rewrite"), list) and SPLITS.isdisjoint(said)
    ),
    together=mquake_cases,
)
def mquake(record: Mquake, place: Place) -> list[Case]:
    """The facts of a record, by themselves."""
    del place
    return facts_of([record])
