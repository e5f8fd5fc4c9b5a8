"""The loop that all locate-then-edit methods share.

A method is a factory that fills in the slots of `LocateThenEdit` (layers, ridge, metric, contexts,
targets, …) and a docstring with its equation and paper.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from retcon.algebra.compatible import compatible
from retcon.algebra.solve import Collision, shares
from retcon.edits import Edit
from retcon.errors import InvalidSetting
from retcon.features.contexts import ContextOptions, locate
from retcon.features.keys import read_at_lookup, read_keys
from retcon.features.remember import recall_keys, recall_shared_targets, recall_targets
from retcon.features.second_moments import MomentOptions
from retcon.features.target_options import TargetOptions
from retcon.features.targets import Targets
from retcon.method.base import Update, check_batch
from retcon.method.key_features import KeyFeatures
from retcon.method.key_report import name_collision, report_of
from retcon.method.key_state import KeyIncrement, KeySetup, KeyState
from retcon.method.norm_anchor import anchored, length_of
from retcon.method.options import (
    PreservationOptions,
    ResidualOptions,
    StepOptions,
    check_together,
)
from retcon.method.solvers import LayerChange, Learned, Solver, Wish, reached_by
from retcon.method.spread import SPREADS, Layer, Spread
from retcon.method.written_facts import NO_FACTS, Rows
from retcon.model.handle import ModelHandle
from retcon.progress import Progress, silent

_SOLVING = "solving for the change"
_COVARIANCE, _DIVIDED, _PLAIN = PreservationOptions(), ResidualOptions(), StepOptions()


@dataclass(frozen=True, kw_only=True)
class LocateThenEdit:
    """Read keys, optimise targets, solve the one equation: ROME, EMMET and MEMIT are values of it.

    Attributes:
        layers: the layers that are written, in order.
        ridge: ρ, 0 for hard constraints.
        ridge_batch: the number of edits that `ridge` is meant for; a batch of n has
            ρ · n / ridge_batch, so that ρ is the same per fact. 0: ρ is per batch.
        accumulate: carried edits stay in the metric (M ← M + KᵀK/ρ), and at ρ > 0 a fact that is
            edited again gets its new value in the place of the old one; of two in one batch, the
            last counts.
        read_bare: aim with the averaged key, hold the constraint at the bare prompt's (ROME).
        exact_value: the averaged key should give t₀ + δ, rather than δ more than it gave (R-ROME).
        max_batch: how many edits one update may hold.
        contexts, targets, moments, metric, residuals, step: what each group says.
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
    metric: PreservationOptions = _COVARIANCE
    residuals: ResidualOptions = _DIVIDED
    step: StepOptions = _PLAIN

    def __post_init__(self) -> None:
        single = self.read_bare or self.exact_value or self.targets.insertion == "down"
        if len(self.layers) > 1 and single:
            raise InvalidSetting(
                f"Layers {', '.join(map(str, self.layers))}: a residual is spread over layers as "
                f"the gap at a block's output, so ROME, and insertion=down, take one layer only."
            )
        if self.reads_prompt and self.residuals.tie_subjects:
            raise InvalidSetting(
                "lookup=prompt gives facts about one subject a key each, and tie_subjects one "
                "target for all of them. Leave one of the two out."
            )
        check_together(
            self.ridge, self.metric, self.residuals, self.step, accumulate=self.accumulate
        )

    @property
    def setup(self) -> KeySetup:
        """Settings that the beginning depends on."""
        budgeted = bool(self.step.budget)
        return KeySetup(
            layers=self.layers,
            contexts=self.contexts,
            moments=self.moments,
            metric=self.metric,
            ridge=self.ridge if self.metric.plain else None,
            budgeted=budgeted,
            bounded=self.step.process == "prune" and not budgeted,  # which keeps W₀ itself
            whiten=self.targets.whiten,
        )

    @property
    def shares_targets(self) -> bool:
        """True if edits with one key get one target."""
        return self.residuals.merge_subjects or self.residuals.tie_subjects

    def features(
        self,
        model: ModelHandle,
        edits: Sequence[Edit],
        state: KeyState,
        progress: Progress = silent,
    ) -> KeyFeatures:
        """Optimise the targets of the edits and read their keys, on the weights as they are."""
        self._check_subjects(edits)
        first, own = self.layers[0], self._read(edits)
        # The first context is the bare prompt: one pass gives both.
        averages = torch.stack([self.contexts.weights(len(state.prefixes)), _only_first(state)])
        keys, bare = recall_keys(model, own, state.prefixes, first, averages, progress)
        targets = self._targets(model, own, state, self._aim, progress)
        outputs = target_outputs = values = None
        if len(self.layers) == 1:
            outputs = self._valued(keys, bare) @ model.master(first).double().mT
        else:
            target_outputs = self._spread.target_outputs(model, own, self.layers, targets.delta)
        if self.residuals.anchor_norm != "off":
            module = {self._aim: model.site(self._aim).module}
            located = [locate(model.tokens, edit, "") for edit in own]
            values = read_at_lookup(model, located, module, of_input=False)[self._aim].double()
        return KeyFeatures(tuple(edits), targets, keys, bare, outputs, target_outputs, values)

    @property
    def reads_prompt(self) -> bool:
        """True if keys are read at the end of prompts."""
        return self.contexts.lookup == "prompt"

    def target_of(self, edit: Edit) -> str:
        """Name of what facts with one target have in common."""
        return edit.subject.strip() if self.residuals.tie_subjects else self._name(edit)

    def tried_with(self, edit: Edit) -> str:
        """Name of what facts that are tried again together have in common: their subject."""
        return self._name(edit) if self.reads_prompt else edit.subject.strip()

    def retried(
        self,
        model: ModelHandle,
        features: KeyFeatures,
        ids: Collection[str],
        times: int,
        state: KeyState,
        progress: Progress = silent,
    ) -> KeyFeatures:
        """The features, with other targets for some edits and all about the same subjects.

        Those about one subject get one target, for all of them.
        """
        shared = {self.tried_with(edit) for edit in features.edits if edit.id in ids}
        places = [i for i, edit in enumerate(features.edits) if self.tried_with(edit) in shared]
        chosen = [features.edits[place] for place in places]
        # Where one text ends in two subjects ("a b" and "b"), one key would get two targets.
        heads = {(edit.head, edit.subject.strip()) for edit in chosen}
        tied = not self.reads_prompt and len({head for head, _ in heads}) == len(heads)
        harder = replace(
            self,
            targets=self.targets.harder(times),
            residuals=replace(self.residuals, tie_subjects=tied or self.residuals.tie_subjects),
        )
        return features.put(places, harder.features(model, chosen, state, progress))

    def solve(
        self,
        model: ModelHandle,
        features: KeyFeatures,
        state: KeyState,
        progress: Progress = silent,
    ) -> Update[KeyIncrement]:
        """Solve for the change of each layer; the model is as before afterwards.

        Raises:
            InvalidSetting: more edits than one update of this method may hold.
            CollidingEdits: two edits have one key and the constraint is hard.
        """
        check_batch(self, len(features.edits))
        names = [self._name(edit) for edit in features.edits]
        rows = self._rows(names, state)
        if features.values is not None and state.anchor is None:
            state = state._replace(anchor=length_of(features.values, features.targets.delta))
        features = self._anchored(features, state)
        wishes, done = self._solved(model, features, rows, state, progress)
        ridge = state.memory.loosest(self.ridge_of(len(features.edits)))
        learned = self._learned(names, rows, wishes, done, ridge)
        last = self.layers[-1]
        reached = reached_by(done[last].delta, wishes[last], rows)
        novelty = torch.stack([solution.novelty for solution in done.values()]).amin(0)
        ids = tuple(edit.id for edit in features.edits)
        return Update(
            ids=ids,
            deltas={layer: solution.delta for layer, solution in done.items()},
            increment=KeyIncrement(ids if self.accumulate else (), learned, state.anchor),
            report=report_of(features.targets, learned, state, novelty, reached),
        )

    def ridge_of(self, size: int) -> float:
        """ρ of a batch of so many edits."""
        return self.ridge * (size / self.ridge_batch if self.ridge_batch else 1)

    def carry(self, state: KeyState, increment: KeyIncrement) -> KeyState:
        """The state of the next batch, once an update stays in the weights."""
        learned, memory = increment.learned, state.memory
        memory = memory._replace(errors={**memory.errors, **learned.errors})
        anchor = increment.anchor if state.anchor is None else state.anchor
        if self.accumulate:
            rows = Rows.of(learned.names, memory.facts)
            facts = memory.facts.with_batch(learned.names, learned.ridge, learned.values, rows)
            memory = self._solver.remember(memory, learned)._replace(facts=facts)
        return state._replace(memory=memory, anchor=anchor, written=state.written + increment.ids)

    def staleness(self, model: ModelHandle, features: KeyFeatures) -> Float64[Tensor, " edits"]:
        """Distance the output at each key has moved since its target was made, in units of ‖δ‖.

        ‖(W − W_τ) k‖ / ‖δ‖ at one layer; over several layers, what the output of the block with
        the target has moved by at the subject. NaN where δ is 0: the model knew the fact.
        """
        size = features.targets.delta.double().norm(dim=-1)
        if features.outputs is None:
            now = _block_output(model, self._read(features.edits), self._aim)
            moved = now - features.targets.anchor.double()
        else:
            valued = self._valued(features.keys, features.bare)
            moved = valued @ model.master(self.layers[0]).double().mT - features.outputs
        return torch.where(size > 0, moved.norm(dim=-1) / size, torch.nan)

    def check_foreseen(self) -> None:
        """Refuse a budget, and several layers.

        Raises:
            InvalidSetting: the method has one of them.
        """
        if self.step.budget:
            raise InvalidSetting(
                "The rule adaptive-energy foresees what a batch costs from its keys, targets and a "
                "ridge that stays, and with a budget the ridge moves. Take adaptive-aimd."
            )
        if len(self.layers) > 1:
            raise InvalidSetting(
                "The rule adaptive-energy foresees the cost of a batch at one layer, and the "
                "method writes several. Take one layer, or adaptive-aimd."
            )

    def compatible(self, features: KeyFeatures, state: KeyState) -> int:
        """Count the edits, from the first on, that do not get into each other's way."""
        (layer,) = self.layers
        residual = features.targets.delta.double()
        ridge = self.ridge_of(len(features.edits))
        return compatible(features.keys, residual, state.memory.preservations[layer], ridge)

    def shares(
        self,
        model: ModelHandle,
        edits: Sequence[Edit],
        state: KeyState,
        progress: Progress = silent,
    ) -> dict[int, Float64[Tensor, "edits edits"]]:
        """Shares of its residual that each edit, written alone, adds at the keys of all, by layer.

        No target is needed. Keys are those of the weights as they are, also at the later of several
        layers, where a run reads them after the earlier ones are written.

        Raises:
            InvalidSetting: ΔW is processed element by element once it is solved for.
        """
        if self.step.process != "none":
            raise InvalidSetting(
                f"process={self.step.process} changes ΔW element by element once it is solved for, "
                f"so what it adds at other keys is not known before. Leave process out to see it "
                f"for the plain change."
            )
        averages = torch.stack([self.contexts.weights(len(state.prefixes)), _only_first(state)])
        own = self._read(edits)
        read = read_keys(model, own, state.prefixes, self.layers, averages, progress)
        return {
            layer: shares(
                keys,
                state.memory.preservations[layer],
                self.ridge_of(1),
                read=bare if self.read_bare else None,
                passes=self.residuals.passes,
            )
            for layer, (keys, bare) in read.items()
        }

    def energy(self, model: ModelHandle, state: KeyState) -> float:
        """tr(D M₀ Dᵀ) of the whole change since the run began, summed over the layers."""
        return sum(
            metric.energy(model.change(layer, torch.float64))
            for layer, metric in state.memory.preservations.items()
        )

    def recount(self, state: KeyState) -> Mapping[str, Any]:
        """The texts before prompts, and how many tokens C was read from."""
        return {"prefixes": list(state.prefixes), "corpus_tokens": state.corpus_tokens}

    @property
    def shares_rows(self) -> bool:
        """True if steps are processed, or solved for by sums over all facts."""
        return self.step.process != "none" or bool(self.step.budget)

    def settings_alone(self, *, edits_again: bool) -> Mapping[str, object]:
        """Settings for edits that are not carried, where there is nothing to accumulate.

        Yet a budget needs it, and of two edits of one fact in a batch the last counts only with it.
        """
        return {} if edits_again or self.step.budget else {"accumulate": False}

    @property
    def _aim(self) -> int:
        """The layer at whose output targets are optimised first."""
        return self._spread.aim(self.layers)

    @property
    def _spread(self) -> Spread:
        return SPREADS[self.residuals.spread]

    @property
    def _solver(self) -> Solver:
        return self.step.solver(self.residuals.passes)

    def _targets(
        self,
        model: ModelHandle,
        edits: Sequence[Edit],
        state: KeyState,
        layer: int,
        progress: Progress = silent,
    ) -> Targets:
        options = self.targets
        if not model.architecture.additive:
            # A block's output does not just add the down-projection's: δ goes to the latter.
            options = replace(options, insertion="down")
        if self.reads_prompt:
            options = replace(options, kl=0.0)  # what stands behind the prompt is to change
        given = (model, edits, state.prefixes, layer, options, progress)
        whitening = state.whitening.get(layer)
        if not self.shares_targets:
            return recall_targets(*given, whitening=whitening)
        return recall_shared_targets(*given, of=self.target_of, whitening=whitening)

    def _check_subjects(self, edits: Sequence[Edit]) -> None:
        """Refuse facts with one key and two targets: only one of them would be written."""
        held: dict[str, Edit] = {}
        for edit in edits if self.residuals.tie_subjects else ():
            other = held.setdefault(edit.head, edit)
            if self.target_of(other) != self.target_of(edit):
                raise InvalidSetting(
                    f"{other.id!r} is about {other.subject!r} and {edit.id!r} about "
                    f"{edit.subject!r}, but both texts are {edit.head!r} up to the subject's end, "
                    f"so they have one key. With tie_subjects each subject has one target: mark "
                    f"the same subject in both, or leave tie_subjects out."
                )

    def _read(self, edits: Sequence[Edit]) -> list[Edit]:
        """The edits with the subjects at whose ends keys are read."""
        return [self.contexts.read(edit) for edit in edits]

    def _name(self, edit: Edit) -> str:
        """Name by which a fact is recognised when it is edited again."""
        return self.contexts.read(edit).head if self.shares_targets else edit.fact

    def _rows(self, names: Sequence[str], state: KeyState) -> Rows:
        replaces = self.accumulate and self.ridge > 0
        if not (replaces or self.shares_targets):
            return Rows(list(range(len(names))), [], [])
        return Rows.of(names, state.memory.facts if replaces else NO_FACTS)

    def _anchored(self, features: KeyFeatures, state: KeyState) -> KeyFeatures:
        if features.values is None:
            return features
        assert state.anchor is not None
        cap = self.residuals.anchor_norm == "cap"
        delta = anchored(features.values, features.targets.delta, state.anchor, cap=cap)
        return features._replace(targets=features.targets._replace(delta=delta))

    def _solved(
        self,
        model: ModelHandle,
        features: KeyFeatures,
        rows: Rows,
        state: KeyState,
        progress: Progress,
    ) -> tuple[dict[int, Wish], dict[int, LayerChange]]:
        """Layer by layer, each on weights to which the layers before are added."""
        ridge = self.ridge_of(len(features.edits))
        wishes: dict[int, Wish] = {}
        done: dict[int, LayerChange] = {}
        with model.scratch():
            for layer in self.layers:
                progress(_SOLVING, len(done), len(self.layers))
                wish = wishes[layer] = self._wish(model, features, state, layer)
                weight = model.master(layer).double()
                try:
                    done[layer] = self._solver.solve(wish, rows, state.memory, layer, ridge, weight)
                except Collision as collision:
                    raise name_collision(collision, features, rows, state, layer) from collision
                if layer != self.layers[-1]:
                    model.write({layer: done[layer].delta})
        progress(_SOLVING, len(done), len(self.layers))
        return wishes, done

    def _learned(
        self,
        names: Sequence[str],
        rows: Rows,
        wishes: Mapping[int, Wish],
        done: Mapping[int, LayerChange],
        ridge: float,
    ) -> Learned:
        """Collect what later batches need; where nothing is accumulated, only what was lost."""
        errors = {k: one.error for k, one in done.items() if one.error is not None}
        energy = {k: one.energy for k, one in done.items() if one.energy is not None}
        if not self.accumulate:
            return Learned(ridge, errors=errors, energy=energy)
        chosen = rows.written
        return Learned(
            ridge=ridge,
            names=tuple(names[i] for i in chosen),
            rows={k: one.rows for k, one in done.items()},
            values={k: wish.values[chosen] for k, wish in wishes.items()},
            errors=errors,
            energy=energy,
        )

    def _wish(self, model: ModelHandle, features: KeyFeatures, state: KeyState, layer: int) -> Wish:
        """Keys and residuals of a layer.

        At the only layer, the wanted value is fixed when the target is optimised, W_τ k + δ, so the
        residual is δ while the weights are those of that moment, and δ − (W − W_τ) k afterwards.
        """
        stands = model.master(layer).double()
        weight = self._solver.exact(state.memory, layer, stands)
        if len(self.layers) == 1:
            assert features.outputs is not None
            read = features.bare if self.read_bare else None
            now = (features.keys if read is None else read) @ weight.mT
            wanted = features.outputs + features.targets.delta.double()
            return Wish(features.keys, wanted - now, now, read)
        edits, place = self._read(features.edits), self.layers.index(layer)
        weights = self.contexts.weights(len(state.prefixes))
        keys = read_keys(model, edits, state.prefixes, [layer], weights)[layer]
        gap = self._spread.gap(
            features,
            self.layers[-1],
            Layer(
                layer,
                place,
                len(self.layers),
                output=lambda block: _block_output(model, edits, block),
                targets=lambda own: self._targets(model, edits, state, own),
            ),
        )
        # The gap was read from the model, in which the error closes, or widens, a part of it.
        return Wish(keys, gap + keys @ (stands - weight).mT, keys @ weight.mT, None)

    def _valued(
        self, keys: Float64[Tensor, "edits d_in"], bare: Float64[Tensor, "edits d_in"]
    ) -> Float64[Tensor, "edits d_in"]:
        """The keys whose value the targets change."""
        return bare if self.read_bare or self.exact_value else keys


def _block_output(
    model: ModelHandle, edits: Sequence[Edit], layer: int
) -> Float64[Tensor, "edits hidden"]:
    """Read a block's present output at the end of each bare prompt's subject."""
    located = [locate(model.tokens, edit, "") for edit in edits]
    block = {layer: model.architecture.blocks[layer]}
    return read_at_lookup(model, located, block, of_input=False)[layer].double()


def _only_first(state: KeyState) -> Float64[Tensor, " contexts"]:
    """Weights that pick the bare prompt."""
    return torch.eye(len(state.prefixes), dtype=torch.float64)[0]
