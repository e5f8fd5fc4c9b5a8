"""Teacher-forced log-probabilities of targets behind prompts: the rows of every score.

Prompts of many cases run together in batches of similar length, and the output head computes
only the positions that predict a target.
"""

from collections.abc import Iterator, Sequence
from math import isnan
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from retcon.edits import Case
from retcon.errors import NotFinite
from retcon.evaluation.generation import says_target
from retcon.evaluation.rows import Kind, Row, When
from retcon.model import hooks
from retcon.model.handle import ModelHandle
from retcon.model.tokens import Continuation, by_length
from retcon.progress import Progress, silent

# Tokens in one forward pass. It changes scores by rounding only.
_TOKENS = 1024


class Prompt(NamedTuple):
    """One prompt of a case."""

    kind: Kind
    index: int
    text: str


class Score(NamedTuple):
    """Of one target behind one prompt: mean NLL per token, tokens, and how many are argmax."""

    nll: float
    tokens: int
    hits: int


def prompts(case: Case) -> Iterator[Prompt]:
    """The prompts by which a case is judged."""
    yield Prompt("rewrite", 0, case.edit.text)
    for i, text in enumerate(case.paraphrases):
        yield Prompt("paraphrase", i, text)
    if case.edit.target_old is not None:
        for i, text in enumerate(case.neighbours):
            yield Prompt("neighbour", i, text)


def score_cases(
    handle: ModelHandle,
    cases: Sequence[Case],
    *,
    when: When,
    step: int = 0,
    progress: Progress = silent,
) -> list[Row]:
    """Score every prompt of the cases on the model as it is.

    Raises:
        NotFinite: a log-probability is NaN.
    """
    asked = [(case, prompt) for case in cases for prompt in prompts(case)]
    texts = [
        (prompt.text, target)
        for case, prompt in asked
        for target in (case.edit.target, case.edit.target_old)
        if target is not None
    ]
    scores = iter(score_targets(handle, texts, progress=progress))
    exact = says_target(handle, [case.edit for case in cases])
    said = dict(zip((case.edit.id for case in cases), exact, strict=True))
    rows: list[Row] = []
    for case, prompt in asked:
        new = next(scores)
        old = next(scores) if case.edit.target_old is not None else None
        rows.append(
            Row(
                case=case.edit.id,
                relation=case.relation,
                kind=prompt.kind,
                index=prompt.index,
                when=when,
                step=step,
                nll_new=new.nll,
                n_new=new.tokens,
                hits_new=new.hits,
                nll_old=old.nll if old else None,
                n_old=old.tokens if old else None,
                hits_old=old.hits if old else None,
                exact=said[case.edit.id] if prompt.kind == "rewrite" else None,
            )
        )
    return rows


def score_targets(
    handle: ModelHandle, texts: Sequence[tuple[str, str]], *, progress: Progress = silent
) -> list[Score]:
    """The score of each (prompt, target), teacher-forced on "prompt target"."""
    rows = [handle.tokens.continuation(prompt, target) for prompt, target in texts]
    scores: dict[int, Score] = {}
    for group in by_length([len(row.ids) for row in rows], _TOKENS):
        progress("scoring prompts", len(scores), len(rows))
        logits = _target_logits(handle, [rows[i] for i in group])
        parts = logits.split([len(rows[i].target) for i in group])
        for i, part in zip(group, parts, strict=True):
            scores[i] = _score(part, rows[i].target)
            if isnan(scores[i].nll):
                raise NotFinite(
                    f"The log-probability of {texts[i][1]!r} behind {texts[i][0]!r} is NaN: the "
                    f"model's activations overflow in {handle.dtype}, or edits have destroyed it."
                )
    progress("scoring prompts", len(rows), len(rows))
    return [scores[i] for i in range(len(rows))]


def _target_logits(
    handle: ModelHandle, rows: Sequence[Continuation]
) -> Float[Tensor, "target_tokens vocabulary"]:
    """Logits at the positions that predict the targets, those of one row side by side."""
    batch = handle.tokens.pad([row.ids[:-1] for row in rows])
    index = torch.tensor(
        [(i, p) for i, row in enumerate(rows) for p in range(row.start - 1, len(row.ids) - 1)],
        device=handle.device,
    )
    with (
        torch.no_grad(),
        hooks.change_input(
            handle.architecture.head, lambda hidden: hidden[index[:, 0], index[:, 1]].unsqueeze(0)
        ),
    ):
        return handle.model(
            input_ids=batch.input_ids.to(handle.device),
            attention_mask=batch.attention_mask.to(handle.device),
            use_cache=False,
        ).logits[0]


def _score(logits: Float[Tensor, "tokens vocabulary"], target: Sequence[int]) -> Score:
    wanted = torch.tensor(target, device=logits.device)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    logp = wide.log_softmax(-1).gather(-1, wanted.unsqueeze(-1))
    hits = int((logits.argmax(-1) == wanted).sum())
    return Score(nll=-float(logp.mean()), tokens=len(target), hits=hits)
