"""What a probe of a model in the middle of its edits tells. No torch here."""

from typing import NamedTuple


class Signals(NamedTuple):
    """What a probe has seen.

    log_perplexity: of ordinary text, in nats per token; infinite where it is not finite.
    efficacy: share of the facts that are being written which the model says. retention: the same
    of a sample of those written earlier. Of no facts either is None. step_norm: ‖ΔW‖/√n of the
    batch, of the layer where it is largest.
    """

    log_perplexity: float
    efficacy: float | None
    retention: float | None
    step_norm: float


def growth(before: Signals, after: Signals) -> float:
    """By how many nats a token of ordinary text has become less probable."""
    return after.log_perplexity - before.log_perplexity
