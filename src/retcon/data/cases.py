"""Read files of facts and cases: benchmarks in the form they are published in, or plain facts.

What a file is, its records tell: CounterFact, zsRE, KnowEdit, MQuAKE, or the plain form, which
needs `prompt`, with its subject in braces, and `target`, and may have `target_old`, `paraphrases`,
`neighbours`, `openings`, `portability`, `locality`, `relation` and `id`. Whatever is wrong is
reported with its place.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from retcon.data.corpus import read_text
from retcon.data.counterfact import CounterFact
from retcon.data.knowedit import KnowEdit
from retcon.data.mquake import Mquake, mquake_cases
from retcon.data.reading import guarded, parsed, template, validated
from retcon.data.zsre import Zsre, ZsreTarget
from retcon.edits import Case, Edit, Probe
from retcon.errors import InvalidData
from retcon.toyworld.world import NAME, toy_cases


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Probe(_Strict):
    """A prompt of a plain fact with an answer of its own."""

    prompt: str
    answer: str
    aliases: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


class _Fact(_Strict):
    """A line of the plain form."""

    prompt: str
    target: str
    id: str | int | None = None
    subject: str | None = None
    target_old: str | None = None
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()
    openings: tuple[str, ...] = ()
    portability: tuple[_Probe, ...] = ()
    locality: tuple[_Probe, ...] = ()
    relation: str | None = None


class _Record(NamedTuple):
    """A JSON value of a file, and where it stands."""

    where: str
    number: int
    value: object


def load_cases(path: Path | str, *, zsre_target: ZsreTarget = "answers") -> list[Case]:
    """All cases of a file, in its order: a JSON array, or in `.jsonl` a record a line.

    Either may be gzipped. The name `starter` gives the facts that come with the package, and
    `toyworld` those of its invented world. zsre_target: what is written of a zsRE record that has
    both, see `retcon.data.zsre`; it says nothing about other sets.

    Raises:
        InvalidData: no such file, or something in it is wrong; the message says where.
    """
    if str(path) == "starter":
        return starter_cases()
    if str(path) == NAME:
        return list(toy_cases())
    path = Path(path)
    text = read_text(path)
    records = _lines(text, str(path)) if ".jsonl" in path.name else _array(text, str(path))
    if not records:
        raise InvalidData(f"{path} holds no facts.")
    cases = _cases(records, str(path), zsre_target)
    _check_ids(cases, str(path))
    return cases


def starter_cases() -> list[Case]:
    """The starter set: facts that SmolLM2 knows, with counterfactual targets."""
    resource = files("retcon.data") / "starter.jsonl"
    text = resource.read_text(encoding="utf-8")
    return [_plain(record) for record in _lines(text, "the starter set")]


def take(cases: Sequence[Case], n: int | None, seed: int) -> list[Case]:
    """The first n cases in the order of sha256("{seed}:{id}"); all, where n is None.

    The order depends on nothing else, so that smaller samples are part of larger ones; only cases
    of one fact take the places that are theirs in the order of the file.

    Raises:
        InvalidData: fewer than n cases.
    """
    if n is not None and not 1 <= n <= len(cases):
        raise InvalidData(
            f"{n} cases were asked for and the file holds {len(cases)}. Take 1 to {len(cases)}."
        )
    return in_order(cases, seeded(seed))[:n]


def seeded(seed: int) -> Callable[[Case], str]:
    """Where a case stands in the order of a seed."""
    return lambda case: hashlib.sha256(f"{seed}:{case.edit.id}".encode()).hexdigest()


def in_order(cases: Sequence[Case], place: Callable[[Case], str]) -> list[Case]:
    """The cases by their places; those of one fact share theirs in the order they come in.

    So which of two edits of a fact comes last, and counts, is for the file to say.
    """
    waiting: defaultdict[str, list[Case]] = defaultdict(list)
    for case in reversed(cases):
        waiting[case.edit.fact].append(case)
    return [waiting[case.edit.fact].pop() for case in sorted(cases, key=place)]


def parse_fact(line: str, number: int = 1, source: str = "the text") -> Case:
    """One line of the plain form.

    Raises:
        InvalidData: not JSON, not the fields above, or not an edit.
    """
    where = f"{source}, line {number}"
    return _plain(_Record(where, number, parsed(line, where)))


def _lines(text: str, source: str) -> list[_Record]:
    lines = [(f"{source}, line {n}", n, line) for n, line in enumerate(text.split("\n"), start=1)]
    return [_Record(where, n, parsed(line, where)) for where, n, line in lines if line.strip()]


def _array(text: str, source: str) -> list[_Record]:
    values = parsed(text, source)
    if not isinstance(values, list):
        raise InvalidData(f"{source}: expected a JSON array of records.")
    return [_Record(f"{source}, record {n}", n, value) for n, value in enumerate(values)]


def _cases(records: Sequence[_Record], source: str, zsre_target: ZsreTarget) -> list[Case]:
    """The cases of a file's records, which are all of the kind of the first."""
    kind = _kind(records[0].value)
    if kind is Mquake:
        chains = [validated(Mquake, record.value, record.where) for record in records]
        return guarded(source, lambda: mquake_cases(chains))
    return [_case(kind, record, index, zsre_target) for index, record in enumerate(records)]


def _case(kind: type[BaseModel], record: _Record, index: int, zsre_target: ZsreTarget) -> Case:
    if kind is _Fact:
        return _plain(record)
    valid = validated(kind, record.value, record.where)

    def case() -> Case:
        if isinstance(valid, Zsre):
            return valid.case(index, zsre_target)
        if isinstance(valid, KnowEdit):
            return valid.case(index)
        assert isinstance(valid, CounterFact)
        return valid.case()

    return guarded(record.where, case)


def _kind(value: object) -> type[BaseModel]:
    """Which set a record is of, by fields that no other has."""
    if not isinstance(value, dict):
        return _Fact
    if "requested_rewrite" in value:
        return Mquake if isinstance(value["requested_rewrite"], list) else CounterFact
    if {"src", "loc"} & value.keys():
        return Zsre
    return KnowEdit if "target_new" in value else _Fact


def _plain(record: _Record) -> Case:
    fact = validated(_Fact, record.value, record.where)
    return guarded(record.where, lambda: _case_of_fact(fact, record.number))


def _case_of_fact(record: _Fact, number: int) -> Case:
    identity = str(record.id) if record.id is not None else f"fact-{number}"
    if record.subject is None:
        edit = Edit.parse(record.prompt, record.target, id=identity, target_old=record.target_old)
    else:
        edit = Edit(
            id=identity,
            prompt=template(record.prompt, record.subject, identity),
            subject=record.subject,
            target=record.target,
            target_old=record.target_old,
        )
    return Case(
        edit=edit,
        paraphrases=record.paraphrases,
        neighbours=record.neighbours,
        openings=record.openings,
        relation=record.relation,
        portability=tuple(Probe(**probe.model_dump()) for probe in record.portability),
        locality=tuple(Probe(**probe.model_dump()) for probe in record.locality),
    )


def _check_ids(cases: Sequence[Case], source: str) -> None:
    seen: set[str] = set()
    for case in cases:
        if case.edit.id in seen:
            raise InvalidData(f"{source}: two facts have the id {case.edit.id!r}.")
        seen.add(case.edit.id)
