"""The protocol of a method, and the values that pass between its stages.

The work has stages, so that a study can do each as rarely as it may:

    setup.begin    once per model: prefixes, second moments, one factored metric per layer
    features       per edits and weights: targets and keys, or gradients; the expensive part
    solve          ΔW for each layer
    carry          the state of the next batch, from that of this one and what its update adds

State, features and increment are a method's own: nothing outside of it looks into them. What only
some methods can do are small protocols of their own, `Stale`, `Weighs`, `Rewrites` and others at
the end of this page.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from retcon.algebra.delta import LowRankDelta
from retcon.edits import Case, Edit
from retcon.errors import InvalidSetting
from retcon.model.handle import ModelHandle
from retcon.progress import Progress, silent

S = TypeVar("S")
F = TypeVar("F", bound="Features")
I = TypeVar("I")  # noqa: E741
S_co = TypeVar("S_co", covariant=True)
S_contra = TypeVar("S_contra", contravariant=True)
F_contra = TypeVar("F_contra", contravariant=True)

NONE: Mapping[Any, Any] = MappingProxyType({})


@runtime_checkable
class Features(Protocol):
    """Everything that was read from a model for some edits, enough to solve for them.

    Attributes:
        edits: the edits, in their order.
        cached: true for each edit whose expensive part was read from the cache.
        seconds: time of each edit's own part when it was computed, whenever that was.
    """

    @property
    def edits(self) -> tuple[Edit, ...]: ...

    @property
    def cached(self) -> Bool[Tensor, " edits"]: ...

    @property
    def seconds(self) -> Float[Tensor, " edits"]: ...

    def select(self, rows: slice) -> "Features":
        """The features of some of the edits."""
        ...


class NoFeatures(NamedTuple):
    """Edits of which nothing has to be read."""

    edits: tuple[Edit, ...]

    @property
    def cached(self) -> Bool[Tensor, " edits"]:
        """False: there is nothing to keep."""
        return torch.zeros(len(self.edits), dtype=torch.bool)

    @property
    def seconds(self) -> Float[Tensor, " edits"]:
        """0 for each edit."""
        return torch.zeros(len(self.edits))

    def select(self, rows: slice) -> "NoFeatures":
        """Some of the edits."""
        return NoFeatures(self.edits[rows])


class Report(NamedTuple):
    """Numbers that a method tells of a batch. A run's record keeps them under their names.

    Attributes:
        batch: of the batch as a whole; None where there is no such number.
        layer: of each edited layer.
        edit: of each edit, in their order.
    """

    batch: Mapping[str, float | bool | None] = NONE
    layer: Mapping[str, Mapping[int, float | int]] = NONE
    edit: Mapping[str, Sequence[float] | Sequence[str]] = NONE


@dataclass(frozen=True, eq=False)
class Update(Generic[I]):
    """The change that a batch asks for.

    Attributes:
        ids: of its edits.
        deltas: ΔW by layer; empty for methods that write no weight.
        increment: what `carry` adds to the state once the update stays. It is kept on the disk to
            go on from, so it must be of the batch alone, and not the sum of all before: a
            NamedTuple, tuple or mapping of tensors, numbers, texts and edits, or None.
        report: numbers for the record.
    """

    ids: tuple[str, ...]
    deltas: dict[int, LowRankDelta]
    increment: I
    report: Report = field(default_factory=Report)


@runtime_checkable
class Setup(Protocol[S_co]):
    """Settings that the beginning of a method depends on, as a frozen dataclass.

    Methods with equal setups share one state at the beginning: that is the key it is kept under.
    So `begin` can read nothing that the key does not hold.
    """

    def begin(self, model: ModelHandle, progress: Progress = silent) -> S_co:
        """The state before the first batch.

        Raises:
            UnsupportedModel: a layer cannot be edited, or not in this way.
        """
        ...


@runtime_checkable
class Method(Protocol[S, F, I]):
    """Everything that a run needs to know of a method.

    Attributes:
        layers: the layers that are written, in order.
        max_batch: how many edits one update can hold; None where any number.
        setup: what the beginning depends on.
    """

    @property
    def layers(self) -> tuple[int, ...]: ...

    @property
    def max_batch(self) -> int | None: ...

    @property
    def setup(self) -> Setup[S]: ...

    def features(
        self, model: ModelHandle, edits: Sequence[Edit], state: S, progress: Progress = silent
    ) -> F:
        """Read what the edits need, on the weights as they are."""
        ...

    def solve(
        self, model: ModelHandle, features: F, state: S, progress: Progress = silent
    ) -> Update[I]:
        """Solve for the change of each layer; the model is as before afterwards."""
        ...

    def carry(self, state: S, increment: I) -> S:
        """The state of the next batch, once an update stays in the weights."""
        ...


# What only some methods can do.


@runtime_checkable
class Stale(Protocol[F_contra]):
    """A method whose features wait for later batches, and go stale on weights that move."""

    def staleness(self, model: ModelHandle, features: F_contra) -> Float64[Tensor, " edits"]:
        """Distance that each edit's aim has moved, in units of the aim; NaN without one."""
        ...


