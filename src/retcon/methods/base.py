"""What a method is, and the loop that all locate-then-edit methods share.

A method is a factory that fills in the slots of `LocateThenEdit` (layers, ridge, contexts,
targets, …) and a docstring with its equation and paper. The work has three stages, so that a
study can do each as rarely as it may:

    begin      once per model: prefixes, second moments, one Cholesky factor per layer
    features   per edits and weights: optimised targets and keys; the expensive part
    edit       the closed form: ΔW for each layer, and the state with these keys remembered
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float64
from pydantic import Field
from torch import Tensor

from retcon.activations.contexts import ContextOptions, locate, sample_prefixes
from retcon.activations.covariance import MomentOptions, load_moments
from retcon.activations.keys import read_at_lookup, read_keys
from retcon.activations.remembered import recall_keys, recall_targets
from retcon.activations.targets import TargetOptions, Targets
from retcon.algebra.closed_form import Collision, write_keys
from retcon.algebra.delta import LowRankDelta
from retcon.algebra.metric import Metric
from retcon.edits import Edit
from retcon.errors import CollidingEdits, InvalidSetting, UnsupportedModel
from retcon.model.handle import ModelHandle
from retcon.progress import Progress, silent

# ρ as a setting: what `--set ridge=…` takes.
Ridge = Annotated[float, Field(ge=0, allow_inf_nan=False)]
RidgeBatch = Annotated[int, Field(ge=0)]


class Features(NamedTuple):
    """What was read from a model for some edits: enough, at one layer, to edit without it.

    keys: averaged keys at the first edited layer. bare: the keys of the bare prompts there.
    outputs: what W, as it was then, gave at the key whose value the target changes (the bare
    prompt's for ROME, else the averaged one), so that outputs + δ is the wanted value whatever
    becomes of W; None where several layers are edited, whose residuals are read from the model.
    """

    edits: tuple[Edit, ...]
    targets: Targets
    keys: Float64[Tensor, "edits d_in"]
    bare: Float64[Tensor, "edits d_in"]
    outputs: Float64[Tensor, "edits d_out"] | None

    def select(self, rows: slice) -> "Features":
        """The features of some of the edits."""
        return Features(
            self.edits[rows],
            self.targets.select(rows),
            self.keys[rows],
            self.bare[rows],
            None if self.outputs is None else self.outputs[rows],
        )


class State(NamedTuple):
    """What an editor carries from batch to batch: prefixes, and the metric of each layer.

    written: ids of the edits that the metrics remember. corpus_tokens: what C was read from.
    """

    prefixes: tuple[str, ...]
    metrics: dict[int, Metric]
    written: tuple[str, ...]
    corpus_tokens: int


class Update(NamedTuple):
    """The change of each layer, and what is to be remembered of it where edits are carried.

    ids: of its edits. memory: the rows that each layer's metric grows by; empty where nothing is
    accumulated. ridge: ρ as it was for this batch. novelty: of each edit's key the share that was
    new. reached: of each residual the share that was written at the last layer,
    1 − ‖ΔW k − r‖ / ‖r‖.
    """

    ids: tuple[str, ...]
    deltas: dict[int, LowRankDelta]
    memory: dict[int, Float64[Tensor, "edits d_in"]]
    ridge: float
    novelty: Float64[Tensor, " edits"]
    reached: Float64[Tensor, " edits"]


@runtime_checkable
class Editor(Protocol):
    """Everything a schedule needs to know of a method."""

    @property
    def layers(self) -> tuple[int, ...]: ...

    @property
    def max_batch(self) -> int | None: ...

    def begin(self, model: ModelHandle, progress: Progress = silent) -> State: ...

    def features(
        self, model: ModelHandle, edits: Sequence[Edit], state: State, progress: Progress = silent
    ) -> Features: ...

    def edit(self, model: ModelHandle, features: Features, state: State) -> Update: ...

    def carry(self, state: State, update: Update) -> State: ...

    def drift(self, model: ModelHandle, features: Features) -> Float64[Tensor, " edits"]: ...


@dataclass(frozen=True, kw_only=True)
class LocateThenEdit:
    """Read keys, optimise targets, solve the one equation: ROME, EMMET and MEMIT are values of it.

    layers: the layers that are written, in order; targets are optimised at the last.
    ridge: ρ, 0 for hard constraints. ridge_batch: the number of edits that `ridge` is meant for; a
    batch of n has ρ · n / ridge_batch, so that ρ is the same per fact. 0: ρ is per batch.
    accumulate: carried edits stay in the metric (M ← M + KᵀK/ρ).
    read_bare: aim with the averaged key, hold the constraint at the bare prompt's (ROME).
    exact_value: the averaged key should give t₀ + δ, rather than δ more than it gave (R-ROME).
    max_batch: how many edits one update may hold.
    """

    layers: tuple[int, ...]
    ridge: float
    contexts: ContextOptions
    targets: TargetOptions
    moments: MomentOptions
    ridge_batch: int = 0
    accumulate: bool = True
    read_bare: bool = False
    exact_value: bool = False
    max_batch: int | None = None

    def __post_init__(self) -> None:
        single = self.read_bare or self.exact_value or self.targets.insertion == "down"
        if len(self.layers) > 1 and single:
            raise InvalidSetting(
                f"Layers {', '.join(map(str, self.layers))}: a residual is spread over layers as "
                f"the gap at a block's output, so ROME, and insertion=down, take one layer only."
            )

    def begin(self, model: ModelHandle, progress: Progress = silent) -> State:
        """Check the layers, sample prefixes, and factor the second moments of each layer.

        Raises:
            UnsupportedModel: a layer cannot be edited, or not in this way.
        """
        for layer in self.layers:
            model.site(layer)
        self._check_post_norm(model)
        metrics: dict[int, Metric] = {}
        tokens: list[int] = []
        for layer, moment in load_moments(model, self.layers, self.moments, progress):
            mean = moment.into_mean().to(model.site(layer).weight.device)
            metrics[layer] = Metric.of(mean, jitter=self.moments.jitter, overwrite=True)
            tokens.append(moment.tokens)
        return State(sample_prefixes(model, self.contexts), metrics, (), min(tokens))

    def features(
        self, model: ModelHandle, edits: Sequence[Edit], state: State, progress: Progress = silent
    ) -> Features:
        """Optimise the targets of the edits and read their keys, on the weights as they are."""
        first, last = self.layers[0], self.layers[-1]
        # The first context is the bare prompt: one pass gives both.
        averages = torch.stack([self.contexts.weights(len(state.prefixes)), _only_first(state)])
        keys, bare = recall_keys(model, edits, state.prefixes, first, averages)
        targets = recall_targets(
            model, edits, state.prefixes, last, self._target_options(model), progress
        )
        valued = self._valued(keys, bare)
        single = len(self.layers) == 1
        outputs = valued @ model.master(first).double().mT if single else None
        return Features(tuple(edits), targets, keys, bare, outputs)

    def edit(self, model: ModelHandle, features: Features, state: State) -> Update:
        """Solve for the change of each layer; the model is as before afterwards.

        Raises:
            InvalidSetting: more edits than one update of this method may hold.
            CollidingEdits: two edits have one key and the constraint is hard.
        """
        check_batch(self, len(features.edits))
        ridge = self.ridge * (len(features.edits) / self.ridge_batch if self.ridge_batch else 1)
        deltas: dict[int, LowRankDelta] = {}
        memory: dict[int, Tensor] = {}
        novelty = reached = features.keys.new_ones(len(features.edits))
        with model.scratch():
            for done, layer in enumerate(self.layers):
                keys, residual = self._key_and_residual(model, features, state, done)
                read = features.bare if self.read_bare else None
                try:
                    written = write_keys(keys, state.metrics[layer], ridge, read=read)
                except Collision as collision:
                    raise _name_collision(collision, features, state, layer) from collision
                deltas[layer] = LowRankDelta(left=residual.float(), right=written.rows.float())
                reached = _reached(deltas[layer], keys if read is None else read)
                novelty = torch.minimum(novelty, written.novelty)
                if self.accumulate:
                    memory[layer] = written.memory
                if layer != self.layers[-1]:
                    model.write({layer: deltas[layer]})
        ids = tuple(edit.id for edit in features.edits)
        return Update(ids, deltas, memory, ridge, novelty, reached)

    def carry(self, state: State, update: Update) -> State:
        """The state of the next batch, once an update stays in the weights."""
        if not self.accumulate:
            return state
        metrics = {
            layer: metric.remember(update.memory[layer], update.ridge)
            for layer, metric in state.metrics.items()
        }
        return state._replace(metrics=metrics, written=state.written + update.ids)

    def drift(self, model: ModelHandle, features: Features) -> Float64[Tensor, " edits"]:
        """How far the output at each key has moved since its target was made, in units of ‖δ‖.

        ‖(W − W_τ) k‖ / ‖δ‖ at one layer; over several layers, what the last block's output at the
        subject has moved by. NaN where δ is 0: the model knew the fact.
        """
        size = features.targets.delta.double().norm(dim=-1)
        if features.outputs is None:
            moved = self._block_output(model, features) - features.targets.anchor.double()
        else:
            valued = self._valued(features.keys, features.bare)
            moved = valued @ model.master(self.layers[0]).double().mT - features.outputs
        return torch.where(size > 0, moved.norm(dim=-1) / size, torch.nan)

    def _key_and_residual(
        self, model: ModelHandle, features: Features, state: State, done: int
    ) -> tuple[Float64[Tensor, "edits d_in"], Float64[Tensor, "edits d_out"]]:
        """Keys and residuals of the next layer, on weights to which the layers before are added."""
        if len(self.layers) == 1:
            return features.keys, self._residual(model, features)
        keys = self._keys(model, features.edits, state, self.layers[done])
        wanted = features.targets.anchor.double() + features.targets.delta.double()
        gap = wanted - self._block_output(model, features)
        return keys, gap / (len(self.layers) - done)

    def _block_output(
        self, model: ModelHandle, features: Features
    ) -> Float64[Tensor, "edits d_out"]:
        """What the last edited block gives now at the end of each bare prompt's subject."""
        last = self.layers[-1]
        located = [locate(model.tokens, edit, "") for edit in features.edits]
        block = {last: model.architecture.blocks[last]}
        return read_at_lookup(model, located, block, of_input=False)[last].double()

    def _valued(
        self, keys: Float64[Tensor, "edits d_in"], bare: Float64[Tensor, "edits d_in"]
    ) -> Float64[Tensor, "edits d_in"]:
        """The keys whose value the targets change."""
        return bare if self.read_bare or self.exact_value else keys

    def _residual(self, model: ModelHandle, features: Features) -> Float64[Tensor, "edits d_out"]:
        """Wanted minus present output at the key where the constraint holds, at the only layer.

        The wanted value is fixed when the target is optimised, W_τ k + δ, so the residual is δ
        while the weights are those of that moment, and δ − (W − W_τ) k afterwards.
        """
        assert features.outputs is not None
        weight = model.master(self.layers[0]).double()
        wanted = features.outputs + features.targets.delta.double()
        held = features.bare if self.read_bare else features.keys
        return wanted - held @ weight.mT

    def _keys(
        self, model: ModelHandle, edits: Sequence[Edit], state: State, layer: int
    ) -> Float64[Tensor, "edits d_in"]:
        weights = self.contexts.weights(len(state.prefixes))
        return read_keys(model, edits, state.prefixes, [layer], weights)[layer]

    def _target_options(self, model: ModelHandle) -> TargetOptions:
        """Where a block's output does not just add the down-projection's, δ goes to the latter."""
        if model.architecture.additive:
            return self.targets
        return replace(self.targets, insertion="down")

    def _check_post_norm(self, model: ModelHandle) -> None:
        if len(self.layers) > 1 and not model.architecture.additive:
            raise UnsupportedModel(
                f"{model.name} normalises or scales the MLP's output before adding it to the "
                f"residual stream, so a residual cannot be spread over several layers. Edit one "
                f"layer: --layer {self.layers[-1]}."
            )


def check_batch(editor: Editor, size: int) -> None:
    """Refuse more edits than one update of the method can hold.

    Raises:
        InvalidSetting: there are more.
    """
    if editor.max_batch is not None and size > editor.max_batch:
        raise InvalidSetting(
            f"This method writes {editor.max_batch} fact at a time, not batches of {size}: a "
            f"batch of ROME edits does not exist. Use emmet, its generalisation to batches, or "
            f"the schedules single and sequential."
        )


def _reached(delta: LowRankDelta, keys: Float64[Tensor, "edits d_in"]) -> Float64[Tensor, " edits"]:
    """The share of each residual that a change writes at its key; of none, all of it."""
    written = (keys.float() @ delta.right.mT) @ delta.left
    size = delta.left.norm(dim=-1)
    reached = (1 - (written - delta.left).norm(dim=-1) / size).double()
    return torch.where(size > 0, reached, 1.0)


def _only_first(state: State) -> Float64[Tensor, " contexts"]:
    """Weights that pick the bare prompt."""
    return torch.eye(len(state.prefixes), dtype=torch.float64)[0]


def _name_collision(
    collision: Collision, features: Features, state: State, layer: int
) -> CollidingEdits:
    """The same error with the names of the two edits."""
    second = features.edits[collision.second]
    if collision.first is not None:
        first = features.edits[collision.first]
        other = f"{first.id!r} ({first.subject})"
    else:
        other = f"one of the {len(state.written)} edits written before"
    return CollidingEdits(
        f"Edit {second.id!r} ({second.subject}) has the same key at layer {layer} as {other}: "
        f"cosine {collision.cosine:.6f}. A hard constraint (ridge 0) cannot write two values at "
        f"one key. Drop one of them, put them into different batches without accumulation, or set "
        f"a ridge > 0 (--set ridge=…, which is memit)."
    )
