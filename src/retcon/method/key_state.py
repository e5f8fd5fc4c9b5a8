"""The state of locate-then-edit methods: how it begins, and what batches add to it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from retcon.algebra.cumulative import Cumulative
from retcon.algebra.preservation import Preservation
from retcon.errors import UnsupportedModel
from retcon.features.contexts import ContextOptions
from retcon.features.remember import recall_prefixes
from retcon.features.second_moments import MomentOptions, load_moments
from retcon.features.sensitivity import Whitening, recall_whitening
from retcon.method.options import PreservationOptions
from retcon.method.solvers import Budget, Learned, Memory
from retcon.model.handle import ModelHandle
from retcon.progress import Progress, silent

NO_WHITENING: Mapping[int, Whitening] = MappingProxyType({})


class KeyState(NamedTuple):
    """State that locate-then-edit methods carry from batch to batch.

    Attributes:
        prefixes: the texts before prompts.
        corpus_tokens: what C was read from.
        memory: the solver's, by layer.
        written: ids of the edits that it remembers.
        anchor: the length of values, of the first batch, where they have one.
        whitening: of targets' gradients, by layer, where they are whitened.
    """

    prefixes: tuple[str, ...]
    corpus_tokens: int
    memory: Memory
    written: tuple[str, ...] = ()
    anchor: float | None = None
    whitening: Mapping[int, Whitening] = NO_WHITENING


class KeyIncrement(NamedTuple):
    """Addition of a batch to the state.

    Attributes:
        ids: none where nothing is accumulated.
        anchor: its own.
    """

    ids: tuple[str, ...]
    learned: Learned
    anchor: float | None


@dataclass(frozen=True, kw_only=True)
class KeySetup:
    """Settings that the beginning depends on.

    Attributes:
        layers: the layers that are written.
        contexts, moments, metric: as of `LocateThenEdit`.
        ridge: ρ, where M₀ is made with it; else None.
        budgeted: whether all facts are solved for anew with each batch.
        bounded: whether W₀ is kept, because the change is bounded from there.
        whiten: the power by which targets' gradients are whitened; 0: they are not.
    """

    layers: tuple[int, ...]
    contexts: ContextOptions
    moments: MomentOptions
    metric: PreservationOptions
    ridge: float | None
    budgeted: bool
    bounded: bool
    whiten: float = 0.0

    def begin(self, model: ModelHandle, progress: Progress = silent) -> KeyState:
        """Check the layers, read or sample prefixes, and factor the metric of each layer.

        Raises:
            UnsupportedModel: a layer cannot be edited, or not in this way.
        """
        for layer in self.layers:
            model.site(layer)
        _check_post_norm(model, self.layers)
        metrics: dict[int, Preservation] = {}
        tokens: list[int] = []
        for layer, moment in load_moments(model, self.layers, self.moments, progress):
            progress(self.metric.task, len(metrics), len(self.layers))
            mean = moment.into_mean().to(model.site(layer).weight.device)
            jitter = self.moments.jitter
            metrics[layer] = self.metric.metric(mean, jitter=jitter, ridge=self.ridge)
            tokens.append(moment.tokens)
        progress(self.metric.task, len(metrics), len(self.layers))
        memory = Memory(metrics, budgets=self._budgets(model, metrics), start=self._start(model))
        prefixes = recall_prefixes(model, self.contexts)
        return KeyState(prefixes, min(tokens), memory, whitening=self._whitening(model, progress))

    def _whitening(self, model: ModelHandle, progress: Progress) -> dict[int, Whitening]:
        return {
            layer: recall_whitening(model, layer, self.layers, self.moments, self.whiten, progress)
            for layer in (self.layers if self.whiten else ())
        }

    def _budgets(
        self, model: ModelHandle, metrics: Mapping[int, Preservation]
    ) -> dict[int, Budget]:
        if not self.budgeted:
            return {}
        starts = {layer: model.master(layer).double().clone() for layer in metrics}
        return {
            layer: Budget(Cumulative.over(metric.whitening, starts[layer]), starts[layer])
            for layer, metric in metrics.items()
        }

    def _start(self, model: ModelHandle) -> dict[int, Float[Tensor, "d_out d_in"]]:
        return {layer: model.master(layer).clone() for layer in self.layers if self.bounded}


def _check_post_norm(model: ModelHandle, layers: Sequence[int]) -> None:
    if len(layers) > 1 and not model.architecture.additive:
        raise UnsupportedModel(
            f"{model.name} normalises or scales the MLP's output before adding it to the "
            f"residual stream, so a residual cannot be spread over several layers. Edit one "
            f"layer: --layer {layers[-1]}."
        )
