"""Families of conditions: those that differ in batch size alone, from the smallest up."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from retcon.report.conditions import Arm, Condition, describe, families, varying
from retcon.report.results import Results

# The conditions of a family, by batch size.
Family = dict[int, Arm]
# What of several families goes first: the one whose setting has the least of this.
Rank = Callable[[Condition], tuple[object, ...]]


def plainness(condition: Condition) -> tuple[object, ...]:
    """Rank conditions by what is special about them: those with nothing special first."""
    return (
        condition.first_written,
        condition.accumulate is False,
        condition.refresh not in (None, "each-batch"),
        condition.ridge_batch != 0,
        str(condition.order),  # the first number before others, and before orders by keys
        condition.dtype != "float32",
    )


def by_size(results: Results, *, carried: bool, when: str, rank: Rank = plainness) -> list[Family]:
    """Families of conditions that were scored at a time, in the order of `rank`."""

    def fits(arm: Arm) -> bool:
        return arm.condition.carried is carried and results.has(arm, when)

    def order(family: Family) -> tuple[object, ...]:
        condition = next(iter(family.values())).condition
        return (*rank(condition), -len(family), -condition.n)

    varied = families(results.arms, "batch_size", fits)
    return sorted(
        ({arm.condition.batch_size: arm for arm in each.values()} for each in varied), key=order
    )


def carried_by_size(results: Results, when: str, rank: Rank = plainness) -> list[Family]:
    """Families of carried edits; one batch of all facts belongs to each, however it was named."""
    curves = by_size(results, carried=True, when=when, rank=rank)
    wholes = [arm for arm in results.arms if arm.condition.batch_size == arm.condition.n]
    alike = ("carried", "batch_size", "accumulate", "refresh", "order")
    for curve in curves:
        condition = next(iter(curve.values())).condition
        for arm in wholes:
            if arm.condition.but(*alike) == condition.but(*alike):
                curve.setdefault(condition.n, arm)
    return curves


def leading(curves: Sequence[Family]) -> list[Family]:
    """The first family of each model and method."""
    first: dict[tuple[str, str], Family] = {}
    for curve in curves:
        condition = next(iter(curve.values())).condition
        first.setdefault((condition.model, condition.method), curve)
    return list(first.values())


def largest(curves: Sequence[Family]) -> list[Family]:
    """The families of the largest N."""
    most = max((shared(curve).n for curve in curves), default=0)
    return [curve for curve in curves if shared(curve).n == most]


def states(curves: Sequence[Family]) -> list[Family]:
    """The families of one N, one method and one order: those of which there are most.

    If several have as many, take the larger N, the method that comes first, and the first order.
    """
    number = _most_common([shared(curve).n for curve in curves], lambda n: n)
    curves = [curve for curve in curves if shared(curve).n == number]
    places = {shared(curve).method: -place for place, curve in reversed([*enumerate(curves)])}
    # A method and an order together, of which a study may have one for each method.
    kinds = [(shared(curve).method, str(shared(curve).order)) for curve in curves]
    orders = sorted({order for _, order in kinds}, reverse=True)
    most = _most_common(kinds, lambda kind: (places[kind[0]], orders.index(kind[1])))
    return [curve for curve, kind in zip(curves, kinds, strict=True) if kind == most]


def _most_common(values: Sequence[object], then: Callable[..., object]) -> object:
    count = Counter(values)
    return max(count, key=lambda value: (count[value], then(value)), default=None)


def shared(curve: Mapping[int, Arm]) -> Condition:
    """The condition that stands for a family: its smallest batches'.

    One batch of all facts belongs to many families.
    """
    return curve[min(curve)].condition


def name_of(curve: Mapping[int, Arm], among: Sequence[Family]) -> str:
    """A family in words: its method, and in what it differs from the other families."""
    arms = [arm for other in among for arm in other.values()]
    fields = dict.fromkeys(("method", *varying(arms, "batch_size", "score")))
    return describe(next(iter(curve.values())).condition, fields)


def name_with_number(curve: Mapping[int, Arm], among: Sequence[Family]) -> str:
    """A family in words, with its N, which is said once."""
    name, number = name_of(curve, among), f"N = {shared(curve).n:,}"
    return name if number in name else f"{name}, {number}"
