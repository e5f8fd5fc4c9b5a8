"""RippleEdits: what follows from an edit, and what must not (arXiv:2307.12976).

Records as of https://github.com/edenbiran/RippleEdits (popular, random and recent): `example_type`;
`edit`, with a sentence (`prompt`) that tells the new fact, the name of its `relation`, and the fact
before it (`original_fact`; `previous_fact` in the authors' description); and six criteria, each a
list of tests with `test_queries`. A query has a `prompt` and `answers`, each with a `value` and
`aliases`; any answer is right: the first is scored token by token, all count where text is
generated. Every query of a test is asked by itself, and its `condition_queries`, which the authors
ask beforehand, are not.

Neither subject nor target is a field. Both stand in the sentence, whose words around them are fixed
for each relation: "The name of the mother of SUBJECT is TARGET." Where a sentence can be cut in
several ways, the subject is the one that other queries about it (`subject_id`) name, or else that
of the fact before. What cannot be cut so is refused.
"""

import re
from collections.abc import Iterator
from functools import cache

from pydantic import Field

from retcon.data.parsing import Record
from retcon.data.sets import Place, dataset
from retcon.edits import Case, Edit, Probe
from retcon.errors import InvalidEdit

# What stands around the subject, by relation. All others are told as "The [name of the] RELATION of
# SUBJECT is TARGET."
_FRAMES = {
    "AWARD_RECEIVED": "the award {} won is",
    "CAPITAL": "the capital city of {} is",
    "CAPITAL_OF": "the country which {} is the capital of is",
    "CONTINENT": "the continent which {} is part of is",
    "COUNTRY": "the country which {} is associated with is",
    "CURRENCY": "the currency in {} is",
    "ETHNIC_GROUP": "the ethnic group which {} is associated with is",
    "FOLLOWED_BY": "{} is followed by",
    "FOLLOWS": "{} follows",
    "LEAGUE": "the league which {} plays in is",
    "LIKELY_ANTHEM": "the anthem that is most likely to be performed in {} is",
    "MEMBER_OF_SPORTS_TEAM": "the sports team which {} is a member of is",
    "NATIVE_LANGUAGE": "the mother tongue of {} is",
    "NUMBER_OF_CHILDREN": "the number of children {} has is",
    "POSITION_HELD": "the position held by {} is",
    "RELIGION": "the religion which {} is associated with is",
    "SEX_OR_GENDER": "the gender of {} is",
}


class NamedAnswer(Record):
    """An answer and its other names."""

    value: str | None
    aliases: tuple[str, ...] = ()


class Query(Record):
    """A prompt with its answers."""

    ignored = frozenset({"query_type", "target_ids", "second_relation", "second_hop_target_ids"})
    prompt: str
    answers: tuple[NamedAnswer, ...]
    subject_id: str | None = None
    relation: str | None = None
    phrase: str | None = None

    def probe(self) -> Probe | None:
        """Make a probe of it; None where it has no answer."""
        values = [answer.value or "" for answer in self.answers]
        names = [*values, *(alias for answer in self.answers for alias in answer.aliases)]
        known = list(dict.fromkeys(name.strip() for name in names if name.strip()))
        if not known:
            return None
        return Probe(prompt=self.prompt, answer=known[0], aliases=tuple(known[1:]))

    def name_of(self, subject_id: str) -> str | None:
        """The subject's name in it; None if it is about another one, or in words of its own."""
        if self.subject_id != subject_id or self.phrase is not None or self.relation is None:
            return None
        whole = _pattern(self.relation).fullmatch(self.prompt.strip())
        return whole["subject"] if whole else None


class Criterion(Record):
    """A test of one of the six criteria."""

    ignored = frozenset({"test_condition"})
    test_queries: tuple[Query, ...]
    condition_queries: tuple[Query, ...] = ()


Criteria = tuple[Criterion, ...]


class Sentence(Record):
    """A fact as a sentence."""

    ignored = frozenset({"target_id"})
    prompt: str
    relation: str
    subject_id: str

    def cuts(self) -> Iterator[tuple[str, str, str]]:
        """Every way to cut it: the prompt with {} for its subject, the subject, the target."""
        text = self.prompt.strip().removesuffix(".")
        for gap in (found.start() for found in re.finditer(r"\s+", text)):
            told = _pattern(self.relation).fullmatch(text[:gap])
            if told:
                prompt = f"{told['before']}{{}}{told['after']}"
                yield prompt, told["subject"], text[gap:].strip()


