"""Targets of many edits at once beside the naive one-edit oracle, in one run.

    python benchmarks/targets.py [--edits 32] [--oracle 4]

SmolLM2-135M, layer 1, CounterFact (the starter set where there is none), 25 steps, six prompts and
the divergence row, micro-batches of 256. The oracle is the tests': one edit, whole texts padded on
the right, all logits, gradient with respect to δ only. For the ratio both run to the full 25 steps,
so that they do equal work; they take turns.

    useful FLOPs = passes · 2 · (P · suffix tokens + H · predictions) · 2

P the parameters of the blocks behind the layer and H those of the head; the last 2 for forward and
backward; no filling. Their share of what the machine's matrix products could have done in the same
time (2048³, float32, measured between the runs) is the fraction of the limit.
"""

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from machine import Figures, cases, parser_of, print_figures, source, tests_on_path
from moments import sentences_in
from retcon.cli.console import quiet_libraries
from retcon.edits import Edit
from retcon.features.contexts import ContextOptions, sample_prefixes
from retcon.features.keys import read_keys
from retcon.features.prefix_cache import DeltaPlace, TargetRow
from retcon.features.second_moments import MomentOptions
from retcon.features.sensitivity import recall_whitening
from retcon.features.target_loss import TargetLoss
from retcon.features.target_options import TargetOptions
from retcon.features.targets import (
    Targets,
    default_micro_batch,
    optimise_targets,
)
from retcon.method.entries import options_from
from retcon.method.presets import rules
from retcon.model.handle import ModelHandle
from retcon.model.load import load
from retcon.run.cost import measured_rate

with tests_on_path():
    from oracles import optimise_one_target

LAYER, MICRO_BATCH = 1, 256
STANDARD = TargetOptions(micro_batch=MICRO_BATCH)
# The rule of `--fast`; benchmarks/equal_scores.py has its scores beside those of the standard one.
FAST = options_from(STANDARD, rules()["fast"].settings)


class Runs:
    """Timed runs over the same edits."""

    def __init__(self, model: ModelHandle, count: int) -> None:
        self.model = model
        self.edits: list[Edit] = [case.edit for case in cases(count, seed=0)]
        self.prefixes = sample_prefixes(model, ContextOptions())

    def batched(self, options: TargetOptions, edits: Sequence[Edit] = ()) -> tuple[float, Targets]:
        """Seconds per edit."""
        chosen = edits or self.edits
        minded = self._whitening(options)
        started = time.perf_counter()
        found = optimise_targets(
            self.model, chosen, self.prefixes, LAYER, options, whitening=minded
        )
        return (time.perf_counter() - started) / len(chosen), found

    def _whitening(self, options: TargetOptions) -> torch.Tensor | None:
        """Of the starter set's sentences: sampling text of the model's own would take minutes."""
        if not options.whiten:
            return None
        with tempfile.TemporaryDirectory() as folder:
            text = MomentOptions(corpus=sentences_in(folder))
            return recall_whitening(self.model, LAYER, [LAYER], text, options.whiten).matrix

    def oracle(self, edit: Edit, options: TargetOptions) -> tuple[float, torch.Tensor]:
        started = time.perf_counter()
        delta, _, _ = optimise_one_target(self.model, edit, self.prefixes, LAYER, options)
        return time.perf_counter() - started, delta

    def keys(self) -> float:
        """Seconds per edit that its keys take, over all contexts."""
        started = time.perf_counter()
        weights = torch.full((1, len(self.prefixes)), 1 / len(self.prefixes), dtype=torch.float64)
        read_keys(self.model, self.edits, self.prefixes, [LAYER], weights)
        return (time.perf_counter() - started) / len(self.edits)

    def full_steps(self, found: Targets, options: TargetOptions) -> float:
        """Work of an edit's passes on the mean, in steps of all contexts and the divergence row."""
        steps = float(found.steps.double().mean())
        return work_of(steps, self.model, self.edits, self.prefixes, LAYER, options)

    def useful_flops(self) -> float:
        """Of one pass over all texts of one edit, forward and backward, on the mean."""
        rows = _rows(self.model, self.edits, self.prefixes, LAYER)
        live = self.model.architecture.blocks[LAYER + 1 :]
        body = sum(p.numel() for block in live for p in block.parameters())
        head = sum(p.numel() for p in self.model.architecture.head.parameters())
        tokens = sum(row.suffix for row in rows)
        predictions = sum(len(row.predicts) for row in rows)
        return 4 * (body * tokens + head * predictions) / len(self.edits)


