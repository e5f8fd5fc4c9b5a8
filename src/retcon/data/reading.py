"""What all readers of facts share: a record that is wrong is reported with its place."""

import json
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from retcon.errors import InvalidData, InvalidEdit

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")


def parsed(text: str, where: str) -> Any:
    """A JSON value.

    Raises:
        InvalidData: it is none.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidData(f"{where}: not JSON ({error}).") from error


def validated(model: type[M], value: object, where: str) -> M:
    """A record with the fields of a model.

    Raises:
        InvalidData: a field is missing or of another type; the message names the first.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the record"
        raise InvalidData(f"{where}: {field}: {first['msg']}.") from error


def guarded(where: str, make: Callable[[], T]) -> T:
    """What is made of a record.

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
    if not subject or prompt.count(subject) != 1:
        raise InvalidEdit(
            f"Edit {identity!r}: the subject {subject!r} must be in the prompt {prompt!r} exactly "
            f"once, or the prompt must mark its place with {{}}."
        )
    return prompt.replace(subject, "{}")
