"""From keys and residuals to the change of one layer: where methods solve the one equation.

plain        ΔW = Rᵀ A                                 (`algebra.solve`)
again        a fact that is held already gets another value through its own row, M⁻¹k/ρ
processed    Π(ΔW), with what was lost given back      (`algebra.feedback`)
controlled   all facts anew, with a ridge that follows the energy spent (`algebra.cumulative`):
             w ← max(1, w + D/(αD₁) − 1) after each batch, ρ_t = ρ w
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from retcon.algebra.cumulative import Cumulative
from retcon.algebra.delta import LowRankDelta
from retcon.algebra.feedback import Process, compressed, largest, rounded, with_feedback
from retcon.algebra.solve import write_keys
from retcon.method.base import Control, Held, State, Update
from retcon.method.options import StepOptions


class Rows(NamedTuple):
    """What becomes of each edit of a batch.

    new: those that are written as facts of their own. again: those of a fact that is held, and
    places: where it is. Others are superseded by a later edit, or by one with their key and target.
    """

    new: list[int]
    again: list[int]
    places: list[int]

    @classmethod
    def of(cls, facts: Sequence[str], held: Held) -> "Rows":
        """The last edit of each fact counts; where nothing is held, there is nothing to replace."""
        live = sorted({fact: i for i, fact in enumerate(facts)}.values())
        where = {fact: i for i, fact in enumerate(held.facts)}
        again = [i for i in live if facts[i] in where]
        new = [i for i in live if facts[i] not in where]
        return cls(new, again, [where[facts[i]] for i in again])

    @property
    def written(self) -> list[int]:
        """All that are written, in their order."""
        return sorted([*self.new, *self.again])


class Wish(NamedTuple):
    """What a layer is asked for: keys, residuals there, and what W gives there now.

    read: the keys at which a hard constraint must hold, where they are others.
    """

    keys: Float64[Tensor, "edits d_in"]
    residual: Float64[Tensor, "edits d_out"]
    now: Float64[Tensor, "edits d_out"]
    read: Float64[Tensor, "edits d_in"] | None

    @property
    def values(self) -> Float64[Tensor, "edits d_out"]:
        """What W should give."""
        return self.now + self.residual


class Written(NamedTuple):
    """A layer's part of an `Update`."""

    delta: LowRankDelta
    memory: Float64[Tensor, "new d_in"]
    novelty: Float64[Tensor, " edits"]
    error: Float64[Tensor, "d_out d_in"] | None = None
    energy: float | None = None


def solve(
    wish: Wish, rows: Rows, state: State, layer: int, ridge: float, passes: int = 1
) -> Written:
    """The plain change, with facts that are edited again. One row of factors per edit."""
    metric, residual = state.metrics[layer], wish.residual.clone()
    right = torch.zeros_like(wish.keys)
    novelty = wish.keys.new_ones(len(wish.keys))
    if rows.again:
        own = metric.unwhiten(metric.solve(metric.whiten(wish.keys[rows.again])))
        right[rows.again] = own / state.held.ridges[rows.places].unsqueeze(1)
        before = state.held.values[layer][rows.places]
        share = wish.keys[rows.again] @ own.mT / state.held.ridges[rows.places]
        residual[rows.again] = _in_passes(wish.values[rows.again] - before, share, passes)
        moved = (wish.keys[rows.new] @ right[rows.again].mT) @ residual[rows.again]
        residual[rows.new] -= moved
    memory = right[:0]
    if rows.new:
        read = None if wish.read is None else wish.read[rows.new]
        written = write_keys(wish.keys[rows.new], metric, ridge, read=read)
        right[rows.new], memory = written.rows, written.memory
        novelty[rows.new] = written.novelty
        share = wish.keys[rows.new] @ written.rows.mT
        residual[rows.new] = _in_passes(residual[rows.new], share, passes)
    delta = LowRankDelta(left=residual.float(), right=right.float())
    return Written(delta, memory, novelty)