def work_of(
    steps: float,
    model: ModelHandle,
    edits: Sequence[Edit],
    prefixes: Sequence[str],
    layer: int,
    options: TargetOptions,
) -> float:
    """Work of so many steps of a rule, in full ones, by tokens; on the sphere the first is one."""
    tokens = [row.suffix for row in _rows(model, edits, prefixes, layer)]
    seen = options.contexts_per_step or len(prefixes)
    contexts = sum(tokens[: len(prefixes) * len(edits)]) * seen / len(prefixes)
    share = (contexts + sum(tokens[len(prefixes) * len(edits) :])) / sum(tokens)
    return 1 + (steps - 1) * share if options.descent == "sphere" else steps * share


def _rows(
    model: ModelHandle, edits: Sequence[Edit], prefixes: Sequence[str], layer: int
) -> Sequence[TargetRow]:
    place = DeltaPlace(layer, "block")
    return TargetLoss(model, edits, prefixes, place, kl=0.0625, micro_batch=MICRO_BATCH).rows


def targets(model: ModelHandle, *, count: int = 32, oracle: int = 4) -> Figures:
    """`targets_speedup`, `targets_limit_fraction` and the seconds per edit of each rule."""
    runs = Runs(model, count)
    equal = replace(STANDARD, stop_below=0.0)
    runs.batched(replace(equal, steps=2), runs.edits[:4])  # the first pass of a process is slow
    before = [runs.oracle(edit, equal) for edit in runs.edits[: oracle // 2]]
    rates = [measured_rate(2048)]
    full, batched = runs.batched(equal)
    naive = [*before, *(runs.oracle(edit, equal) for edit in runs.edits[oracle // 2 : oracle])]
    slow = statistics.mean(seconds for seconds, _ in naive)
    gaps = [
        float((batched.delta[i] - delta).norm() / delta.norm())
        for i, (_, delta) in enumerate(naive)
    ]
    with_stop, stopped = runs.batched(STANDARD)
    default, _ = runs.batched(replace(STANDARD, micro_batch=0), runs.edits[:8])
    fast, quick = runs.batched(FAST)
    keys = runs.keys()
    rates.append(measured_rate(2048))
    rate = statistics.median(rates)
    return {
        "targets_speedup": slow / full,
        "targets_seconds_per_edit": with_stop,
        "targets_seconds_per_edit_equal_scores": fast,
        "targets_full_steps_equal_scores": runs.full_steps(quick, FAST),
        "targets_speedup_equal_scores": slow / fast,
        "keys_share_equal_scores": keys / (keys + fast),
        "targets_limit_fraction": equal.steps * runs.useful_flops() / full / rate,
        "targets_mean_steps": float(stopped.steps.double().mean()),
        "targets_mean_steps_equal_scores": float(quick.steps.double().mean()),
        "targets_seconds_per_edit_full_steps": full,
        "targets_seconds_per_edit_default_micro_batch": default,
        "targets_default_micro_batch": default_micro_batch(model.outline),
        "targets_oracle_seconds_per_edit": slow,
        "targets_largest_relative_difference": max(gaps),
        "targets_gigaflops_per_step": runs.useful_flops() / 1e9,
    }


def growth(model: ModelHandle, *, counts: Sequence[int] = (32, 512)) -> Figures:
    """Seconds per edit by number of edits, two steps each: flat, because groups are of 32."""
    options = replace(STANDARD, steps=2, stop_below=0.0)
    figures: Figures = {}
    for count in counts:
        seconds, _ = Runs(model, count).batched(options)
        figures[f"growth_{count}_edits_seconds_per_edit"] = seconds
    first, *_, last = figures.values()
    figures["growth_ratio"] = last / first
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--edits", type=int, default=32)
    parser.add_argument("--oracle", type=int, default=4)
    chosen = parser.parse_args(arguments)
    quiet_libraries()
    print(f"edits from {source()}")
    print_figures(targets(load(chosen.model), count=chosen.edits, oracle=chosen.oracle))


if __name__ == "__main__":
    main()
