"""Teacher-forced log-probabilities of targets behind prompts: the rows of every score."""

from collections.abc import Iterator, Sequence
from math import isnan
from typing import NamedTuple

from retcon.edits import Case
from retcon.errors import NotFinite
from retcon.evaluation.generation import draft, exact_matches
from retcon.evaluation.predictions import Ask, Prediction, predict
from retcon.evaluation.rows import Kind, Row, When
from retcon.model.handle import ModelHandle
from retcon.model.overlay import UNCHANGED, Deltas, Overlay
from retcon.progress import Progress, silent


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


class Look(NamedTuple):
    """Cases, and the update under which they are to be scored; none: the model as it is."""

    cases: Sequence[Case]
    when: When
    step: int = 0
    deltas: Deltas = UNCHANGED


class Scored(NamedTuple):
    """All that rows are made of: a score of each asked target, and whether each edit's is said."""

    scores: list[Score]
    exact: list[bool]


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
    return score_looks(handle, [Look(cases, when, step)], progress)


def score_looks(
    handle: ModelHandle, looks: Sequence[Look], progress: Progress = silent
) -> list[Row]:
    """Score the cases of each look under its update, which nothing of the model keeps.

    Updates of low rank are laid over the rows of shared batches; others are written and undone,
    one after the other.

    Raises:
        NotFinite: an update or a log-probability is NaN.
    """
    overlay = Overlay(handle=handle, updates=[look.deltas for look in looks])
    if overlay.pays:
        scored = _scored(overlay, looks, progress)
        scores, exact = iter(scored.scores), iter(scored.exact)
        return [row for look in looks for row in _rows(look, scores, exact)]
    rows: list[Row] = []
    for look in looks:
        with handle.scratch():
            handle.write(look.deltas)
            rows += score_looks(handle, [look._replace(deltas=UNCHANGED)], progress)
    return rows


def score_targets(
    handle: ModelHandle, texts: Sequence[tuple[str, str]], *, progress: Progress = silent
) -> list[Score]:
    """The score of each (prompt, target), teacher-forced on "prompt target".

    Raises:
        NotFinite: a log-probability is NaN.
    """
    asks = [Ask(*handle.tokens.continuation(prompt, target)) for prompt, target in texts]
    found = predict(Overlay(handle=handle), asks, progress)
    return [_score(handle, ask, seen) for ask, seen in zip(asks, found, strict=True)]


def _scored(overlay: Overlay, looks: Sequence[Look], progress: Progress) -> Scored:
    """Scores and exact matches of all looks, in the order of their cases, prompts and targets."""
    handle = overlay.handle
    owned = [(owner, case) for owner, look in enumerate(looks) for case in look.cases]
    asks = [
        Ask(*handle.tokens.continuation(prompt.text, target), owner)
        for owner, case in owned
        for prompt in prompts(case)
        for target in _targets(case)
    ]
    drafts = [draft(handle.tokens, case.edit, owner) for owner, case in owned]
    found = predict(overlay, [*asks, *drafts], progress)
    scores = [_score(handle, ask, seen) for ask, seen in zip(asks, found, strict=False)]
    edits = [case.edit for _, case in owned]
    return Scored(scores, exact_matches(overlay, edits, drafts, found[len(asks) :]))


def _targets(case: Case) -> list[str]:
    """What is scored behind each prompt."""
    old = case.edit.target_old
    return [case.edit.target] if old is None else [case.edit.target, old]


def _score(handle: ModelHandle, ask: Ask, seen: Prediction) -> Score:
    target = ask.ids[ask.start :]
    nll = -sum(seen.logp) / len(target)
    if isnan(nll):
        decode = handle.tokens.decode
        raise NotFinite(
            f"The log-probability of {decode(target)!r} behind {decode(ask.ids[: ask.start])!r} is "
            f"NaN: the model's activations overflow in {handle.dtype}, or edits have destroyed it."
        )
    hits = sum(wanted == top for wanted, top in zip(target, seen.top, strict=True))
    return Score(nll, len(target), hits)


def _rows(look: Look, scores: Iterator[Score], exact: Iterator[bool]) -> Iterator[Row]:
    """The rows of one look, from the next scores."""
    for case in look.cases:
        said = next(exact)
        for prompt in prompts(case):
            new, *rest = (next(scores) for _ in _targets(case))
            old = rest[0] if rest else None
            yield Row(
                case=case.edit.id,
                relation=case.relation,
                kind=prompt.kind,
                index=prompt.index,
                when=look.when,
                step=look.step,
                nll_new=new.nll,
                n_new=new.tokens,
                hits_new=new.hits,
                nll_old=old.nll if old else None,
                n_old=old.tokens if old else None,
                hits_old=old.hits if old else None,
                exact=said if prompt.kind == "rewrite" else None,
            )
