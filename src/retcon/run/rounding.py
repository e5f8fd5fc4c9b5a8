"""Measure the worth of an exported edit: the facts that the rounded model still says."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from retcon.edits import Case
from retcon.model.handle import ModelHandle
from retcon.patch.patch import Patch
from retcon.progress import Progress, silent
from retcon.scoring.metrics import case_means, summarise
from retcon.scoring.observations import Observation
from retcon.scoring.score import score_cases


class Efficacy(NamedTuple):
    """Scores of a patch's facts, and those that rounding has lost.

    Attributes:
        scores: of the base model, of the patch in it, and of the merged model.
        lost: ids of facts of which the patched model gives the target every token, and the merged
            one does not.
    """

    scores: Mapping[str, Mapping[str, float | None]]
    lost: tuple[str, ...]


def native_rows(
    base: ModelHandle, patch: Patch, cases: Sequence[Case], progress: Progress = silent
) -> tuple[list[Observation], list[Observation]]:
    """Scores of cases on the base model, and with the patch in its weights.

    Raises:
        PatchMismatch: the patch is for another model.
    """
    patch.check(base)
    pre = score_cases(base, cases, when="pre", progress=progress)
    with patch.applied(base):
        return pre, score_cases(base, cases, when="final", progress=progress)


def efficacy(
    pre: Sequence[Observation],
    native: Sequence[Observation],
    merged: ModelHandle,
    cases: Sequence[Case],
    progress: Progress = silent,
) -> Efficacy:
    """The merged model beside what `native_rows` gave."""
    written = score_cases(merged, cases, when="final", progress=progress)
    said, kept = (case_means(rows, "token_accuracy").values for rows in (native, written))
    lost = tuple(id for id, share in said.items() if share == 100 and kept[id] < 100)
    return Efficacy(
        {"base": summarise(pre), "patch": summarise(native), "merged": summarise(written)}, lost
    )
