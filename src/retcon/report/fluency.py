"""Generation entropy before and after: whether what the model writes is still text."""

from collections import defaultdict

from retcon.report.conditions import Arm
from retcon.report.results import Results
from retcon.report.tables import Table, place, place_columns, setting_fields
from retcon.scoring.intervals import CaseMeans, Estimate, Statistic, combine, mean

_COLUMNS = ("texts", "untouched model", "after the last batch", "change")


def fluency(results: Results) -> Table:
    """Generation entropy of the arms that were asked for texts; 100 times bits, as is usual."""
    arms = [arm for arm in results.arms if _entropies(results, arm, "final") is not None]
    fields, note = setting_fields(arms)
    rows = tuple((*place(arm, arms, fields), *_cells(results, arm)) for arm in arms)
    said = (
        "Generation entropy (GE, arXiv:2202.05262), 100 × bits, with 95 % intervals: texts that "
        f"repeat themselves have little. Changes are paired over the same facts. {note}"
    )
    return Table("Fluency", said.strip(), (*place_columns(fields), *_COLUMNS), rows)


def _cells(results: Results, arm: Arm) -> tuple[str, ...]:
    before, after = (_entropies(results, arm, when) for when in ("pre", "final"))
    shared = frozenset(before.values if before else ()) & frozenset(after.values if after else ())
    old, new = (mean(found.only(shared)) if found else None for found in (before, after))
    change = combine([(1.0, new), (-1.0, old)]) if old and new else None
    count = len(after.values) if after else 0
    whole = (mean(found) if found else None for found in (before, after))
    return (f"{count:,}", *(_number(one) for one in whole), _number(change, sign="+"))


def _number(found: Statistic | None, sign: str = "") -> str:
    if found is None:
        return "–"
    one: Estimate = found.estimate()
    ends = "" if one.low is None else f" [{one.low:{sign}.0f}, {one.high:{sign}.0f}]"
    return f"{one.mean:{sign}.0f}{ends}".replace("-", "−")


def _entropies(results: Results, arm: Arm, when: str) -> CaseMeans | None:
    """The mean entropy of each (seed, case)'s texts; None where none were written then."""
    values: dict[str, list[float]] = defaultdict(list)
    clusters: dict[str, str] = {}
    for run in arm.runs:
        texts = results.study.generations(run.cell)
        if texts is None:
            continue
        columns = ("case", "relation", "when", "entropy")
        for case, relation, then, entropy in texts.select(columns).iter_rows():
            if then == when:
                name = f"{run.name} {case}"
                values[name].append(100 * entropy)
                clusters[name] = relation if relation is not None else f"case {case}"
    if not values:
        return None
    return CaseMeans({name: sum(v) / len(v) for name, v in values.items()}, clusters)
