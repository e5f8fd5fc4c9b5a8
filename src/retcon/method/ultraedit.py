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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64
from pydantic import Field
from torch import Tensor

from retcon.algebra.delta import LowRankDelta
from retcon.algebra.preservation import Preservation
from retcon.algebra.solve import write_keys
from retcon.edits import Edit
from retcon.features.gradients import Answers, read_answers
from retcon.features.targets import default_micro_batch
from retcon.method.base import NONE, Report, Update
from retcon.method.entries import method
from retcon.method.options import Positive
from retcon.model.handle import ModelHandle
from retcon.progress import Progress, silent

# By layer: number, mean and squared deviations of the rows so far.
Running = Mapping[int, Float64[Tensor, "3 width"]]


class GradientFeatures(NamedTuple):
    """Rows that were read at the tokens of the answers.

    Attributes:
        nll: of each target, before the edit.
    """

    edits: tuple[Edit, ...]
    answers: Answers
    nll: Float[Tensor, " edits"]

    @property
    def cached(self) -> Bool[Tensor, " edits"]:
        """False: gradients are not kept."""
        return torch.zeros(len(self.edits), dtype=torch.bool)

    @property
    def seconds(self) -> Float[Tensor, " edits"]:
        """0: all time is shared by edits that are read together."""
        return torch.zeros(len(self.edits))

    def select(self, rows: slice) -> "GradientFeatures":
        """The features of some of the edits."""
        return GradientFeatures(self.edits[rows], self.answers.select(rows), self.nll[rows])


@dataclass(frozen=True, kw_only=True)
class LayersOnly:
    """A beginning that depends on nothing but the layers, which are checked."""

    layers: tuple[int, ...]

    def begin(self, model: ModelHandle, progress: Progress = silent) -> Running:
        """Begin without rows.

        Raises:
            UnsupportedModel: a layer cannot be edited.
        """
        del progress
        for layer in self.layers:
            model.site(layer)
        return NONE


