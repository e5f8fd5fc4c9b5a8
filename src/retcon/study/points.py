"""Points: the places of a study's grid, as its author named them. No torch here."""

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
    """True if earlier batches stay in the weights."""
    return regime not in ("single", "batch")


class Frozen(BaseModel):
    """A value that is written to a study's folder and read back."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Point(Frozen):
    """One place of the grid, as the study's author named it, and the cell that answers it.

    Attributes:
        settings: those that the file gives; a tuned ridge is its number here.
        tuned: True if the ridge was chosen by S.
        ridge, accumulate: as method and settings resolve.
        capacity: d_in of the layer.
        cell: None as long as a ridge is still to be tuned.
        refused: why it cannot be run at all.
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


def renamed_option(record: object, name: str) -> object:
    """Rename the one option that zsRE had before data sets had options, in records of that time."""
    if not isinstance(record, dict) or "zsre_target" not in record:
        return cast(object, record)
    rest = {
        key: value for key, value in cast(dict[str, object], record).items() if key != "zsre_target"
    }
    target = cast(dict[str, object], record)["zsre_target"]
    return rest if target == "answers" else {**rest, name: {"target": target}}
