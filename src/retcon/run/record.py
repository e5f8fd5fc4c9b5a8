"""The record of a run: each step, every row of scores, and all that decided them."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isnan
from typing import Any

from retcon.method.presets import Recipe
from retcon.model.handle import ModelHandle
from retcon.run.schedule import Schedule
from retcon.run.steps import Step
from retcon.scoring.measured import Measured


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """Record of one batch: what it took and did.

    Attributes:
        index: of the batch.
        at: edits written when it was.
        edits: how many it had.
        cached: how many of these had their expensive part in the cache.
        seconds: features and solve, as if nothing had been cached.
        delta_norm: by layer, ‖ΔW‖ of the batch.
        total_norm: by layer, ‖W − W₀‖ with it.
        weight_norm: by layer, ‖W₀‖.
        refreshed, staleness, tried, note, undone: as in `Step`.
        signals: the monitor's, by name.
        peak_memory: bytes, of the process so far; None where the system does not tell.
        report: the method's own numbers, of the batch and by layer.
        each: the method's own numbers of every edit, and the edits' ids.
    """

    index: int
    at: int
    edits: int
    cached: int
    seconds: float
    delta_norm: Mapping[int, float]
    total_norm: Mapping[int, float]
    weight_norm: Mapping[int, float]
    refreshed: bool
    staleness: float | None
    peak_memory: int | None
    signals: Mapping[str, float | None] | None = None
    report: Mapping[str, Any] = field(default_factory=dict[str, Any])
    each: Mapping[str, Any] | None = None
    tried: int = 0
    note: str = ""
    undone: bool = False

    @classmethod
    def of(cls, model: ModelHandle, step: Step) -> "StepRecord":
        """The record of a step, on the model into which it may have been written."""
        deltas = step.update.deltas
        delta_norm = {layer: delta.norm() for layer, delta in deltas.items()}
        carried = not model.as_loaded
        report = step.update.report
        own = {name: _known(value) for name, value in report.batch.items()}
        own |= {name: dict(by_layer) or None for name, by_layer in report.layer.items()}
        ids = [edit.id for edit in step.edits]
        return cls(
            index=step.index,
            at=step.at,
            edits=len(step.edits),
            cached=int(step.features.cached.sum()),
            seconds=step.seconds,
            delta_norm=delta_norm,
            total_norm={k: model.moved(k) for k in deltas} if carried else delta_norm,
            weight_norm={k: model.original_norm(k) for k in deltas},
            refreshed=step.refreshed,
            staleness=step.staleness,
            peak_memory=_peak_memory(),
            signals=None if step.signals is None else step.signals._asdict(),
            report=own,
            each={"edit": ids, **report.edit} if report.edit else None,
            tried=step.tried,
            note=step.note,
            undone=step.undone,
        )

    def as_json(self) -> dict[str, Any]:
        """One flat record: the method's numbers stand beside the others."""
        rest = {k: v for k, v in vars(self).items() if k != "report"}
        return {**rest, **self.report}


@dataclass(frozen=True)
class Run(Measured):
    """Record of a run: its settings, its steps, and all that was observed.

    Attributes:
        rows: as of `Measured`.
        steps: what each batch took and did.
        recipe: method, layers and settings.
        schedule: how the facts were written.
        begun: what the method tells of its beginning.
        shared_keys: ids of the facts that were written over one another, by their key.
    """

    steps: list[StepRecord]
    recipe: Recipe
    schedule: Schedule
    begun: Mapping[str, Any]
    shared_keys: tuple[tuple[str, ...], ...] = ()

    def describe(self) -> dict[str, object]:
        """Describe everything that decided the scores."""
        preset = self.recipe.preset
        return {
            "method": self.recipe.name,
            "prompts": "as they are" if self.recipe.entry.writes else "behind retrieved facts",
            "layers": list(self.recipe.layers),
            "schedule": str(self.schedule),
            "refresh": str(self.schedule.refresh),
            "guard": self.schedule.guard.action,
            "settings": self.recipe.settings,
            "preset": preset.source if preset else None,
            "rule": self.recipe.rule,
            "covariance": self._covariance(),
            "shared_keys": [list(ids) for ids in self.shared_keys],
            "prefixes": self.begun.get("prefixes", []),
            "seconds_per_edit": self.seconds_per_edit,
            "steps": [step.as_json() for step in self.steps],
        }

    def _covariance(self) -> dict[str, object] | None:
        """Describe the text of second moments; None where the method has none."""
        if "corpus" not in self.recipe.settings:
            return None
        names = ("corpus", "corpus_seed", "document_tokens", "jitter")
        chosen = {name: self.recipe.settings[name] for name in names}
        return chosen | {"tokens": self.begun.get("corpus_tokens")}

    @property
    def seconds_per_edit(self) -> float:
        """Features and solve, without second moments and without scoring."""
        return sum(step.seconds for step in self.steps) / sum(step.edits for step in self.steps)


def _known(value: float | bool | None) -> float | bool | None:
    """None where there is no number."""
    return None if value is None or isnan(value) else value


def _peak_memory() -> int | None:
    """Bytes that this process has held at most; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
