"""The loop that all locate-then-edit methods share.

A method is a factory that fills in the slots of `LocateThenEdit` (layers, ridge, metric, contexts,
targets, …) and a docstring with its equation and paper.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64
from torch import Tensor

from retcon.algebra.cumulative import Cumulative
from retcon.algebra.delta import LowRankDelta
from retcon.algebra.preservation import Metric
from retcon.algebra.solve import Collision
from retcon.algebra.whitening import Projection
from retcon.edits import Edit
from retcon.errors import CollidingEdits, InvalidSetting, UnsupportedModel
from retcon.features.block_outputs import replay_outputs
from retcon.features.contexts import ContextOptions, locate, sample_prefixes
from retcon.features.keys import read_at_lookup, read_keys
from retcon.features.remember import recall_keys, recall_shared_targets, recall_targets
from retcon.features.second_moments import MomentOptions, load_moments
from retcon.features.targets import TargetOptions, Targets
from retcon.method.base import NOBODY, Control, Features, State, Update, check_batch
from retcon.method.norm_anchor import anchored, length_of
from retcon.method.options import MetricOptions, ResidualOptions, StepOptions, check_together
from retcon.method.solvers import Rows, Wish, Written, carried, control, process, solve
from retcon.model.handle import ModelHandle
from retcon.progress import Progress, silent

_SOLVING = "solving for the change"
_COVARIANCE, _DIVIDED, _PLAIN = MetricOptions(), ResidualOptions(), StepOptions()


@dataclass(frozen=True, kw_only=True)
class LocateThenEdit:
    """Read keys, optimise targets, solve the one equation: ROME, EMMET and MEMIT are values of it.

    layers: the layers that are written, in order.
    ridge: ρ, 0 for hard constraints. ridge_batch: the number of edits that `ridge` is meant for; a
    batch of n has ρ · n / ridge_batch, so that ρ is the same per fact. 0: ρ is per batch.
    accumulate: carried edits stay in the metric (M ← M + KᵀK/ρ), and at ρ > 0 a fact that is edited
    again gets its new value in the place of the old one; of two in one batch, the last counts.
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
    metric: MetricOptions = _COVARIANCE
    residuals: ResidualOptions = _DIVIDED
    step: StepOptions = _PLAIN

    def __post_init__(self) -> None:
        single = self.read_bare or self.exact_value or self.targets.insertion == "down"
        if len(self.layers) > 1 and single:
            raise InvalidSetting(
                f"Layers {', '.join(map(str, self.layers))}: a residual is spread over layers as "
                f"the gap at a block's output, so ROME, and insertion=down, take one layer only."
            )
        check_together(
            self.ridge, self.metric, self.residuals, self.step, accumulate=self.accumulate
        )

    def begin(self, model: ModelHandle, progress: Progress = silent) -> State:
        """Check the layers, sample prefixes, and factor the metric of each layer.

        Raises:
            UnsupportedModel: a layer cannot be edited, or not in this way.
        """
        for layer in self.layers:
            model.site(layer)
        self._check_post_norm(model)
        metrics: dict[int, Metric] = {}
        tokens: list[int] = []
        for layer, moment in load_moments(model, self.layers, self.moments, progress):
            progress(self.metric.task, len(metrics), len(self.layers))
            mean = moment.into_mean().to(model.site(layer).weight.device)
            jitter = self.moments.jitter
            metrics[layer] = self.metric.metric(mean, jitter=jitter, ridge=self.ridge)
            tokens.append(moment.tokens)
        progress(self.metric.task, len(metrics), len(self.layers))
        controls: dict[int, Control] = {}
        if self.step.budget:
            for layer, metric in metrics.items():
                start = model.master(layer).double()
                controls[layer] = Control(
                    Cumulative.over(metric.whitening, start), start.clone(), 0.0, 1.0
                )
        bounded = self.step.process == "prune" and not self.step.budget  # which keeps W₀ itself
        start = {layer: model.master(layer).clone() for layer in self.layers if bounded}
        prefixes = sample_prefixes(model, self.contexts)
        return State(prefixes, metrics, (), min(tokens), controls=controls, start=start)

    def features(
        self, model: ModelHandle, edits: Sequence[Edit], state: State, progress: Progress = silent
    ) -> Features:
        """Optimise the targets of the edits and read their keys, on the weights as they are."""
        first = self.layers[0]
        # The first context is the bare prompt: one pass gives both.
        averages = torch.stack([self.contexts.weights(len(state.prefixes)), _only_first(state)])
        keys, bare = recall_keys(model, edits, state.prefixes, first, averages, progress)
        targets = self._targets(model, edits, state, self._aim, progress)
        outputs = wanted = stood = None
        if len(self.layers) == 1:
            outputs = self._valued(keys, bare) @ model.master(first).double().mT
        elif self.residuals.spread == "forward":
            wanted = replay_outputs(model, edits, self.layers, targets.delta).double()
        if self.residuals.anchor_norm != "off":
            module = {self._aim: model.site(self._aim).module}
            located = [locate(model.tokens, edit, "") for edit in edits]
            stood = read_at_lookup(model, located, module, of_input=False)[self._aim].double()
        return Features(tuple(edits), targets, keys, bare, outputs, wanted, stood)

    def edit(
        self, model: ModelHandle, features: Features, state: State, progress: Progress = silent
    ) -> Update:
        """Solve for the change of each layer; the model is as before afterwards.

        Raises:
            InvalidSetting: more edits than one update of this method may hold.
            CollidingEdits: two edits have one key and the constraint is hard.
        """
        check_batch(self, len(features.edits))
        ridge = self.ridge_of(len(features.edits))
        facts = [self._name(edit) for edit in features.edits]
        rows = self._rows(facts, state)
        if features.stood is not None and state.anchor is None:
            state = state._replace(anchor=length_of(features.stood, features.targets.delta))
        features = self._anchored(features, state)
        done: dict[int, Written] = {}
        wishes: dict[int, Wish] = {}
        with model.scratch():
            for layer in self.layers:
                progress(_SOLVING, len(done), len(self.layers))
                wish = wishes[layer] = self._wish(model, features, state, layer)
                try:
                    done[layer] = self._written(model, wish, rows, state, layer, ridge)
                except Collision as collision:
                    raise _name_collision(collision, features, rows, state, layer) from collision
                if layer != self.layers[-1]:
                    model.write({layer: done[layer].delta})
        progress(_SOLVING, len(done), len(self.layers))
        last = wishes[self.layers[-1]]
        deltas = {layer: written.delta for layer, written in done.items()}
        chosen, whole = rows.written, self.accumulate
        return Update(
            ids=tuple(edit.id for edit in features.edits),
            deltas=deltas,
            memory={k: w.memory for k, w in done.items()} if whole and not state.controls else {},
            ridge=ridge * max((control.weight for control in state.controls.values()), default=1.0),
            novelty=torch.stack([written.novelty for written in done.values()]).amin(0),
            reached=_reached(deltas[self.layers[-1]], last, rows),
            facts=tuple(facts[i] for i in chosen) if whole else (),
            keys={k: wish.keys[chosen] for k, wish in wishes.items() if state.controls},
            values={k: wish.values[chosen] for k, wish in wishes.items() if whole},
            errors={k: w.error for k, w in done.items() if w.error is not None},
            energy={k: w.energy for k, w in done.items() if w.energy is not None},
            anchor=state.anchor,
            directions={
                layer: metric.base.rank
                for layer, metric in state.metrics.items()
                if isinstance(metric.base, Projection)
            },
        )

    def ridge_of(self, size: int) -> float:
        """ρ of a batch of so many edits."""
        return self.ridge * (size / self.ridge_batch if self.ridge_batch else 1)

    def carry(self, state: State, update: Update) -> State:
        """The state of the next batch, once an update stays in the weights."""
        return carried(state, update, self.step, accumulate=self.accumulate)

    def drift(self, model: ModelHandle, features: Features) -> Float64[Tensor, " edits"]:
        """How far the output at each key has moved since its target was made, in units of ‖δ‖.

        ‖(W − W_τ) k‖ / ‖δ‖ at one layer; over several layers, what the output of the block with
        the target has moved by at the subject. NaN where δ is 0: the model knew the fact.
        """
        size = features.targets.delta.double().norm(dim=-1)
        if features.outputs is None:
            now = self._block_output(model, features, self._aim)
            moved = now - features.targets.anchor.double()
        else:
            valued = self._valued(features.keys, features.bare)
            moved = valued @ model.master(self.layers[0]).double().mT - features.outputs
        return torch.where(size > 0, moved.norm(dim=-1) / size, torch.nan)

    @property
    def _aim(self) -> int:
        """The layer at whose output targets are optimised first."""
        return self.layers[-1 if self.residuals.spread == "divided" else 0]

    def _targets(
        self,
        model: ModelHandle,
        edits: Sequence[Edit],
        state: State,
        layer: int,
        progress: Progress = silent,
    ) -> Targets:
        make = recall_shared_targets if self.residuals.merge_subjects else recall_targets
        options = self.targets
        if not model.architecture.additive:
            # A block's output does not just add the down-projection's: δ goes to the latter.
            options = replace(options, insertion="down")
        return make(model, edits, state.prefixes, layer, options, progress)

    def _name(self, edit: Edit) -> str:
        """By which a fact is known again."""
        return edit.head if self.residuals.merge_subjects else edit.fact

    def _rows(self, facts: Sequence[str], state: State) -> Rows:
        replaces = self.accumulate and self.ridge > 0
        if not (replaces or self.residuals.merge_subjects):
            return Rows(list(range(len(facts))), [], [])
        return Rows.of(facts, state.held if replaces else NOBODY)

    def _anchored(self, features: Features, state: State) -> Features:
        if features.stood is None:
            return features
        assert state.anchor is not None
        cap = self.residuals.anchor_norm == "cap"
        delta = anchored(features.stood, features.targets.delta, state.anchor, cap=cap)
        return features._replace(targets=features.targets._replace(delta=delta))

    def _written(
        self, model: ModelHandle, wish: Wish, rows: Rows, state: State, layer: int, ridge: float
    ) -> Written:
        weight = model.master(layer).double()
        if state.controls:
            return control(wish, rows, state, layer, ridge, weight, self.step)
        written = solve(wish, rows, state, layer, ridge, self.residuals.passes)
        if self.step.process == "none":
            return written
        start = state.start.get(layer, weight).double()
        return process(written, start, self._error(model, state, layer), self.step)

    def _error(self, model: ModelHandle, state: State, layer: int) -> Tensor:
        """What post-processing has left in W too much."""
        weight = model.master(layer).double()
        return state.errors.get(layer, torch.zeros_like(weight)).to(weight)

    def _wish(self, model: ModelHandle, features: Features, state: State, layer: int) -> Wish:
        """Keys and residuals of a layer, on weights to which the layers before are added.

        At the only layer, the wanted value is fixed when the target is optimised, W_τ k + δ, so the
        residual is δ while the weights are those of that moment, and δ − (W − W_τ) k afterwards.
        """
        weight = stands = model.master(layer).double()
        if self.step.process != "none":
            weight = stands - self._error(model, state, layer)
        if len(self.layers) == 1:
            assert features.outputs is not None
            read = features.bare if self.read_bare else None
            now = (features.keys if read is None else read) @ weight.mT
            wanted = features.outputs + features.targets.delta.double()
            return Wish(features.keys, wanted - now, now, read)
        weights = self.contexts.weights(len(state.prefixes))
        keys = read_keys(model, features.edits, state.prefixes, [layer], weights)[layer]
        # The gap was read from the model, in which the error closes, or widens, a part of it.
        gap = self._gap(model, features, state, layer) + keys @ (stands - weight).mT
        return Wish(keys, gap, keys @ weight.mT, None)

    def _gap(
        self, model: ModelHandle, features: Features, state: State, layer: int
    ) -> Float64[Tensor, "edits hidden"]:
        """What one of several layers is to add at the end of each subject."""
        targets, done = features.targets, self.layers.index(layer)
        if self.residuals.spread == "divided":
            wanted = targets.anchor.double() + targets.delta.double()
            gap = wanted - self._block_output(model, features, self.layers[-1])
            return gap / (len(self.layers) - done)
        if self.residuals.spread == "forward":
            assert features.wanted is not None
            wanted = features.wanted[done]
        else:
            own = targets if not done else self._targets(model, features.edits, state, layer)
            wanted = own.anchor.double() + own.delta.double()
        return wanted - self._block_output(model, features, layer)

    def _block_output(
        self, model: ModelHandle, features: Features, layer: int
    ) -> Float64[Tensor, "edits hidden"]:
        """What a block gives now at the end of each bare prompt's subject."""
        located = [locate(model.tokens, edit, "") for edit in features.edits]
        block = {layer: model.architecture.blocks[layer]}
        return read_at_lookup(model, located, block, of_input=False)[layer].double()

    def _valued(
        self, keys: Float64[Tensor, "edits d_in"], bare: Float64[Tensor, "edits d_in"]
    ) -> Float64[Tensor, "edits d_in"]:
        """The keys whose value the targets change."""
        return bare if self.read_bare or self.exact_value else keys

    def _check_post_norm(self, model: ModelHandle) -> None:
        if len(self.layers) > 1 and not model.architecture.additive:
            raise UnsupportedModel(
                f"{model.name} normalises or scales the MLP's output before adding it to the "
                f"residual stream, so a residual cannot be spread over several layers. Edit one "
                f"layer: --layer {self.layers[-1]}."
            )


