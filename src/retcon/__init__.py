"""Rewrite facts inside language models, keep each edit as a small patch, measure what it costs.

The public names are loaded when they are first used, so that importing this package is cheap.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retcon.data.cases import load_cases, starter_cases, take
    from retcon.edits import Case, Edit
    from retcon.errors import RetconError
    from retcon.model.load import load
    from retcon.patch.ledger import Ledger
    from retcon.patch.patch import Patch, load_patch
    from retcon.run.edit import edit
    from retcon.run.evaluate import evaluate
    from retcon.run.schedule import Schedule

__version__ = "0.1.0"

_HOMES = {
    "Case": "retcon.edits",
    "Edit": "retcon.edits",
    "Ledger": "retcon.patch.ledger",
    "Patch": "retcon.patch.patch",
    "RetconError": "retcon.errors",
    "Schedule": "retcon.run.schedule",
    "edit": "retcon.run.edit",
    "evaluate": "retcon.run.evaluate",
    "load": "retcon.model.load",
    "load_cases": "retcon.data.cases",
    "load_patch": "retcon.patch.patch",
    "starter_cases": "retcon.data.cases",
    "take": "retcon.data.cases",
}

__all__ = [
    "Case",
    "Edit",
    "Ledger",
    "Patch",
    "RetconError",
    "Schedule",
    "__version__",
    "edit",
    "evaluate",
    "load",
    "load_cases",
    "load_patch",
    "starter_cases",
    "take",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'retcon' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
