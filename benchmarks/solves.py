"""The closed form at the sizes that are asked of it, and what one more λ costs.

    python benchmarks/solves.py [--edits 4096] [--widths 1536 14336]

Synthetic: keys drawn from N(0, C) with a spectrum that falls from 1 to 1e-6, ρ = 1. Each width runs
in a process of its own, whose peak of memory (VmHWM) during the solve is given without what the
process had before it was given keys and C. `factor` is the Cholesky factor of C (d³/3, once per
layer), `solve` is A for all edits (`write_keys`).
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from retcon.algebra.preservation import Preservation
from retcon.algebra.solve import write_keys
from retcon.method.base import Features, Method
from retcon.model.handle import ModelHandle


def extra_ridge_seconds(
    model: ModelHandle, method: Method[Any, Any, Any], features: Features, state: Any
) -> float:
    """Seconds from a further λ, that of the method, to edited weights, which are undone afterwards.

    features, state: of the first run. Divided by its seconds this is `extra_ridge_ratio`.
    """

    def once() -> float:
        with model.scratch():
            started = time.perf_counter()
            model.write(method.solve(model, features, state).deltas)
            return time.perf_counter() - started

    return statistics.median(once() for _ in range(3))


def solves(edits: int, width: int, repeats: int = 3) -> dict[str, float]:
    """Seconds and peak of memory of the factor and of the solve, in a process of its own."""
    command = [sys.executable, __file__, "--child", str(edits), str(width), str(repeats)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def peak_bytes() -> int:
    """The largest resident size of this process since `forget_peak`."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def forget_peak() -> None:
    """Let the peak start from what is resident now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def _child(edits: int, width: int, repeats: int) -> None:
    before = peak_bytes()
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(0, -3, width, dtype=torch.float64)
    keys = torch.randn(edits, width, generator=generator, dtype=torch.float64) * scale
    moment = torch.zeros(width, width, dtype=torch.float64)
    moment.diagonal().copy_(scale.square())
    # Full, so that nothing is zero: a rank-one part costs no product of d³.
    moment.addr_(scale, scale)
    started = time.perf_counter()
    metric = Preservation.of(moment, overwrite=True)
    factor = time.perf_counter() - started
    forget_peak()
    resident = peak_bytes()
    solve = statistics.median(
        _seconds(lambda: write_keys(keys, metric, 1.0)) for _ in range(repeats)
    )
    name = f"{edits}x{width}"
    figures = {
        f"factor_{width}_seconds": factor,
        f"solve_{name}_seconds": solve,
        f"solve_{name}_inputs_megabytes": (resident - before) / 1e6,
        f"solve_{name}_peak_megabytes": (peak_bytes() - before) / 1e6,
    }
    print(json.dumps(figures))


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edits", type=int, default=4096)
    parser.add_argument("--widths", type=int, nargs="+", default=[1536, 14336])
    parser.add_argument("--child", type=int, nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.child:
        _child(*chosen.child)
        return
    for width in chosen.widths:
        figures = solves(chosen.edits, width, repeats=3 if width < 4096 else 1)
        for name, value in figures.items():
            print(f"{name:40} {value:.4g}")


if __name__ == "__main__":
    main()
