"""What the golden record is of: every method, every schedule, and settings in which they differ.

Where a run decides, as rules of batches and guards do, facts and ridges are such that it is not
close, so that every processor decides alike.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

REAL_MODEL = "smollm2-135m"
SCHEDULES = ("single", "batch:2", "batch:5", "sequential", "sequential-batch:2")
REFRESH_RULES = ("each-batch", "never", "stale:0.25", "stale:0.6")
WIDE = (0, 1)
# Of these a method takes the settings that it has.
FAST: dict[str, object] = {
    "steps": 3, "prefixes": 1, "prefix_tokens": "6", "corpus_tokens": 300, "document_tokens": 32,
    "jitter": 1e-3, "micro_batch": 4096,
}  # fmt: skip
# For keys of the size that a pico model has.
RIDGES: dict[str, float] = {"memit": 20.0, "encore": 20.0, "lyaplock": 20.0}
REAL: dict[str, object] = {"steps": 4, "prefixes": 1, "corpus_tokens": 2000, "micro_batch": 256}

Facts = Literal["apart", "again", "shared", "alike", "likely"]


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One run.

    model: a family of pico models, or SmolLM2. facts: five that are far `apart`; `again`, one comes
    once more with another target; `shared`, one more has the key of another; `alike`, they pull the
    same way; `likely`, the model says them already.
    """

    method: str
    layers: tuple[int, ...] = (1,)
    settings: dict[str, Any] = field(default_factory=dict)
    schedule: str = "sequential-batch:2"
    refresh: str = "each-batch"
    guard: str = "off"
    model: str = "llama"
    facts: Facts = "apart"

    @property
    def name(self) -> str:
        """All that is not as usual."""
        words = [self.method, *(f"{k}={v}" for k, v in self.settings.items()), self.schedule]
        words += [f"layers={','.join(map(str, self.layers))}"] * (self.layers not in ((), (1,)))
        words += [self.refresh] * (self.refresh != "each-batch")
        words += [f"guard={self.guard}"] * (self.guard != "off")
        words += [self.model] * (self.model != "llama") + [self.facts] * (self.facts != "apart")
        return " ".join(words)


def _schedules() -> list[Scenario]:
    """Every form of a schedule, with one method."""

    def memit(schedule: str, **other: Any) -> Scenario:
        return Scenario(method="memit", schedule=schedule, **other)

    carried = "sequential-batch:2"
    return [
        *(memit(schedule) for schedule in SCHEDULES),
        *(memit(carried, refresh=refresh, settings={"accumulate": accumulate})
          for refresh in REFRESH_RULES for accumulate in (True, False)
          if (refresh, accumulate) != ("each-batch", True)),
        *(memit("adaptive-aimd:1", refresh=refresh) for refresh in ("each-batch", "never")),
        memit("adaptive-aimd:1", facts="likely"),
        memit("adaptive-aimd:1", facts="likely", settings={"ridge": 2e4}),
        memit("adaptive-energy:3"),
        memit("adaptive-energy:5", facts="alike", settings={"ridge": 4000.0}),
        memit("adaptive-energy:5", facts="alike", settings={"ridge": 4000.0}, refresh="never"),
        Scenario(method="emmet", schedule="adaptive-energy:6", facts="shared",
                 settings={"accumulate": False}),
        *(memit(carried, guard=guard) for guard in ("warn", "stop", "rollback")),
        memit(carried, guard="stop", facts="likely", settings={"ridge": 2e4}),
        *(memit(carried, facts="again", refresh=refresh) for refresh in ("each-batch", "never")),
        memit(carried, facts="shared"),
        *(Scenario(method="emmet", facts=facts) for facts in ("again", "shared")),
    ]  # fmt: skip


