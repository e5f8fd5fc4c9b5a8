"""Whether the scores of quicker rules for targets are told apart from those of the standard one.

    python benchmarks/equal_scores.py [--sample choose] [--edits 128] [--batch 256] [--layer 1]
                                      [--carried 0] [--rules NAME ...] [--json FILE]
    python benchmarks/equal_scores.py --model toyworld --layer 0

EMMET at one layer of SmolLM2-135M on CounterFact: so many single edits, and one batch, immediate;
if asked for, further facts in batches of 64 on top of one another, scored behind the last. Each
rule is compared with `standard`, fact by fact: differences in points, with 95 % intervals clustered
by relation. Beside ES, PS and NS stands what the model says freely. Rules are chosen on one sample,
checked on another, and looked at once on a third, which share no fact; the power of whitening was
chosen on a fourth. `work` is in full steps: all six contexts and the divergence row, by tokens; on
the sphere the first step is one. FILE is written after every rule.
"""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from machine import parser_of, shuffled
from retcon.cli.console import quiet_libraries
from retcon.edits import Case
from retcon.environment import environment
from retcon.features.contexts import ContextOptions, sample_prefixes
from retcon.method.entries import options_from
from retcon.method.presets import rules
from retcon.model.load import load
from retcon.run.evaluate import evaluate
from retcon.scoring.metrics import change, estimate
from retcon.scoring.observations import Observation, When
from retcon.toyworld.world import NAME as TOY
from retcon.toyworld.world import toy_cases
from targets import LAYER, MICRO_BATCH, STANDARD, work_of

# Where each sample begins in one shuffled list of all facts, and how many facts it may take.
SAMPLES = {"choose": 0, "check": 1, "once": 2, "power": 3}
_SIZE, _SEED = 256, 0
_CARRIED = "sequential-batch:64"
SCORES = ("said", "said_paraphrase", "exact_match", "ES", "PS", "NS")
_THREE = {"contexts_per_step": 3, "lr": 1.0, "stop_below": 0.1}
_FAST = rules()["fast"].settings
RULES: dict[str, dict[str, Any]] = {
    "standard": {},
    "three_contexts": _THREE,
    "two_contexts": {**_THREE, "contexts_per_step": 2},
    "fast": _FAST,
    "fast_plain": {**_FAST, "whiten": 0.0},
    "fast_roots": {**_FAST, "whiten": 0.0, "power": 0.5},
    "fast_lead_5": {**_FAST, "steps": 30, "stop_margin": 5.0},
    "fast_lead_6": {**_FAST, "steps": 40, "stop_margin": 6.0},
    "fast_16": {**_FAST, "steps": 16},
    "fast_30": {**_FAST, "steps": 30},
    "fast_by_loss": {**_FAST, "stop_below": 0.2, "stop_margin": None},
    "fast_clamp_1": {**_FAST, "clamp": 1.0},
    "fast_clamp_2": {**_FAST, "clamp": 2.0},
    "fast_clamp_4": {**_FAST, "clamp": 4.0},
    "fast_two_contexts": {**_FAST, "contexts_per_step": 2, "steps": 14},
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--sample", choices=SAMPLES, default="choose")
    parser.add_argument("--edits", type=int, default=128)
    parser.add_argument("--batch", type=int, default=_SIZE, help="0: single edits alone")
    parser.add_argument("--carried", type=int, default=0, help="facts, behind all samples")
    parser.add_argument("--layer", type=int, default=LAYER)
    parser.add_argument("--rules", nargs="+", choices=RULES, default=[*RULES])
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(arguments)
    quiet_libraries()
    model = load(chosen.model)
    drawn = facts(chosen.model)
    sample = sample_of(chosen.sample, drawn)
    single, batch = sample[: chosen.edits], sample[: chosen.batch]
    further = (drawn[len(SAMPLES) * _SIZE :] or drawn)[: chosen.carried]
    kinds: list[tuple[str, list[Case], When]] = [
        ("single", single, "immediate"),
        (f"batch:{len(batch)}", batch, "immediate"),
        (_CARRIED, further, "final"),
    ]
    edits = [case.edit for case in single or batch or further]
    prefixes = sample_prefixes(model, ContextOptions())
    record: dict[str, Any] = {
        "sample": chosen.sample,
        "seed": _SEED,
        "layer": chosen.layer,
        "edits": len(single),
        "batch": len(batch),
        "carried": len(further),
        "model": chosen.model,
        "versions": environment(),
        "rules": {},
    }
    standard: dict[str, list[Observation]] = {}
    for name in dict.fromkeys(["standard", *chosen.rules]):
        given = {"rule": name} if name == "fast" else RULES[name]
        settings = {"micro_batch": MICRO_BATCH, **given}
        found: dict[str, Any] = {"settings": settings}
        for kind, cases, when in kinds:
            if not cases:
                continue
            trial = evaluate(
                model, cases, method="emmet", layers=[chosen.layer], settings=settings,
                schedule=kind, metrics=["said"],
            )  # fmt: skip
            rows = trial.at(when)
            steps = sum(s.report["target_steps"] * s.edits for s in trial.steps) / len(cases)
            options = options_from(STANDARD, RULES[name])
            work = work_of(steps, model, edits, prefixes, chosen.layer, options)
            before = standard.setdefault(kind, rows)
            found[kind] = {"steps": steps, "work": work, **_scores(before, rows)}
            print(_line(name, kind, found[kind]), flush=True)
        record["rules"][name] = found
        if chosen.json:
            chosen.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def facts(model: str) -> list[Case]:
    """All facts that a model can be asked of, in the order that samples are drawn in."""
    if model != TOY:
        return shuffled(seed=_SEED)
    return random.Random(_SEED).sample(toy_cases(), len(toy_cases()))


def sample_of(name: str, drawn: list[Case]) -> list[Case]:
    """The facts of a sample; of a file of few facts all samples have what there is."""
    start = SAMPLES[name] * _SIZE
    return drawn[start : start + _SIZE] or drawn


def _scores(before: Sequence[Observation], rows: Sequence[Observation]) -> dict[str, Any]:
    """Each score, and its difference from the standard rule's, with the intervals of both."""
    return {name: [*estimate(rows, name)[:3], *change(before, rows, name)[:3]] for name in SCORES}


def _line(name: str, kind: str, found: Mapping[str, Any]) -> str:
    told = "  ".join(
        f"{score} {found[score][0]:.1f} ({_signed(found[score][3:])})" for score in SCORES
    )
    return f"{name:14} {kind:19} {found['work']:5.2f} full steps  {told}"


def _signed(difference: Sequence[float | None]) -> str:
    """A difference with its interval, where it has one."""
    mean, low, high = difference
    told = "–" if mean is None else f"{mean:+.1f}"
    return told if low is None or high is None else f"{told} [{low:+.1f}, {high:+.1f}]"


if __name__ == "__main__":
    main()
