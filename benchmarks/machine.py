"""What the benchmarks share: their data, the machine's rate, a table."""

import os
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch

from retcon.data.cases import load_cases, starter_cases, take
from retcon.edits import Case

Figures = dict[str, float]

_ROOT = Path(__file__).parents[1]
_DATA = Path(os.environ.get("RETCON_DATA", _ROOT.parent / "shared" / "data"))
COUNTERFACT = _DATA / "counterfact" / "counterfact_uniform.json.gz"


def cases(count: int, *, seed: int) -> list[Case]:
    """Cases of CounterFact, or as many of the starter set as there are."""
    if COUNTERFACT.is_file():
        return take(load_cases(str(COUNTERFACT)), count, seed)
    starter = starter_cases()
    return take(starter, min(count, len(starter)), seed)


@contextmanager
def tests_on_path() -> Generator[None, None, None]:
    """The oracles are the tests'."""
    sys.path.insert(0, str(_ROOT / "tests"))
    yield
    sys.path.pop(0)


def product_rate(size: int = 2048, repeats: int = 5) -> float:
    """FLOP/s of a float32 product of two square matrices, the best of a few."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        _ = left @ right
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def print_figures(figures: Figures) -> None:
    """One a line."""
    for name, value in figures.items():
        print(f"{name:48} {value:.4g}", flush=True)