# By method: layers and settings in which it is run, carried; of each the first also apart.
_METHODS: list[tuple[str, tuple[int, ...], dict[str, object]]] = [
    ("rome", (1,), {}),
    ("rome", (1,), {"consistent_keys": True, "accumulate": True}),
    ("emmet", (1,), {}),
    ("emmet", (1,), {"ridge": 20.0, "ridge_batch": 4, "accumulate": False}),
    ("alphaedit", (1,), {"null_threshold": 1.0, "null_relative": True}),
    ("alphaedit", WIDE, {"base": "identity", "accumulate": False}),
    ("encore", (1,), {}),
    ("encore", (1,), {"stop_when_said": 0, "plain": 5.0}),
    ("lyaplock", (1,), {"budget": 0.5}),
    ("lyaplock", WIDE, {"budget": 0.5, "process": "bfloat16"}),
    ("ultraedit", (1,), {"lr": 1e-3}),
    ("ultraedit", WIDE, {"lr": 1e-3, "accumulate": False}),
    ("finetune", (1,), {}),
    ("finetune", WIDE, {"bound": "run"}),
    ("finetune_lora", WIDE, {"rank": 3, "lr": 0.01, "micro_batch": 512}),
    ("in_context", (), {}),
    ("in_context", (), {"shown": 2, "threshold": 0.2}),
]

_FIRST = {method: (layers, settings) for method, layers, settings in reversed(_METHODS)}

# Of MEMIT, which has all slots.
_VARIANTS: list[tuple[tuple[int, ...], dict[str, object]]] = [
    (WIDE, {}),
    (WIDE, {"spread": "forward"}),
    (WIDE, {"spread": "each"}),
    (WIDE, {"anchor_norm": "equal"}),
    ((1,), {"anchor_norm": "cap", "clamp": 4.0}),
    ((1,), {"passes": 3}),
    *(((1,), {"process": "prune", "ridge": 0.5, "clamp": 4.0, "steps": 6, "feedback": feedback})
      for feedback in (True, False)),
    *(((1,), {"process": process, "feedback": feedback})
      for process in ("bfloat16", "rect") for feedback in (True, False)),
    (WIDE, {"process": "rect", "keep": 0.2}),
    ((1,), {"averaging": "uniform", "prefixes": 3, "seed": 1, "prefix_tokens": "4,6"}),
    ((1,), {"insertion": "down", "clamp": 4.0, "kl": 0.0}),
    ((1,), {"contexts_per_step": 1, "lr": 0.2, "decay": 0.1}),
    ((1,), {"stop_when_said": 1, "together": 1}),
    ((1,), {"corpus": "self"}),
]  # fmt: skip


def pico_scenarios() -> list[Scenario]:
    """Those of pico models."""
    return [
        *_schedules(),
        *(Scenario(method=method, layers=layers, settings=settings,
                   schedule="sequential" if method == "rome" else "sequential-batch:2")
          for method, layers, settings in _METHODS),
        *(Scenario(method=method, layers=layers, settings=settings, schedule="single")
          for method, (layers, settings) in _FIRST.items()),
        *(Scenario(method="memit", layers=layers, settings=settings)
          for layers, settings in _VARIANTS),
        *(Scenario(method="memit", layers=layers, facts="shared",
                   settings={"merge_subjects": True, "accumulate": accumulate})
          for layers, accumulate in (((1,), True), (WIDE, False))),
        *(Scenario(method="memit", model=family)
          for family in ("gpt2", "gemma2", "llama-tied")),
    ]  # fmt: skip


def real_scenarios() -> list[Scenario]:
    """Those of SmolLM2, eight facts each; the quickest first."""
    carried: dict[str, Any] = {"model": REAL_MODEL, "schedule": "sequential-batch:4"}
    return [
        Scenario(method="memit", refresh="never", **carried),
        Scenario(method="ultraedit", **carried),
        Scenario(method="emmet", model=REAL_MODEL, schedule="batch:8"),
        Scenario(method="rome", model=REAL_MODEL, schedule="single"),
        Scenario(method="memit", layers=(1, 2, 3), **carried),
        Scenario(method="alphaedit", settings={"null_relative": True}, **carried),
    ]
