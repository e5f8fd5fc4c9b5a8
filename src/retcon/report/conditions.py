"""The conditions that a study compares, and what they are called.

A condition is all points that differ in nothing but seeds: an `Arm`, known by its `Condition`.
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


class Condition(NamedTuple):
    """Everything that makes an arm, seeds aside: of the facts, of prefixes, and of the corpus.

    Attributes:
        carried: False where each batch meets the untouched model.
        rule: the batch rule, where one decides; else empty.
        ridge: the number, `hard` for 0, `none` where the method has none, or `tuned` where it was
            chosen for each seed.
        ridge_batch: facts that λ is for; 0: a batch.
        accumulate, refresh: None where no edits are carried.
        score: how many facts are scored.
        others: further settings as JSON.
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
        """All fields but some: conditions that are equal in these differ in nothing else."""
        return tuple(v for k, v in self._asdict().items() if k not in names)

    @property
    def first_written(self) -> bool:
        """True if the facts that are scored are those that were written first, and not all.

        Right after their batches few others are in the weights, and at the end they are the oldest.
        """
        part = 0 < self.score < self.n
        return self.carried and self.batch_size < self.n and part and self.order == 0

    def across_n(self) -> tuple[object, ...]:
        """Fields that must be equal to compare different N and batch sizes.

        The number of an order is none of them: of other facts every order is another one.
        """
        by_keys = self.order if isinstance(self.order, str) else None
        return (*self.but("n", "batch_size", "score", "order"), by_keys)


class SeedRun(NamedTuple):
    """One seed of an arm, and one draw of what is sampled beside the facts.

    Attributes:
        seed: of the facts.
        draw: the seeds of prefixes and corpus, where they are not 0.
        cell: id of the cell.
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

    condition: Condition
    runs: tuple[SeedRun, ...]
    point: Point

    @property
    def load(self) -> float:
        """Facts per input dimension at the end."""
        held = self.condition.n if self.condition.carried else self.condition.batch_size
        return held / self.point.capacity

    @property
    def cells(self) -> frozenset[str]:
        """The cells that its scores come from."""
        return frozenset(run.cell for run in self.runs)


def condition_of(point: Point) -> Condition:
    """The condition of a point: all of it that can matter, seeds aside."""
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
    return Condition(
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
    by_condition: dict[Condition, dict[Seeds, Point]] = defaultdict(dict)
    for point in points:
        runs = by_condition[condition_of(point)]
        seeds = point.seed, _draw(point)
        known = runs.get(seeds)
        if known is None or len(point.when) > len(known.when):
            runs[seeds] = point
    return [
        Arm(
            condition,
            tuple(
                SeedRun(*seeds, p.cell) for seeds, p in sorted(runs.items()) if p.cell is not None
            ),
            next(iter(runs.values())),
        )
        for condition, runs in by_condition.items()
    ]


def _draw(point: Point) -> tuple[tuple[str, int], ...]:
    """The seeds of what is sampled beside the facts, where they are not 0."""
    seeds = {what: point.settings.get(name) for name, what in _DRAWN.items()}
    return tuple((what, n) for what, n in seeds.items() if isinstance(n, int) and n)


def families(
    arms: Iterable[Arm], vary: str, keep: Callable[[Arm], bool]
) -> Iterator[dict[object, Arm]]:
    """Arms that differ in one field alone, by its value in order; two at least."""
    groups: Mapping[tuple[object, ...], list[Arm]] = defaultdict(list)
    for arm in arms:
        if keep(arm):
            groups[arm.condition.but(vary)].append(arm)
    for group in groups.values():
        if len(group) > 1:
            by_value = {getattr(arm.condition, vary): arm for arm in group}
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
    "finetune_lora": "LoRA",
    "in_context": "In context",
}


def called(method: str) -> str:
    """A method's title; the name of one that came with a plugin."""
    return _TITLES.get(method, method)


def further(arm: Arm, among: Sequence[Arm]) -> str:
    """An arm's further settings: those in which some arms differ."""
    every = [json.loads(one.condition.others) for one in among]
    mine = json.loads(arm.condition.others)
    varied = [k for k in mine if len({json.dumps(one.get(k)) for one in every}) > 1]
    return ", ".join(f"{k} {mine[k]}" for k in varied)


WORDS: Mapping[str, Callable[[Condition], str]] = {
    "model": lambda s: s.model,
    "method": lambda s: called(s.method),
    "layers": lambda s: f"layer{'s' * (len(s.layers) > 1)} {', '.join(map(str, s.layers))}",
    "carried": lambda s: "carried" if s.carried else "each batch on the untouched model",
    "rule": lambda s: {
        "": "",
        "aimd": "batches that grow and shrink",
        "energy": "batches of compatible facts",
    }.get(s.rule, f"batches by {s.rule}"),
    "batch_size": lambda s: f"batches of {s.batch_size:,}",
    "n": lambda s: f"N = {s.n:,}",
    "ridge": lambda s: {"hard": "hard constraint", "none": "no λ"}.get(s.ridge, f"λ {s.ridge}"),
    "ridge_batch": lambda s: "λ per fact" if s.ridge_batch else "λ per batch",
    "accumulate": lambda s: {None: "", True: "past keys kept", False: "past keys forgotten"}[
        s.accumulate
    ],
    "refresh": lambda s: {
        None: "",
        "each-batch": "targets refreshed",
        "never": "targets frozen",
    }.get(s.refresh, f"targets {s.refresh}"),
    "order": lambda s: f"order {s.order}" if isinstance(s.order, int) else f"{s.order} order",
    "dtype": lambda s: s.dtype,
    "score": lambda s: f"{s.score or s.n:,} scored",
    "others": lambda s: s.others.strip("{}").replace('"', "") or "other settings as given",
}


