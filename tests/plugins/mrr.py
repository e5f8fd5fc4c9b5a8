"""Rank: where a target stands among all tokens that may come next, not against another one only.

    MRR = mean of 1 / rank        rank 1: it is what the model says

Scores hold no rank, so the metric also says how to observe it.
"""

from collections.abc import Sequence

import torch

from retcon.edits import Case
from retcon.model.forward import logits_at
from retcon.model.handle import ModelHandle
from retcon.progress import Progress, silent
from retcon.scoring.metrics import Observer, metric
from retcon.scoring.observations import Moment, Observation

KIND = "target rank"


def observe(
    model: ModelHandle, cases: Sequence[Case], moment: Moment, progress: Progress = silent
) -> list[Observation]:
    """The rank of the first token of each case's target, behind its prompt."""
    rows: list[Observation] = []
    for case in cases:
        progress("ranking targets", len(rows), len(cases))
        ids, start = model.tokens.continuation(case.edit.text, case.edit.target)
        with torch.no_grad():
            (logits,) = logits_at(model, [ids[:start]], [(0, start - 1)])
        rank = 1 + int((logits > logits[ids[start]]).sum())
        rows.append(Observation(case.edit.id, case.relation, KIND, 0, *moment, value=float(rank)))
    progress("ranking targets", len(rows), len(cases))
    return rows


@metric("mrr", title="MRR", kind=KIND, observer=Observer(observe=observe))
def reciprocal_rank(row: Observation) -> float | None:
    """Mean reciprocal rank of the first token of the target among all that may come next."""
    return None if row.value is None else 1 / row.value
