"""A cell: everything that decides the weights and scores of one run, and nothing else."""

import hashlib
import json
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from retcon.editing.schedule import Schedule
from retcon.study.points import Frozen, Order, Split

# One more whenever the same cell would give other numbers: also when a default changes.
_FORMAT = 1


class Cell(Frozen):
    """One run of a study, resolved.

    name, method, settings: how to load the model and build the editor. They are no part of the
    identity, which is made of what they come to: the model's fingerprint, and `editor`, the slots
    of the one equation (ridge, contexts, targets, moments, …) that differ from their defaults, so
    that a slot which is added later leaves the cells of earlier studies theirs.
    data: sha256 of the file of cases. schedule: as `Schedule.parse` reads it.
    """

    name: str
    method: str
    settings: dict[str, object]
    fingerprint: str
    dtype: str
    layers: tuple[int, ...]
    editor: dict[str, object]
    data: str
    unique_subjects: bool
    split: Split = "head"
    n: int
    seed: int
    order: Order
    schedule: str
    refresh: str
    when: tuple[str, ...]
    score: int
    generation: bool

    @property
    def id(self) -> str:
        """The name of the cell's folder: a hash of what decides its rows, and is no default."""
        named = {"name", "method", "settings"}
        decisive = self.model_dump(mode="json", exclude=named, exclude_defaults=True)
        text = json.dumps([_FORMAT, decisive], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def plan(self) -> Schedule:
        """The schedule, with its refresh rule."""
        return Schedule.parse(self.schedule, self.refresh)

    def canonical(self) -> "Cell":
        """The one cell of all that give the same rows.

        Without carried edits there is nothing to accumulate or to refresh. A batch that holds all
        facts is the only one, so it is carried and not carried at once: it is called carried,
        because it has final scores.
        """
        plan = self.plan
        if plan.rule:
            return self
        if plan.batch_size >= self.n:
            plan = Schedule(batch_size=self.n, carry=True)
        if plan.carry and plan.batch_size < self.n:
            return self
        return self.model_copy(
            update={
                "schedule": str(plan),
                "refresh": "each-batch",
                "editor": {**self.editor, "accumulate": False},
                "settings": {**self.settings, "accumulate": False},
            }
        )


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
