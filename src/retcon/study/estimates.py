"""Estimate seconds, memory and disk of each cell of a study that is not done yet.

From configurations alone, at a rate that is handed in, so these are orders of size. What cells
share is counted with the first that needs it: moments of a layer, scores of the untouched model,
and targets that are made on it. Targets on edited weights are each cell's own.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from retcon.edits import Case
from retcon.method.base import Shares
from retcon.method.entries import find_method
from retcon.model.load import find_dtype
from retcon.run.cost import Costs, costs
from retcon.scoring.suites import General
from retcon.study.cells import Cell
from retcon.study.facts import Picked
from retcon.study.planning import StudyPlan, outline_of

# Typical tokens of a prompt with its two targets.
_PROMPT = 14
# Solves are in float64, which takes about twice as long.
_DOUBLE = 2
# Bytes of a scored prompt and of a batch's record, as they are kept.
_ROW, _STEP = 24, 700


class CellCost(NamedTuple):
    """Cost of a cell.

    Attributes:
        moments, solves, scoring: seconds.
        targets: seconds, where each takes all its steps; most stop earlier.
        memory: bytes at most.
        disk: bytes when it is done.
        scratch: bytes on the way, removed when it is done.
        made: how many targets are made.
    """

    moments: float
    targets: float
    solves: float
    scoring: float
    memory: int
    disk: int
    scratch: int
    made: int

    @property
    def seconds(self) -> float:
        """Sum of the four."""
        return self.moments + self.targets + self.solves + self.scoring


def estimate(plan: StudyPlan, rate: float, done: Collection[str] = ()) -> dict[str, CellCost]:
    """Estimate the cost of each cell that is not done, in the order in which they are run.

    Args:
        plan: the study.
        rate: FLOP/s of the machine.
        done: ids of cells that are finished: what they computed is not paid for again.
    """
    ledger = _Ledger(rate)
    costs = {
        cell.id: ledger.enter(cell, plan.cases(cell), plan.beside(cell))
        for cell in _first(plan, done)
    }
    return {name: cost for name, cost in costs.items() if name not in done}


def _first(plan: StudyPlan, done: Collection[str]) -> list[Cell]:
    """The cells, those that are done first: what they needed is in the cache."""
    return sorted(plan.cells, key=lambda cell: cell.id not in done)


@dataclass
class _Ledger:
    """Moments, targets and scores of untouched models that are paid for, by their names."""

    rate: float
    moments: set[str] = field(default_factory=set)
    targets: dict[str, set[str]] = field(default_factory=dict)
    scores: dict[str, set[str]] = field(default_factory=dict)
    # By the facts that are scored: they, and how many prompts.
    _prompted: dict[tuple[str, ...], tuple[list[Case], int]] = field(default_factory=dict)

    def enter(self, cell: Cell, picked: Picked, beside: General | None = None) -> CellCost:
        """The cost of a cell beyond what is paid for.

        Args:
            cell: the cell.
            picked: its cases.
            beside: text and tasks that are read of its model.
        """
        cases, (scored, each) = picked.cases, self._scored(picked)
        cost = costs(outline_of(cell.name), cell.layers, cell.settings)
        weights = cost.parameters * find_dtype(cell.dtype).itemsize
        held = cell.n if cell.plan.carry else cell.plan.batch_size
        batches = -(-cell.n // cell.plan.batch_size)
        # A change that is no fact's own has rows for its matrix, and each batch such a change.
        rows = held if _own_rows(cell) else cost.d_out * (batches if cell.plan.carry else 1)
        factors = rows * (cost.d_in + cost.d_out) * 4 * len(cell.layers)
        model = json.dumps([cell.name, cell.dtype, cell.fingerprint])
        first = self._new(self.scores, model, scored) if "pre" in cell.when else []
        edited = _looks(cell) * each
        prompts = edited + sum(map(_prompts, first))
        masters = len(cell.layers) * cost.d_in * cost.d_out * 4
        targets = self._targets(cell, model, cases)
        return CellCost(
            moments=self._moments(cell, model, cost) / self.rate,
            targets=(
                targets * cost.target + batches * cost.batch(min(cell.n, cell.plan.batch_size))
            )
            / self.rate,
            solves=_solves(cell, cost) / self.rate,
            scoring=(prompts * _PROMPT + edited * cost.context + _read(cell, beside))
            * cost.token
            / self.rate,
            # Activations are kept below a quarter of the weights.
            memory=weights * 5 // 4 + cost.moment_bytes + masters + 2 * factors,
            disk=(edited + each * ("pre" in cell.when)) * _ROW + batches * _STEP,
            scratch=factors * 3 if cell.plan.carry else 0,
            made=targets,
        )

    def _scored(self, picked: Picked) -> tuple[list[Case], int]:
        if picked.scored not in self._prompted:
            wanted = set(picked.scored)
            found = [case for case in picked.cases if case.edit.id in wanted]
            self._prompted[picked.scored] = (found, sum(map(_prompts, found)))
        return self._prompted[picked.scored]

    def _moments(self, cell: Cell, model: str, cost: Costs) -> float:
        if "moments" not in cell.editor:
            return 0.0
        options = json.dumps(cell.editor.get("moments"), sort_keys=True)
        names = {f"{model} {layer} {options}" for layer in cell.layers}
        corpus = f"{model} {options}"
        share = len(names - self.moments) / len(names)
        sampling = 0.0 if corpus in self.moments else cost.sampling
        self.moments |= names | {corpus}
        factor = share * len(cell.layers) * _DOUBLE * cost.d_in**3 / 3
        return share * cost.moments + sampling + factor

    def _targets(self, cell: Cell, model: str, cases: Sequence[Case]) -> int:
        """Count the targets to be made. Deltas that come of no target are not kept either."""
        if "targets" not in cell.editor:
            return len(cases) if cell.layers else 0
        slots = [cell.layers[-1], cell.editor.get("contexts"), cell.editor.get("targets")]
        name = f"{model} {json.dumps(slots, sort_keys=True)}"
        own = cell.plan.carry and cell.refresh != "never"
        shared = cases[: cell.plan.batch_size] if own else cases
        return len(self._new(self.targets, name, shared)) + len(cases) - len(shared)

    def _new(self, paid: dict[str, set[str]], name: str, cases: Sequence[Case]) -> list[Case]:
        known = paid.setdefault(name, set())
        new = [case for case in cases if case.edit.id not in known]
        known.update(case.edit.id for case in new)
        return new


def _own_rows(cell: Cell) -> bool:
    """True if a change has a row for each edit."""
    method = find_method(cell.method).build(cell.layers, cell.settings)
    return not (isinstance(method, Shares) and method.shares_rows)


def _prompts(case: Case) -> int:
    probes = len(case.portability) + len(case.locality)
    return 1 + len(case.paraphrases) + len(case.neighbours) + probes


def _looks(cell: Cell) -> int:
    """Number of times that the scored facts are looked at on edited weights."""
    # Retention: after 2, 4, 8, … batches all facts before; half of them, a quarter, …
    carried = [when for when in ("final", "retention") if when in cell.when]
    return ("immediate" in cell.when) + (len(carried) if cell.plan.carry else 0)


def _read(cell: Cell, beside: General | None) -> int:
    """Tokens of text and tasks that are read after the last batch, and after 2, 4, 8, … of them."""
    if beside is None:
        return 0
    batches = -(-cell.n // cell.plan.batch_size)
    between = max(0, (batches - 1).bit_length() - 1) if "retention" in cell.when else 0
    return ("final" in cell.when) * (1 + between) * beside.size


def _solves(cell: Cell, cost: Costs) -> float:
    """Whitening of each key, its products with those it is solved with, and writing the change."""
    met = cell.n if cell.plan.carry and cell.settings.get("accumulate") else cell.plan.batch_size
    each = cost.d_in * (cost.d_in + met + cost.d_out)
    return float(_DOUBLE * 2 * cell.n * each * len(cell.layers))
