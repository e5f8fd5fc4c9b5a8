"""What a study is made of once its file is read: points, as they were named. No torch here."""

from typing import Annotated, Literal, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

from retcon.run.schedule import REGIMES, adaptive_names

_KNOWN = {"enum": [*REGIMES, *adaptive_names()]}


def _known(name: str) -> str:
    if name not in (*REGIMES, *adaptive_names()):
        raise ValueError(f"no schedule is called {name!r}")
    return name


# How facts are written, without the batch size; rules that plugins bring are `adaptive-NAME` too.
Regime = Annotated[
    str,
    AfterValidator(_known),
    WithJsonSchema({"type": "string", "anyOf": [_KNOWN, {"pattern": "^adaptive-"}]}),
]

# Facts that are scored come from the head of the seeded order, those for tuning from its tail.
Split = Literal["head", "tail"]


# 0 is the seeded order, another number another one; or one by the keys of the facts.
Order = Annotated[int, Field(ge=0)] | Literal["clustered", "dispersed"]


def carries(regime: str) -> bool:
    """Whether earlier batches stay in the weights."""
    return regime not in ("single", "batch")


class Frozen(BaseModel):
    """A value that is written to a study's folder and read back."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Point(Frozen):
    """One place of the grid, as the study's author named it, and the cell that answers it.

    settings: those that the file gives; a tuned ridge is its number here, and `tuned` says so.
    ridge, accumulate, capacity: what method and settings come to; capacity is d_in of the layer.
    cell: None as long as a ridge is still to be tuned. refused: why it cannot be run at all.
    """

    block: str
    model: str
    dtype: str
    method: str
    layers: tuple[int, ...]
    settings: dict[str, object]
    schedule: str
    batch_size: int
    n: int
    seed: int
    order: Order
    refresh: str
    when: tuple[str, ...]
    score: int
    generation: bool
    general: int | None = None
    metrics: tuple[str, ...] = ()
    ridge: float | None
    tuned: bool
    accumulate: bool
    capacity: int
    cell: str | None
    refused: str | None = None

    @property
    def load(self) -> float:
        """Facts per input dimension, N / d_in: how full the matrix is when all are in it."""
        return self.held / self.capacity

    @property
    def held(self) -> int:
        """Facts that are in the weights at once at the end."""
        return self.n if carries(self.schedule) else self.batch_size


def renamed_option(said: object, name: str) -> object:
    """A record of before data sets had options of their own: the one that zsRE had, as such."""
    if not isinstance(said, dict) or "zsre_target" not in said:
        return cast(object, said)
    rest = {
        key: value for key, value in cast(dict[str, object], said).items() if key != "zsre_target"
    }
    target = cast(dict[str, object], said)["zsre_target"]
    return rest if target == "answers" else {**rest, name: {"target": target}}
