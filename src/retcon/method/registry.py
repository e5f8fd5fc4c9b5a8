"""The methods that exist, and their settings.

The signature of a method's factory is the schema of its settings: plain keyword arguments, and
the fields of the option groups (`contexts`, `targets`, `moments`) by their own names. One text
`name=value` therefore means the same on the command line, in a study file and in a preset.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache, cached_property
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

import retcon.method
from retcon.errors import InvalidSetting, UnknownName
from retcon.features.contexts import ContextOptions
from retcon.features.second_moments import MomentOptions
from retcon.features.targets import TargetOptions
from retcon.method.base import Editor

Options = TypeVar("Options", ContextOptions, TargetOptions, MomentOptions)
Settings = Mapping[str, object]


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
    "greater_than_equal": "{ge} or more", "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}", "less_than": "less than {lt}",
    "float_parsing": "a number", "float_type": "a number", "finite_number": "a finite number",
    "int_parsing": "a whole number", "int_type": "a whole number",
    "int_from_float": "a whole number",
    "bool_parsing": "true or false", "bool_type": "true or false",
    "literal_error": "{expected}", "string_type": "a text", "tuple_type": "a list",
    "too_short": "at least {min_length} value",
}  # fmt: skip


def _wanted(error: ValidationError) -> str:
    first = error.errors()[0]
    said = _WANTED.get(first["type"])
    # What nobody has thought of is told in pydantic's words.
    if said is None:
        return first["msg"]
    bounds = first.get("ctx", {})
    return said.format(**{k: f"{v:g}" if isinstance(v, float) else v for k, v in bounds.items()})


@dataclass(frozen=True, kw_only=True)
class Method:
    """A registry entry: a factory of editors and what is said of it.

    writes: whether it changes weights; what does not makes no patch and needs no layers.
    """

    name: str
    title: str
    paper: str
    factory: Callable[..., Editor]
    writes: bool = True

    @property
    def summary(self) -> str:
        """The first line of the factory's docstring."""
        return (inspect.getdoc(self.factory) or "").splitlines()[0]

    def settings(self) -> dict[str, Setting]:
        """Every setting by name, in the order of the signature."""
        return dict(_settings(self.factory))

    def resolve(self, chosen: Settings) -> dict[str, object]:
        """All settings with their values: the chosen ones, checked, over the defaults.

        Raises:
            UnknownName: a setting that this method does not have.
            InvalidSetting: a value of the wrong type.
        """
        known = self.settings()
        for name in chosen:
            if name not in known:
                raise UnknownName.among(f"setting of {self.name}", name, known)
        values = {name: setting.default for name, setting in known.items()}
        return values | {name: known[name].read(name, value) for name, value in chosen.items()}

    def build(self, layers: tuple[int, ...], chosen: Settings) -> Editor:
        """The editor for these layers and settings."""
        arguments: dict[str, Any] = {}
        values = self.resolve(chosen)
        for name, parameter in inspect.signature(self.factory).parameters.items():
            default = parameter.default
            if is_dataclass(default) and not isinstance(default, type):
                own = {field.name: values[field.name] for field in fields(default)}
                arguments[name] = replace(default, **own)
            elif name != "layers":
                arguments[name] = values[name]
        return self.factory(layers, **arguments)


@cache
def _settings(factory: Callable[..., Editor]) -> dict[str, Setting]:
    """The settings of a factory, read from its signature once."""
    hints = get_type_hints(factory, include_extras=True)
    found: dict[str, Setting] = {}
    for name, parameter in inspect.signature(factory).parameters.items():
        default = parameter.default
        if name == "layers":
            continue
        if is_dataclass(default) and not isinstance(default, type):
            inner = get_type_hints(type(default), include_extras=True)
            for field in fields(default):
                value = getattr(default, field.name)
                found[field.name] = Setting(name, inner[field.name], value)
        else:
            found[name] = Setting(None, hints[name], default)
    return found


_METHODS: dict[str, Method] = {}


def method(
    name: str, *, title: str, paper: str, writes: bool = True
) -> Callable[[Callable[..., Editor]], Callable[..., Editor]]:
    """Enter a factory into the registry under a name."""

    def enter(factory: Callable[..., Editor]) -> Callable[..., Editor]:
        _METHODS[name] = Method(name=name, title=title, paper=paper, factory=factory, writes=writes)
        return factory

    return enter


def methods() -> dict[str, Method]:
    """All methods by name. Each module of this package that enters one is imported."""
    _import_all()
    return dict(sorted(_METHODS.items()))


@cache
def _import_all() -> None:
    for module in pkgutil.iter_modules(retcon.method.__path__):
        importlib.import_module(f"retcon.method.{module.name}")


def find_method(name: str) -> Method:
    """The method of that name.

    Raises:
        UnknownName: there is none; the error lists what exists.
    """
    known = methods()
    if name not in known:
        raise UnknownName.among("method", name, known)
    return known[name]


def options_from(default: Options, chosen: Settings) -> Options:
    """An option group with some of its fields set, for commands that need no whole method.

    Raises:
        UnknownName: a field that the group does not have.
        InvalidSetting: a value of the wrong type.
    """
    kinds = get_type_hints(type(default), include_extras=True)
    for name in chosen:
        if name not in kinds:
            raise UnknownName.among("setting", name, kinds)
    return replace(
        default, **{k: Setting(None, kinds[k], None).read(k, v) for k, v in chosen.items()}
    )
