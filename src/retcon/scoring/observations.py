"""Observations: all that is measured of a model, as rows of one long table. Knows no tensors.

A row is of one thing, at one time: a prompt and its targets, a passage of ordinary text, an item of
a task, a text that the model wrote, or what a metric of one's own looks at. Metrics are read off
these rows (`scoring.metrics`).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import polars as pl

When = Literal["pre", "immediate", "final", "retention"]
# The times of a run without retention, in their order.
TIMES: tuple[When, ...] = ("pre", "immediate", "final")

# Prompts of a case; the other kinds that come with the package; items are `item:TASK`.
PROMPTS = ("rewrite", "paraphrase", "neighbour", "portability", "locality")
PASSAGE, ITEM, TEXT = "passage", "item", "text"


class Moment(NamedTuple):
    """A time at which a model is looked at.

    Attributes:
        when: `pre` on the untouched model, `immediate` right after a case's own batch, `retention`
            after later ones, `final` after all edits.
        step: how many batches had been written.
    """

    when: When
    step: int = 0


class Observation(NamedTuple):
    """A row of the table. None means not measured, never zero.

    Attributes:
        case: id of the case, or what names the passage or item.
        relation: cases of one relation are not independent; None: it is like no other.
        kind: of what is observed, see above.
        index: which of its kind it is in its case.
        when, step: as of `Moment`.
        nll_new, nll_old: mean negative log-probability per token of target and target_old, in nats;
            of a passage, of its text.
        n_new, n_old: their numbers of tokens.
        hits_new, hits_old: how many of these are the most probable token, each given the true ones
            before it.
        exact: whether free greedy generation says the target; of an item, whether it is answered
            rightly.
        value: the number of kinds that have one: of a text its entropy in bits.
        text: that the model wrote.
    """

    case: str
    relation: str | None
    kind: str
    index: int
    when: When
    step: int
    nll_new: float | None = None
    n_new: int | None = None
    hits_new: int | None = None
    nll_old: float | None = None
    n_old: int | None = None
    hits_old: int | None = None
    exact: bool | None = None
    value: float | None = None
    text: str | None = None

    @property
    def cluster(self) -> str:
        """The relation, or the case where it has none."""
        return self.relation if self.relation is not None else f"case {self.case}"


def schema() -> "pl.Schema":
    """The columns of the table and their types."""
    import polars as pl

    types: dict[str, pl.DataType] = dict.fromkeys(Observation._fields, pl.Int32())
    types |= dict.fromkeys(("case", "relation", "kind", "when", "text"), pl.String())
    types |= dict.fromkeys(("nll_new", "nll_old", "value"), pl.Float64())
    return pl.Schema(types | {"exact": pl.Boolean()})


def table(rows: Sequence[Observation]) -> "pl.DataFrame":
    """Rows as they are kept."""
    import polars as pl

    return pl.DataFrame(list(rows), schema=schema(), orient="row")


def alike(rows: Sequence[Observation]) -> list[Observation]:
    """Drop `pre` rows of prompts that have no row after editing.

    So means before and after are over the same prompts: a probe that needs several edits may be
    asked before and not after. Other kinds, and rows of the untouched model alone, are left as they
    are.
    """
    after = {(row.case, row.kind, row.index) for row in rows if row.when != "pre"}
    if not after:
        return list(rows)
    return [
        row
        for row in rows
        if row.when != "pre" or row.kind not in PROMPTS or (row.case, row.kind, row.index) in after
    ]
