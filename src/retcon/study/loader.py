"""Read the YAML of a study file, and find the line on which a part of it stands."""

import re
from collections.abc import Sequence
from typing import Any

import yaml

from retcon.errors import InvalidStudy

# What no study needs: aliases of aliases, or lists in lists, take any memory and time.
_DEEPEST, _MOST_NODES = 30, 300_000


class Loader(yaml.SafeLoader):
    """YAML as its authors expect it: 1e3 is a number, and no key may stand twice in one place."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands there twice", key.start_mark
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """A value; what Python cannot read as the number or date that it looks like, by its line.

        `2026-99-99` looks like a date, and 5,000 digits like a number.
        """
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError) as error:
            written = _short(node.value) if isinstance(node, yaml.ScalarNode) else "this"
            raise yaml.constructor.ConstructorError(
                None,
                None,
                f"{written} cannot be read ({error}); put a text in quotes",
                node.start_mark,
            ) from error


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"), list("-+0123456789")
)


def read_yaml(text: str, source: str) -> Any:
    """The value of a text in YAML.

    Raises:
        InvalidStudy: it is none, or too deep or too large once its aliases are spelled out.
    """
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, {}, ())
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise InvalidStudy(f"{source}{line}: {problem}.") from error
    except RecursionError as error:
        raise InvalidStudy(f"{source}: {_too_deep()}.") from error


def line_of(text: str, place: Sequence[object]) -> int | None:
    """Line on which a part of a valid text stands, or as much of its place as there is."""
    node: yaml.Node | None = Loader(text).get_single_node()
    line = None
    for step in place:
        part = _step(node, step)
        if part is None:
            break
        mark, node = part
        line = mark.line + 1
    return line


def _step(node: yaml.Node | None, step: object) -> tuple[yaml.Mark, yaml.Node] | None:
    """A part of a node, and where it begins."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value == str(step).strip():
                return key.start_mark, value
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step].start_mark, node.value[step]
    return None


def _measure(node: yaml.Node, sizes: dict[int, int], above: tuple[int, ...]) -> int:
    """Count the nodes of a part, aliases spelled out."""
    if id(node) in above:
        raise _error("this holds itself", node)
    if len(above) > _DEEPEST:
        raise _error(_too_deep(), node)
    if id(node) not in sizes:
        size = 1 + sum(_measure(part, sizes, (*above, id(node))) for part in _parts(node))
        if size > _MOST_NODES:
            raise _error(f"there are more than {_MOST_NODES:,} values in this", node)
        sizes[id(node)] = size
    return sizes[id(node)]


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _error(problem: str, node: yaml.Node) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _too_deep() -> str:
    return f"lists and mappings stand in each other more than {_DEEPEST} deep"


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:37]}…")
