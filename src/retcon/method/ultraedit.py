"""UltraEdit: one gradient for each fact, made comparable over all facts so far, and one solve.

    ΔWᵀ = (HᵀH + αI)⁻¹ HᵀV        vᵢ = −lr · ‖ĥᵢ‖² · ĝᵢ        ^ : (x − mean) / deviation

Gu et al. 2025, arXiv:2505.14679. Rows are tokens: of every token by which a target is predicted the
edited matrix's input h, and the gradient g of the target's mean negative log-probability with
respect to its output. It is the one equation with M = I, ρ = α and R = V; no second moments, no
past keys, no optimised target. What is carried from batch to batch are the running mean and
deviation of each coordinate of [h | g], the present batch's own rows included ("lifelong
normalisation").

What the paper leaves open, and what is done here: a coordinate that never moves is 0 when
normalised, and one single row, which has no deviation, is divided by its root mean square, h and g
apart. Statistics are each layer's own (released: one for all matrices of a shape, its unbiased
variance times n), and a gradient is of its own fact's mean (released: of the mean over the tokens
of a micro-batch). At one layer the direction is the same; the scale differs by 10 % with
micro-batches of 16. With few rows the normalised features say little (of two rows they are each
other's opposite): the paper's turns are of 100 facts, and single edits are not what it is for. It
edits gate- and up-projections of models of 7 B and more, and this the down-projection: lr (1e-6)
and α are the published ones, and scales that have to be tuned for another place. Drift of gradients
that wait (refresh `stale:T`) is that of the matrix's outputs at their tokens, ‖(W − W_τ) H‖ / ‖W_τ
H‖.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float64
from pydantic import Field
from torch import Tensor

from retcon.algebra.delta import LowRankDelta
from retcon.algebra.preservation import Metric
from retcon.algebra.running import normalised, with_rows
from retcon.algebra.solve import write_keys
from retcon.edits import Edit
from retcon.features.gradients import Answers, read_answers
from retcon.features.targets import Targets, default_micro_batch
from retcon.method.base import Editor, Features, State, Update
from retcon.method.options import Positive
from retcon.method.registry import method
from retcon.model.handle import ModelHandle
from retcon.progress import Progress, silent


@dataclass(frozen=True, kw_only=True)
class UltraEdit:
    """Normalised gradients at the tokens of the answers, written by one solve a layer.

    Settings as of `ultraedit`.
    """

    layers: tuple[int, ...]
    ridge: float
    lr: float
    accumulate: bool
    micro_batch: int
    max_batch: int | None = None

    def begin(self, model: ModelHandle, progress: Progress = silent) -> State:
        """Check the layers; no row has been seen yet.

        Raises:
            UnsupportedModel: a layer cannot be edited.
        """
        del progress
        for layer in self.layers:
            model.site(layer)
        return State((), {}, (), 0)

    def features(
        self, model: ModelHandle, edits: Sequence[Edit], state: State, progress: Progress = silent
    ) -> Features:
        """Inputs and gradients at the tokens of the answers, on the weights as they are."""
        del state
        size = self.micro_batch or default_micro_batch(model.outline)
        answers, nll = read_answers(model, edits, self.layers, size, progress)
        return Features.without_keys(edits, Targets.without_delta(nll, steps=1), answers)

    def edit(
        self, model: ModelHandle, features: Features, state: State, progress: Progress = silent
    ) -> Update:
        """Solve for the change of each layer; the model is not touched."""
        del model, progress  # it takes but a moment
        answers = features.answers
        assert answers is not None
        deltas: dict[int, LowRankDelta] = {}
        running: dict[int, Tensor] = {}
        novelty = answers.owner.new_ones(len(features.edits), dtype=torch.float64)
        reached = novelty
        for layer in self.layers:
            past = state.running.get(layer) if self.accumulate else None
            value, running[layer] = self._values(answers, layer, past)
            keys = answers.keys[layer]
            every = keys.new_zeros(()).expand(keys.shape[1], keys.shape[1])
            written = write_keys(keys, Metric.identity(every), self.ridge)
            novelty = novelty.scatter_reduce(0, answers.owner, written.novelty, "amin")
            left = value - (keys @ written.rows.mT) @ value
            reached = 1 - _lengths(left, answers) / _lengths(value, answers)
            deltas[layer] = LowRankDelta(
                left=value.float(), right=written.rows.float(), shared=True
            ).compact()
        return Update(
            ids=tuple(edit.id for edit in features.edits),
            deltas=deltas,
            memory={},
            ridge=self.ridge,
            novelty=novelty,
            # A fact that is said already has no gradient, so there is nothing to be reached.
            reached=reached.nan_to_num(nan=1.0),
            running=running if self.accumulate else {},
        )

    def carry(self, state: State, update: Update) -> State:
        """The state of the next batch: the statistics, with this one's rows."""
        if not self.accumulate:
            return state
        return state._replace(
            running={**state.running, **update.running}, written=state.written + update.ids
        )

    def drift(self, model: ModelHandle, features: Features) -> Float64[Tensor, " edits"]:
        """‖(W − W_τ) H‖ / ‖W_τ H‖ over each edit's tokens, at the layer where it is largest."""
        answers = features.answers
        assert answers is not None
        moved = [
            _lengths(answers.keys[k] @ model.master(k).double().mT - stood, answers)
            / _lengths(stood, answers)
            for k, stood in answers.outputs.items()
        ]
        return torch.stack(moved).amax(0)

    def _values(
        self, answers: Answers, layer: int, past: Float64[Tensor, "3 width"] | None
    ) -> tuple[Float64[Tensor, "rows d_out"], Float64[Tensor, "3 width"]]:
        """What each row is to write, and the statistics with these rows."""
        parts = [answers.keys[layer], answers.gradients[layer]]
        running = with_rows(past, torch.cat(parts, 1))
        if int(running[0, 0]) > 1:
            parts = normalised(torch.cat(parts, 1), running).split([p.shape[1] for p in parts], 1)
        else:
            parts = [p / p.square().mean(1, keepdim=True).sqrt().clamp_min(1e-300) for p in parts]
        key, gradient = parts
        return -self.lr * key.square().sum(1, keepdim=True) * gradient, running


def _lengths(rows: Float64[Tensor, "rows width"], answers: Answers) -> Float64[Tensor, " edits"]:
    """The norm of each edit's rows, taken together."""
    count = int(answers.owner[-1]) + 1
    squares = rows.square().sum(1)
    return squares.new_zeros(count).index_add(0, answers.owner, squares).sqrt()


@method("ultraedit", title="UltraEdit", paper="https://arxiv.org/abs/2505.14679")
def ultraedit(
    layers: tuple[int, ...],
    *,
    ridge: Positive = 1.0,
    lr: Positive = 1e-6,
    accumulate: bool = True,
    micro_batch: Annotated[int, Field(ge=0)] = 0,
) -> Editor:
    """Batches of facts by one gradient each; the fast baseline.

    ridge: α, the weight of ‖ΔW‖². lr: how far along the normalised gradient. accumulate: carry the
    running statistics from batch to batch; otherwise each batch has its own. micro_batch: tokens
    in one forward pass (0: what keeps activations below a quarter of the weights); it changes
    results by rounding only.
    """
    return UltraEdit(
        layers=layers, ridge=ridge, lr=lr, accumulate=accumulate, micro_batch=micro_batch
    )
