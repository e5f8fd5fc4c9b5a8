"""All benchmarks in one run, for `make bench` and, smaller, `make bench-quick`.

    python benchmarks/run.py [--size full] [--json FILE]

SmolLM2-135M. Every figure comes from a comparison within this run. Writes
benchmarks/results/latest.json (of a smaller run, a file of its size's name), or another file.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evaluation import evaluation_speedup, score_each, single_schedule_speedup
from machine import Figures, cases, parser_of, print_figures, source
from memory import memory
from moments import moments, sentences_in
from retcon.cli.console import quiet_libraries
from retcon.environment import environment
from retcon.features.second_moments import MomentOptions
from retcon.method.memit import memit
from retcon.model.handle import ModelHandle
from retcon.model.load import load
from retcon.run.cost import measured_rate
from solves import extra_ridge_seconds, solves
from targets import FAST, LAYER, STANDARD, growth, targets

TWO_STEPS = replace(STANDARD, steps=2)
BARS = {
    "targets_speedup": (">=", 4.5),
    "targets_seconds_per_edit": ("<=", 3.4),
    "targets_seconds_per_edit_equal_scores": ("<=", 1.5),
    "targets_full_steps_equal_scores": ("<=", 3.5),
    "targets_speedup_equal_scores": (">=", 30.0),
    "keys_share_equal_scores": ("<=", 0.15),
    "targets_limit_fraction": (">=", 0.5),
    "evaluation_speedup": (">=", 3.5),
    "single_schedule_speedup": (">=", 3.5),
    "covariance_all_layers_ratio": ("<=", 2.0),
    "extra_ridge_ratio": ("<=", 0.01),
    "peak_memory_ratio": ("<=", 1.6),
    "growth_ratio": ("<=", 1.2),
}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much of everything."""

    edits: int
    oracle: int
    records: int
    repeats: int
    tokens: int
    ridge_edits: int
    counts: tuple[int, ...]
    memory_edits: int
    memory_steps: int
    solve_edits: int
    width: int


# Quick takes three minutes; the least runs every part, and its figures say nothing.
SIZES = {
    "full": Sizes(
        edits=32, oracle=2, records=16, repeats=2, tokens=4096, ridge_edits=128, counts=(32, 256),
        memory_edits=32, memory_steps=3, solve_edits=4096, width=1536,
    ),
    "quick": Sizes(
        edits=4, oracle=1, records=8, repeats=1, tokens=2048, ridge_edits=8, counts=(4, 16),
        memory_edits=32, memory_steps=2, solve_edits=1024, width=1536,
    ),
    "least": Sizes(
        edits=2, oracle=1, records=1, repeats=1, tokens=300, ridge_edits=2, counts=(1, 2),
        memory_edits=2, memory_steps=2, solve_edits=8, width=16,
    ),
}  # fmt: skip


def extra_ridge(model: ModelHandle, *, count: int, tokens: int) -> Figures:
    """`extra_ridge_ratio`: a further λ against the first run, moments, targets and all.

    The first run makes two of its 25 steps only, which makes the ratio larger, not smaller.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = MomentOptions(corpus=sentences_in(folder), corpus_tokens=tokens)
        editor, other = (
            memit((LAYER,), ridge=ridge, targets=TWO_STEPS, moments=options)
            for ridge in (300.0, 3000.0)
        )
        edits = [case.edit for case in cases(count, seed=0)]
        started = time.perf_counter()
        state = editor.setup.begin(model)
        features = editor.features(model, edits, state)
        deltas = editor.solve(model, features, state).deltas
        with model.scratch():
            model.write(deltas)
            first = time.perf_counter() - started
        again = extra_ridge_seconds(model, other, features, state)
    return {
        "extra_ridge_ratio": again / first,
        "extra_ridge_seconds": again,
        "first_run_seconds": first,
    }


def run(model: ModelHandle, sizes: Sizes) -> Figures:
    """Every part of the work, one after the other."""
    numbers: Figures = {}

    def part(name: str, work: Callable[[], dict[str, object] | Figures]) -> None:
        started = time.perf_counter()
        found = work()
        kept = {k: float(v) for k, v in found.items() if isinstance(v, int | float)}
        print(f"\n{name} ({time.perf_counter() - started:.0f} s)")
        print_figures(kept)
        numbers.update(kept)

    part("targets", lambda: targets(model, count=sizes.edits, oracle=sizes.oracle))
    part("growth", lambda: growth(model, counts=sizes.counts))
    score_each(model, cases(1, seed=0))  # the first pass of a process is slow
    for work in (evaluation_speedup, single_schedule_speedup):
        name = work.__name__
        part(name, lambda w=work: _prefixed(w.__name__, w(model, sizes.records, sizes.repeats)))
    part("second moments", lambda: moments(model, tokens=sizes.tokens))
    part("a further λ", lambda: extra_ridge(model, count=sizes.ridge_edits, tokens=sizes.tokens))
    part("memory", lambda: memory(model.name, edits=sizes.memory_edits, steps=sizes.memory_steps))
    part("solves", lambda: solves(sizes.solve_edits, sizes.width))
    return numbers


def _prefixed(main: str, found: dict[str, object]) -> dict[str, object]:
    """The figure itself, and the others under its name."""
    return {k if k == main else f"{main}_{k}": value for k, value in found.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(arguments)
    quiet_libraries()
    rate = measured_rate(2048)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as entries:
        numbers = run(fresh(chosen.model, entries), SIZES[chosen.size])
    numbers["machine_gigaflops"] = rate / 1e9
    numbers["benchmark_seconds"] = time.perf_counter() - started
    record = {
        "figures": {name: {"value": value} for name, value in numbers.items()},
        "command": " ".join(["python", *sys.argv]),
        "data": source(),
        "settings": {"targets": str(FAST), "sizes": str(SIZES[chosen.size])},
        "versions": environment(),
    }
    own = "latest.json" if chosen.size == "full" else f"{chosen.size}.json"
    path = chosen.json or Path(__file__).parent / "results" / own
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print_bars(numbers, chosen.size)


def print_bars(numbers: Figures, size: str) -> None:
    """The figures that have a bar, and whether it was met."""
    print(f"\n{'':40} {'value':>8}  bar{'' if size == 'full' else ' (of the full run)'}")
    for name, (sign, bar) in BARS.items():
        value = numbers[name]
        met = value >= bar if sign == ">=" else value <= bar
        print(f"{name:40} {value:8.3g}  {sign} {bar:g}  {'met' if met else 'MISSED'}")


def fresh(name: str, entries: str) -> ModelHandle:
    """The model; what is computed here neither comes from the user's cache nor goes there."""
    model = load(name)
    os.environ["RETCON_CACHE"] = entries
    os.environ["RETCON_CACHE_LIMIT"] = "0"
    return model


if __name__ == "__main__":
    main()
