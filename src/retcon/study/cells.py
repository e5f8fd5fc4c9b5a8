"""A cell: everything that decides the weights and scores of one run, and nothing else. No torch."""

import hashlib
import json

from retcon.data.zsre import ZsreTarget
from retcon.run.schedule import Schedule
from retcon.study.points import Frozen, Order, Split

# One more whenever the same cell would give other numbers: also when a default changes.
_FORMAT = 1


class Cell(Frozen):
    """One run of a study, resolved.

    name, method, settings: how to load the model and build the editor. They are no part of the
    identity, which is made of what they come to: the model's fingerprint, and `editor`, the slots
    of the one equation (ridge, contexts, targets, moments, …) that differ from their defaults, so
    that a slot which is added later leaves the cells of earlier studies theirs. Of methods that
    are no values of the equation these are their own fields, and `kind` says whose.
    data: sha256 of the file of cases. schedule: as `Schedule.parse` reads it. general: what names
    the passages and items that are read beside the facts. edits_again: a fact is edited more than
    once, which follows from the cases, and decides which cells are the same.
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
    zsre_target: ZsreTarget = "answers"
    edits_again: bool = False

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

        Without carried edits there is nothing to accumulate or to refresh. Yet a budget needs
        `accumulate`, and of two edits of one fact in a batch the last counts only with it, so
        there it stays as it was said. A batch that holds all facts is the only one, so it is
        carried and not carried at once: it is called carried, because it has final scores.
        """
        plan = self.plan
        if plan.rule:
            return self
        if plan.batch_size >= self.n:
            plan = Schedule(batch_size=self.n, carry=True)
        if plan.carry and plan.batch_size < self.n:
            return self
        alone: dict[str, object] = {"schedule": str(plan), "refresh": "each-batch"}
        # A method that cannot be told not to accumulate has but one cell as it is.
        if "accumulate" in self.settings and not (self.edits_again or _budget(self.editor)):
            alone["editor"] = {**self.editor, "accumulate": False}
            alone["settings"] = {**self.settings, "accumulate": False}
        return self.model_copy(update=alone)


def begun_from(cell: Cell) -> list[object]:
    """What the state depends on that an editor begins with: cells that share it share the state."""
    own = cell.editor
    shared = [own.get(name) for name in ("kind", "contexts", "moments", "metric", "bound")]
    metric, step = own.get("metric"), own.get("step")
    # W₀ is kept where steps are bounded by it.
    bounded = isinstance(step, dict) and step.get("process") == "prune"
    # The norm's penalty is a part of the metric, in units of the ridge.
    ridge = own.get("ridge") if isinstance(metric, dict) and "plain" in metric else None
    return [cell.fingerprint, cell.dtype, cell.layers, *shared, _budget(own), bounded, ridge]


def _budget(editor: dict[str, object]) -> bool:
    """Whether all facts are solved for anew with each batch."""
    step = editor.get("step")
    return isinstance(step, dict) and "budget" in step
