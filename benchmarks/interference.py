"""Whether interference that is predicted from keys tells which facts are lost.

    python benchmarks/interference.py [--facts 256] [--method memit] [--json FILE]

Facts of uniform CounterFact (the starter set where there is none). Each is scored right after it is
written alone into the untouched model; after all of them are written in one batch; and after all
are carried one at a time, with earlier keys forgotten and targets made before the first. The loss
of a fact is the mean NLL of its target there minus that alone, in nats a token.

    metric    root of Σ sⱼᵢ² over the facts j that may disturb i: all others, or all later ones
    cosine    the same of the cosines of keys of bare prompts: similarity without the metric
    order     how many facts come later

Rank correlations (Spearman) of loss and prediction, with 95 % intervals clustered by relation.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from machine import cases as take_cases
from machine import parser_of, source
from retcon.cli.choices import parse_layers, parse_settings
from retcon.cli.console import quiet_libraries
from retcon.edits import Case
from retcon.features.keys import read_keys
from retcon.model.handle import ModelHandle
from retcon.model.load import load
from retcon.run.evaluate import evaluate
from retcon.run.interference import Interference, interference
from retcon.run.schedule import Schedule
from retcon.scoring.intervals import Estimate, rank_correlation
from retcon.scoring.observations import Observation

Shares = Float64[Tensor, "facts facts"]


def cosines(model: ModelHandle, cases: Sequence[Case], layer: int) -> Shares:
    """Cosines of the keys of bare prompts at a layer, 0 on the diagonal."""
    edits = [case.edit for case in cases]
    keys = read_keys(model, edits, ("",), [layer], torch.ones(1, dtype=torch.float64))[layer]
    unit = torch.nn.functional.normalize(keys, dim=-1)
    return (unit @ unit.mT).fill_diagonal_(0)


def predictions(seen: Interference, other: Shares, *, later: bool) -> dict[str, list[float]]:
    """Predicted disturbance of each fact.

    Args:
        seen: predicted shares; the first layer's count.
        other: similarities in their place.
        later: only facts behind a fact disturb it.
    """
    shares = {"metric": seen.others(seen.recipe.layers[0]), "cosine": other.cpu()}
    if later:
        shares = {name: one.tril(-1) for name, one in shares.items()}
    told = {name: one.norm(dim=0).tolist() for name, one in shares.items()}
    count = len(seen.edits)
    return {**told, "order": [float(count - 1 - i) for i in range(count)]} if later else told


def losses(
    cases: Sequence[Case], alone: Sequence[Observation], together: Sequence[Observation]
) -> list[float]:
    """By how much more each fact's target is missed than when it was written alone."""
    before, after = (
        {row.case: row.nll_new for row in rows if row.kind == "rewrite" and row.nll_new is not None}
        for rows in (alone, together)
    )
    return [after[case.edit.id] - before[case.edit.id] for case in cases]


def told(one: Estimate) -> str:
    if one.mean is None:
        return "–"
    return f"{one.mean:+.2f} [{one.low:+.2f}, {one.high:+.2f}]"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--facts", type=int, default=256)
    parser.add_argument("--method", default="memit")
    parser.add_argument("--layer", type=int)
    parser.add_argument("--set", action="append", help="a setting, as NAME=VALUE")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(arguments)
    quiet_libraries()
    model = load(chosen.model)
    cases = take_cases(chosen.facts, seed=0)
    how: dict[str, Any] = {
        "method": chosen.method,
        "layers": parse_layers(chosen.layer, None),
        "settings": parse_settings(chosen.set),
    }
    seen = interference(model, [case.edit for case in cases], **how)
    other = cosines(model, cases, seen.recipe.layers[0])
    forgetting: dict[str, Any] = {**how, "settings": {**how["settings"], "accumulate": False}}
    alone = evaluate(model, cases, schedule="single", **how)
    batch = evaluate(model, cases, schedule=f"batch:{len(cases)}", **how)
    carried = evaluate(
        model, cases, schedule=Schedule.parse("sequential", refresh="never"), **forgetting
    )
    arms = {"one batch": (batch, "immediate"), "carried, keys forgotten": (carried, "final")}
    found: list[dict[str, object]] = []
    print(f"{len(cases)} facts of {source()}, {seen.recipe.name}, layers {seen.recipe.layers}")
    print(
        "| | predicted by | Spearman with the loss | mean loss, nats a token |\n|---|---|---|---|"
    )
    for arm, (run, when) in arms.items():
        lost = losses(cases, alone.at("immediate"), run.at(when))
        predicted = predictions(seen, other, later=arm != "one batch")
        for name, values in predicted.items():
            clusters = [case.relation or case.edit.id for case in cases]
            one = rank_correlation(list(zip(values, lost, strict=True)), clusters)
            found.append({"arm": arm, "by": name, "spearman": one, "of": values, "losses": lost})
            print(f"| {arm} | {name} | {told(one)} | {sum(lost) / len(lost):.3f} |", flush=True)
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
