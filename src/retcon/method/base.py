"""What a method is: the protocol that schedules know, and what passes between its stages.

The work has three stages, so that a study can do each as rarely as it may:

    begin      once per model: prefixes, second moments, one factored metric per layer
    features   per edits and weights: targets and keys, or gradients; the expensive part
    edit       ΔW for each layer, and what the next batch should know of it
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64
from pydantic import Field
from torch import Tensor

from retcon.algebra.cumulative import Cumulative
from retcon.algebra.delta import LowRankDelta
from retcon.algebra.preservation import Metric
from retcon.edits import Case, Edit
from retcon.errors import InvalidSetting
from retcon.features.gradients import Answers
from retcon.features.targets import Targets
from retcon.model.handle import ModelHandle
from retcon.progress import Progress, silent

# ρ as a setting: what `--set ridge=…` takes.
Ridge = Annotated[float, Field(ge=0, allow_inf_nan=False)]
RidgeBatch = Annotated[int, Field(ge=0)]
NOTHING: Mapping[int, Tensor] = MappingProxyType({})


class Features(NamedTuple):
    """What was read from a model for some edits: enough, at one layer, to edit without it.

    keys: averaged keys at the first edited layer. bare: the keys of the bare prompts there.
    outputs: what W, as it was then, gave at the key whose value the target changes (the bare
    prompt's for ROME, else the averaged one), so that outputs + δ is the wanted value whatever
    becomes of W; None where several layers are edited, whose residuals are read from the model.
    wanted: where each layer has a target of its own, what its block should give at the subject.
    stood: where targets are anchored, what the last edited matrix gave there. answers: of methods
    that go by gradients, what was read at the tokens of the answers; they have keys of width 0.
    """

    edits: tuple[Edit, ...]
    targets: Targets
    keys: Float64[Tensor, "edits d_in"]
    bare: Float64[Tensor, "edits d_in"]
    outputs: Float64[Tensor, "edits d_out"] | None
    wanted: Float64[Tensor, "layers edits hidden"] | None = None
    stood: Float64[Tensor, "edits hidden"] | None = None
    answers: Answers | None = None

    @classmethod
    def without_keys(
        cls, edits: Sequence[Edit], targets: Targets, answers: Answers | None = None
    ) -> "Features":
        """Of a method that reads no key at the subject."""
        none = torch.zeros(len(edits), 0, dtype=torch.float64)
        return cls(tuple(edits), targets, none, none, None, answers=answers)

    def select(self, rows: slice) -> "Features":
        """The features of some of the edits."""
        return Features(
            self.edits[rows],
            self.targets.select(rows),
            self.keys[rows],
            self.bare[rows],
            None if self.outputs is None else self.outputs[rows],
            None if self.wanted is None else self.wanted[:, rows],
            None if self.stood is None else self.stood[rows],
            None if self.answers is None else self.answers.select(rows),
        )


class Held(NamedTuple):
    """Facts that are in the weights and in the metric, so that editing one again replaces it.

    facts: as `Edit.fact`; as `Edit.head` where facts with one key are one. ridges: with what they
    were written. values: by layer, what W should give at their keys.
    """

    facts: tuple[str, ...]
    ridges: Float64[Tensor, " facts"]
    values: Mapping[int, Float64[Tensor, "facts d_out"]]


NOBODY = Held((), torch.zeros(0, dtype=torch.float64), NOTHING)


class Control(NamedTuple):
    """A layer whose ridge follows from what has been spent: see `method.solvers`.

    total: the sums over all facts. start: W₀. first: energy after the first batch (0: none yet).
    weight: the ridge of the next batch in units of ρ.
    """

    total: Cumulative
    start: Float64[Tensor, "d_out d_in"]
    first: float
    weight: float


class State(NamedTuple):
    """What an editor carries from batch to batch: prefixes, and the metric of each layer.

    written: ids of the edits that the metrics remember. corpus_tokens: what C was read from.
    held: the facts, where they can be edited again. errors: by layer, what post-processing has
    left in W too much. controls: by layer. anchor: the length of values, of the first batch.
    running: by layer, number, mean and squared deviations of what was read at the answers.
    start: by layer, W₀, where a change is bounded from there. kept: facts that are put before
    prompts.
    """

    prefixes: tuple[str, ...]
    metrics: dict[int, Metric]
    written: tuple[str, ...]
    corpus_tokens: int
    held: Held = NOBODY
    errors: Mapping[int, Tensor] = NOTHING
    controls: Mapping[int, Control] = MappingProxyType({})
    anchor: float | None = None
    running: Mapping[int, Float64[Tensor, "3 width"]] = NOTHING
    start: Mapping[int, Float[Tensor, "d_out d_in"]] = NOTHING
    kept: tuple[Edit, ...] = ()


class Fit(NamedTuple):
    """How an optimisation went that belongs to a whole batch: the last loss, and steps."""

    loss: float
    steps: int


class Update(NamedTuple):
    """The change of each layer, and what is to be remembered of it where edits are carried.

    ids: of its edits. memory: the rows that each layer's metric grows by; empty where nothing is
    accumulated. ridge: ρ as it was for this batch, where there is one; the largest of its layers.
    novelty: of each edit's key the share that was new. reached: of each residual the share that was
    written at the last layer, 1 − ‖ΔW k − r‖ / ‖r‖. Both are NaN where a method has no such thing.
    facts: of the edits that were written, and rows of the same edits: keys and values, by layer.
    errors: as in `State`, afterwards. energy: by layer, tr(D M₀ Dᵀ) of the whole change D since W₀
    where a ridge follows it. directions: by layer, how many a null space has left to write in.
    anchor, running: as in `State`. fit: of methods that optimise a batch as a whole.
    kept: edits to be put before prompts, of methods that write no weight.
    """

    ids: tuple[str, ...]
    deltas: dict[int, LowRankDelta]
    memory: Mapping[int, Float64[Tensor, "edits d_in"]]
    ridge: float | None
    novelty: Float64[Tensor, " edits"]
    reached: Float64[Tensor, " edits"]
    facts: tuple[str, ...] = ()
    keys: Mapping[int, Float64[Tensor, "facts d_in"]] = NOTHING
    values: Mapping[int, Float64[Tensor, "facts d_out"]] = NOTHING
    errors: Mapping[int, Float64[Tensor, "d_out d_in"]] = NOTHING
    energy: Mapping[int, float] = MappingProxyType({})
    anchor: float | None = None
    directions: Mapping[int, int] = MappingProxyType({})
    running: Mapping[int, Float64[Tensor, "3 width"]] = NOTHING
    fit: Fit | None = None
    kept: tuple[Edit, ...] = ()


@runtime_checkable
class Editor(Protocol):
    """Everything a schedule needs to know of a method.

    ridge: None where the method has none. accumulate: whether later batches know earlier ones.
    """

    @property
    def layers(self) -> tuple[int, ...]: ...

    @property
    def max_batch(self) -> int | None: ...

    @property
    def ridge(self) -> float | None: ...

    @property
    def accumulate(self) -> bool: ...

    def begin(self, model: ModelHandle, progress: Progress = silent) -> State: ...

    def features(
        self, model: ModelHandle, edits: Sequence[Edit], state: State, progress: Progress = silent
    ) -> Features: ...

    def edit(
        self, model: ModelHandle, features: Features, state: State, progress: Progress = silent
    ) -> Update: ...

    def carry(self, state: State, update: Update) -> State: ...

    def drift(self, model: ModelHandle, features: Features) -> Float64[Tensor, " edits"]: ...


@runtime_checkable
class Rewriting(Protocol):
    """A method by which prompts are given context, and no weight is written."""

    def rewrite(self, cases: Sequence[Case], state: State) -> list[Case]: ...


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