def describe(condition: Condition, fields: Iterable[str]) -> str:
    """A condition in words, by some of its fields."""
    return ", ".join(words for name in fields if (words := WORDS[name](condition)))


def varying(arms: Sequence[Arm], *without: str) -> tuple[str, ...]:
    """The fields in which arms differ, in the order in which they are best named."""
    return tuple(
        name
        for name in WORDS
        if name not in without and len({getattr(arm.condition, name) for arm in arms}) > 1
    )


def full_names(arms: Sequence[Arm]) -> dict[Condition, str]:
    """Name conditions: by method, and by as much more as tells each from all others.

    Further settings are named where most conditions do not have them.
    """
    fields = _telling([arm.condition for arm in arms])
    return _with_rare({arm.condition: describe(arm.condition, fields) for arm in arms})


def short_names(arms: Sequence[Arm]) -> tuple[dict[Condition, str], str]:
    """Name conditions by what more than half of them do not have; and say what that is.

    Where names would not tell all apart, they are `full_names`, and there is nothing to say.
    """
    conditions = [arm.condition for arm in arms]
    usual: dict[str, Condition] = {}
    for field in _telling(conditions)[1:]:
        value, count = Counter(getattr(one, field) for one in conditions).most_common(1)[0]
        if count > len(conditions) / 2:
            usual[field] = next(one for one in conditions if getattr(one, field) == value)
    names = _with_rare(
        {
            one: describe(
                one,
                (
                    field
                    for field in _telling(conditions)
                    if field not in usual or getattr(one, field) != getattr(usual[field], field)
                ),
            )
            for one in conditions
        }
    )
    if len({*names.values()}) < len(names):
        return full_names(arms), ""
    words = (WORDS[field](one) for field, one in usual.items())
    return names, ", ".join(filter(None, words))


def _with_rare(names: Mapping[Condition, str]) -> dict[Condition, str]:
    """Names that are not alike; with the further settings that most do not have, where some are."""
    if len({*names.values()}) == len(names):
        return dict(names)
    common = Counter(pair for condition in names for pair in _others(condition))
    rare = {
        condition: [f"{k} {v}" for k, v in _others(condition) if common[k, v] <= len(names) / 2]
        for condition in names
    }
    return {condition: ", ".join([name, *rare[condition]]) for condition, name in names.items()}


def _telling(conditions: Sequence[Condition]) -> list[str]:
    """The fields that tell conditions apart, the method first; each adds to those before."""
    fields, groups = ["method"], len({condition.method for condition in conditions})
    for name in (name for name in WORDS if name not in ("method", "others")):
        apart = len({tuple(getattr(one, field) for field in (*fields, name)) for one in conditions})
        if apart > groups:
            fields, groups = [*fields, name], apart
    return fields


# What goes without saying.
_PLAIN: Mapping[str, tuple[object, ...]] = {
    "rule": ("",),
    "accumulate": (True, None),
    "refresh": ("each-batch", None),
    "ridge": ("tuned", "none"),
}
PLAIN = "Unless named: past keys kept, targets refreshed, first order, λ tuned where there is one."


def names_of(arms: Sequence[Arm]) -> dict[Condition, str]:
    """Name conditions: by method, batch size, and what is not `PLAIN`, or not as with most."""
    fields = dict.fromkeys(("method", *varying(arms, "score", "others")))
    usual = {
        name: Counter(getattr(arm.condition, name) for arm in arms).most_common(1)[0][0]
        for name in fields
        if arms
    }
    common = Counter(pair for arm in arms for pair in _others(arm.condition))
    orders = defaultdict[tuple[object, ...], list[Order]](list)
    for arm in arms:
        orders[arm.condition.but("order")].append(arm.condition.order)

    def plain(name: str, condition: Condition) -> bool:
        if name == "order":  # a name for the first of several orders would tell nothing
            return condition.order == min(orders[condition.but("order")], key=str)
        return getattr(condition, name) in _PLAIN.get(name, (usual[name],))

    def told(condition: Condition) -> Iterator[str]:
        for name in fields:
            if name in ("method", "batch_size") or not plain(name, condition):
                yield WORDS[name](condition)
        rare = (pair for pair in _others(condition) if common[pair] <= len(arms) / 2)
        yield from (f"{name} {value}" for name, value in rare)

    return {arm.condition: ", ".join(told(arm.condition)) for arm in arms}


def _others(condition: Condition) -> list[tuple[str, str]]:
    """Further settings, and what they are."""
    settings = json.loads(condition.others)
    return [(name, json.dumps(value).strip('"')) for name, value in settings.items()]
