"""Facts that are edited again: what the last target is worth, and what the others pay for it.

    python benchmarks/re_edits.py [--facts 256] [--again 64] [--batch 64] [--ridge 3000]

The toy world, carried MEMIT. Three streams on the untouched model: `once` writes all facts;
`again` writes them, and then some with another target of their relation; `last` writes all facts
once, those with the target that they have last. Where a fact is replaced, and not added to,
`again` ends as `last` does. Scores are final ones; intervals clustered by relation; differences are
paired over the facts.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from machine import parser_of
from retcon.cli.choices import parse_settings
from retcon.data.cases import load_cases, take
from retcon.edits import Case
from retcon.method.presets import resolve
from retcon.model.handle import ModelHandle
from retcon.model.load import load
from retcon.report.sameness import SAME
from retcon.run.driver import fold
from retcon.run.schedule import Schedule
from retcon.scoring.intervals import Estimate, combine, mean
from retcon.scoring.metrics import case_means, estimate
from retcon.scoring.observations import Observation
from retcon.scoring.score import score_cases

METRICS = ("ES", "PS", "NS", "token_accuracy")
# Whether past keys are kept, and when targets are made.
ARMS = {
    "keys kept, targets frozen": (True, "never"),
    "keys kept, targets refreshed": (True, "each-batch"),
    "keys forgotten, targets refreshed": (False, "each-batch"),
}


def with_other_targets(cases: Sequence[Case]) -> list[Case]:
    """The cases with the target of another one of their relation, neither of their own two."""
    found: list[Case] = []
    for case in cases:
        used = {case.edit.target, case.edit.target_old}
        other = next(
            c.edit.target
            for c in cases
            if c.relation == case.relation and c.edit.target not in used
        )
        found.append(
            replace(case, edit=replace(case.edit, target=other, id=f"{case.edit.id}, again"))
        )
    return found


def final(
    model: ModelHandle,
    stream: Sequence[Case],
    asked: Mapping[str, Sequence[Case]],
    schedule: Schedule,
    settings: dict[str, object],
) -> dict[str, list[Observation]]:
    """The final rows of some groups of cases, when a stream has been written in batches."""
    recipe = resolve(model.outline, method="memit", layers=[0], settings=settings)
    method = recipe.build()
    state = method.setup.begin(model)
    found: dict[str, list[Observation]] = {}
    for steps in fold(model, method, state, [c.edit for c in stream], schedule):
        if steps[-1].last:
            found = {name: score_cases(model, cases, when="final") for name, cases in asked.items()}
    return found


def cells(rows: Sequence[Observation]) -> list[str]:
    """Scores with their intervals."""
    return [_told(estimate(rows, metric)) for metric in METRICS]


def differences(rows: Sequence[Observation], others: Sequence[Observation]) -> list[str]:
    """Scores minus those of other weights, over the same facts; 0 where all NLLs are the same."""
    pairs = [(a.nll_new or 0.0, b.nll_new or 0.0) for a, b in zip(rows, others, strict=True)]
    if max(abs(a - b) for a, b in pairs) <= SAME:
        return ["0.0" for _ in METRICS]
    told: list[str] = []
    for metric in METRICS:
        ends = [mean(case_means(one, metric)) for one in (rows, others)]
        assert ends[0] is not None and ends[1] is not None
        told.append(_told(combine([(1.0, ends[0]), (-1.0, ends[1])]).estimate(), "+"))
    return told


def _told(one: Estimate, sign: str = "") -> str:
    if one.mean is None:
        return "–"
    if one.low is None:  # one relation has no interval
        return f"{one.mean:{sign}.1f}"
    return f"{one.mean:{sign}.1f} [{one.low:{sign}.1f}, {one.high:{sign}.1f}]"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__, model="toyworld")
    parser.add_argument("--cases", default="toyworld", help="a file of facts, or the name of a set")
    parser.add_argument("--facts", type=int, default=256)
    parser.add_argument("--again", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--ridge", type=float, default=3000.0)
    parser.add_argument("--set", action="append", help="a setting, as NAME=VALUE")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(arguments)
    model = load(chosen.model)
    cases = take(load_cases(chosen.cases), chosen.facts, 0)
    others = with_other_targets(cases)[: chosen.again]
    first, rest = cases[: chosen.again], cases[chosen.again :]
    asked = {"re-edited, last target": others, "re-edited, first target": first, "the others": rest}
    streams = {
        "once": cases,
        "again": [*cases, *others],
        "last": [*others, *rest],
    }
    told: list[dict[str, object]] = []
    print(
        "| | stream | facts | " + " | ".join(METRICS) + " |\n|---|---|---|" + "---|" * len(METRICS)
    )
    for arm, (accumulate, refresh) in ARMS.items():
        settings: dict[str, object] = {"ridge": chosen.ridge, "accumulate": accumulate}
        settings |= parse_settings(chosen.set)
        plan = Schedule.parse(f"sequential-batch:{chosen.batch}", refresh)
        found = {
            name: final(model, stream, asked, plan, settings) for name, stream in streams.items()
        }
        lines = [
            (name, group, cells(rows)) for name in found for group, rows in found[name].items()
        ]
        lines += [
            (f"again − {name}", group, differences(found["again"][group], found[name][group]))
            for name in ("last", "once")
            for group in asked
        ]
        for name, group, values in lines:
            told.append({"arm": arm, "stream": name, "facts": group, "scores": values})
            print(f"| {arm} | {name} | {group} | " + " | ".join(values) + " |", flush=True)
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(told, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
