"""Say in words what is wrong with a study file: pydantic's own are about types nobody wrote."""

import difflib
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from pydantic import ValidationError

_COUNT, _FROM_0 = "a whole number, 1 or more", "a whole number, 0 or more"
_REGIMES = "single, batch, sequential, sequential-batch or adaptive- and the name of a batch rule"
# What a key takes, where a list of it spans an axis.
_AXES: Mapping[str, str] = {
    "n": _COUNT,
    "batch_size": f"{_COUNT}, or n",
    "seed": "a whole number",
    "order": f"{_FROM_0}, or clustered or dispersed",
    "score": _FROM_0,
    "schedule": _REGIMES,
    "layer": "the number of a layer, or all",
    "model": "a name",
    "dtype": "a name",
    "method": "a name",
    "refresh": "a rule as text",
}
# What other keys take.
_TAKES: Mapping[str, str] = {
    "name": "a text; put it in quotes if it looks like a number or a date",
    "description": "a text; put it in quotes if it looks like a number or a date",
    "cases": "the name of a file, starter, toyworld or toyworld-small",
    "sha256": "a text in quotes",
    "layers": "a list of layers, or a list of such lists",
    "when": "a list of pre, immediate, final and retention",
    "options": "options of the data set by name, as in {target: alt}",
    "settings": "settings by name, as in {ridge: 300}",
    "generation": "true or false",
    "unique_subjects": "true or false: whether only one fact of a subject is kept",
    "ridges": "a list of 1 to 100 numbers, 0 or more",
    "threads": _COUNT,
    "metrics": "a list of names of metrics",
    "plugins": "a list of Python files, beside the study file",
    "findings": "a list of names of findings, as in [batch-size]",
    "blocks": "a list of blocks, each with a name and what it spans",
    "tuning": "ridges, n and score",
    "data": "cases and unique_subjects",
}


def explain(
    error: ValidationError, keys: Mapping[str, Sequence[str]]
) -> tuple[tuple[int | str, ...], str]:
    """Name the first thing that is wrong, and say what, with the nearest known key.

    Args:
        error: of pydantic.
        keys: the known keys of each part of the file; "" is its top.

    Returns:
        The place in the file, as keys and indices, and a sentence.
    """
    first = next((e for e in error.errors() if e["type"] == "extra_forbidden"), error.errors()[0])
    loc: tuple[int | str, ...] = first["loc"]
    if first["type"] == "extra_forbidden":
        return loc, _unknown(loc, keys)
    if first["type"] == "missing":
        owner = ".".join(map(str, loc[:-1])) or "the file"
        takes = _TAKES.get(str(loc[-1]))
        return loc, f"{owner} lacks the key {loc[-1]}{f': {takes}' if takes else ''}."
    return loc, _wrong(loc, first["input"], first["msg"], keys)


def _unknown(loc: tuple[int | str, ...], keys: Mapping[str, Sequence[str]]) -> str:
    *outer, last = (str(part).strip() for part in loc)
    known = sorted(keys[outer[0] if outer else ""])
    near = difflib.get_close_matches(last, known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown key {'.'.join([*outer, last])}.{hint} Known there: {', '.join(known)}."


def _wrong(
    loc: tuple[int | str, ...], given: Any, message: str, keys: Mapping[str, Sequence[str]]
) -> str:
    """A value of the wrong kind. Behind the key, `loc` names types that were tried, and places."""
    every = {key for part in keys.values() for key in part}
    last = max((i for i, part in enumerate(loc) if part in every), default=len(loc) - 1)
    place, key = ".".join(map(str, loc[: last + 1])), str(loc[last])
    if key in _AXES and not isinstance(given, dict):
        return f"{place}: {given!r} is not {_AXES[key]} (or a list of such)."
    if key in _TAKES:
        shown = str(given) if isinstance(given, date) else repr(given)
        return f"{place}: {shown} is not right: it takes {_TAKES[key]}."
    return f"{place}: {message}, and not {given!r}."
