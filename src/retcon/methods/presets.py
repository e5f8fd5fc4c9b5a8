"""Published settings per method and model, each with its source: the rows of presets.toml.

A model is recognised by its dimensions, not by its name, so a local copy or an instruct version
finds its family's settings.
"""

import tomllib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from retcon.errors import InvalidSetting
from retcon.methods.registry import Method, Settings, find_method
from retcon.model.handle import ModelHandle


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Shape(_Row):
    """The dimensions by which a model is recognised."""

    model_type: str
    blocks: int
    hidden: int
    d_in: int
    vocabulary: int


class Preset(_Row):
    """Settings of one method for one model, and where they were published."""

    method: str
    layers: tuple[int, ...]
    settings: dict[str, object]
    source: str


class Family(_Row):
    """A model and its presets; the first one is used where no method is named."""

    name: str
    shape: Shape
    presets: tuple[Preset, ...]


class Choice(NamedTuple):
    """What will be run: a method, layers and settings, and the preset they start from."""

    method: Method
    layers: tuple[int, ...]
    settings: dict[str, object]
    preset: Preset | None


@cache
def families() -> tuple[Family, ...]:
    """All rows of presets.toml."""
    text = (files("retcon.methods") / "presets.toml").read_text(encoding="utf-8")
    return tuple(Family.model_validate(row) for row in tomllib.loads(text)["family"])


def family_of(model: ModelHandle) -> Family | None:
    """The family whose dimensions this model has."""
    shape = shape_of(model)
    return next((family for family in families() if family.shape == shape), None)


def shape_of(model: ModelHandle) -> Shape:
    """The dimensions of a model."""
    config = model.model.config.get_text_config(decoder=True)
    site = next(iter(model.architecture.sites.values()))
    return Shape(
        model_type=config.model_type,
        blocks=model.layers,
        hidden=config.hidden_size,
        d_in=site.d_in,
        vocabulary=config.vocab_size,
    )


def choose(
    model: ModelHandle,
    *,
    method: str | None = None,
    layers: Sequence[int] | None = None,
    settings: Settings | None = None,
) -> Choice:
    """Fill in what was left open from the model's presets; what was given stands.

    Raises:
        UnknownName: no such method, layer or setting.
        InvalidSetting: the model has no preset for what was left open.
    """
    if method is not None:
        find_method(method)
    family = family_of(model)
    rows = family.presets if family is not None else ()
    preset = next((row for row in rows if method in (None, row.method)), None)
    if preset is None and (method is None or layers is None):
        raise InvalidSetting(_ask_for(model, method))
    chosen = find_method(method or preset.method if preset else method or "")
    taken = tuple(layers if layers is not None else preset.layers if preset else ())
    _check_layers(model, taken)
    base = dict(preset.settings) if preset else {}
    return Choice(chosen, taken, chosen.resolve({**base, **(settings or {})}), preset)


def _check_layers(model: ModelHandle, layers: tuple[int, ...]) -> None:
    if not layers or sorted(set(layers)) != list(layers):
        raise InvalidSetting(
            f"Layers must be given in ascending order, each once; found {list(layers)}."
        )
    for layer in layers:
        model.site(layer)


def _ask_for(model: ModelHandle, method: str | None) -> str:
    early = max(1, model.layers // 16)
    later = max(early + 1, model.layers // 4)
    tries = f"--method {method or 'emmet'} --layer {early}"
    return (
        f"No published settings are known for {method or 'any method'} on {model.name} "
        f"({model.layers} layers). Name a method and a layer: early MLPs work best; try "
        f"{tries}, or layer {later}."
    )
