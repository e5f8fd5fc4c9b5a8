"""Peak of resident memory while facts are edited, phase by phase, in a fresh process.

    python benchmarks/memory.py [--edits 32]

SmolLM2-135M, EMMET at layer 1, second moments from sentences of the starter set, in a cache of
its own: nothing but the converted model is there before. The peak is VmHWM, which counts whatever
the allocator keeps and every page of a file that is mapped.

    peak_memory_ratio = (peak − after imports) / (bytes of weights + 8 d_in² for the edited layer)
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from machine import MODEL, parser_of
from moments import sentences_in
from solves import forget_peak, peak_bytes

_LAYER = 1


def memory(name: str = MODEL, *, edits: int = 32, steps: int = 25) -> dict[str, float]:
    """`peak_memory_ratio`, and of each phase the peak in megabytes over that after imports."""
    from retcon.model.load import checkpoint_folder

    checkpoint_folder(name)
    command = [sys.executable, __file__, "--child", "--model", name]
    command += ["--edits", str(edits), "--steps", str(steps)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _child(name: str, edits: int, steps: int) -> None:
    import torch

    from retcon.cli.console import quiet_libraries
    from retcon.data.cases import starter_cases, take
    from retcon.features.keys import read_keys
    from retcon.features.second_moments import MomentOptions
    from retcon.features.target_options import TargetOptions
    from retcon.method.emmet import emmet
    from retcon.model.load import load

    quiet_libraries()
    forget_peak()
    base = peak_bytes()
    peaks: dict[str, int] = {}

    def phase(name: str) -> None:
        peaks[name] = peak_bytes() - base
        print(f"{name}: {peaks[name] / 1e6:.0f} MB", file=sys.stderr, flush=True)
        forget_peak()

    model = load(name)
    phase("load")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RETCON_CACHE"] = folder
        editor = emmet(
            (_LAYER,),
            targets=TargetOptions(steps=steps),
            moments=MomentOptions(corpus=sentences_in(folder), corpus_tokens=8192),
        )
        state = editor.setup.begin(model)
        phase("moments")
        facts = [case.edit for case in take(starter_cases(), edits, 0)]
        weights = torch.full((len(state.prefixes),), 1 / len(state.prefixes), dtype=torch.float64)
        read_keys(model, facts, state.prefixes, [_LAYER], weights)
        phase("keys")
        features = editor.features(model, facts, state)
        phase("targets")
        model.write(editor.solve(model, features, state).deltas)
        phase("solve")
    # The parameters are counted once where they are tied.
    needed = sum(parameter.nbytes for parameter in model.model.parameters())
    needed += 8 * model.site(_LAYER).d_in ** 2
    figures = {"peak_memory_ratio": max(peaks.values()) / needed, "needed_megabytes": needed / 1e6}
    figures["import_megabytes"] = base / 1e6
    figures |= {f"peak_megabytes_{name}": peak / 1e6 for name, peak in peaks.items()}
    print(json.dumps(figures))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--edits", type=int, default=32)
    parser.add_argument("--steps", type=int, default=25, help="passes of a target's optimisation")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.child:
        _child(chosen.model, chosen.edits, chosen.steps)
        return
    for name, value in memory(chosen.model, edits=chosen.edits, steps=chosen.steps).items():
        print(f"{name:40} {value:.4g}")


if __name__ == "__main__":
    main()
