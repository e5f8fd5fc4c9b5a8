"""What of a method decides the weights that it makes: its part of a study cell's identity."""

from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from retcon.method.locate_then_edit import LocateThenEdit


def identity(method: object) -> dict[str, Any]:
    """The settings that differ from their defaults, layers apart, and whose they are.

    Values of the one equation are known by these settings alone, so that EMMET and MEMIT at one
    ridge are one cell, and a setting that is added later leaves the cells of earlier studies
    theirs. Other methods are known by their class too, by its whole name outside this package.
    """
    own = differing(method)
    if isinstance(method, LocateThenEdit):
        return own
    kind = type(method)
    inside = kind.__module__.startswith("retcon.method.")
    return {"kind": kind.__name__ if inside else f"{kind.__module__}.{kind.__qualname__}", **own}


def differing(options: object) -> dict[str, Any]:
    """The fields of a dataclass that differ from their defaults; groups in it likewise."""
    assert is_dataclass(options)
    chosen: dict[str, Any] = {}
    for field in fields(options):
        value = getattr(options, field.name)
        if is_dataclass(value):
            inner = differing(value)
            # A group that a method need not name is told only where something in it is.
            if inner or field.default is MISSING:
                chosen[field.name] = inner
        elif value != field.default:
            chosen[field.name] = value
    return chosen
