"""Published settings per method and model, each with its source: the rows of presets.toml.

A model is recognised by its dimensions, not by its name, so a local copy or an instruct version
finds its family's settings.
"""

import tomllib
from collections import Counter
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from retcon.edits import Edit
from retcon.errors import InvalidSetting, UnknownName
from retcon.features.targets import default_micro_batch
from retcon.method.base import Method
from retcon.method.entries import MethodEntry, Settings, find_method
from retcon.model.structure import Outline

_LR_OF_ADAM = (
    "lr does nothing with descent=sphere, where a turn is as long as the loss asks for. Leave it "
    "out, or set descent=adam; reach makes turns longer or shorter."
)
# Clamps above this are bounds that δ seldom reaches: as published for ROME, 4.
_BOUND = 1.0


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Rule(_Row):
    """Settings by which targets are optimised, and where they were measured."""

    settings: dict[str, object]
    source: str


class Shape(_Row):
    """The dimensions by which a model is recognised."""

    model_type: str
    blocks: int
    hidden: int
    d_in: int
    vocabulary: int


class Preset(_Row):
    """Settings of one method for one model, and where they were published.

    Attributes:
        rules: settings beside those of a rule for targets, by its name.
    """

    method: str
    layers: tuple[int, ...]
    settings: dict[str, object]
    source: str
    rules: dict[str, dict[str, object]] = {}


class Family(_Row):
    """A model and its presets; the first one is used where no method is named.

    Attributes:
        of_one_subject: the method of patches whose facts mostly come several about one subject.
    """

    name: str
    shape: Shape
    presets: tuple[Preset, ...]
    of_one_subject: str | None = None


class Recipe(NamedTuple):
    """A method, layers and settings, all of them, and the preset they start from."""

    entry: MethodEntry
    layers: tuple[int, ...]
    settings: dict[str, object]
    preset: Preset | None

    @property
    def name(self) -> str:
        """The method's name."""
        return self.entry.name

    @property
    def rule(self) -> str | None:
        """The name of the rule for targets that these settings are; None where it has none."""
        own = self.settings.items()
        return next((k for k, rule in rules().items() if rule.settings.items() <= own), None)

    def build(self) -> Method[Any, Any, Any]:
        """The method with these settings, at these layers."""
        return self.entry.build(self.layers, self.settings)


@cache
def _presets() -> dict[str, Any]:
    return tomllib.loads((files("retcon.method") / "presets.toml").read_text(encoding="utf-8"))


@cache
def families() -> tuple[Family, ...]:
    """All models of presets.toml, with their presets."""
    return tuple(Family.model_validate(row) for row in _presets()["family"])


@cache
def rules() -> dict[str, Rule]:
    """All rules for targets of presets.toml, by name."""
    return {name: Rule.model_validate(row) for name, row in _presets()["rule"].items()}


def family_of(model: Outline) -> Family | None:
    """The family whose dimensions this model has."""
    shape = shape_of(model)
    return next((family for family in families() if family.shape == shape), None)


def shape_of(model: Outline) -> Shape:
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


def resolve(
    model: Outline,
    *,
    method: str | None = None,
    layers: Sequence[int] | None = None,
    settings: Settings | None = None,
) -> Recipe:
    """Fill in what was left open from the model's presets; what was given stands.

    A method that writes no weight has no layers, whatever is given; one that writes everywhere has
    all of them where none are. Among the settings `rule` may name a rule for targets, such as
    `fast`, which stands for the settings of its row.

    Raises:
        UnknownName: no such method, layer, setting or rule.
        InvalidSetting: the model has no preset for what was left open, or a setting that is given
            does nothing beside the others.
    """
    named = None if method is None else find_method(method)
    writes_nothing = named is not None and not named.writes
    family = family_of(model)
    rows = family.presets if family is not None else ()
    preset = next((row for row in rows if method in (None, row.method)), None)
    if preset is None and named is not None and named.everywhere and layers is None:
        layers = sorted(model.architecture.sites)
    if preset is None and (method is None or layers is None) and not writes_nothing:
        raise InvalidSetting(_ask_for(model, method))
    chosen = find_method(method or preset.method if preset else method or "")
    taken = tuple(layers if layers is not None else preset.layers if preset else ())
    if writes_nothing:
        taken = ()
    else:
        _check_layers(model, taken)
    base = dict(preset.settings) if preset else {}
    own = _with_rule(chosen, settings or {}, preset)
    resolved = chosen.resolve({**base, **own})
    if resolved.get("descent") == "sphere":
        _check_sphere(own, resolved, chosen.resolve(base))
    if not resolved.get("micro_batch", 1):
        resolved["micro_batch"] = default_micro_batch(model)
    return Recipe(chosen, taken, resolved, preset)


