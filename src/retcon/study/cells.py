"""A cell: everything that decides the weights and scores of one run, and nothing else. No torch."""

import hashlib
import json
from typing import Any, cast

from pydantic import Field, model_validator

from retcon.run.schedule import Schedule
from retcon.settings import of_now
from retcon.study.points import Frozen, Order, Split, renamed_option

# One more whenever the same cell would give other numbers: also when a default changes.
_FORMAT = 1


class Cell(Frozen):
    """One run of a study, resolved.

    Attributes:
        name, method, settings: how to load the model and build the method. They are no part of the
            identity, which is made of what they resolve to: `fingerprint` and `editor`.
        fingerprint: of the model's weights.
        editor: the method's settings that differ from their defaults, so that a setting which is
            added later leaves the cells of earlier studies theirs.
        data: sha256 of the file of cases.
        schedule: as `Schedule.parse` reads it.
        general: identity of the passages and items that are read beside the facts.
        edits_again: True if a fact is edited more than once, which follows from the cases, and
            decides which cells are the same.
        metrics: those that need more than scores of prompts.
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
    general: str | None = None
    data_options: dict[str, object] = Field(default_factory=dict)
    edits_again: bool = False
    metrics: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _earlier(cls, record: object) -> object:
        record = renamed_option(record, "data_options")
        if not isinstance(record, dict):
            return record
        record = cast(dict[str, Any], record)
        settings = record.get("settings")
        return {**record, "settings": of_now(settings)} if isinstance(settings, dict) else record

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

    def alone(self) -> "Cell | None":
        """The cell of all that give the same rows because no batch meets another; or None.

        A batch that holds all facts is the only one, so it is carried and not carried at once: it
        is called carried, because it has final scores. Without carried edits nothing is refreshed.
        """
        plan = self.plan
        if plan.adapts:
            return None
        if plan.batch_size >= self.n:
            plan = Schedule(batch_size=self.n, carry=True)
        if plan.carry and plan.batch_size < self.n:
            return None
        return self.model_copy(update={"schedule": str(plan), "refresh": "each-batch"})
