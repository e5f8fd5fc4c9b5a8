"""Store any method's increments as tensors and JSON.

An increment, what a method carries from a batch to the next, is a tree of NamedTuples, dataclasses,
tuples, mappings, tensors, numbers, texts and None. Tensors get names of their own; the rest is JSON
that says of each node what it was.
"""

import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, cast

from torch import Tensor

from retcon.errors import Damaged

_PLAIN = (bool, int, float, str)
_CLASS = "class"


def encode(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """Encode a value as JSON.

    Args:
        value: an increment, or a part of one.
        tensors: gets the tensors in it, under names that begin with `name`.
        name: of this part.

    Raises:
        TypeError: something in it that cannot be kept.
    """
    if value is None or isinstance(value, _PLAIN):
        return value
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, Mapping):
        pairs = cast(Mapping[Any, Any], value).items()
        return {"map": [[key, encode(one, tensors, f"{name}.{key}")] for key, one in pairs]}
    if is_dataclass(value) or hasattr(value, "_fields"):
        named = {part: getattr(value, part) for part in _parts(type(value))}
        kind = type(value)
        return {
            _CLASS: f"{kind.__module__}:{kind.__qualname__}",
            "fields": {k: encode(one, tensors, f"{name}.{k}") for k, one in named.items()},
        }
    if isinstance(value, tuple):
        items = cast(tuple[Any, ...], value)
        return {"tuple": [encode(one, tensors, f"{name}.{i}") for i, one in enumerate(items)]}
    raise TypeError(
        f"An increment holds a {type(value).__name__}, which cannot be kept to go on from. Make "
        f"it of NamedTuples, tuples, mappings, tensors, numbers, texts and edits."
    )


def decode(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Decode a value.

    Args:
        node: as `encode` gave it.
        tensors: by the names that `encode` gave them.

    Raises:
        Damaged: it names a class that is not there.
    """
    if not isinstance(node, dict):
        return node
    tree = cast(dict[str, Any], node)
    if "tensor" in tree:
        return tensors[tree["tensor"]]
    if "map" in tree:
        return {key: decode(one, tensors) for key, one in tree["map"]}
    if "tuple" in tree:
        return tuple(decode(one, tensors) for one in tree["tuple"])
    parts = {k: decode(one, tensors) for k, one in tree["fields"].items()}
    return _class(tree[_CLASS])(**parts)


def _parts(kind: type) -> list[str]:
    """The fields of a dataclass or NamedTuple."""
    return [f.name for f in fields(kind)] if is_dataclass(kind) else list(kind._fields)  # type: ignore[attr-defined]


def _class(name: str) -> type:
    """A NamedTuple or dataclass by module and name.

    Nothing is imported for it: the module of a method that is run has been loaded.
    """
    module, _, rest = name.partition(":")
    kind = getattr(sys.modules.get(module), rest, None)
    if not (isinstance(kind, type) and (is_dataclass(kind) or hasattr(kind, "_fields"))):
        raise Damaged(f"An increment holds a {name}, and no such record is there.")
    return kind