def method_for(model: Outline, edits: Sequence[Edit]) -> str | None:
    """The method that facts of one batch ask for by themselves; None: the family's first.

    One layer's map tells keys of facts about one subject badly apart. Where more than half of the
    facts share their subject with another one, the family may name a method that does not.
    """
    family = family_of(model)
    subjects = Counter({edit.fact: edit.subject.strip().casefold() for edit in edits}.values())
    sharing = sum(count for count in subjects.values() if count > 1)
    if family is None or 2 * sharing <= subjects.total():
        return None
    return family.of_one_subject


def _check_sphere(own: Settings, resolved: Settings, base: Settings) -> None:
    """Refuse an lr that does nothing, and a length of δ that nobody has chosen."""
    if resolved["lr"] != base["lr"]:
        raise InvalidSetting(_LR_OF_ADAM)
    if "clamp" not in own and float(str(resolved["clamp"])) > _BOUND:
        raise InvalidSetting(
            f"descent=sphere makes every δ as long as its clamp, here {resolved['clamp']} times "
            f"what stands at the lookup. That is a bound for other descents, which stop short of "
            f"it; δ would be too long, and harm what was written before. Say how long it should "
            f"be, as with --set clamp=0.75, or leave out --fast."
        )


def _with_rule(method: MethodEntry, given: Settings, preset: Preset | None) -> dict[str, object]:
    """The settings of the rule for targets that is named, if one is, below those that are given."""
    own = {name: value for name, value in given.items() if name != "rule"}
    if "rule" not in given:
        return own
    name = str(given["rule"])
    if name not in rules():
        raise UnknownName.among("rule for targets", name, rules())
    row = rules()[name].settings
    if not row.keys() <= method.settings().keys():
        raise InvalidSetting(
            f"{method.name} optimises no targets, so there is no rule {name!r} for them. Leave it "
            f"out, or name another method (retcon methods)."
        )
    return {**row, **(preset.rules.get(name, {}) if preset else {}), **own}


def _check_layers(model: Outline, layers: tuple[int, ...]) -> None:
    if not layers or sorted(set(layers)) != list(layers):
        raise InvalidSetting(
            f"Layers must be given in ascending order, each once; found {list(layers)}."
        )
    for layer in layers:
        model.site(layer)


def _ask_for(model: Outline, method: str | None) -> str:
    early = max(1, model.layers // 16)
    later = max(early + 1, model.layers // 4)
    tries = f"--method {method or 'emmet'} --layer {early}"
    return (
        f"No published settings are known for {method or 'any method'} on {model.name} "
        f"({model.layers} layers). Name a method and a layer: early MLPs work best; try "
        f"{tries}, or layer {later}."
    )


def describe(model: Outline) -> dict[str, object]:
    """Describe a model for `retcon probe`: its editable sites and its published settings."""
    architecture = model.architecture
    site = next(iter(architecture.sites.values()))
    parameters = sum(p.numel() for p in model.model.parameters())
    size = next(model.model.parameters()).element_size()
    family = family_of(model)
    presets = (
        []
        if family is None
        else [
            {
                "method": p.method,
                "layers": list(p.layers),
                "settings": p.settings,
                "source": p.source,
            }
            for p in family.presets
        ]
    )
    return {
        "class": type(model.model).__name__,
        "parameters": f"{parameters / 1e6:.1f} M",
        "weights": f"{parameters * size / 2**30:.2f} GiB in {model.model.dtype}",
        "editable site": f"{architecture.block_path}.N.{architecture.down_path}",
        "layout": "Conv1D (d_in, d_out)" if site.transposed else "Linear (d_out, d_in)",
        "d_in": site.d_in,
        "d_out": site.d_out,
        "layers": f"0 to {model.layers - 1}",
        "not editable": "; ".join(f"{k}: {why}" for k, why in architecture.unavailable.items())
        or "none",
        "head": "tied to the embeddings" if architecture.tied else "its own matrix",
        "MLP output": "added to the residual stream"
        if architecture.additive
        else "normalised or scaled first: one layer at a time, targets at the down-projection",
        "second moments": f"{site.d_in**2 * 8 / 2**20:.0f} MiB a layer",
        "family": family.name if family else "none known",
        "presets": presets,
    }
