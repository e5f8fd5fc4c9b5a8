"""Settings: options whose schema is the signature of the function that takes them.

One text `name=value` means the same on the command line, in a study file and in a preset.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from retcon.errors import InvalidSetting, UnknownName

Settings = Mapping[str, object]
NONE: Settings = MappingProxyType({})
# Settings of turns on the sphere. They were recorded of every descent, with the values of the time,
# and say nothing where descent=adam.
_OF_TURNS = ("first_angle", "last_angle", "momentum", "reach", "largest_turn", "power")


def of_now(recorded: Settings) -> dict[str, object]:
    """Settings as an earlier version recorded them, without those that said nothing then."""
    nothing = _OF_TURNS if recorded.get("descent") == "adam" else ()
    return {name: value for name, value in recorded.items() if name not in nothing}


@dataclass(frozen=True)
class Setting:
    """One setting of a method: where it belongs (None: an argument), its type and default."""

    group: str | None
    kind: Any
    default: object

    @cached_property
    def _validated(self) -> Callable[[object], object]:
        return TypeAdapter(self.kind).validate_python

    @cached_property
    def _is_list(self) -> bool:
        return "tuple" in str(self.kind)

    def read(self, name: str, value: object) -> object:
        """A value, or its text as typed on a command line, as the type of the setting.

        Raises:
            InvalidSetting: it is of another type.
        """
        try:
            if isinstance(value, str) and self._is_list:
                value = [part for part in value.split(",") if part]
            return self._validated(value)
        except ValidationError as error:
            raise InvalidSetting(
                f"The setting {name}={value!r} is not valid: it takes {_wanted(error)}."
            ) from None


# What a setting takes, by the name of pydantic's error; what is in braces is its context.
_WANTED = {
    "greater_than_equal": "{ge} or more",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "literal_error": "{expected}",
    "string_type": "a text",
    "tuple_type": "a list",
    "too_short": "at least {min_length} value",
}


def _wanted(error: ValidationError) -> str:
    first = error.errors()[0]
    template = _WANTED.get(first["type"])
    # What nobody has thought of is told in pydantic's words.
    if template is None:
        return first["msg"]
    bounds = first.get("ctx", {})
    return template.format(
        **{k: f"{v:g}" if isinstance(v, float) else v for k, v in bounds.items()}
    )


def settings_of(function: Callable[..., Any]) -> dict[str, Setting]:
    """The keyword-only arguments of a function, each as a setting."""
    hints = get_type_hints(function, include_extras=True)
    return {
        name: Setting(None, hints[name], parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }


def chosen_of(kind: str, function: Callable[..., Any], chosen: Settings) -> dict[str, object]:
    """The chosen settings of a function, checked; those that are the default are left out.

    Args:
        kind: what has them, for messages: `the data set zsre`.

    Raises:
        UnknownName: a setting that the function does not take.
        InvalidSetting: a value of the wrong type.
    """
    known = settings_of(function)
    for name in chosen:
        if name not in known:
            raise UnknownName.among(f"option of {kind}", name, known)
    values = {name: known[name].read(name, value) for name, value in chosen.items()}
    return {name: value for name, value in values.items() if value != known[name].default}
