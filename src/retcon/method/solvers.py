"""Three ways to solve the one equation: from keys and residuals to the change of one layer.

OneShot     ΔW = Rᵀ A (`algebra.solve`); a fact that is edited again is written through its own row
            of before, M⁻¹k/ρ
Processed   Π(ΔW) of such a change, with what was lost given back (`algebra.feedback`)
Budgeted    all facts anew with each batch, with a ridge that follows the energy spent
            (`algebra.cumulative`): w ← max(1, w + D/(αD₁) − 1) after each batch, ρ_t = ρ w
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from retcon.algebra.cumulative import Cumulative
from retcon.algebra.delta import LowRankDelta
from retcon.algebra.feedback import Process, with_feedback
from retcon.algebra.preservation import Preservation
from retcon.algebra.solve import write_keys
from retcon.method.base import NONE
from retcon.method.written_facts import NO_FACTS, Rows, WrittenFacts


class Budget(NamedTuple):
    """A layer whose ridge follows from what has been spent.

    Attributes:
        total: the sums over all facts.
        start: W₀.
        first: energy after the first batch; 0 before.
        weight: the ridge of the next batch in units of ρ.
    """

    total: Cumulative
    start: Float64[Tensor, "d_out d_in"]
    first: float = 0.0
    weight: float = 1.0


class Memory(NamedTuple):
    """Memory of earlier batches, by layer.

    Attributes:
        preservations: M, the keys written so far in it where they are accumulated.
        facts: the facts that are written, where they can be edited again.
        errors: excess that post-processing has left in W.
        budgets: of `Budgeted`.
        start: W₀, where a change is bounded from there.
    """

    preservations: Mapping[int, Preservation]
    facts: WrittenFacts = NO_FACTS
    errors: Mapping[int, Float64[Tensor, "d_out d_in"]] = NONE
    budgets: Mapping[int, Budget] = NONE
    start: Mapping[int, Float[Tensor, "d_out d_in"]] = NONE

    def error(self, layer: int, weight: Float64[Tensor, "d_out d_in"]) -> Tensor:
        """Excess in W of a layer."""
        return self.errors.get(layer, torch.zeros_like(weight)).to(weight)

    def loosest(self, ridge: float) -> float:
        """The largest ρ of the layers."""
        return ridge * max((budget.weight for budget in self.budgets.values()), default=1.0)


class Learned(NamedTuple):
    """Addition of a batch to the memory.

    Attributes:
        ridge: ρ, the largest of its layers.
        names: of the facts that were written; none where nothing is accumulated.
        rows: by layer, what the facts are remembered by: rows that M grows by, or their keys.
        values: by layer, what W should give at their keys.
        errors: by layer, as in `Memory`, afterwards.
        energy: by layer, tr(D M₀ Dᵀ) of the whole change D, where a ridge follows it.
    """

    ridge: float
    names: tuple[str, ...] = ()
    rows: Mapping[int, Float64[Tensor, "rows d_in"]] = NONE
    values: Mapping[int, Float64[Tensor, "facts d_out"]] = NONE
    errors: Mapping[int, Float64[Tensor, "d_out d_in"]] = NONE
    energy: Mapping[int, float] = NONE


class Wish(NamedTuple):
    """Request to a layer: outputs to add at some keys.

    Attributes:
        keys: at which inputs.
        residual: what is to be added there.
        now: output of W there.
        read: the keys at which a hard constraint must hold, where they are others.
    """

    keys: Float64[Tensor, "edits d_in"]
    residual: Float64[Tensor, "edits d_out"]
    now: Float64[Tensor, "edits d_out"]
    read: Float64[Tensor, "edits d_in"] | None

    @property
    def values(self) -> Float64[Tensor, "edits d_out"]:
        """Outputs that W should give."""
        return self.now + self.residual


class LayerChange(NamedTuple):
    """A layer's change, and what is learned of it, as in `Learned`.

    Attributes:
        novelty: of each edit's key, the share that was new.
    """

    delta: LowRankDelta
    novelty: Float64[Tensor, " edits"]
    rows: Float64[Tensor, "rows d_in"]
    error: Float64[Tensor, "d_out d_in"] | None = None
    energy: float | None = None


@runtime_checkable
class Solver(Protocol):
    """A way to solve for the change of a layer."""

    def exact(
        self, memory: Memory, layer: int, weight: Float64[Tensor, "d_out d_in"]
    ) -> Float64[Tensor, "d_out d_in"]:
        """W as it would be, had every earlier step been written as it was solved."""
        ...

    def solve(
        self,
        wish: Wish,
        rows: Rows,
        memory: Memory,
        layer: int,
        ridge: float,
        weight: Float64[Tensor, "d_out d_in"],
    ) -> LayerChange:
        """The change of a layer.

        Raises:
            Collision: two keys are one and the constraint is hard.
        """
        ...

    def remember(self, memory: Memory, learned: Learned) -> Memory:
        """The memory with the facts of a batch; `facts` themselves are not its business."""
        ...


@dataclass(frozen=True)
class OneShot:
    """The plain change.

    Attributes:
        passes: as `ResidualOptions.passes`.
    """

    passes: int = 1

    def exact(
        self, memory: Memory, layer: int, weight: Float64[Tensor, "d_out d_in"]
    ) -> Float64[Tensor, "d_out d_in"]:
        """W: every step was written as it was solved."""
        del memory, layer
        return weight

    def solve(
        self,
        wish: Wish,
        rows: Rows,
        memory: Memory,
        layer: int,
        ridge: float,
        weight: Float64[Tensor, "d_out d_in"],
    ) -> LayerChange:
        """One row of factors per edit; facts that are edited again through their own row."""
        del weight
        metric, residual = memory.preservations[layer], wish.residual.clone()
        right = torch.zeros_like(wish.keys)
        novelty = wish.keys.new_ones(len(wish.keys))
        if rows.again:
            ridges = memory.facts.ridges[rows.places].to(wish.keys)
            own = metric.unwhiten(metric.solve(metric.whiten(wish.keys[rows.again])))
            right[rows.again] = own / ridges.unsqueeze(1)
            before = memory.facts.values[layer][rows.places]
            share = wish.keys[rows.again] @ own.mT / ridges
            wanted = wish.values[rows.again] - before
            residual[rows.again] = _in_passes(wanted, share, self.passes)
            moved = (wish.keys[rows.new] @ right[rows.again].mT) @ residual[rows.again]
            residual[rows.new] -= moved
        remembered = right[:0]
        if rows.new:
            read = None if wish.read is None else wish.read[rows.new]
            written = write_keys(wish.keys[rows.new], metric, ridge, read=read)
            right[rows.new], remembered = written.rows, written.memory
            novelty[rows.new] = written.novelty
            share = wish.keys[rows.new] @ written.rows.mT
            residual[rows.new] = _in_passes(residual[rows.new], share, self.passes)
        delta = LowRankDelta(left=residual.float(), right=right.float())
        return LayerChange(delta, novelty, remembered)

    def remember(self, memory: Memory, learned: Learned) -> Memory:
        """M grows by the rows of the new facts."""
        metrics = {
            layer: metric.remember(learned.rows[layer], learned.ridge)
            if layer in learned.rows
            else metric
            for layer, metric in memory.preservations.items()
        }
        return memory._replace(preservations=metrics)


def _in_passes(
    residual: Float64[Tensor, "n d_out"], share: Float64[Tensor, "n n"], passes: int
) -> Float64[Tensor, "n d_out"]:
    """Residual whose one solve equals `passes` solves of what is left each time. share: A Kᵀ."""
    total = left = residual
    for _ in range(passes - 1):
        left = left - share @ left
        total = total + left
    return total


# Post-processing of a change, by the matrix that it is measured against.
PostProcess = Callable[[Float64[Tensor, "d_out d_in"]], Process]


@dataclass(frozen=True)
class Processed:
    """A plain change, post-processed.

    Attributes:
        feedback: give back by each step what the last has lost.
    """

    plain: OneShot
    process: PostProcess
    feedback: bool

    def exact(
        self, memory: Memory, layer: int, weight: Float64[Tensor, "d_out d_in"]
    ) -> Float64[Tensor, "d_out d_in"]:
        """W without what it has too much."""
        return weight - memory.error(layer, weight)

    def solve(
        self,
        wish: Wish,
        rows: Rows,
        memory: Memory,
        layer: int,
        ridge: float,
        weight: Float64[Tensor, "d_out d_in"],
    ) -> LayerChange:
        """The plain change, processed as measured against W₀ where that is kept, else against W."""
        solution = self.plain.solve(wish, rows, memory, layer, ridge, weight)
        against = memory.start.get(layer, weight).double()
        error = memory.error(layer, weight)
        step, after = with_feedback(solution.delta.dense(), error, self.process(against))
        kept = after if self.feedback else torch.zeros_like(error)
        return solution._replace(delta=LowRankDelta.of_dense(step), error=kept)

    def remember(self, memory: Memory, learned: Learned) -> Memory:
        """Remember as after a plain change."""
        return self.plain.remember(memory, learned)


@dataclass(frozen=True)
class Budgeted:
    """The change that all facts ask for together, whatever the weights have become.

    Attributes:
        budget: α; the ridge grows while the energy is above α times that after the first batch.
    """

    process: PostProcess
    budget: float

    def exact(
        self, memory: Memory, layer: int, weight: Float64[Tensor, "d_out d_in"]
    ) -> Float64[Tensor, "d_out d_in"]:
        """W: what a step has lost comes back with the next, which solves for all facts anew."""
        del memory, layer
        return weight

    def solve(
        self,
        wish: Wish,
        rows: Rows,
        memory: Memory,
        layer: int,
        ridge: float,
        weight: Float64[Tensor, "d_out d_in"],
    ) -> LayerChange:
        """Change W to what the sums over all facts ask for, these included."""
        budget, chosen = memory.budgets[layer], rows.written
        keys, values = wish.keys[chosen], wish.values[chosen]
        summed = self._summed(memory, layer, keys, values, _among(rows, chosen))
        total, energy = summed.solve(ridge * budget.weight)
        step = self.process(budget.start)(total - (weight - budget.start))
        novelty = wish.keys.new_ones(len(wish.keys))
        return LayerChange(LowRankDelta.of_dense(step), novelty, keys, None, energy)

    def remember(self, memory: Memory, learned: Learned) -> Memory:
        """The sums with the new facts, and the weight that follows from what they have cost."""
        rows = Rows.of(learned.names, memory.facts)
        budgets = {
            layer: self._spent(
                budget._replace(
                    total=self._summed(
                        memory, layer, learned.rows[layer], learned.values[layer], rows
                    )
                ),
                learned.energy[layer],
            )
            for layer, budget in memory.budgets.items()
        }
        return memory._replace(budgets=budgets)

    def _summed(
        self,
        memory: Memory,
        layer: int,
        keys: Float64[Tensor, "facts d_in"],
        values: Float64[Tensor, "facts d_out"],
        rows: Rows,
    ) -> Cumulative:
        """The sums with some facts; those that are written already lose their value of before."""
        total, start = memory.budgets[layer].total, memory.budgets[layer].start
        if rows.again:
            old = memory.facts.values[layer][rows.places]
            total = total.remove(keys[rows.again], old - keys[rows.again] @ start.mT)
        chosen = rows.written
        return total.add(keys[chosen], values[chosen] - keys[chosen] @ start.mT)

    def _spent(self, budget: Budget, energy: float) -> Budget:
        """The controller's next weight."""
        first = budget.first or energy
        spent = energy / (self.budget * first) if first else 0.0
        return budget._replace(first=first, weight=max(1.0, budget.weight + spent - 1))


def reached_by(delta: LowRankDelta, wish: Wish, rows: Rows) -> Float64[Tensor, " edits"]:
    """The share of each residual that a change writes at its key; of none, all of it."""
    keys = wish.keys if wish.read is None else wish.read
    written = (keys.float() @ delta.right.mT) @ delta.left
    size = wish.residual.norm(dim=-1)
    reached = 1 - (written - wish.residual).norm(dim=-1) / size
    shares = torch.ones_like(size)
    chosen = [i for i in rows.written if size[i] > 0]
    shares[chosen] = reached[chosen]
    return shares


def _among(rows: Rows, chosen: list[int]) -> Rows:
    """Count the rows among the chosen edits alone."""
    at = {i: place for place, i in enumerate(chosen)}
    return Rows([at[i] for i in rows.new], [at[i] for i in rows.again], rows.places)
