"""Rewrite facts inside language models, keep each edit as a small patch, measure what it costs.

The public names are loaded when they are first used, so that importing this package is cheap.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retcon.data.cases import load_cases, starter_cases, take
    from retcon.edits import Case, Edit
    from retcon.errors import RetconError
    from retcon.method.entries import methods
    from retcon.model.load import load
    from retcon.patch.ledger import Ledger
    from retcon.patch.patch import Patch, load_patch
    from retcon.run.asked import ask
    from retcon.run.edit import edit
    from retcon.run.evaluate import evaluate, score
    from retcon.run.interference import interference
    from retcon.run.record import Run
    from retcon.run.schedule import Schedule
    from retcon.scoring.intervals import Estimate
    from retcon.scoring.measured import Measured
    from retcon.scoring.metrics import metrics
    from retcon.study.runner import run_study
    from retcon.study.study import Study, read_study

__version__ = "0.2.0"

_HOMES = {
    "Case": "retcon.edits",
    "Edit": "retcon.edits",
    "Estimate": "retcon.scoring.intervals",
    "Ledger": "retcon.patch.ledger",
    "Measured": "retcon.scoring.measured",
    "Patch": "retcon.patch.patch",
    "RetconError": "retcon.errors",
    "Run": "retcon.run.record",
    "Schedule": "retcon.run.schedule",
    "Study": "retcon.study.study",
    "ask": "retcon.run.asked",
    "edit": "retcon.run.edit",
    "evaluate": "retcon.run.evaluate",
    "interference": "retcon.run.interference",
    "load": "retcon.model.load",
    "load_cases": "retcon.data.cases",
    "load_patch": "retcon.patch.patch",
    "methods": "retcon.method.entries",
    "metrics": "retcon.scoring.metrics",
    "read_study": "retcon.study.study",
    "run_study": "retcon.study.runner",
    "score": "retcon.run.evaluate",
    "starter_cases": "retcon.data.cases",
    "take": "retcon.data.cases",
}

__all__ = [
    "Case",
    "Edit",
    "Estimate",
    "Ledger",
    "Measured",
    "Patch",
    "RetconError",
    "Run",
    "Schedule",
    "Study",
    "__version__",
    "ask",
    "edit",
    "evaluate",
    "interference",
    "load",
    "load_cases",
    "load_patch",
    "methods",
    "metrics",
    "read_study",
    "run_study",
    "score",
    "starter_cases",
    "take",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'retcon' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
