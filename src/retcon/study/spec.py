"""The study file: what a researcher writes, checked, and spread out into the places of its grid.

Nothing here knows a model or a method: that comes with `planning`. So a file can be checked, and
its schema printed, at once.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import product
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from retcon.errors import InvalidStudy
from retcon.registry import load_plugin, loaded_plugins
from retcon.sealed import bare
from retcon.study.explaining import explain
from retcon.study.loader import line_of, read_yaml
from retcon.study.points import Frozen, Order, Regime, carries

# One more whenever files of an earlier version would mean something else.
VERSION = 1
# A grid is counted before it is spelled out: one of a few axes too many has no end.
MOST_PLACES = 100_000
# A study file is written by hand.
_MOST_BYTES = 2**22

T = TypeVar("T")
# One value, or several that span an axis.
Axis = T | list[T]
Positive = Annotated[int, Field(ge=1)]
Ridge = Annotated[float, Field(ge=0, allow_inf_nan=False)]
When = Literal["pre", "immediate", "final", "retention"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


class DataSpec(_Strict):
    """The facts of a study.

    Attributes:
        cases: a file (of `--data`, of RETCON_DATA, or beside the study file), `starter`, `toyworld`
            or `toyworld-small`.
        unique_subjects: keep one fact a subject, the first in the seeded order.
        sha256: of the file, so that a study does not silently become another.
        options: of the data set, by name, as {target: alt} of zsRE.
        skip_bad: go on without the records of which no fact can be made; the study says how many.
    """

    cases: str
    unique_subjects: bool
    sha256: str | None = None
    options: dict[str, Any] = {}
    skip_bad: bool = False


class TuningSpec(_Strict):
    """The way in which a ridge that is `tuned` is chosen.

    For each batch size and layer by S, on facts from the end of the seeded order, none of which is
    scored with that seed: of batches on the untouched model, and where facts are carried by the
    final S of as many carried in the same way. It is the largest ridge whose S is within one
    standard error of the highest.

    Attributes:
        ridges: candidates.
        n: facts to tune on.
        score: how many of them are scored (0: all).
    """

    ridges: Annotated[list[Ridge], Field(min_length=1, max_length=100)]
    n: Positive
    score: Annotated[int, Field(ge=0)] = 0


class Axes(_Strict):
    """Keys of a block, or of `defaults` for all blocks; a list spans an axis.

    Attributes:
        layer: a number, several, or `all`.
        layers: the layers of one run (a list of lists spans), in place of `layer`.
        batch_size: of schedules with batches (of adaptive-aimd the first and smallest, of
            adaptive-energy the largest); `n` is one batch of all facts.
        order: 0 is the seeded order, another number another order of the same facts; clustered has
            facts with similar keys one behind the other, dispersed far apart.
        score: how many facts are scored (0: all): the first ones of the seeded order, so carried
            facts of which a part is scored are never written in order 0 (and in order 1 by
            default).
        general: read held-out text, and so many items of each task of `--data`, before, in between
            and after.
        metrics: names of metrics that need more than scores of prompts, such as those of plugins.
    """

    model: Axis[str] | None = None
    dtype: Axis[str] | None = None
    method: Axis[str] | None = None
    layer: Axis[int] | Literal["all"] | None = None
    layers: list[int] | list[list[int]] | None = None
    settings: dict[str, Any] | None = None
    schedule: Axis[Regime] | None = None
    batch_size: Axis[Positive | Literal["n"]] | None = None
    n: Axis[Positive] | None = None
    seed: Axis[int] | None = None
    order: Axis[Order] | None = None
    refresh: Axis[str] | None = None
    score: Axis[Annotated[int, Field(ge=0)]] | None = None
    when: list[When] | None = None
    generation: bool | None = None
    general: Annotated[int, Field(ge=0)] | None = None
    metrics: list[str] | None = None


class Block(Axes):
    """A part of the grid, under a name."""

    name: str


class GridEntry(Frozen):
    """One place of the grid before a model is known.

    Attributes:
        layers: None is every layer.
    """

    block: str
    model: str
    dtype: str
    method: str
    layers: tuple[int, ...] | None
    settings: dict[str, Any]
    schedule: Regime
    batch_size: int
    n: int
    seed: int
    order: Order
    refresh: str
    score: int
    when: tuple[When, ...]
    generation: bool
    general: int | None = None
    metrics: tuple[str, ...] = ()


class Spec(_Strict):
    """A study. Facts are looked for beside its file too, a model's folder in the working one.

    Attributes:
        plugins: Python files beside the study's, which are run: their methods, batch rules and so
            on can be named in it.
        findings: claims that the report tests, by the name of a set or of one.
    """

    retcon_study: int
    name: str
    description: str = ""
    model: str | None = None
    dtype: str = "float32"
    device: str = "cpu"
    threads: Positive | None = None
    data: DataSpec
    tuning: TuningSpec | None = None
    plugins: list[str] = []
    findings: list[str] = []
    defaults: Axes = Axes()
    blocks: Annotated[list[Block], Field(min_length=1)]
    # The file as it was written, and where it was.
    text: Annotated[str, Field(exclude=True, repr=False)] = ""
    folder: Annotated[Path, Field(exclude=True, repr=False)] = Path()

    @cached_property
    def entries(self) -> tuple[GridEntry, ...]:
        """Every place of the grid, in the file's order; of a block's axes the last turns fastest.

        Raises:
            InvalidStudy: something is missing, or does not go together.
        """
        names = [block.name for block in self.blocks]
        twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        if twice:
            raise InvalidStudy(f"two blocks have the name {twice[0]!r}. Give each its own.")
        if self.tuning is not None:
            _distinct(self.tuning.ridges, "tuning: ridges")
        spanned = [(block, *self._spanned(block)) for block in self.blocks]
        _check_count([(block.name, axes) for block, _, axes in spanned])
        return tuple(entry for each in spanned for entry in _entries(*each))

    def _spanned(self, block: Block) -> tuple[dict[str, Any], dict[str, list[Any]]]:
        """Keys of a block with its defaults, and the values of every axis."""
        own, keys = _given(block), _given(self.defaults)
        if own.keys() & {"layer", "layers"}:
            keys = {k: v for k, v in keys.items() if k not in ("layer", "layers")}
        keys |= own
        keys["settings"] = {**(self.defaults.settings or {}), **(block.settings or {})}
        return keys, _axes(keys, self, f"block {block.name!r}")


_INTERNAL = ("text", "folder")
# By these a folder of results is known, live or packed.
_RECORD, _PACK = "study.json", "cells.jsonl"
_OWNERS: Mapping[str, tuple[str, ...]] = {
    "": tuple(set(Spec.model_fields) - set(_INTERNAL)),
    "data": tuple(DataSpec.model_fields),
    "tuning": tuple(TuningSpec.model_fields),
    "defaults": tuple(Axes.model_fields),
    "blocks": tuple(Block.model_fields),
}


def load_spec(path: Path | str) -> Spec:
    """Read a study file.

    Raises:
        InvalidStudy: no such file, no YAML, or something in it is wrong; the message says where.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            content = stream.read(_MOST_BYTES + 1)
        text = content[:_MOST_BYTES].decode("utf-8-sig")
    except OSError as error:
        raise InvalidStudy(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise InvalidStudy(f"{path} is no text in UTF-8 ({error}). Save it as UTF-8.") from error
    if len(content) > _MOST_BYTES:
        raise InvalidStudy(f"{path} is no study file: it is larger than {_MOST_BYTES >> 20} MiB.")
    return parse_spec(text, path)


def located(path: Path, text: str, place: Sequence[object]) -> str:
    """A file, and the line of a part of its text, where that is known."""
    line = line_of(text, place)
    return str(path) if line is None else f"{path}, line {line}"


def parse_spec(text: str, path: Path = Path("study.yaml")) -> Spec:
    """A study from the text of its file; `path` is where it was.

    Raises:
        InvalidStudy: as `load_spec`.
    """
    keys = read_yaml(text, str(path))
    if not isinstance(keys, dict) or "retcon_study" not in keys:
        raise InvalidStudy(
            f"{path} is no study file: it must begin with `retcon_study: {VERSION}`."
        )
    if keys["retcon_study"] != VERSION:
        raise InvalidStudy(
            f"{path} is of version {keys['retcon_study']!r}; this Retcon reads {VERSION}. "
            f"Update Retcon, or write the file for this version (`retcon study schema`)."
        )
    _load_plugins(keys.get("plugins") or (), path)
    try:
        # What is no key of the file: as no key at all, lest it be overwritten here.
        keys = {f"{k} " if k in _INTERNAL else k: v for k, v in keys.items()}
        spec = Spec.model_validate({**keys, "text": bare(text), "folder": path.parent})
    except ValidationError as error:
        place, why = explain(error, _OWNERS)
        raise InvalidStudy(f"{located(path, text, place)}: {why}") from None
    try:
        _ = spec.entries  # what does not go together is told now
    except InvalidStudy as error:
        raise InvalidStudy(f"{path}: {error}") from None
    return spec


def _load_plugins(names: Iterable[object], path: Path) -> None:
    """Run the files that a study names, unless they were run already.

    A folder of results runs nothing: its study file stands there without its plugins.

    Raises:
        InvalidStudy: it is a study's folder, and a plugin was not named on the command line.
    """
    for name in map(str, names):
        if Path(name).stem in loaded_plugins():
            continue
        if (path.parent / _RECORD).exists() or (path.parent / _PACK).exists():
            raise InvalidStudy(
                f"{path}: the study was run with the plugin {name}, which a folder of results "
                f"does not run by itself. Name it: retcon --plugin {name} study …"
            )
        load_plugin(path.parent / name)


def json_schema() -> dict[str, Any]:
    """The schema of the file, for editors."""
    schema = Spec.model_json_schema()
    for internal in _INTERNAL:
        schema["properties"].pop(internal)
    schema["properties"]["retcon_study"] = {"const": VERSION, "title": "Version of the format"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


# Settings whose one value is a list; a list of lists spans an axis of them.
LISTS = ("prefix_tokens", "forms")
_SPANNED = ("model", "dtype", "method", "schedule", "n", "batch_size", "seed", "order", "refresh")
_DEFAULTS: Mapping[str, Any] = {
    "seed": 0,
    "order": None,
    "refresh": "each-batch",
    "score": 0,
    "batch_size": None,
    "when": ["pre", "immediate", "final"],
    "generation": False,
}


def _check_count(blocks: Sequence[tuple[str, Mapping[str, Sequence[Any]]]]) -> None:
    """Refuse a grid that nobody could spell out."""
    counts = {name: prod(map(len, axes.values())) for name, axes in blocks}
    if sum(counts.values()) <= MOST_PLACES:
        return
    name, axes = max(blocks, key=lambda block: counts[block[0]])
    spans = " × ".join(f"{axis} {len(v):,}" for axis, v in axes.items() if len(v) > 1)
    raise InvalidStudy(
        f"the grid has {sum(counts.values()):,} places, and at most {MOST_PLACES:,} are planned. "
        f"Block {name!r} alone spans {spans}: shorten an axis, or make several studies."
    )


def _entries(
    block: Block, keys: Mapping[str, Any], axes: Mapping[str, list[Any]]
) -> Iterator[GridEntry]:
    """The places of a block, each once: a batch of n is of some n a size that is listed too."""
    where = f"block {block.name!r}"
    for name, values in axes.items():
        _distinct(values, f"{where}: {name}")
    _check_when(keys.get("when", _DEFAULTS["when"]), axes["schedule"], block, where)
    known: set[str] = set()
    for values in product(*axes.values()):
        place = dict(zip(axes, values, strict=True))
        entry = _entry(block.name, place, keys, where)
        key = repr(list(vars(entry).values()))
        if key not in known:
            known.add(key)
            yield entry


def _given(axes: Axes) -> dict[str, Any]:
    return {k: v for k, v in axes if v is not None and k not in ("name", "settings")}


def _axes(keys: dict[str, Any], spec: Spec, where: str) -> dict[str, list[Any]]:
    """The values of every axis. A setting's axis is named `settings.` and its name."""
    known = {"model": spec.model, "dtype": spec.dtype, **_DEFAULTS, **keys}
    for name in ("model", "method", "schedule", "n"):
        if known.get(name) is None:
            raise InvalidStudy(f"{where}: {name} is missing. Give it there or in defaults.")
    axes = {name: _several(known[name]) for name in (*_SPANNED, "score")}
    axes["layers"] = _layers(known, where)
    for name, value in keys["settings"].items():
        one = name in LISTS and not any(isinstance(part, list) for part in _several(value))
        axes[f"settings.{name}"] = [value] if one else _several(value)
    return axes


def _distinct(values: Sequence[Any], where: str) -> None:
    """Refuse a list that spans nothing, or the same place twice."""
    if not values:
        raise InvalidStudy(f"{where} is an empty list. Give a value, or leave it out.")
    known: set[str] = set()
    for value in values:
        if repr(value) in known:
            raise InvalidStudy(f"{where} has {value!r} twice. Leave one out.")
        known.add(repr(value))


def _check_when(when: list[When], schedules: list[Regime], block: Block, where: str) -> None:
    """Refuse times that do not come."""
    _distinct(when, f"{where}: when")
    late = [each for each in when if each in ("final", "retention")]
    single = [each for each in schedules if not carries(each)]
    own = block.when is not None and len(single) == len(schedules)
    if late and single and (own or len(late) == len(when)):
        raise InvalidStudy(
            f"{where}: there are no {late[0]} scores with the schedule {single[0]}, which writes "
            f"each batch into the untouched model. Take pre and immediate, or a sequential one."
        )
    if "retention" in when and "final" not in when:
        raise InvalidStudy(
            f"{where}: retention ends where final begins, after the last batch. Add final to when."
        )


def _several(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def _layers(known: Mapping[str, Any], where: str) -> list[tuple[int, ...] | None]:
    """Layer sets; None stands for each layer of the model."""
    if "layer" in known and "layers" in known:
        raise InvalidStudy(f"{where}: give either layer or layers, not both.")
    if "layers" in known:
        value = known["layers"]
        sets = value if value and isinstance(value[0], list) else [value]
        for layers in sets:
            _distinct(layers, f"{where}: layers")
            _check_layers(layers, where)
        return [tuple(layers) for layers in sets]
    if "layer" not in known:
        raise InvalidStudy(f"{where}: give a layer (a number, a list or all), or layers.")
    if known["layer"] == "all":
        return [None]
    single = _several(known["layer"])
    for layer in single:
        _check_layers([layer], where)
    return [(layer,) for layer in single]


def _check_layers(layers: list[int], where: str) -> None:
    """Refuse layers that no model has, and those of one run that are out of order."""
    if min(layers, default=0) < 0:
        raise InvalidStudy(f"{where}: layer {min(layers)} is none: they are counted from 0.")
    if sorted(layers) != layers:
        raise InvalidStudy(
            f"{where}: layers {layers} are not in ascending order: {sorted(layers)}."
        )


def _entry(block: str, place: dict[str, Any], keys: Mapping[str, Any], where: str) -> GridEntry:
    n, size, schedule = place["n"], place["batch_size"], place["schedule"]
    whole = schedule not in ("single", "sequential")
    if whole and size is None:
        raise InvalidStudy(f"{where}: {schedule} needs a batch_size.")
    if not whole and size not in (None, 1):
        raise InvalidStudy(
            f"{where}: {schedule} writes one fact at a time and takes no batch_size; "
            f"did you mean {'sequential-batch' if schedule == 'sequential' else 'batch'}?"
        )
    size = n if size == "n" else size or 1
    if size > n:
        raise InvalidStudy(
            f"{where}: a batch of {size} facts is larger than n = {n}. Raise n, or leave that "
            f"batch size out."
        )
    when = keys.get("when", _DEFAULTS["when"])
    carried = carries(schedule)
    score = min(place["score"], n) or n
    return GridEntry(
        **{k: place[k] for k in ("model", "dtype", "method", "layers", "schedule", "n", "seed")},
        block=block,
        settings={k.removeprefix("settings."): v for k, v in place.items() if "." in k},
        batch_size=size,
        order=_order(place["order"], carried and score < n, where),
        refresh=place["refresh"],
        score=score,
        when=tuple(w for w in when if carried or w in ("pre", "immediate")),
        generation=keys.get("generation", False),
        general=keys.get("general") if carried else None,
        metrics=tuple(keys.get("metrics") or ()),
    )


def _order(order: Order | None, part: bool, where: str) -> Order:
    """The order in which facts are written. part: they are carried, and a part of them is scored.

    Raises:
        InvalidStudy: that part would be written first.
    """
    if order == 0 and part:
        raise InvalidStudy(
            f"{where}: of the carried facts a part is scored, and in order 0 that part is written "
            f"first: its scores would tell of the oldest facts alone. Take order 1, 2, … (1 is "
            f"what no `order` means here), or score all facts (score: 0)."
        )
    return int(part) if order is None else order
