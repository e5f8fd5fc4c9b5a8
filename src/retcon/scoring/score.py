"""Teacher-forced log-probabilities of targets behind prompts: the rows of every score."""

from collections.abc import Container, Iterator, Sequence
from itertools import islice
from math import isnan
from typing import NamedTuple

import torch

from retcon.cache import CacheEntry, Name, recall
from retcon.edits import Case
from retcon.errors import NotFinite
from retcon.features.contexts import check_texts
from retcon.model.handle import ModelHandle
from retcon.model.overlay import UNCHANGED, Deltas, Overlay
from retcon.model.tokens import Tokens
from retcon.progress import Progress, silent
from retcon.scoring.exact_match import draft, exact_matches
from retcon.scoring.observations import Moment, Observation, When
from retcon.scoring.teacher_forced import Ask, Prediction, predict

# One more whenever other scores are made of the same tokens.
_FORMAT = 2


class Prompt(NamedTuple):
    """One prompt of a case: the targets scored behind it, and answers that may be said freely."""

    kind: str
    index: int
    text: str
    targets: tuple[str, ...]
    said: tuple[str, ...] = ()


class Score(NamedTuple):
    """Score of one target behind one prompt.

    Attributes:
        nll: mean negative log-probability per token, in nats.
        tokens: of the target.
        hits: how many of them are the most probable token.
    """

    nll: float
    tokens: int
    hits: int


class Look(NamedTuple):
    """Cases, and the update under which they are to be scored; none: the model as it is."""

    cases: Sequence[Case]
    when: When
    step: int = 0
    deltas: Deltas = UNCHANGED


class Behind(NamedTuple):
    """A target behind a prompt, under one of an overlay's updates."""

    prompt: str
    target: str
    owner: int = 0


class Scored(NamedTuple):
    """Scores of a case: one for each target, and each exact match."""

    scores: list[Score]
    exact: list[bool]


def prompts(case: Case, among: Container[str] = ()) -> Iterator[Prompt]:
    """Make the prompts by which a case is judged.

    Args:
        case: with paraphrases, neighbours and probes.
        among: ids of the edits that are judged with it. A probe that needs others is left out,
            since whether they have been made is not known.
    """
    new, old = case.edit.target, case.edit.target_old
    targets = (new,) if old is None else (new, old)
    yield Prompt("rewrite", 0, case.edit.text, targets, (new,))
    for i, text in enumerate(case.paraphrases):
        yield Prompt("paraphrase", i, text, targets)
    if old is not None:
        for i, text in enumerate(case.neighbours):
            yield Prompt("neighbour", i, text, targets)
    for i, probe in enumerate(case.portability):
        if all(needed in among for needed in probe.needs):
            said = (probe.answer, *probe.aliases)
            yield Prompt("portability", i, probe.prompt, (probe.answer,), said)
    for i, probe in enumerate(case.locality):
        yield Prompt("locality", i, probe.prompt, (probe.answer,))


def check_cases(tokens: Tokens, cases: Sequence[Case]) -> None:
    """Refuse, before any work is done, cases that cannot be edited or scored.

    Raises:
        InvalidEdit: unknown words in a subject, target or answer, or more tokens than the model
            can read.
    """
    check_texts(tokens, [case.edit for case in cases])
    among = {case.edit.id for case in cases}
    for case in cases:
        _Asked.of(tokens, list(prompts(case, among)), owner=0)


def score_cases(
    model: ModelHandle,
    cases: Sequence[Case],
    *,
    when: When,
    step: int = 0,
    progress: Progress = silent,
) -> list[Observation]:
    """Score every prompt of the cases on the model as it is.

    Raises:
        NotFinite: a log-probability is NaN.
    """
    return score_looks(model, [Look(cases, when, step)], progress)


def score_looks(
    model: ModelHandle, looks: Sequence[Look], progress: Progress = silent
) -> list[Observation]:
    """Score the cases of each look under its update, which nothing of the model keeps.

    Updates of low rank are laid over the rows of shared batches; others are written and undone,
    one after the other.

    Raises:
        NotFinite: an update or a log-probability is NaN.
    """
    overlay = Overlay(model=model, updates=[look.deltas for look in looks])
    if overlay.applicable:
        scored = iter(_scored(overlay, looks, progress))
        return [row for look in looks for row in _rows(look, scored)]
    rows: list[Observation] = []
    for look in looks:
        with model.scratch():
            model.write(look.deltas)
            rows += score_looks(model, [look._replace(deltas=UNCHANGED)], progress)
    return rows


def score_targets(
    model: ModelHandle, texts: Sequence[tuple[str, str]], *, progress: Progress = silent
) -> list[Score]:
    """The score of each (prompt, target) on the model as it is, as `score_under`."""
    return score_under(Overlay(model=model), [Behind(*text) for text in texts], progress)


def score_under(
    overlay: Overlay, texts: Sequence[Behind], progress: Progress = silent
) -> list[Score]:
    """The score of each target, teacher-forced on "prompt target".

    Raises:
        NotFinite: a log-probability is NaN.
    """
    model = overlay.model
    asks = [Ask(*model.tokens.continuation(one.prompt, one.target), one.owner) for one in texts]
    predictions = predict(overlay, asks, progress)
    return [_score(model, ask, seen) for ask, seen in zip(asks, predictions, strict=True)]


