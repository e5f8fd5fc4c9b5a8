"""The conditions that a study compares, and what they are called.

A condition is all points that differ in nothing but seeds: an `Arm`, known by its `Setting`.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from retcon.study.points import Order, Point, carries

# Settings that are seeds of what is sampled beside the facts.
_DRAWN = {"seed": "prefixes", "corpus_seed": "corpus"}

# Of the facts, and of what is sampled beside them.
Seeds = tuple[int, tuple[tuple[str, int], ...]]


class Setting(NamedTuple):
    """Everything that makes an arm, seeds aside: of the facts, of prefixes, and of the corpus.

    ridge: the number, `hard` for 0, `none` where the method has none, or `tuned` where it was
    chosen for each seed. accumulate, refresh: None
    where no edits are carried. others: further settings as JSON.
    """

    model: str
    dtype: str
    method: str
    layers: tuple[int, ...]
    carried: bool
    rule: str
    batch_size: int
    n: int
    ridge: str
    ridge_batch: int
    accumulate: bool | None
    refresh: str | None
    order: Order
    score: int
    others: str

    def but(self, *names: str) -> tuple[object, ...]:
        """The rest of a setting, some fields left out: what must be equal to compare them."""
        return tuple(v for k, v in self._asdict().items() if k not in names)

    @property
    def first_written(self) -> bool:
        """True if the facts that are scored are those that were written first, and not all.

        Right after their batches few others are in the weights, and at the end they are the oldest.
        """
        part = 0 < self.score < self.n
        return self.carried and self.batch_size < self.n and part and self.order == 0

    def across_n(self) -> tuple[object, ...]:
        """All that must be equal to compare different N and batch sizes.

        The number of an order is not: of other facts every order is another one.
        """
        by_keys = self.order if isinstance(self.order, str) else None
        return (*self.but("n", "batch_size", "score", "order"), by_keys)


class Run(NamedTuple):
    """One seed of an arm, and one draw of what is sampled beside the facts.

    draw: the seeds of prefixes and corpus, where they are not 0.
    """

    seed: int
    draw: tuple[tuple[str, int], ...]
    cell: str

    @property
    def name(self) -> str:
        """The name that tells it from the other runs of its arm: `0`, or `0 (prefixes 1)`."""
        drawn = ", ".join(f"{what} {number}" for what, number in self.draw)
        return f"{self.seed} ({drawn})" if drawn else str(self.seed)


@dataclass(frozen=True)
class Arm:
    """Finished runs that differ in nothing but seeds."""

    setting: Setting
    runs: tuple[Run, ...]
    point: Point

    @property
    def load(self) -> float:
        """Facts per input dimension at the end."""
        held = self.setting.n if self.setting.carried else self.setting.batch_size
        return held / self.point.capacity

    @property
    def cells(self) -> frozenset[str]:
        """The cells that its scores come from."""
        return frozenset(run.cell for run in self.runs)


def setting_of(point: Point) -> Setting:
    """The setting of a point: all of it that can matter, seeds aside."""
    alone = point.schedule in ("single", "sequential")
    batch_size = 1 if alone else min(point.batch_size, point.n)
    carried = carries(point.schedule)
    settings = dict(point.settings)
    ridge_batch = settings.pop("ridge_batch", 0)
    settings.pop("accumulate", None)
    settings.pop("ridge", None)
    for name in _DRAWN:
        settings.pop(name, None)
    fixed = "none" if point.ridge is None else f"{point.ridge:g}" if point.ridge else "hard"
    return Setting(
        model=point.model,
        dtype=point.dtype,
        method=point.method,
        layers=point.layers,
        carried=carried,
        rule=point.schedule.removeprefix("adaptive-") if "adaptive" in point.schedule else "",
        batch_size=batch_size,
        n=point.n,
        ridge="tuned" if point.tuned else fixed,
        ridge_batch=ridge_batch if isinstance(ridge_batch, int) else 0,
        accumulate=point.accumulate if carried else None,
        refresh=point.refresh if carried else None,
        order=point.order,
        score=point.score,
        others=json.dumps(settings, sort_keys=True),
    )


def gather(points: Iterable[Point]) -> list[Arm]:
    """Points as arms: equal ones of several blocks count once."""
    found: dict[Setting, dict[Seeds, Point]] = defaultdict(dict)
    for point in points:
        runs = found[setting_of(point)]
        seeds = point.seed, _draw(point)
        known = runs.get(seeds)
        if known is None or len(point.when) > len(known.when):
            runs[seeds] = point
    return [
        Arm(
            setting,
            tuple(Run(*seeds, p.cell) for seeds, p in sorted(runs.items()) if p.cell is not None),
            next(iter(runs.values())),
        )
        for setting, runs in found.items()
    ]


def _draw(point: Point) -> tuple[tuple[str, int], ...]:
    """The seeds of what is sampled beside the facts, where they are not 0."""
    said = {what: point.settings.get(name) for name, what in _DRAWN.items()}
    return tuple((what, n) for what, n in said.items() if isinstance(n, int) and n)


def families(
    arms: Iterable[Arm], vary: str, keep: Callable[[Arm], bool]
) -> Iterator[dict[object, Arm]]:
    """Arms that differ in one field alone, by its value in order; two at least."""
    groups: Mapping[tuple[object, ...], list[Arm]] = defaultdict(list)
    for arm in arms:
        if keep(arm):
            groups[arm.setting.but(vary)].append(arm)
    for group in groups.values():
        if len(group) > 1:
            by_value = {getattr(arm.setting, vary): arm for arm in group}
            yield {value: by_value[value] for value in sorted(by_value)}


# The report knows no methods: it loads no torch.
_TITLES = {
    "rome": "ROME",
    "memit": "MEMIT",
    "emmet": "EMMET",
    "encore": "ENCORE",
    "alphaedit": "AlphaEdit",
    "lyaplock": "LyapLock",
    "ultraedit": "UltraEdit",
    "finetune": "FT-L",
    "in_context": "In context",
}


def called(method: str) -> str:
    """A method's title; the name of one that came with a plugin."""
    return _TITLES.get(method, method)


