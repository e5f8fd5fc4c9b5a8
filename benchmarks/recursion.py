"""Seconds of each carried batch's solve, as facts add up: the cost should not grow with them.

    python benchmarks/recursion.py [--edits 4096] [--batch 64] [--width 1536] [--threads 2]

Synthetic keys from N(0, C) with a spectrum that falls from 1 to 1e-6, ρ = 300; a solve is
`write_keys` and `Preservation.remember`. Medians by quarter of the run, and the first batches,
which have little to remember and are cheaper.
"""

import argparse
import statistics
import time
from collections.abc import Sequence

import torch

from retcon.algebra.preservation import Preservation
from retcon.algebra.solve import write_keys


def seconds(edits: int, batch: int, width: int) -> list[float]:
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(0, -3, width, dtype=torch.float64)
    moment = torch.zeros(width, width, dtype=torch.float64)
    moment.diagonal().copy_(scale.square())
    moment.addr_(scale, scale)
    metric, taken = Preservation.of(moment, overwrite=True), []
    for _ in range(edits // batch):
        keys = torch.randn(batch, width, generator=generator, dtype=torch.float64) * scale
        started = time.perf_counter()
        metric = metric.remember(write_keys(keys, metric, 300.0).memory, 300.0)
        taken.append(time.perf_counter() - started)
    return taken


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edits", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--width", type=int, default=1536)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    taken = seconds(chosen.edits, chosen.batch, chosen.width)
    quarter = len(taken) // 4
    print(f"first three batches          {1e3 * statistics.median(taken[:3]):.1f} ms")
    print(f"the one that absorbs         {1e3 * max(taken[:quarter]):.1f} ms")
    for i in range(4):
        part = taken[i * quarter : (i + 1) * quarter]
        print(f"quarter {i + 1}, median of {quarter}    {1e3 * statistics.median(part):.1f} ms")


if __name__ == "__main__":
    main()
