"""A guard over carried edits: it sees a model collapse, and warns, stops, or takes the batch back.

    perplexity    of ordinary text, against the untouched model
    retention     of facts written earlier
    step norm     ‖ΔW‖/√n of a batch, against the first one
    energy        tr(D M₀ Dᵀ) of the whole change D, by facts, against that after the first one
    probes        that were right on the untouched model, and are not any more; where there are such

Perplexity and retention fail one without the other, so both are watched; the other two need no pass
over any text. The first batch is the first that wrote anything: one of facts that the model says
already moves nothing, and is no measure. While facts do not get in each other's way each costs as
much as the first ones did; where they add up, each costs more and more. Methods without a metric
(`ultraedit`, `finetune`) have no energy, and none is asked for.

A batch that trips the guard is looked at before it is written for good: taking it back leaves the
bits of before.
"""

from dataclasses import dataclass
from math import exp, log
from typing import Literal

from retcon.edits import Probe
from retcon.errors import InvalidSetting
from retcon.run.signals import Signals, growth

Action = Literal["off", "warn", "stop", "rollback"]
ACTIONS: tuple[Action, ...] = ("off", "warn", "stop", "rollback")


@dataclass(frozen=True, kw_only=True)
class Guard:
    """Settings of a guard: its limits, and what is done beyond them.

    Attributes:
        action: `warn` says so and goes on, `stop` ends the run with the batch, `rollback` without
            it.
        perplexity: largest ratio to the untouched model's.
        retention: smallest share of earlier facts that are still said.
        step_norm, energy: largest ratio to the first batch's.
        probes: what should stay as it is (`harm.probes_of` makes them of cases).
        changed: largest share of the probes that change, where more than one does.
    """

    action: Action = "off"
    perplexity: float = 1.5
    retention: float = 0.6
    step_norm: float = 20.0
    energy: float = 20.0
    probes: tuple[Probe, ...] = ()
    changed: float = 0.1

    @classmethod
    def parse(cls, action: str) -> "Guard":
        """The guard with that action.

        Raises:
            InvalidSetting: there is no such action.
        """
        for known in ACTIONS:
            if known == action:
                return cls(action=known)
        raise InvalidSetting(f"The guard takes one of {', '.join(ACTIONS)}, not {action!r}.")

    @property
    def watches(self) -> bool:
        """True if there is anything to watch."""
        return self.action != "off"

    def judge(self, untouched: Signals, first: Signals | None, now: Signals) -> str:
        """Say what is wrong; empty where nothing is.

        Args:
            first: as `signals.first_written` finds it.
        """
        moved = growth(untouched, now)
        if not moved <= log(self.perplexity):
            return f"perplexity of ordinary text is {_times(moved)} that of the untouched model"
        if now.retention is not None and now.retention < self.retention:
            return f"of the facts written earlier {now.retention:.0%} are still said"
        if now.changed > max(1, self.changed * now.probes):
            return (
                f"{now.changed:,} of {now.probes:,} probes that were right before are not any more"
            )
        return "" if first is None else self._compared(first, now)

    def _compared(self, first: Signals, now: Signals) -> str:
        """Say what is wrong with a batch beside the first one; empty where nothing is."""
        further = _ratio(now.step_norm, first.step_norm)
        if not further <= self.step_norm:
            return f"a fact moves the weights {further:.3g} times as far as in the first batch"
        dearer = _ratio(now.energy_a_fact, first.energy_a_fact)
        if not dearer <= self.energy:
            return f"a fact costs ordinary text {dearer:.3g} times what it did in the first batch"
        return ""


def _ratio(now: float | None, first: float | None) -> float:
    """Ratio of two numbers; 0 where there is nothing to compare."""
    return now / first if now is not None and first else 0.0


def _times(nats: float) -> str:
    return f"{exp(nats):.3g} times" if nats < 50 else "beyond measure of"
