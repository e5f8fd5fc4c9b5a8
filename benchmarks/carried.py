"""Paired differences between kinds of carried edits, over the orders that both were run in.

    python benchmarks/carried.py results/toy-lifelong --n 1024 [--metric S]
        [--orders ORDER …] [--against NAME …] [--widest K] [--quarters]

Final scores of a finished study, over all orders or over those that are named. Without --against
the names are listed, as the report has them; with it every kind is compared with each of those that
are named. Intervals are clustered by relation, each for itself. --widest: of all pairs among the K
kinds of the highest scores, the difference that is the farthest from 0, with an interval that is
widened for all of these pairs. --quarters: of facts by the quarter of batches in which they were
written, oldest first, where they were scored right after each batch, too.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from retcon.report.conditions import Arm, names_of
from retcon.report.numbers import share, spanned
from retcon.report.results import Results
from retcon.scoring.intervals import Statistic
from retcon.scoring.metrics import METRICS, estimate
from retcon.scoring.observations import Observation
from retcon.study.study import read_study

Order = int | str
Kinds = dict[str, dict[Order, Arm]]


def kinds_of(results: Results, n: int, orders: Sequence[str]) -> Kinds:
    """The arms of each kind, by name and order: the first order has the name without one."""
    carried = [a for a in results.arms if a.condition.carried and a.condition.n == n]
    arms = [a for a in carried if not orders or str(a.condition.order) in orders]
    names = names_of(arms)
    groups: dict[tuple[object, ...], dict[Order, Arm]] = defaultdict(dict)
    for arm in arms:
        groups[arm.condition.but("order")][arm.condition.order] = arm
    return {names[next(iter(group.values())).condition]: group for group in groups.values()}


def mean_over(arms: Sequence[Arm], sign: float) -> list[tuple[float, Arm]]:
    """Each with its share of a mean."""
    return [(sign / len(arms), arm) for arm in arms]


def told(found: Statistic | None) -> str:
    """A difference with its interval."""
    if found is None:
        return "–"
    return spanned(found.estimate())


def scored(found: Statistic | None) -> str:
    """A score with its interval."""
    return "–" if found is None else share(found.share())


def mean_score(results: Results, arms: dict[Order, Arm], metric: str) -> float:
    """Over the orders that a kind was run in."""
    found = results.contrast(mean_over(list(arms.values()), 1.0), "final", metric)
    return -1.0 if found is None else found.value


def compared(results: Results, one: dict[Order, Arm], other: dict[Order, Arm], metric: str) -> str:
    """One kind minus another: over the orders of both, or, where the other has but one, all."""
    shared = [order for order in one if order in other]
    alone = len(other) == 1
    mine = [one[order] for order in (one if alone else shared)]
    theirs = list(other.values()) if alone else [other[order] for order in shared]
    if not mine or mine == theirs:
        return "–"
    terms = [*mean_over(mine, 1.0), *mean_over(theirs, -1.0)]
    return told(results.contrast(terms, "final", metric))


def widest(results: Results, kinds: Kinds, metric: str) -> str:
    """Of all pairs of kinds the one whose difference is the farthest from 0 by its own interval."""
    pairs = list(combinations(kinds, 2))
    found: list[tuple[float, str]] = []
    for one, other in pairs:
        shared = [order for order in kinds[one] if order in kinds[other]]
        sides = [[kinds[name][order] for order in shared] for name in (one, other)]
        terms = [*mean_over(sides[0], 1.0), *mean_over(sides[1], -1.0)] if shared else []
        told = results.contrast(terms, "final", metric) if terms else None
        if told is not None and told.error:
            effect = spanned(told.estimate(len(pairs)))
            found.append((abs(told.value) / told.error, f"{one} − {other}: {effect}"))
    return f"The farthest from 0 of {len(pairs)} pairs: {max(found)[1]}" if found else "No pairs."


def by_quarter(results: Results, arms: Sequence[Arm], metric: str) -> list[str]:
    """The final score of the facts of each quarter of batches, over the orders of a kind."""
    read = METRICS.find(metric)
    own: list[list[Observation]] = [[], [], [], []]
    for run in (run for arm in arms for run in arm.runs):
        rows = [
            Observation(*row)
            for row in results.study.rows(run.cell).select(Observation._fields).iter_rows()
        ]
        written = {row.case: row.step for row in rows if row.when == "immediate"}
        last = max(written.values(), default=0)
        for row in rows:
            if row.when == "final" and row.case in written and read.reads(row.kind):
                own[(written[row.case] - 1) * 4 // last].append(row)
    return [read.scale.told(estimate(quarter, metric)) if quarter else "–" for quarter in own]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--n", type=int, required=True)
    parser.add_argument("--metric", default="S")
    parser.add_argument("--orders", nargs="*", default=[])
    parser.add_argument("--against", nargs="*", default=[])
    parser.add_argument("--widest", type=int, default=0)
    parser.add_argument("--quarters", action="store_true")
    chosen = parser.parse_args(arguments)
    results = Results(read_study(chosen.folder))
    kinds = kinds_of(results, chosen.n, chosen.orders)
    unknown = [name for name in chosen.against if name not in kinds]
    if unknown:
        parser.error(f"no kind is called {unknown[0]!r}; there are:\n  " + "\n  ".join(kinds))
    head = ["kind", "orders", chosen.metric, *(f"− {name}" for name in chosen.against)]
    head += [f"quarter {i}" for i in range(1, 5)] if chosen.quarters else []
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for name, arms in kinds.items():
        own = results.contrast(mean_over(list(arms.values()), 1.0), "final", chosen.metric)
        cells = [name, ", ".join(map(str, arms)), scored(own)]
        cells += [compared(results, arms, kinds[x], chosen.metric) for x in chosen.against]
        cells += by_quarter(results, [*arms.values()], chosen.metric) if chosen.quarters else []
        print("| " + " | ".join(cells) + " |")
    if chosen.widest:
        means = {name: mean_score(results, arms, chosen.metric) for name, arms in kinds.items()}
        best = sorted(kinds, key=lambda name: -means[name])[: chosen.widest]
        print(widest(results, {name: kinds[name] for name in best}, chosen.metric))


if __name__ == "__main__":
    main()
