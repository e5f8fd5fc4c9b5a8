"""How the time of a target grows with the layer, the batch, the contexts and the target's length.

    python benchmarks/growth.py [--edits 32] [--steps 2] [--most 512] [--json FILE]

Processor seconds an edit and step of `optimise_targets` on SmolLM2-135M, so that what else the
machine does counts little; run it with one thread (OMP_NUM_THREADS=1). One axis changes at a time;
the others stay at layer 1, 32 edits, six contexts, and the targets as the data has them. Every step
looks at every context and none stops early. Writes a Markdown table for each axis.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

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
# Repeated to make targets of some length.
_LONG = ("red", "fox", "by", "the", "sea", "in", "the", "rain")

Rows = list[tuple[int, float]]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--edits", type=int, default=32)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--most", type=int, default=512, help="the largest batch")
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
    axes: dict[str, tuple[Sequence[int], Callable[[int], float]]] = {
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
    for name, (values, measure) in axes.items():
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
) -> float:
    """Processor seconds an edit and step."""
    started = time.process_time()
    optimise_targets(model, edits, prefixes, layer, options)
    return (time.process_time() - started) / len(edits) / options.steps


def table(name: str, rows: Rows) -> str:
    """The times of an axis, and their ratio to the first."""
    lines = [f"| {name} | seconds an edit and step | to the first |", "|---:|---:|---:|"]
    lines += [f"| {x} | {seconds:.3f} | {seconds / rows[0][1]:.2f} |" for x, seconds in rows]
    return "\n".join([*lines, ""])


def _longer(edits: Sequence[Edit], words: int) -> list[Edit]:
    """The edits with a target of so many words."""
    target = " ".join((_LONG * (1 + words // len(_LONG)))[:words])
    return [replace(edit, target=target) for edit in edits]


if __name__ == "__main__":
    main()
