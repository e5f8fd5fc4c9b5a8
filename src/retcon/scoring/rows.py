"""What a score is made of: one row per scored prompt. Knows no tensors."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

When = Literal["pre", "immediate", "final", "retention"]
Kind = Literal["rewrite", "paraphrase", "neighbour", "portability", "locality"]


class Row(NamedTuple):
    """One prompt, scored once. None means not scored, never zero.

    when: `pre` on the untouched model, `immediate` right after the case's own batch, `final`
    after all edits. step: how many batches had been written. nll_new, nll_old: mean negative
    log-probability per token of target and target_old. n_new, n_old: their numbers of tokens.
    hits_new, hits_old: how many of these are the most probable token, each given the true ones
    before it. exact: whether free greedy generation says the target. The target of a portability
    or locality probe is its own answer, and it has no target_old.
    """

    case: str
    relation: str | None
    kind: Kind
    index: int
    when: When
    step: int
    nll_new: float
    n_new: int
    hits_new: int
    nll_old: float | None
    n_old: int | None
    hits_old: int | None
    exact: bool | None


def alike(rows: Sequence[Row]) -> list[Row]:
    """Without those of the untouched model whose prompt was never scored after edits.

    A probe that needs several edits may be asked before and not after; means over other prompts
    do not compare. Rows of the untouched model alone are left as they are.
    """
    after = {(row.case, row.kind, row.index) for row in rows if row.when != "pre"}
    return [r for r in rows if not after or (r.case, r.kind, r.index) in after or r.when != "pre"]
