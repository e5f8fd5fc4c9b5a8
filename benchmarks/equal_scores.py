"""Whether the scores of quicker rules for targets are told apart from those of the standard one.

    python benchmarks/equal_scores.py [--sample choose] [--edits 128] [--batch 256] [--layer 1]
                                      [--rules NAME ...] [--json FILE]

EMMET at one layer of SmolLM2-135M on CounterFact: so many single edits, and one batch, immediate.
Each rule is compared with `standard`, fact by fact: differences in points, with 95 % intervals
clustered by relation. Beside ES, PS and NS stands what the model says freely. Rules are chosen on
one sample, checked on another, and looked at once on a third, which share no fact. `work` is in
full steps: all six contexts and the divergence row, by tokens. FILE is written after every rule.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from machine import parser_of, shuffled
from retcon.cli.console import quiet_libraries
from retcon.edits import Case
from retcon.environment import environment
from retcon.features.contexts import ContextOptions, sample_prefixes
from retcon.features.prefix_cache import DeltaPlace
from retcon.features.target_loss import TargetLoss
from retcon.model.handle import ModelHandle
from retcon.model.load import load
from retcon.run.evaluate import evaluate
from retcon.scoring.metrics import change, estimate
from retcon.scoring.observations import Observation
from targets import LAYER, MICRO_BATCH

# Where each sample begins in one shuffled list of all facts, and how many facts it may take.
SAMPLES = {"choose": 0, "check": 1, "once": 2}
_SIZE, _SEED = 256, 0
SCORES = ("said", "said_paraphrase", "exact_match", "ES", "PS", "NS")
_THREE = {"contexts_per_step": 3, "lr": 1.0, "stop_below": 0.1}
_ONE = {"descent": "sphere", "contexts_per_step": 1, "stop_below": 0.0}
RULES: dict[str, dict[str, Any]] = {
    "standard": {},
    "three_contexts": _THREE,
    "two_contexts": {**_THREE, "contexts_per_step": 2},
    "sphere_12": {**_ONE, "steps": 13},
    "sphere_16": {**_ONE, "steps": 17},
    "sphere_20": {**_ONE, "steps": 21},
    "sphere_16_fit": {**_ONE, "steps": 17, "stop_by": "fit", "stop_below": 0.05},
    "sphere_two_8": {**_ONE, "contexts_per_step": 2, "steps": 9, "momentum": 0.5},
    "sphere_two_12": {**_ONE, "contexts_per_step": 2, "steps": 13, "momentum": 0.6},
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--sample", choices=SAMPLES, default="choose")
    parser.add_argument("--edits", type=int, default=128)
    parser.add_argument("--batch", type=int, default=_SIZE, help="0: single edits alone")
    parser.add_argument("--layer", type=int, default=LAYER)
    parser.add_argument("--rules", nargs="+", choices=RULES, default=[*RULES])
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(arguments)
    quiet_libraries()
    model = load(chosen.model)
    sample = sample_of(chosen.sample)
    single, batch = sample[: chosen.edits], sample[: chosen.batch]
    shares = _shares(model, single, chosen.layer)
    record: dict[str, Any] = {
        "sample": chosen.sample,
        "seed": _SEED,
        "layer": chosen.layer,
        "edits": len(single),
        "batch": len(batch),
        "versions": environment(),
        "rules": {},
    }
    standard: dict[str, list[Observation]] = {}
    for name in dict.fromkeys(["standard", *chosen.rules]):
        settings = {"micro_batch": MICRO_BATCH, **RULES[name]}
        found: dict[str, Any] = {"settings": settings}
        for kind, cases in (("single", single), (f"batch:{len(batch)}", batch)):
            if not cases:
                continue
            trial = evaluate(
                model, cases, method="emmet", layers=[chosen.layer], settings=settings,
                schedule=kind, metrics=["said"],
            )  # fmt: skip
            rows = trial.at("immediate")
            steps = sum(s.report["target_steps"] * s.edits for s in trial.steps) / len(cases)
            per_step = shares[settings.get("contexts_per_step", 0)]
            before = standard.setdefault(kind, rows)
            found[kind] = {"steps": steps, "work": steps * per_step, **_scores(before, rows)}
            print(_line(name, kind, found[kind]), flush=True)
        record["rules"][name] = found
        if chosen.json:
            chosen.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def sample_of(name: str) -> list[Case]:
    """The facts of a sample; of a file of few facts all samples have what there is."""
    drawn = shuffled(seed=_SEED)
    start = SAMPLES[name] * _SIZE
    return drawn[start : start + _SIZE] or drawn


def _shares(model: ModelHandle, cases: Sequence[Case], layer: int) -> Mapping[int, float]:
    """Work of a step of so many contexts (0: all), as a share of a full one, by its tokens."""
    prefixes = sample_prefixes(model, ContextOptions())
    edits = [case.edit for case in cases]
    place = DeltaPlace(layer, "block")
    rows = TargetLoss(model, edits, prefixes, place, kl=0.0625, micro_batch=MICRO_BATCH).rows
    tokens = [row.suffix for row in rows]
    about = sum(tokens[len(prefixes) * len(edits) :])
    contexts = sum(tokens) - about
    share = {k: contexts * k / len(prefixes) + about for k in range(1, len(prefixes) + 1)}
    return {0: 1.0, **{k: work / sum(tokens) for k, work in share.items()}}


def _scores(before: Sequence[Observation], rows: Sequence[Observation]) -> dict[str, Any]:
    """Each score, and its difference from the standard rule's, with the intervals of both."""
    return {name: [*estimate(rows, name)[:3], *change(before, rows, name)[:3]] for name in SCORES}


def _line(name: str, kind: str, found: Mapping[str, Any]) -> str:
    told = "  ".join(
        f"{score} {found[score][0]:.1f} ({_signed(found[score][3:])})" for score in SCORES
    )
    return f"{name:14} {kind:9} {found['work']:5.2f} full steps  {told}"


def _signed(difference: Sequence[float | None]) -> str:
    """A difference with its interval, where it has one."""
    mean, low, high = difference
    told = "–" if mean is None else f"{mean:+.1f}"
    return told if low is None or high is None else f"{told} [{low:+.1f}, {high:+.1f}]"


if __name__ == "__main__":
    main()
