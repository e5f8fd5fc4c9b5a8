"""Targets of many edits at once beside the naive one-edit oracle, in one run.

    python benchmarks/targets.py [--edits 32] [--oracle 2]

SmolLM2-135M, layer 1, 25 steps, six prompts and the divergence row. The oracle is the tests':
one edit, whole texts padded on the right, all logits, gradient with respect to δ only. Both run to
the full 25 steps (no stop), so that they do equal work; the batched run is repeated with the stop.
Writes benchmarks/results/targets.json.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from oracles import optimise_one_target
from retcon.activations.contexts import ContextOptions, sample_prefixes
from retcon.activations.targets import TargetOptions, optimise_targets
from retcon.cli.console import quiet_libraries, versions
from retcon.data.cases import starter_cases, take
from retcon.editing.planning import measured_rate
from retcon.model.load import load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edits", type=int, default=32)
    parser.add_argument("--oracle", type=int, default=2)
    chosen = parser.parse_args()
    quiet_libraries()
    model = load("smollm2-135m")
    edits = [case.edit for case in take(starter_cases(), chosen.edits, 0)]
    prefixes = sample_prefixes(model, ContextOptions())
    equal = replace(TargetOptions(), stop_below=0.0)

    started = time.perf_counter()
    batched = optimise_targets(model, edits, prefixes, 1, equal)
    fast = (time.perf_counter() - started) / len(edits)
    started = time.perf_counter()
    naive = [optimise_one_target(model, e, prefixes, 1, equal) for e in edits[: chosen.oracle]]
    slow = (time.perf_counter() - started) / len(naive)
    started = time.perf_counter()
    stopped = optimise_targets(model, edits, prefixes, 1, TargetOptions())
    with_stop = (time.perf_counter() - started) / len(edits)

    gaps = [
        float((batched.delta[i] - delta).norm() / delta.norm())
        for i, (delta, _, _) in enumerate(naive)
    ]
    figures = {
        "targets_seconds_per_edit_full_steps": fast,
        "oracle_seconds_per_edit": slow,
        "targets_speedup": slow / fast,
        "targets_seconds_per_edit": with_stop,
        "targets_mean_steps": float(stopped.steps.float().mean()),
        "largest_relative_difference": max(gaps),
        "gflops": measured_rate(2048) / 1e9,
    }
    for name, value in figures.items():
        print(f"{name:40} {value:.4g}")
    path = Path(__file__).parent / "results" / "targets.json"
    record = {
        "figures": {name: {"value": value} for name, value in figures.items()},
        "edits": chosen.edits,
        "oracle_edits": chosen.oracle,
        "versions": versions(),
        "torch_threads": torch.get_num_threads(),
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
