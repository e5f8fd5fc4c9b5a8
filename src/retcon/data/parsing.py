"""Parse and check JSON records of any data set, and say in words what is wrong with one."""

import difflib
import json
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from retcon.edits import Probe, check_whole
from retcon.errors import InvalidData, InvalidEdit

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")

# What a field takes, by the name of pydantic's error.
_TAKES = {
    "string_type": "a text",
    "tuple_type": "a list",
    "dict_type": "an object, {…}",
    "model_type": "an object, {…}",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "bool_type": "true or false",
}


def _several(value: object) -> object:
    return (value,) if isinstance(value, str) else () if value is None else value


# One text, or a list of texts; no matter which.
Texts = Annotated[tuple[str, ...], BeforeValidator(_several)]


class Record(BaseModel):
    """A record, or a part of one. Keys that it does not have are kept, so that they can be named.

    Attributes:
        ignored: those that are known and say nothing that could be scored.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    ignored: ClassVar[frozenset[str]] = frozenset()

    def unread(self) -> Iterator[str]:
        """The keys that nothing reads, those of parts with a dot."""
        yield from (key for key in self.model_extra or {} if key not in self.ignored)
        for name in type(self).model_fields:
            for part in _parts(getattr(self, name)):
                yield from (f"{name}.{key}" for key in part.unread())


def _parts(value: object) -> Iterator[Record]:
    """The records within a value."""
    if isinstance(value, Record):
        yield value
    elif isinstance(value, tuple | dict):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _parts(one)


class NewQuestion(Record):
    """A question whose answer follows from the edit, as it was added to zsRE and CounterFact."""

    ignored = frozenset({"Recalled Relation"})
    question: str = Field(alias="New Question")
    answer: str = Field(alias="New Answer")

    def probe(self) -> Probe:
        """Make a probe of it."""
        return Probe(prompt=self.question, answer=self.answer)


def parsed(text: str, where: str) -> Any:
    """A JSON value.

    Raises:
        InvalidData: it is none, a key stands there twice, or a text holds half a character.
    """
    try:
        value = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        comma = isinstance(error, json.JSONDecodeError) and text[error.pos :].strip() == ","
        why = "a comma behind the record: one a line needs none" if comma else error
        raise InvalidData(f"{where}: not JSON ({why}).") from error
    if "\\ud" in text or "\\uD" in text:  # nothing else makes half of one
        try:
            check_whole(json.dumps(value, ensure_ascii=False))
        except InvalidEdit as error:
            raise InvalidData(f"{where}: {error}") from error
    return value


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object, none of whose keys stands twice in it."""
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} stands there twice")
    return value


def validated(model: type[M], value: object, where: str) -> M:
    """A record with the fields of a model.

    Raises:
        InvalidData: a key is missing, not known, or of another type; the message names the first.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        known = [field.alias or name for name, field in model.model_fields.items()]
        keys = list(value) if isinstance(value, dict) else []
        raise InvalidData(f"{where}: {_explained(error, known, keys)}") from error


def _explained(error: ValidationError, known: Sequence[str], keys: Sequence[str]) -> str:
    """The first thing that is wrong: a key that is not known before the one that is missing."""
    problem = next((e for e in error.errors() if e["type"] == "extra_forbidden"), error.errors()[0])
    place = ".".join(str(part) for part in problem["loc"])
    last = str(problem["loc"][-1]) if problem["loc"] else ""
    if problem["type"] == "extra_forbidden":
        meant = did_you_mean(last, known) if len(problem["loc"]) == 1 else ""
        listed = f" Known: {', '.join(known)}." if len(problem["loc"]) == 1 else ""
        return f"unknown key {place!r}.{meant}{listed}"
    if problem["type"] == "missing":
        meant = did_you_mean(last, [k for k in keys if k not in known]) if place == last else ""
        return f"the key {place!r} is missing.{meant}"
    if problem["type"] == "value_error":
        message = problem["msg"].removeprefix("Value error, ")
        return f"{place}: {message}." if place else f"{message}."
    if not place:
        return f"a record is an object, {{…}}, and this is {_short(problem['input'])}."
    if problem["type"] in _TAKES:
        return f"{place} takes {_TAKES[problem['type']]}, and not {_short(problem['input'])}."
    return f"{place}: {problem['msg']}."


def did_you_mean(name: str, among: Sequence[str]) -> str:
    """The question whether a similar name was meant; empty where none is similar."""
    near = difflib.get_close_matches(name, among, n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}…"


def guarded(where: str, make: Callable[[], T]) -> T:
    """Call `make`, and say where the record is if no edit can be made of it.

    Raises:
        InvalidData: no edit can be made of it.
    """
    try:
        return make()
    except InvalidEdit as error:
        raise InvalidData(f"{where}: {error}") from error


def template(prompt: str, subject: str, identity: str) -> str:
    """The prompt with {} where its subject stands.

    Raises:
        InvalidEdit: the subject is not there exactly once.
    """
    prompt = prompt.replace(f"{{{subject}}}", "{}")
    if "{}" in prompt:
        return prompt
    count = prompt.count(subject) if subject else 0
    if count == 1:
        return prompt.replace(subject, "{}")
    for same, difference in _ALIKE.items():
        if subject.strip() and not count and same(subject) in same(prompt):
            raise InvalidEdit(
                f"Edit {identity!r}: the subject {subject!r} stands in the prompt {prompt!r} "
                f"{difference}. Write both the same."
            )
    raise InvalidEdit(
        f"Edit {identity!r}: the subject {subject!r} must be in the prompt {prompt!r} exactly "
        f"once, or the prompt must mark its place with {{}}; it is there {count} times."
    )


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


# How a subject may differ from what looks like it, or nearly so.
_ALIKE: Mapping[Callable[[str], str], str] = {
    _composed: "in another form of Unicode (é as one character here, as e and an accent there)",
    lambda text: _composed(text).casefold(): "with other capital letters",
    lambda text: " ".join(text.split()): "with other blanks",
}
