"""What of an editor decides the weights that it makes: the part of a cell that is the method's."""

from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from retcon.method.base import Editor
from retcon.method.locate_then_edit import LocateThenEdit


def slots(editor: Editor) -> dict[str, Any]:
    """What an editor is made of, beside its layers' number: what decides the weights it makes."""
    own = differing(editor)
    return own if isinstance(editor, LocateThenEdit) else {"kind": type(editor).__name__, **own}


def differing(options: object) -> dict[str, Any]:
    """The fields of an option group that differ from their defaults, groups in it likewise."""
    assert is_dataclass(options)
    found: dict[str, Any] = {}
    for field in fields(options):
        value = getattr(options, field.name)
        if is_dataclass(value):
            inner = differing(value)
            # A group that a method need not name is told only where something in it is.
            if inner or field.default is MISSING:
                found[field.name] = inner
        elif value != field.default:
            found[field.name] = value
    return found