@runtime_checkable
class Retries(Protocol[S_contra, F]):
    """A method that can try again, harder, to bring some facts about."""

    def tried_with(self, edit: Edit) -> str:
        """Name of what facts that are tried again together have in common."""
        ...

    def retried(
        self,
        model: ModelHandle,
        features: F,
        ids: Collection[str],
        times: int,
        state: S_contra,
        progress: Progress = silent,
    ) -> F:
        """The features, made anew for some edits, and for all whose targets hang on theirs.

        Args:
            model: the model, as it was when the features were made.
            features: of all edits.
            ids: of the edits that are tried again.
            times: which try it is, 1 for the first one again.
            state: what `begin` gave.
        """
        ...


@runtime_checkable
class Weighs(Protocol[S_contra]):
    """A method that knows what a change of the weights costs on ordinary text."""

    def energy(self, model: ModelHandle, state: S_contra) -> float:
        """tr(D M₀ Dᵀ) of the whole change D since the run began, summed over the layers."""
        ...


@runtime_checkable
class Rewrites(Protocol[S_contra]):
    """A method by which prompts are given context, and no weight is written."""

    def rewrite(self, cases: Sequence[Case], state: S_contra) -> list[Case]:
        """The cases as the model is to be asked them."""
        ...


@runtime_checkable
class Interferes(Protocol):
    """A method that knows from keys alone what one edit's write adds at the keys of others."""

    def shares(
        self, model: ModelHandle, edits: Sequence[Edit], state: Any, progress: Progress = silent
    ) -> Mapping[int, Float64[Tensor, "edits edits"]]:
        """Shares of its residual that each edit, written alone, adds at the keys of all, by layer.

        Raises:
            InvalidSetting: settings with which it is not known before.
        """
        ...


@runtime_checkable
class Accumulates(Protocol):
    """A method that says whether later batches know earlier ones."""

    @property
    def accumulate(self) -> bool: ...


@runtime_checkable
class Regularised(Protocol):
    """A method with a ridge ρ; 0 is a hard constraint."""

    @property
    def ridge(self) -> float: ...


@runtime_checkable
class WritesKeys(Accumulates, Regularised, Protocol):
    """A method that writes one value at the end of each subject, so that equal keys meet.

    Attributes:
        shares_targets: whether edits with one key get one target, when these are made together.
        reads_prompt: whether keys are read at the end of each prompt, and not of its subject.
    """

    @property
    def shares_targets(self) -> bool: ...

    @property
    def reads_prompt(self) -> bool: ...


@runtime_checkable
class Recounts(Protocol[S_contra]):
    """A method with something to tell of its beginning, for the record of a run."""

    def recount(self, state: S_contra) -> Mapping[str, Any]:
        """Describe the state for the record: `prefixes`, `corpus_tokens` behind C, or others."""
        ...


@runtime_checkable
class Shares(Protocol):
    """A method that may make changes which are no edit's own.

    Attributes:
        shares_rows: whether it does: its patches have rows for a matrix, not one for each edit.
    """

    @property
    def shares_rows(self) -> bool: ...


@runtime_checkable
class Alone(Protocol):
    """A method with settings that change nothing where a batch is the only one in a model."""

    def settings_alone(self, *, edits_again: bool) -> Mapping[str, object]:
        """Values of these settings by which such runs are known as one.

        Args:
            edits_again: whether a fact is edited more than once.
        """
        ...


def check_batch(method: Method[Any, Any, Any], size: int) -> None:
    """Refuse more edits than one update of the method can hold.

    Raises:
        InvalidSetting: there are more.
    """
    if method.max_batch is not None and size > method.max_batch:
        raise InvalidSetting(
            f"This method writes {method.max_batch} fact at a time, not batches of {size}: a "
            f"batch of ROME edits does not exist. Use emmet, its generalisation to batches, or "
            f"the schedules single and sequential."
        )
