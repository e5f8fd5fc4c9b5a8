"""What the benchmarks share: their model, their data, a table."""

import argparse
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from retcon.data.cases import load_cases, starter_cases, take
from retcon.edits import Case

Figures = dict[str, float]

MODEL = "smollm2-135m"
_ROOT = Path(__file__).parents[1]


def parser_of(description: str | None, *, model: str = MODEL) -> argparse.ArgumentParser:
    """A parser for a script's arguments, with the model among them."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", default=model, help="an alias, a folder or a hub id")
    return parser


def counterfact() -> Path:
    """The file of CounterFact, which need not be there: in `RETCON_DATA`, else ../shared/data."""
    folder = Path(os.environ.get("RETCON_DATA", _ROOT.parent / "shared" / "data"))
    return folder / "counterfact" / "counterfact_uniform.json.gz"


def source() -> str:
    """The name of the data that `cases` takes."""
    return counterfact().name if counterfact().is_file() else "the starter set"


def cases(count: int, *, seed: int) -> list[Case]:
    """Cases of CounterFact, or as many of the starter set as there are."""
    found = _every()
    return take(found, count if counterfact().is_file() else min(count, len(found)), seed)


def shuffled(*, seed: int) -> list[Case]:
    """All cases, in the order in which `cases` takes them."""
    found = _every()
    return take(found, len(found), seed)


def _every() -> list[Case]:
    return load_cases(counterfact()) if counterfact().is_file() else starter_cases()


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