def _reached(delta: LowRankDelta, wish: Wish, rows: Rows) -> Float64[Tensor, " edits"]:
    """The share of each residual that a change writes at its key; of none, all of it."""
    keys = wish.keys if wish.read is None else wish.read
    written = (keys.float() @ delta.right.mT) @ delta.left
    size = wish.residual.norm(dim=-1)
    reached = 1 - (written - wish.residual).norm(dim=-1) / size
    found = torch.ones_like(size)
    chosen = [i for i in rows.written if size[i] > 0]
    found[chosen] = reached[chosen]
    return found


def _only_first(state: State) -> Float64[Tensor, " contexts"]:
    """Weights that pick the bare prompt."""
    return torch.eye(len(state.prefixes), dtype=torch.float64)[0]


def _name_collision(
    collision: Collision, features: Features, rows: Rows, state: State, layer: int
) -> CollidingEdits:
    """The same error with the names of the two edits."""
    second = features.edits[rows.new[collision.second]]
    if collision.first is not None:
        first = features.edits[rows.new[collision.first]]
        other = f"{first.id!r} ({first.subject})"
    else:
        other = f"one of the {len(state.written)} edits written before"
    return CollidingEdits(
        f"Edit {second.id!r} ({second.subject}) has the same key at layer {layer} as {other}: "
        f"cosine {collision.cosine:.6f}. A hard constraint (ridge 0) cannot write two values at "
        f"one key. Drop one of them, put them into different batches without accumulation, or set "
        f"a ridge > 0 (--set ridge=…, which is memit)."
    )
