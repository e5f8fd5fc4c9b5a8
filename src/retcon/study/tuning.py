"""Choose ridges by S: the candidates, the places that a choice is for, and the cells behind it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from retcon.errors import InvalidStudy
from retcon.method.entries import find_method
from retcon.scoring.intervals import Statistic, combine
from retcon.scoring.metrics import level
from retcon.study.cells import Cell
from retcon.study.spec import GridEntry, Ridge, Spec
from retcon.study.study import Study, Tuned, TuningRule

_TUNED = "tuned"
# Candidates that a block names itself.
_Own = Annotated[
    dict[Literal["tuned"], Annotated[tuple[Ridge, ...], Field(min_length=1, max_length=100)]],
    Field(min_length=1),
]
# For whom a ridge is chosen: the fields that `Tuned` shares with a tuning.
WHOM: tuple[str, ...] = (
    "model",
    "dtype",
    "method",
    "layers",
    "settings",
    "batch_size",
    "seed",
    "schedule",
    "refresh",
)
# How studies choose that are begun now.
RULE: TuningRule = "one standard error"


@dataclass(frozen=True)
class Tuning:
    """The cells among which a ridge is chosen, and for whom."""

    for_whom: dict[str, Any]
    ridges: tuple[float, ...]
    cells: tuple[Cell, ...]

    @property
    def name(self) -> str:
        """Name that no other choice has."""
        return name_of(self.for_whom, self.ridges)


def candidates_of(entry: GridEntry, spec: Spec) -> tuple[float, ...] | None:
    """Candidates for a ridge; None where the file names the ridge, or none.

    Raises:
        InvalidStudy: the method has no ridge, or the file does not say how to choose it.
    """
    ridge = entry.settings.get("ridge")
    if ridge != _TUNED and not isinstance(ridge, dict):
        return None
    if "ridge" not in find_method(entry.method).settings():
        raise InvalidStudy(
            f"a ridge is `tuned`, and {entry.method} has none: leave it out of the settings."
        )
    if spec.tuning is None:
        raise InvalidStudy("a ridge is `tuned`, and the study has no `tuning`: add its ridges.")
    return tuple(spec.tuning.ridges) if ridge == _TUNED else _own(ridge)


def choose_ridges(tunings: Sequence[Tuning], spec: Spec, study: Study) -> tuple[Tuned, ...]:
    """The ridge of each tuning whose cells are done, by the rule that the study was begun with.

    `one standard error`: the largest ridge whose S is less than that of the best by no more than
    one standard error of the difference, over the same facts (after Breiman et al. 1984, §3.4.3):
    the one that preserves the most, of those that the facts cannot tell from the best. `largest S`:
    the best, of equals the largest.
    """
    return tuple(
        _chosen(tuning, spec, study)
        for tuning in tunings
        if all(study.is_done(cell.id) for cell in tuning.cells)
    )


def _chosen(tuning: Tuning, spec: Spec, study: Study) -> Tuned:
    scores = [level(study.scored(cell.id, cell.when[-1]), "S") for cell in tuning.cells]
    known = {r: s for r, s in zip(tuning.ridges, scores, strict=True) if s is not None}
    if len(known) < len(scores):
        raise InvalidStudy(no_score(spec.data.cases))
    tune, rule = spec.tuning, study.record.tuning
    assert tune is not None
    best = max(known, key=lambda r: (known[r].value, r))
    near = [r for r, s in known.items() if rule == RULE and _not_told_from(s, known[best])]
    return Tuned(
        **tuning.for_whom,
        ridge=max([best, *near]) if near else best,
        ridges=tuning.ridges,
        scores=tuple(s.value for s in known.values()),
        rule=rule,
        cells=tuple(cell.id for cell in tuning.cells),
        n=tune.n,
        score=min(tune.score, tune.n) or tune.n,
    )


def _not_told_from(one: Statistic, best: Statistic) -> bool:
    gap = combine([(1.0, best), (-1.0, one)])
    return gap.value <= (gap.error or 0.0)


def _own(ridge: object) -> tuple[float, ...]:
    """The ridges of `{tuned: [0.1, 1, 10]}`: methods differ in what a ridge is of."""
    try:
        return TypeAdapter(_Own).validate_python(ridge)["tuned"]
    except ValidationError as error:
        raise InvalidStudy(
            f"ridge: {ridge} is no choice of ridges. Write `tuned`, or {{tuned: [0.1, 1, 10]}} "
            f"with numbers of 0 or more, at most 100."
        ) from error


def no_score(cases: str) -> str:
    """Why no ridge can be tuned on facts that have no S."""
    return (
        f"A ridge is tuned by S, which needs facts with target_old, paraphrases and neighbours; "
        f"{cases} has none among those for tuning. Give the ridge as a number."
    )


def name_of(whom: Mapping[str, Any], ridges: tuple[float, ...]) -> str:
    """Name of a choice of a ridge, made of its place and its candidates."""
    return json.dumps([whom, ridges], sort_keys=True)