@dataclass(frozen=True, kw_only=True)
class UltraEdit:
    """Normalised gradients at the tokens of the answers, written by one solve a layer.

    Settings as of `ultraedit`. The state and the increment are the running statistics.
    """

    layers: tuple[int, ...]
    ridge: float
    lr: float
    accumulate: bool
    micro_batch: int
    max_batch: int | None = None

    @property
    def setup(self) -> LayersOnly:
        """The layers."""
        return LayersOnly(layers=self.layers)

    def features(
        self, model: ModelHandle, edits: Sequence[Edit], state: Running, progress: Progress = silent
    ) -> GradientFeatures:
        """Inputs and gradients at the tokens of the answers, on the weights as they are."""
        del state
        size = self.micro_batch or default_micro_batch(model.outline)
        answers, nll = read_answers(model, edits, self.layers, size, progress)
        return GradientFeatures(tuple(edits), answers, nll)

    def solve(
        self,
        model: ModelHandle,
        features: GradientFeatures,
        state: Running,
        progress: Progress = silent,
    ) -> Update[Running]:
        """Solve for the change of each layer; the model is not touched."""
        del model, progress  # it takes but a moment
        answers = features.answers
        deltas: dict[int, LowRankDelta] = {}
        running: dict[int, Tensor] = {}
        novelty = answers.owner.new_ones(len(features.edits), dtype=torch.float64)
        reached = novelty
        for layer in self.layers:
            past = state.get(layer) if self.accumulate else None
            value, running[layer] = self._values(answers, layer, past)
            keys = answers.keys[layer]
            every = keys.new_zeros(()).expand(keys.shape[1], keys.shape[1])
            written = write_keys(keys, Preservation.identity(every), self.ridge)
            novelty = novelty.scatter_reduce(0, answers.owner, written.novelty, "amin")
            left = value - (keys @ written.rows.mT) @ value
            reached = 1 - _lengths(left, answers) / _lengths(value, answers)
            deltas[layer] = LowRankDelta(
                left=value.float(), right=written.rows.float(), shared=True
            ).compact()
        # A fact that is said already has no gradient, so there is nothing to be reached.
        reached = reached.nan_to_num(nan=1.0)
        return Update(
            ids=tuple(edit.id for edit in features.edits),
            deltas=deltas,
            increment=running if self.accumulate else NONE,
            report=self._report(features.nll, novelty, reached),
        )

    def carry(self, state: Running, increment: Running) -> Running:
        """The statistics with the batch's rows."""
        return {**state, **increment}

    def staleness(
        self, model: ModelHandle, features: GradientFeatures
    ) -> Float64[Tensor, " edits"]:
        """‖(W − W_τ) H‖ / ‖W_τ H‖ over each edit's tokens, at the layer where it is largest."""
        answers = features.answers
        moved = [
            _lengths(answers.keys[k] @ model.master(k).double().mT - stood, answers)
            / _lengths(stood, answers)
            for k, stood in answers.outputs.items()
        ]
        return torch.stack(moved).amax(0)

    def settings_alone(self, *, edits_again: bool) -> Mapping[str, object]:
        """A batch that is alone has no statistics of others."""
        return {} if edits_again else {"accumulate": False}

    def _report(
        self,
        nll: Float[Tensor, " edits"],
        novelty: Float64[Tensor, " edits"],
        reached: Float64[Tensor, " edits"],
    ) -> Report:
        return Report(
            batch={
                "loss": float(nll.mean()),
                "target_steps": 1.0,
                "ridge": self.ridge,
                "reached": float(reached.mean()),
                "novelty": float(novelty.min()),
            },
            edit={
                "novelty": [round(x, 6) for x in novelty.tolist()],
                "reached": [round(x, 6) for x in reached.tolist()],
            },
        )

    def _values(
        self, answers: Answers, layer: int, past: Float64[Tensor, "3 width"] | None
    ) -> tuple[Float64[Tensor, "rows d_out"], Float64[Tensor, "3 width"]]:
        """Compute the values that each row is to write, and the statistics with these rows."""
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
) -> UltraEdit:
    """Batches of facts by one gradient each; the fast baseline.

    Args:
        ridge: α, the weight of ‖ΔW‖².
        lr: how far along the normalised gradient.
        accumulate: carry the running statistics from batch to batch; otherwise each batch has its
            own.
        micro_batch: tokens in one forward pass (0: what keeps activations below a quarter of the
            weights); it changes results by rounding only.
    """
    return UltraEdit(
        layers=layers, ridge=ridge, lr=lr, accumulate=accumulate, micro_batch=micro_batch
    )


def with_rows(
    running: Float64[Tensor, "3 width"] | None, rows: Float64[Tensor, "n width"]
) -> Float64[Tensor, "3 width"]:
    """Update the running statistics of each coordinate with more rows.

    Statistics of two sets of rows give those of both (Chan, Golub & LeVeque 1983, The American
    Statistician 37(3)), so nothing is lost and no row is kept.

    Args:
        running: of the rows before; None: there were none.
        rows: the new ones.

    Returns:
        Number of rows, mean, and sum of squared deviations, of each coordinate.
    """
    mean = rows.mean(0)
    own = torch.stack([torch.full_like(mean, len(rows)), mean, (rows - mean).square().sum(0)])
    if running is None:
        return own
    total, gap = running[0] + own[0], own[1] - running[1]
    return torch.stack(
        [
            total,
            running[1] + gap * own[0] / total,
            running[2] + own[2] + gap.square() * running[0] * own[0] / total,
        ]
    )


def normalised(
    rows: Float64[Tensor, "n width"], running: Float64[Tensor, "3 width"]
) -> Float64[Tensor, "n width"]:
    """(x − mean) / deviation of each coordinate, the deviation with n − 1; 0 where it is 0."""
    deviation = (running[2] / (running[0] - 1).clamp_min(1)).sqrt()
    return torch.where(deviation > 0, (rows - running[1]) / deviation, 0.0)
