"""What the benchmarks share: their data, the machine's rate, a table."""

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

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


def print_figures(figures: Figures) -> None:
    """One a line."""
    for name, value in figures.items():
        print(f"{name:48} {value:.4g}", flush=True)
