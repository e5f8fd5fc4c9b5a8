"""Whether the scores of the quicker rule for targets are told apart: held-out single edits.

    python benchmarks/equal_scores.py [--edits 64] [--seed 0] [--json FILE]

EMMET at layer 1 of SmolLM2-135M on CounterFact, single edits, immediate. The quicker rules look at
few contexts a step, in turn, at twice the rate, until the loss is below 0.1. Seconds are those of
benchmarks/targets.py. Writes docs/results/speed-targets.json, or another file.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from machine import cases as take_cases
from machine import parser_of
from retcon.cli.console import quiet_libraries
from retcon.environment import environment
from retcon.model.load import load
from retcon.run.evaluate import evaluate
from retcon.scoring.metrics import intervals, summarise
from targets import LAYER, MICRO_BATCH

_RECORD = Path(__file__).parents[1] / "docs" / "results" / "speed-targets.json"
RULES = {
    "standard": {"micro_batch": MICRO_BATCH},
    "three_contexts": {
        "micro_batch": MICRO_BATCH, "contexts_per_step": 3, "lr": 1.0, "stop_below": 0.1,
    },
    "two_contexts": {
        "micro_batch": MICRO_BATCH, "contexts_per_step": 2, "lr": 1.0, "stop_below": 0.1,
    },
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--edits", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=_RECORD)
    chosen = parser.parse_args(arguments)
    quiet_libraries()
    model = load(chosen.model)
    cases = take_cases(chosen.edits, seed=chosen.seed)
    record: dict[str, object] = {
        "edits": chosen.edits,
        "seed": chosen.seed,
        "versions": environment(),
    }
    for name, settings in RULES.items():
        trial = evaluate(model, cases, method="emmet", layers=[LAYER], settings=settings)
        rows = trial.at("immediate")
        steps = sum(s.report["target_steps"] * s.edits for s in trial.steps) / chosen.edits
        record[name] = {
            "settings": settings,
            "scores": summarise(rows),
            "intervals": intervals(rows),
            "mean_steps": steps,
        }
        scores = summarise(rows)
        line = "  ".join(f"{k} {scores[k]:.2f}" for k in ("ES", "PS", "NS", "exact_match"))
        print(f"{name:14} {line}  {steps:.1f} steps", flush=True)
    chosen.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