def further(arm: Arm, among: Sequence[Arm]) -> str:
    """An arm's further settings, those alone in which some arms differ."""
    every = [json.loads(one.setting.others) for one in among]
    mine = json.loads(arm.setting.others)
    varied = [k for k in mine if len({json.dumps(one.get(k)) for one in every}) > 1]
    return ", ".join(f"{k} {mine[k]}" for k in varied)


WORDS: Mapping[str, Callable[[Setting], str]] = {
    "model": lambda s: s.model,
    "method": lambda s: called(s.method),
    "layers": lambda s: f"layer{'s' * (len(s.layers) > 1)} {', '.join(map(str, s.layers))}",
    "carried": lambda s: "carried" if s.carried else "each batch on the untouched model",
    "rule": lambda s: {
        "": "", "aimd": "batches that grow and shrink", "energy": "batches of compatible facts"
    }.get(s.rule, f"batches by {s.rule}"),
    "batch_size": lambda s: f"batches of {s.batch_size:,}",
    "n": lambda s: f"N = {s.n:,}",
    "ridge": lambda s: {"hard": "hard constraint", "none": "no λ"}.get(s.ridge, f"λ {s.ridge}"),
    "ridge_batch": lambda s: "λ per fact" if s.ridge_batch else "λ per batch",
    "accumulate": lambda s: {
        None: "", True: "past keys kept", False: "past keys forgotten"
    }[s.accumulate],
    "refresh": lambda s: {
        None: "", "each-batch": "targets refreshed", "never": "targets frozen"
    }.get(s.refresh, f"targets {s.refresh}"),
    "order": lambda s: f"order {s.order}" if isinstance(s.order, int) else f"{s.order} order",
    "dtype": lambda s: s.dtype,
    "score": lambda s: f"{s.score or s.n:,} scored",
    "others": lambda s: s.others.strip("{}").replace('"', "") or "other settings as given",
}  # fmt: skip


def describe(setting: Setting, fields: Iterable[str]) -> str:
    """A setting in words, by some of its fields."""
    return ", ".join(words for name in fields if (words := WORDS[name](setting)))


def varying(arms: Sequence[Arm], *without: str) -> tuple[str, ...]:
    """The fields in which arms differ, in the order in which they are best named."""
    return tuple(
        name
        for name in WORDS
        if name not in without and len({getattr(arm.setting, name) for arm in arms}) > 1
    )


