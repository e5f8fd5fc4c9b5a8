"""Paired differences between kinds of carried edits, over the orders that both were run in.

    python benchmarks/carried.py docs/results/toy-lifelong --n 1024 [--metric S] [--against NAME …]

Final scores of a finished study. Without --against the names are listed, as the report has them;
with it every kind is compared with each of those that are named. Intervals are clustered by
relation.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from retcon.evaluation.inference import Statistic
from retcon.report.arms import Arm, Results
from retcon.report.names import carried_names
from retcon.study.reading import read_study

Order = int | str
Kinds = dict[str, dict[Order, Arm]]


def kinds_of(results: Results, n: int) -> Kinds:
    """The arms of each kind, by name and order: order 0 has the name without one."""
    arms = [a for a in results.arms if a.setting.carried and a.setting.n == n]
    names = carried_names(arms)
    groups: dict[tuple[object, ...], dict[Order, Arm]] = defaultdict(dict)
    for arm in arms:
        groups[arm.setting.but("order")][arm.setting.order] = arm
    return {names[next(iter(group.values())).setting]: group for group in groups.values()}


def mean_over(arms: Sequence[Arm], sign: float) -> list[tuple[float, Arm]]:
    """Each with its share of a mean."""
    return [(sign / len(arms), arm) for arm in arms]


def told(found: Statistic | None, sign: str = "") -> str:
    """A score with its interval."""
    if found is None:
        return "–"
    one = found.estimate()
    return f"{one.mean:{sign}.1f} [{one.low:{sign}.1f}, {one.high:{sign}.1f}]"


def compared(results: Results, one: dict[Order, Arm], other: dict[Order, Arm], metric: str) -> str:
    """One kind minus another: over the orders of both, or, where the other has but one, all."""
    shared = [order for order in one if order in other]
    alone = len(other) == 1
    mine = [one[order] for order in (one if alone else shared)]
    theirs = list(other.values()) if alone else [other[order] for order in shared]
    if not mine or mine == theirs:
        return "–"
    terms = [*mean_over(mine, 1.0), *mean_over(theirs, -1.0)]
    return told(results.contrast(terms, "final", metric), "+")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--n", type=int, required=True)
    parser.add_argument("--metric", default="S")
    parser.add_argument("--against", nargs="*", default=[])
    chosen = parser.parse_args()
    results = Results(read_study(chosen.folder))
    kinds = kinds_of(results, chosen.n)
    unknown = [name for name in chosen.against if name not in kinds]
    if unknown:
        parser.error(f"no kind is called {unknown[0]!r}; there are:\n  " + "\n  ".join(kinds))
    head = ["kind", "orders", chosen.metric, *(f"− {name}" for name in chosen.against)]
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for name, arms in kinds.items():
        own = results.contrast(mean_over(list(arms.values()), 1.0), "final", chosen.metric)
        cells = [name, ", ".join(map(str, arms)), told(own)]
        cells += [compared(results, arms, kinds[x], chosen.metric) for x in chosen.against]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
