"""Tell which cells have measured the same: by what can differ, the NLLs of every prompt.

Where the algebra says that two ways of writing come to the same weights, or where one run is the
beginning of another, their scores agree whatever happens elsewhere, and no number of facts makes
an interval of that. So such cells count as one measurement, and differences between them as none.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from retcon.scoring.observations import PROMPTS
from retcon.study.study import Study

if TYPE_CHECKING:
    import polars as pl

# The largest difference of a prompt's NLL, in nats a token, between cells that are one. Rounding
# has made 0.0013 at most (other batches and orders of frozen targets, float32, ‖W − W₀‖ three times
# ‖W₀‖, largest of 3,328 prompts); the least that other weights have made is 0.029 (λ per fact where
# λ leaves 1 % unwritten).
SAME = 0.005

_PROMPT = ("case", "kind", "index")
_NLL = ("nll_new", "nll_old")


class _Scored(NamedTuple):
    """The prompts that a cell has scored at one time, with their NLLs, in one order."""

    prompts: "pl.DataFrame"
    nll: "pl.DataFrame"


@dataclass(frozen=True)
class Measurements:
    """The cells of a study by what they have measured at a time, read once each."""

    study: Study
    _scored: dict[tuple[str, str], _Scored] = field(
        default_factory=dict[tuple[str, str], _Scored], init=False
    )
    _first: dict[tuple[str, str], str] = field(
        default_factory=dict[tuple[str, str], str], init=False
    )

    def first(self, cell: str, when: str) -> str:
        """The first of the cells asked for that has measured the same, which may be itself."""
        key = (cell, when)
        if key not in self._first:
            others = {one for (_, then), one in self._first.items() if then == when}
            gaps = {other: self.gap(cell, other, when) for other in sorted(others)}
            alike = [other for other, gap in gaps.items() if gap is not None and gap <= SAME]
            self._first[key] = alike[0] if alike else cell
        return self._first[key]

    def gap(self, one: str, other: str, when: str) -> float | None:
        """The largest difference of NLLs between two cells; None if their prompts differ."""
        mine, theirs = self._read(one, when), self._read(other, when)
        if mine.prompts.is_empty() or not mine.prompts.equals(theirs.prompts):
            return None
        return _largest(mine.nll, theirs.nll)

    def widest(self, cells: Iterable[str], when: str) -> float | None:
        """The largest difference of NLLs between the first of some cells and any other."""
        first, *rest = sorted(set(cells))
        gaps = [self.gap(first, cell, when) for cell in rest]
        known = [gap for gap in gaps if gap is not None]
        return max(known, default=0.0) if len(known) == len(gaps) else None

    def within(self, one: str, other: str, when: str) -> bool:
        """True if every row of a cell is a row of another one: same prompt, step and NLLs."""
        mine, theirs = (self._rows(cell, when) for cell in (one, other))
        shared = mine.join(theirs, on=[*_PROMPT, "step"], suffix=" there", maintain_order="left")
        if mine.is_empty() or len(shared) < len(mine):
            return False
        there = shared.select(f"{name} there" for name in _NLL)
        return _largest(shared.select(_NLL), there) <= SAME

    def _read(self, cell: str, when: str) -> _Scored:
        key = (cell, when)
        if key not in self._scored:
            rows = self._rows(cell, when)
            self._scored[key] = _Scored(rows.select(_PROMPT), rows.select(_NLL))
        return self._scored[key]

    def _rows(self, cell: str, when: str) -> "pl.DataFrame":
        import polars as pl

        scored = pl.col("kind").is_in(PROMPTS)
        rows = self.study.rows(cell).filter(scored, pl.col("when") == when)
        return rows.select(*_PROMPT, "step", *_NLL).sort(_PROMPT)


def _largest(one: "pl.DataFrame", other: "pl.DataFrame") -> float:
    """The largest difference between two tables of numbers; infinite where one alone has one."""
    largest = 0.0
    for mine, theirs in zip(one.iter_columns(), other.iter_columns(), strict=True):
        if not mine.is_null().equals(theirs.is_null()):
            return float("inf")
        gap = (mine - theirs).abs().max()
        largest = max(largest, gap if isinstance(gap, float) else 0.0)
    return largest
