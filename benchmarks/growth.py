"""How the time of a target grows with the layer, the batch, the contexts and the target's length.

    python benchmarks/growth.py [--edits 32] [--steps 2] [--most 512] [--axes NAME ...]
                                [--json FILE]

Processor seconds an edit of `optimise_targets` on SmolLM2-135M, so that what else the machine does
counts little; run it with one thread (OMP_NUM_THREADS=1). *A step* is what each further one takes,
and *at first* what is done once: what stands before the subjects is run, texts are cut, and the
last pass, which has no gradient. One axis changes at a time; the others stay at layer 1, 32 edits,
six contexts, and the targets as the data has them. Every step looks at every context and none stops
early. Writes a Markdown table for each axis.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from machine import cases, parser_of, source
from retcon.cli.console import quiet_libraries
from retcon.edits import Edit
from retcon.environment import environment
from retcon.features.contexts import ContextOptions, sample_prefixes
from retcon.features.targets import TargetOptions, optimise_targets
from retcon.model.handle import ModelHandle
from retcon.model.load import load

LAYERS = (1, 5, 10, 15, 20, 25)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
CONTEXTS = (1, 2, 3, 6, 11, 21)
WORDS = (1, 2, 4, 8, 16)
AXES = ("layer", "edits together", "contexts", "words of the target")
# Repeated to make targets of some length.
_LONG = ("red", "fox", "by", "the", "sea", "in", "the", "rain")


class Seconds(NamedTuple):
    """Processor seconds of an edit: what is done once, and each step."""

    first: float
    step: float


Rows = list[tuple[int, Seconds]]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--edits", type=int, default=32)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--most", type=int, default=512, help="the largest batch")
    parser.add_argument("--axes", nargs="+", choices=AXES, default=AXES)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(arguments)
    quiet_libraries()
    model = load(chosen.model)
    edits = [case.edit for case in cases(max(chosen.most, chosen.edits), seed=0)]
    some, layers = edits[: chosen.edits], [x for x in LAYERS if x in model.architecture.sites]
    options = TargetOptions(steps=chosen.steps, stop_below=0.0, micro_batch=256)
    drawn = sample_prefixes(model, replace(ContextOptions(), prefixes=max(CONTEXTS) - 1))
    six = drawn[:6]
    seconds_of(model, some, six, layers[0], options)  # so that nothing is done for the first time
    axes: dict[str, tuple[Sequence[int], Callable[[int], Seconds]]] = {
        "layer": (layers, lambda x: seconds_of(model, some, six, x, options)),
        "edits together": (
            [x for x in BATCHES if x <= len(edits)],
            lambda x: seconds_of(model, edits[:x], six, layers[0], options),
        ),
        "contexts": (CONTEXTS, lambda x: seconds_of(model, some, drawn[:x], layers[0], options)),
        "words of the target": (
            WORDS,
            lambda x: seconds_of(model, _longer(some, x), six, layers[0], options),
        ),
    }
    found: dict[str, Rows] = {}
    for name in chosen.axes:
        values, measure = axes[name]
        found[name] = [(x, measure(x)) for x in values]
        print(table(name, found[name]), flush=True)
    if chosen.json:
        about = {"edits": len(some), "steps": chosen.steps, "data": source()}
        record = {**about, "seconds": found, "versions": environment()}
        chosen.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def seconds_of(
    model: ModelHandle,
    edits: Sequence[Edit],
    prefixes: Sequence[str],
    layer: int,
    options: TargetOptions,
) -> Seconds:
    """Time the last pass alone, and with the steps before it."""

    def taken(steps: int) -> float:
        started = time.process_time()
        optimise_targets(model, edits, prefixes, layer, replace(options, steps=steps))
        return (time.process_time() - started) / len(edits)

    alone = taken(1)
    return Seconds(alone, (taken(1 + options.steps) - alone) / options.steps)


def table(name: str, rows: Rows) -> str:
    """The times of an axis, and those of a step by the first's."""
    lines = [f"| {name} | at first, s | a step, s | to the first |", "|---:|---:|---:|---:|"]
    lines += [
        f"| {x} | {first:.3f} | {step:.3f} | {step / rows[0][1].step:.2f} |"
        for x, (first, step) in rows
    ]
    return "\n".join([*lines, ""])


def _longer(edits: Sequence[Edit], words: int) -> list[Edit]:
    """The edits with a target of so many words."""
    target = " ".join((_LONG * (1 + words // len(_LONG)))[:words])
    return [replace(edit, target=target) for edit in edits]


if __name__ == "__main__":
    main()