def full_names(arms: Sequence[Arm]) -> dict[Setting, str]:
    """Name conditions: by method, and by as much more as tells each from all others.

    Of further settings those that most do not have.
    """
    fields = _telling([arm.setting for arm in arms])
    return _with_rare({arm.setting: describe(arm.setting, fields) for arm in arms})


def short_names(arms: Sequence[Arm]) -> tuple[dict[Setting, str], str]:
    """Name conditions by what more than half of them do not have; and say what that is.

    Where names would not tell all apart, they are `full_names`, and there is nothing to say.
    """
    settings = [arm.setting for arm in arms]
    usual: dict[str, Setting] = {}
    for field in _telling(settings)[1:]:
        value, count = Counter(getattr(one, field) for one in settings).most_common(1)[0]
        if count > len(settings) / 2:
            usual[field] = next(one for one in settings if getattr(one, field) == value)
    names = _with_rare(
        {
            one: describe(
                one,
                (
                    field
                    for field in _telling(settings)
                    if field not in usual or getattr(one, field) != getattr(usual[field], field)
                ),
            )
            for one in settings
        }
    )
    if len({*names.values()}) < len(names):
        return full_names(arms), ""
    words = (WORDS[field](one) for field, one in usual.items())
    return names, ", ".join(filter(None, words))


def _with_rare(names: Mapping[Setting, str]) -> dict[Setting, str]:
    """Names that are not alike; with the further settings that most do not have, where some are."""
    if len({*names.values()}) == len(names):
        return dict(names)
    common = Counter(pair for setting in names for pair in _others(setting))
    rare = {
        setting: [f"{k} {v}" for k, v in _others(setting) if common[k, v] <= len(names) / 2]
        for setting in names
    }
    return {setting: ", ".join([name, *rare[setting]]) for setting, name in names.items()}


def _telling(settings: Sequence[Setting]) -> list[str]:
    """The fields that tell settings apart, the method first; each adds to those before."""
    fields, told = ["method"], len({setting.method for setting in settings})
    for name in (name for name in WORDS if name not in ("method", "others")):
        apart = len({tuple(getattr(one, field) for field in (*fields, name)) for one in settings})
        if apart > told:
            fields, told = [*fields, name], apart
    return fields


# What goes without saying.
_PLAIN: Mapping[str, tuple[object, ...]] = {
    "rule": ("",), "accumulate": (True, None), "refresh": ("each-batch", None),
    "ridge": ("tuned", "none"),
}  # fmt: skip
PLAIN = "Unless named: past keys kept, targets refreshed, first order, λ tuned where there is one."


def names_of(arms: Sequence[Arm]) -> dict[Setting, str]:
    """Name conditions: by method, batch size, and what is not `PLAIN`, or not as with most."""
    fields = dict.fromkeys(("method", *varying(arms, "score", "others")))
    usual = {
        name: Counter(getattr(arm.setting, name) for arm in arms).most_common(1)[0][0]
        for name in fields
        if arms
    }
    common = Counter(pair for arm in arms for pair in _others(arm.setting))
    orders = defaultdict[tuple[object, ...], list[Order]](list)
    for arm in arms:
        orders[arm.setting.but("order")].append(arm.setting.order)

    def plain(name: str, setting: Setting) -> bool:
        if name == "order":  # a name for the first of several orders would tell nothing
            return setting.order == min(orders[setting.but("order")], key=str)
        return getattr(setting, name) in _PLAIN.get(name, (usual[name],))

    def told(setting: Setting) -> Iterator[str]:
        for name in fields:
            if name in ("method", "batch_size") or not plain(name, setting):
                yield WORDS[name](setting)
        rare = (pair for pair in _others(setting) if common[pair] <= len(arms) / 2)
        yield from (f"{name} {value}" for name, value in rare)

    return {arm.setting: ", ".join(told(arm.setting)) for arm in arms}


def _others(setting: Setting) -> list[tuple[str, str]]:
    """Further settings, and what they are."""
    found = json.loads(setting.others)
    return [(name, json.dumps(value).strip('"')) for name, value in found.items()]
