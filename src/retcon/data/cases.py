"""Read files of facts and cases: CounterFact (ROME's schema), or plain JSON lines.

A plain line needs `prompt`, with its subject in braces, and `target`; it may have `target_old`,
`paraphrases`, `neighbours`, `openings`, `relation` and `id`. Whatever is wrong is reported with
its line.
"""

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from retcon.data.corpus import open_text
from retcon.edits import Case, Edit
from retcon.errors import InvalidData, InvalidEdit
from retcon.toyworld.world import NAME, toy_cases

M = TypeVar("M", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


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
    relation: str | None = None


class _Target(BaseModel):
    text: str = Field(alias="str")


class _Rewrite(BaseModel):
    prompt: str
    subject: str
    relation_id: str | None = None
    target_new: _Target
    target_true: _Target


class _CounterFact(BaseModel):
    """A record of CounterFact: https://rome.baulab.info/data (Meng et al. 2022, §3.3)."""

    case_id: int
    requested_rewrite: _Rewrite
    paraphrase_prompts: tuple[str, ...]
    neighborhood_prompts: tuple[str, ...]
    generation_prompts: tuple[str, ...] = ()


def load_cases(path: Path | str) -> list[Case]:
    """All cases of a file, in its order. `.json` is CounterFact, `.jsonl` the plain form.

    Either may be gzipped. The name `starter` gives the facts that come with the package, and
    `toyworld` those of its invented world.

    Raises:
        InvalidData: no such file, or something in it is wrong; the message says where.
    """
    if str(path) == "starter":
        return starter_cases()
    if str(path) == NAME:
        return list(toy_cases())
    path = Path(path)
    try:
        with open_text(path) as stream:
            text = stream.read()
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InvalidData(f"{path} is damaged or not a text file: {error}") from error
    cases = _json_lines(text, str(path)) if ".jsonl" in path.name else _array(text, str(path))
    if not cases:
        raise InvalidData(f"{path} holds no facts.")
    _check_ids(cases, str(path))
    return cases


def starter_cases() -> list[Case]:
    """The starter set: facts that SmolLM2 knows, with counterfactual targets."""
    resource = files("retcon.data") / "starter.jsonl"
    return _json_lines(resource.read_text(encoding="utf-8"), "the starter set")


def take(cases: Sequence[Case], n: int | None, seed: int) -> list[Case]:
    """The first n cases in the order of sha256("{seed}:{id}"); all, where n is None.

    The order depends on nothing else, so that smaller samples are part of larger ones.

    Raises:
        InvalidData: fewer than n cases.
    """
    if n is not None and not 1 <= n <= len(cases):
        raise InvalidData(
            f"{n} cases were asked for and the file holds {len(cases)}. Take 1 to {len(cases)}."
        )

    def place(case: Case) -> str:
        return hashlib.sha256(f"{seed}:{case.edit.id}".encode()).hexdigest()

    return sorted(cases, key=place)[:n]


def parse_fact(line: str, number: int = 1, source: str = "the text") -> Case:
    """One line of the plain form.

    Raises:
        InvalidData: not JSON, not the fields above, or not an edit.
    """
    where = f"{source}, line {number}"
    record = _validated(_Fact, _parsed(line, where), where)
    return _guarded(where, lambda: _case_of_fact(record, number))


def _case_of_fact(record: _Fact, number: int) -> Case:
    identity = str(record.id) if record.id is not None else f"fact-{number}"
    if record.subject is None:
        edit = Edit.parse(record.prompt, record.target, id=identity, target_old=record.target_old)
    else:
        edit = Edit(
            id=identity,
            prompt=_template(record.prompt, record.subject, identity),
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
    )


def _template(prompt: str, subject: str, identity: str) -> str:
    """The prompt with {} where its subject stands."""
    prompt = prompt.replace(f"{{{subject}}}", "{}")
    if "{}" in prompt:
        return prompt
    if not subject or prompt.count(subject) != 1:
        raise InvalidEdit(
            f"Edit {identity!r}: the subject {subject!r} must be in the prompt {prompt!r} exactly "
            f"once, or the prompt must mark its place with {{}}."
        )
    return prompt.replace(subject, "{}")


def _case_of_counterfact(record: _CounterFact) -> Case:
    rewrite = record.requested_rewrite
    edit = Edit(
        id=str(record.case_id),
        prompt=rewrite.prompt,
        subject=rewrite.subject,
        target=rewrite.target_new.text,
        target_old=rewrite.target_true.text,
    )
    return Case(
        edit=edit,
        paraphrases=record.paraphrase_prompts,
        neighbours=record.neighborhood_prompts,
        # Records repeat them.
        openings=tuple(dict.fromkeys(record.generation_prompts)),
        relation=rewrite.relation_id,
    )


def _json_lines(text: str, source: str) -> list[Case]:
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1)]
    return [parse_fact(line, number, source) for number, line in lines if line.strip()]


def _array(text: str, source: str) -> list[Case]:
    records = _parsed(text, source)
    if not isinstance(records, list):
        raise InvalidData(f"{source}: expected a JSON array of CounterFact records.")
    return [_record(record, f"{source}, record {number}") for number, record in enumerate(records)]


def _record(record: object, where: str) -> Case:
    valid = _validated(_CounterFact, record, where)
    return _guarded(where, lambda: _case_of_counterfact(valid))


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidData(f"{where}: not JSON ({error}).") from error


def _validated(model: type[M], value: object, where: str) -> M:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the record"
        raise InvalidData(f"{where}: {field}: {first['msg']}.") from error


def _guarded(where: str, make: Callable[[], Case]) -> Case:
    try:
        return make()
    except InvalidEdit as error:
        raise InvalidData(f"{where}: {error}") from error


def _check_ids(cases: Sequence[Case], source: str) -> None:
    seen: set[str] = set()
    for case in cases:
        if case.edit.id in seen:
            raise InvalidData(f"{source}: two facts have the id {case.edit.id!r}.")
        seen.add(case.edit.id)