class EditedSentence(Sentence):
    """The edit of a record."""

    original_fact: Sentence | None = None
    previous_fact: Sentence | None = None

    def cuts_before(self) -> list[tuple[str, str, str]]:
        """Every way to cut the fact before it; none where there was none."""
        before = self.original_fact or self.previous_fact
        return [] if before is None else list(before.cuts())


class RippleEdit(Record):
    """A record of RippleEdits."""

    example_type: str
    edit: EditedSentence
    specificity: Criteria = Field(default=(), alias="Relation_Specificity")
    forgetfulness: Criteria = Field(default=(), alias="Forgetfulness")
    generalization: Criteria = Field(default=(), alias="Logical_Generalization")
    compositionality_i: Criteria = Field(default=(), alias="Compositionality_I")
    compositionality_ii: Criteria = Field(default=(), alias="Compositionality_II")
    aliasing: Criteria = Field(default=(), alias="Subject_Aliasing")

    @property
    def stays(self) -> Criteria:
        """Tests of what must not change."""
        return (*self.specificity, *self.forgetfulness)

    @property
    def follows(self) -> Criteria:
        """Tests of what changes with the edit."""
        composed = (*self.compositionality_i, *self.compositionality_ii)
        return (*self.generalization, *composed, *self.aliasing)

    def case(self, index: int) -> Case:
        """The case that a record is, under its index in the file.

        Raises:
            InvalidEdit: its sentence cannot be cut into subject and target.
        """
        identity = str(index)
        prompt, subject, target = self._cut(identity)
        before = (last for _, name, last in self.edit.cuts_before() if name == subject)
        return Case(
            edit=Edit(
                id=identity,
                prompt=prompt,
                subject=subject,
                target=target,
                target_old=next(before, None),
            ),
            relation=self.edit.relation,
            portability=_probes(self.follows),
            locality=_probes(self.stays),
        )

    def _cut(self, identity: str) -> tuple[str, str, str]:
        """The one way to cut the sentence of the edit."""
        cuts, names = list(self.edit.cuts()), self._names()
        known = [cut for cut in cuts if cut[1] in names] or cuts
        if len(known) == 1:
            return known[0]
        how = f"in {len(known)} ways" if known else "in none of the ways that are known"
        raise InvalidEdit(
            f"Edit {identity!r}: edit.prompt, {self.edit.prompt!r}, has to be cut into subject and "
            f"target, and for the relation {self.edit.relation} it can be {how}. Write this fact "
            f"in the plain form."
        )

    def _names(self) -> set[str]:
        """Names of the subject: in queries about it, or else in the fact before."""
        tests = (*self.stays, *self.follows)
        queries = (q for test in tests for q in (*test.test_queries, *test.condition_queries))
        named = {name for q in queries if (name := q.name_of(self.edit.subject_id))}
        return named or {name for _, name, _ in self.edit.cuts_before()}


@cache
def _pattern(relation: str) -> re.Pattern[str]:
    """The sentence of a relation, up to its target."""
    words = re.escape(relation.lower().replace("_", " "))
    frame = _FRAMES.get(relation, f"the {words}s? of {{}} (?:is|are)")
    before, after = frame.split("{}")
    if before.startswith("the "):
        before = f"The (?:names? of the )?{before.removeprefix('the ')}"
    return re.compile(f"(?P<before>{before})(?P<subject>.+)(?P<after>{after})")


def _probes(tests: Criteria) -> tuple[Probe, ...]:
    """Every query of some tests that has an answer, once."""
    probes = (query.probe() for test in tests for query in test.test_queries)
    return tuple(dict.fromkeys(probe for probe in probes if probe is not None))


@dataset(
    "ripple-edits",
    record=RippleEdit,
    recognises=lambda said: {"example_type", "edit"} <= said.keys(),
)
def ripple_edits(record: RippleEdit, place: Place) -> list[Case]:
    """The case of a record."""
    return [record.case(place.index)]
