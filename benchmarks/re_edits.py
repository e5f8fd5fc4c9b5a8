"""Facts that are edited again: what the last target is worth, and what the others pay for it.

    python benchmarks/re_edits.py [--facts 256] [--again 64] [--batch 64] [--ridge 3000]

The toy world, carried MEMIT. Three streams on the untouched model: `once` writes all facts;
`again` writes them, and then some with another target of their relation; `last` writes all facts
once, those with the target that they have last. Where a fact is replaced, and not added to,
`again` ends as `last` does. Scores are final ones; intervals clustered by relation.
"""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from retcon.data.cases import load_cases, take
from retcon.editing.schedule import Schedule
from retcon.editing.session import run
from retcon.edits import Case
from retcon.evaluation.metrics import estimate
from retcon.evaluation.rows import Row
from retcon.evaluation.scoring import score_cases
from retcon.methods.presets import choose
from retcon.model.handle import ModelHandle
from retcon.model.load import load

MODEL = "toyworld"
METRICS = ("ES", "PS", "NS", "token_accuracy")


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
    batch: int,
    settings: dict[str, object],
) -> dict[str, list[Row]]:
    """The final rows of some groups of cases, when a stream has been written in batches."""
    choice = choose(model.outline, method="memit", layers=[0], settings=settings)
    editor = choice.method.build(choice.layers, choice.settings)
    state = editor.begin(model)
    found: dict[str, list[Row]] = {}
    for step in run(
        model, editor, state, [c.edit for c in stream], Schedule.parse(f"sequential-batch:{batch}")
    ):
        if step.last:
            found = {name: score_cases(model, cases, when="final") for name, cases in asked.items()}
    return found


def cells(rows: Iterable[Row]) -> list[str]:
    listed = list(rows)
    told: list[str] = []
    for metric in METRICS:
        one = estimate(listed, metric)
        told.append("–" if one.mean is None else f"{one.mean:.1f} [{one.low:.1f}, {one.high:.1f}]")
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--facts", type=int, default=256)
    parser.add_argument("--again", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--ridge", type=float, default=3000.0)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(2)
    model = load(MODEL)
    cases = take(load_cases(MODEL), chosen.facts, 0)
    others = with_other_targets(cases)[: chosen.again]
    first, rest = cases[: chosen.again], cases[chosen.again :]
    asked = {"re-edited, last target": others, "re-edited, first target": first, "the others": rest}
    streams = {
        "once": cases,
        "again": [*cases, *others],
        "last": [*others, *rest],
    }
    told: dict[str, dict[str, list[str]]] = {}
    print("| stream | facts | " + " | ".join(METRICS) + " |\n|---|---|" + "---|" * len(METRICS))
    for accumulate in (True, False):
        settings: dict[str, object] = {"ridge": chosen.ridge, "accumulate": accumulate}
        for name, stream in streams.items():
            found = final(model, stream, asked, chosen.batch, settings)
            kept = f"{name}, past keys {'kept' if accumulate else 'forgotten'}"
            told[kept] = {group: cells(rows) for group, rows in found.items()}
            for group, values in told[kept].items():
                print(f"| {kept} | {group} | " + " | ".join(values) + " |", flush=True)
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(told, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