class _Asked(NamedTuple):
    """A case and what the model is asked for it: targets behind prompts, and drafts of answers."""

    prompts: list[Prompt]
    asks: list[Ask]
    drafts: list[Ask]

    @classmethod
    def of(cls, tokens: Tokens, prompts: list[Prompt], owner: int) -> "_Asked":
        asks = [
            Ask(*tokens.continuation(prompt.text, target), owner)
            for prompt in prompts
            for target in prompt.targets
        ]
        drafts = [draft(tokens, p.text, p.said[0], owner) for p in prompts if p.said]
        return cls(prompts, asks, drafts)

    @property
    def said(self) -> list[tuple[str, ...]]:
        """Answers that count for each draft."""
        return [prompt.said for prompt in self.prompts if prompt.said]


def _scored(overlay: Overlay, looks: Sequence[Look], progress: Progress) -> list[Scored]:
    """Score each look's cases, in their order.

    Scores of the model as it was loaded are asked of the cache first: they depend on its weights,
    and not on what a look is called.
    """
    model = overlay.model
    owned = [(owner, found) for owner, look in enumerate(looks) for found in _prompts(look)]
    requests = [_Asked.of(model.tokens, found, owner) for owner, found in owned]
    if not model.as_loaded or any(look.deltas for look in looks):
        return _score_all(overlay, requests, progress)

    def compute(group: list[int]) -> list[CacheEntry]:
        found = _score_all(overlay, [requests[i] for i in group], progress)
        return [_to_entry(scored) for scored in found]

    identity = model.identity
    recalled = recall("scores", [_name(identity, one) for one in requests], compute)
    return [_of_entry(found.entry) for found in recalled]


def _score_all(overlay: Overlay, requests: Sequence[_Asked], progress: Progress) -> list[Scored]:
    """Scores and exact matches of some cases, together."""
    asks = [ask for one in requests for ask in one.asks]
    drafts = [ask for one in requests for ask in one.drafts]
    predictions = predict(overlay, [*asks, *drafts], progress)
    wanted = [answers for one in requests for answers in one.said]
    exact = iter(exact_matches(overlay, wanted, drafts, predictions[len(asks) :], progress))
    scores = iter([_score(overlay.model, *pair) for pair in zip(asks, predictions, strict=False)])
    return [
        Scored(list(islice(scores, len(one.asks))), list(islice(exact, len(one.drafts))))
        for one in requests
    ]


def _name(identity: Name, request: _Asked) -> Name:
    """Name in the cache: the tokens that are run, and the answers that texts are compared with."""
    (target,), *others = request.said
    return {
        "format": _FORMAT,
        "model": identity,
        "asks": [(ask.ids, ask.start) for ask in (*request.asks, *request.drafts)],
        "target": target,
        **({"said": others} if others else {}),
    }


def _to_entry(scored: Scored) -> CacheEntry:
    return {
        "nll": torch.tensor([score.nll for score in scored.scores], dtype=torch.float64),
        "tokens": torch.tensor([score.tokens for score in scored.scores]),
        "hits": torch.tensor([score.hits for score in scored.scores]),
        "exact": torch.tensor(scored.exact),
    }


def _of_entry(entry: CacheEntry) -> Scored:
    fields = (entry[name].tolist() for name in Score._fields)
    exact = [bool(said) for said in entry["exact"].reshape(-1)]
    return Scored([Score(*values) for values in zip(*fields, strict=True)], exact)


def _score(model: ModelHandle, ask: Ask, seen: Prediction) -> Score:
    target = ask.ids[ask.start :]
    nll = -sum(seen.logp) / len(target)
    if isnan(nll):
        decode = model.tokens.decode
        raise NotFinite(
            f"The log-probability of {decode(target)!r} behind {decode(ask.ids[: ask.start])!r} is "
            f"NaN: the model's activations overflow in {model.dtype}, or edits have destroyed it."
        )
    hits = sum(wanted == top for wanted, top in zip(target, seen.top, strict=True))
    return Score(nll, len(target), hits)


def _prompts(look: Look) -> list[list[Prompt]]:
    """The prompts of each case of a look."""
    among = {case.edit.id for case in look.cases}
    return [list(prompts(case, among)) for case in look.cases]


def _rows(look: Look, scored: Iterator[Scored]) -> Iterator[Observation]:
    """The rows of one look, from what was found of the next cases."""
    for case, prompts_of in zip(look.cases, _prompts(look), strict=True):
        case_scores = next(scored)
        scores, exact = iter(case_scores.scores), iter(case_scores.exact)
        for prompt in prompts_of:
            new, *rest = (next(scores) for _ in prompt.targets)
            old = rest[0] if rest else None
            moment = Moment(look.when, look.step)
            row = observed(case, prompt.kind, prompt.index, moment, new, old)
            yield row._replace(exact=next(exact)) if prompt.said else row


def observed(
    case: Case, kind: str, index: int, moment: Moment, new: Score, old: Score | None
) -> Observation:
    """The observation of a prompt whose two answers were scored."""
    return Observation(
        case=case.edit.id,
        relation=case.relation,
        kind=kind,
        index=index,
        when=moment.when,
        step=moment.step,
        nll_new=new.nll,
        n_new=new.tokens,
        hits_new=new.hits,
        nll_old=old.nll if old else None,
        n_old=old.tokens if old else None,
        hits_old=old.hits if old else None,
    )
