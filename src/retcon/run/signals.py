"""Numbers that a monitor reads of a model in the middle of its edits. No torch here."""

from collections.abc import Sequence
from typing import NamedTuple


class Signals(NamedTuple):
    """One reading of a monitor.

    Attributes:
        log_perplexity: of ordinary text, in nats per token; infinite where it is not finite.
        efficacy: share of the facts that are being written which the model says; None of no facts.
        retention: the same of a sample of those written earlier.
        step_norm: ‖ΔW‖/√n of the batch, of the layer where it is largest.
        energy: tr(D M₀ Dᵀ) of the whole change D, the sum over layers; None where the method does
            not weigh changes.
        facts: so many are in D, counted from the first batch on that wrote anything.
        changed, probes: so many probes are not right any more, of those that were before any edit.
    """

    log_perplexity: float
    efficacy: float | None
    retention: float | None
    step_norm: float
    energy: float | None = None
    facts: int = 0
    changed: int = 0
    probes: int = 0

    @property
    def energy_a_fact(self) -> float | None:
        """The energy by facts; None where nothing was written, or it is not known."""
        return self.energy / self.facts if self.energy is not None and self.facts else None


def growth(before: Signals, after: Signals) -> float:
    """Loss of log-probability of a token of ordinary text, in nats."""
    return after.log_perplexity - before.log_perplexity


def first_written(readings: Sequence[Signals]) -> Signals | None:
    """The first reading after a batch that wrote anything; None where none did."""
    return next((signals for signals in readings if signals.step_norm > 0), None)