def _in_passes(
    residual: Float64[Tensor, "n d_out"], share: Float64[Tensor, "n n"], passes: int
) -> Float64[Tensor, "n d_out"]:
    """What to ask for, to get what so many passes get: each asks for what is left. share: A Kᵀ."""
    asked = left = residual
    for _ in range(passes - 1):
        left = left - share @ left
        asked = asked + left
    return asked


def process(
    written: Written, weight: Float64[Tensor, "d_out d_in"], error: Tensor, options: StepOptions
) -> Written:
    """A plain change, post-processed.

    weight: what it is measured against: W, of `prune` W₀. error: what W has too much before.
    """
    exact = written.delta.dense()
    step, after = with_feedback(exact, error, _process(weight, options))
    kept = after if options.feedback else torch.zeros_like(error)
    return written._replace(delta=LowRankDelta.of_dense(step), error=kept)


def control(
    wish: Wish,
    rows: Rows,
    state: State,
    layer: int,
    ridge: float,
    weight: Float64[Tensor, "d_out d_in"],
    options: StepOptions,
) -> Written:
    """The change that all facts ask for together, whatever the weights have become."""
    held = state.controls[layer]
    summed = _summed(held, wish.keys, wish.values, rows, state.held, layer)
    total, energy = summed.solve(ridge * held.weight)
    step = _process(held.start, options)(total - (weight - held.start))
    novelty = wish.keys.new_ones(len(wish.keys))
    return Written(LowRankDelta.of_dense(step), wish.keys[:0], novelty, None, energy)


def carried(state: State, update: Update, options: StepOptions, *, accumulate: bool) -> State:
    """The state of the next batch, once an update stays in the weights."""
    state = state._replace(errors={**state.errors, **update.errors})
    if state.anchor is None:
        state = state._replace(anchor=update.anchor)
    if not accumulate:
        return state
    assert update.ridge is not None
    rows = Rows.of(update.facts, state.held)
    controls = {
        layer: _spent(
            held._replace(
                total=_summed(
                    held, update.keys[layer], update.values[layer], rows, state.held, layer
                )
            ),
            update.energy[layer],
            options.budget,
        )
        for layer, held in state.controls.items()
    }
    metrics = {
        layer: metric.remember(update.memory[layer], update.ridge)
        if layer in update.memory
        else metric
        for layer, metric in state.metrics.items()
    }
    held = _hold(state.held, update, rows)
    written = state.written + update.ids
    return state._replace(metrics=metrics, written=written, held=held, controls=controls)


def _summed(
    control: Control,
    keys: Float64[Tensor, "edits d_in"],
    values: Float64[Tensor, "edits d_out"],
    rows: Rows,
    held: Held,
    layer: int,
) -> Cumulative:
    """The sums with these facts; those that are held lose their value of before."""
    total, start = control.total, control.start
    if rows.again:
        old = held.values[layer][rows.places]
        total = total.remove(keys[rows.again], old - keys[rows.again] @ start.mT)
    chosen = rows.written
    return total.add(keys[chosen], values[chosen] - keys[chosen] @ start.mT)


def _spent(control: Control, energy: float, budget: float) -> Control:
    """The controller's next weight."""
    first = control.first or energy
    spent = energy / (budget * first) if first else 0.0
    return control._replace(first=first, weight=max(1.0, control.weight + spent - 1))


def _hold(held: Held, update: Update, rows: Rows) -> Held:
    """The facts that are held after an update."""
    values: dict[int, Tensor] = {}
    for layer, asked in update.values.items():
        before = held.values.get(layer, asked[:0]).clone()
        before[rows.places] = asked[rows.again]
        values[layer] = torch.cat([before, asked[rows.new]])
    assert update.ridge is not None
    ridge = held.ridges.new_full((len(rows.new),), update.ridge)
    facts = held.facts + tuple(update.facts[i] for i in rows.new)
    return Held(facts, torch.cat([held.ridges, ridge]), values)


def _process(weight: Float64[Tensor, "d_out d_in"], options: StepOptions) -> Process:
    if options.process == "bfloat16":
        return rounded(torch.bfloat16)
    if options.process == "rect":
        return largest(weight, options.keep)
    if options.process == "prune":
        return compressed(float(torch.linalg.matrix_norm(weight, 2)))
    return lambda step: step
