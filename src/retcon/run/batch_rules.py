"""Batch sizes that adapt, to the edits or to the model's state.

Facts do not average, as samples do in training: they coexist. A larger batch means fewer and
staler targets, a smaller one more work. So a batch may be as large as its facts are compatible
(`compatible`, known before anything is written), or as the model bears (`Aimd`, seen afterwards).
"""

from dataclasses import dataclass
from math import inf
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from retcon.algebra.preservation import Metric
from retcon.algebra.solve import factor_gram
from retcon.run.signals import Signals, growth

# How much more than its facts each by itself a batch may cost on ordinary text.
_SHARED = 0.5
# How many times as much as facts so far a batch's may cost, each, in nats a token of ordinary text;
# what they may cost in any case; and what one may take of earlier facts.
_DEARER, _DRIFT, _FORGOTTEN = 2.0, 2e-4, 1e-3
# Of a batch, the share that must be said right after it was written.
_SAID = 0.9
_LARGEST = 1024


class Verdict(NamedTuple):
    """What is made of a batch: whether it stays, why not, and the size of the next one."""

    stays: bool
    reason: str
    next_size: int


@dataclass(frozen=True, kw_only=True)
class Aimd:
    """Additive increase, multiplicative decrease, as in congestion control.

    A batch stays if most of its facts are said, earlier ones still are, and its facts have each
    cost ordinary text at most twice what facts so far have: then they do not get into each other's
    way, whatever one costs on this model. The next batch is then larger by `step`. Otherwise it is
    taken back, bit for bit, and its first half is written, with the same targets.

    step: the first batch, and the smallest: what a few facts cost is far from what facts cost on
    average, so that smaller and smaller batches would only fail more and more often.
    """

    step: int

    def judge(
        self, size: int, before: Signals | None, after: Signals, usual: float | None = None
    ) -> Verdict:
        """Of a batch that was written on trial.

        before: signals after the last batch; None at the beginning, where all is new. usual: nats
        a token of ordinary text that a fact has cost so far; None where there are no such facts.
        """
        reason = _complaint(size, before, after, usual)
        if reason and size > self.step:
            return Verdict(False, reason, max(self.step, size // 2))
        # What the smallest batch does stays, and is told.
        return Verdict(True, reason, self.step if reason else min(size + self.step, _LARGEST))


def _complaint(size: int, before: Signals | None, after: Signals, usual: float | None) -> str:
    if after.efficacy is not None and after.efficacy < _SAID:
        return f"of the batch {after.efficacy:.0%} is said"
    if before is None:
        return ""
    moved = growth(before, after)
    most = inf if usual is None else size * max(_DRIFT, _DEARER * usual)
    if not moved <= most or moved == inf:
        return f"ordinary text lost {moved:.3g} nats a token"
    if before.retention is not None and after.retention is not None:
        lost = before.retention - after.retention
        if lost > max(_FORGOTTEN * size, 0.05):
            return f"earlier facts lost {lost:.0%}"
    return ""


def compatible(
    keys: Float64[Tensor, "n d_in"],
    residual: Float64[Tensor, "n d_out"],
    metric: Metric,
    ridge: float,
) -> int:
    """How many of the facts, from the first on, may be one batch: the `Energy` rule.

    What writing n facts costs on ordinary text, tr(ΔW M ΔWᵀ) = tr(Rᵀ G⁻¹ (G − ρI) G⁻¹ R), grows
    as n while they are independent, and as n² where keys and residuals agree. A batch ends before
    its cost is 1.5 times that of its facts each by itself. Facts with one key, which agree
    entirely, are not parted by this: they cost less together.
    """
    white = metric.whiten(keys)
    overlap = metric.solve(white) @ white.mT
    pairs = residual @ residual.mT
    alone = overlap.diagonal() * pairs.diagonal() / (overlap.diagonal() + ridge).square()
    allowed = (1 + _SHARED) * alone.cumsum(0)
    # No batch holds two facts with one key as hard constraints.
    gram = overlap.clone()
    gram.diagonal().add_(ridge)
    factor, _, copy = factor_gram(gram, metric.lengths(keys), ridge)
    low, high = 1, len(keys) if copy is None else max(1, copy)
    # Cost over allowance need not be monotone; the largest size that bisection meets is taken.
    while low < high:
        middle = (low + high + 1) // 2
        if _energy(overlap, pairs, factor, middle) <= allowed[middle - 1]:
            low = middle
        else:
            high = middle - 1
    return low


def _energy(overlap: Tensor, pairs: Tensor, factor: Tensor, size: int) -> Tensor:
    """The cost of the first `size` facts together. factor: of G; its head is that of G's head."""
    inner = torch.cholesky_inverse(factor[:size, :size])
    return ((inner @ overlap[:size, :size] @ inner) * pairs[:size, :size]).sum()
