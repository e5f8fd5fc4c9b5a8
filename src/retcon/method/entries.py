"""The registry of methods, and their settings.

The signature of a method's factory is the schema of its settings: plain keyword arguments, and
the fields of the option groups (`contexts`, `targets`, `moments`) by their own names. One text
`name=value` therefore means the same on the command line, in a study file and in a preset.
"""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from functools import cache
from typing import Any, TypeVar, get_type_hints

from retcon.errors import UnknownName
from retcon.features.contexts import ContextOptions
from retcon.features.second_moments import MomentOptions
from retcon.features.target_options import TargetOptions
from retcon.method.base import Method
from retcon.method.locate_then_edit import LocateThenEdit
from retcon.registry import Registry, entered
from retcon.settings import Setting, Settings

Options = TypeVar("Options", ContextOptions, TargetOptions, MomentOptions)
Made = TypeVar("Made", bound=Method[Any, Any, Any])


@dataclass(frozen=True, kw_only=True)
class MethodEntry:
    """A registry entry: a factory of a method and what is said of it.

    Attributes:
        writes: whether it changes weights; what does not makes no patch and needs no layers.
        everywhere: whether it writes every layer where none are named.
    """

    name: str
    title: str
    paper: str
    factory: Callable[..., Method[Any, Any, Any]]
    writes: bool = True
    everywhere: bool = False

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

    def build(self, layers: tuple[int, ...], chosen: Settings) -> Method[Any, Any, Any]:
        """The method for these layers and settings."""
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
def _settings(factory: Callable[..., Any]) -> dict[str, Setting]:
    """The settings of a factory, read from its signature once."""
    hints = get_type_hints(factory, include_extras=True)
    settings: dict[str, Setting] = {}
    for name, parameter in inspect.signature(factory).parameters.items():
        default = parameter.default
        if name == "layers":
            continue
        if is_dataclass(default) and not isinstance(default, type):
            inner = get_type_hints(type(default), include_extras=True)
            for field in fields(default):
                value = getattr(default, field.name)
                settings[field.name] = Setting(name, inner[field.name], value)
        else:
            settings[name] = Setting(None, hints[name], default)
    return settings


METHODS: Registry[MethodEntry] = Registry("method", "retcon.method")


def method(
    name: str, *, title: str, paper: str, writes: bool = True, everywhere: bool = False
) -> Callable[[Callable[..., Made]], Callable[..., Made]]:
    """Enter a factory into the registry under a name."""

    def entry(factory: Callable[..., Made]) -> MethodEntry:
        return MethodEntry(
            name=name,
            title=title,
            paper=paper,
            factory=factory,
            writes=writes,
            everywhere=everywhere,
        )

    return entered(METHODS, name, entry)


def methods() -> dict[str, MethodEntry]:
    """All methods by name."""
    return METHODS.all()


def find_method(name: str) -> MethodEntry:
    """The method of that name.

    Raises:
        UnknownName: there is none; the error lists what exists.
    """
    return METHODS.find(name)


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


def identity(method: object) -> dict[str, Any]:
    """The settings that differ from their defaults, layers apart, and whose they are.

    Values of the one equation are known by these settings alone, so that EMMET and MEMIT at one
    ridge are one cell, and a setting that is added later leaves the cells of earlier studies
    theirs. Other methods are known by their class too, by its whole name outside this package.
    """
    own = differing(method)
    if isinstance(method, LocateThenEdit):
        return own
    kind = type(method)
    inside = kind.__module__.startswith("retcon.method.")
    return {"kind": kind.__name__ if inside else f"{kind.__module__}.{kind.__qualname__}", **own}


def differing(options: object) -> dict[str, Any]:
    """The fields of a dataclass that differ from their defaults; groups in it likewise."""
    assert is_dataclass(options)
    chosen: dict[str, Any] = {}
    for field in fields(options):
        value = getattr(options, field.name)
        if is_dataclass(value):
            inner = differing(value)
            # A group that a method need not name is told only where something in it is.
            if inner or field.default is MISSING:
                chosen[field.name] = inner
        elif value != field.default:
            chosen[field.name] = value
    return chosen
