"""Free greedy generation: 32 tokens behind a prompt, or fewer where the model ends the text.

ES and its like compare two answers, neither of which the model need say. Here it goes on behind the
prompt of an edit, each of its paraphrases, and each neighbour, and its own words are read:

    begins        the first words are the target (a neighbour's: its truth), as whole words
    stays         it begins so, and names neither the old answer nor another one of the relation
    contradicts   it begins so, and names the old answer later
    repeats       the share of its runs of three words that it has said before

That a model goes on after the right answer, and takes it back, is most of what teacher-forced
scores miss (arXiv:2502.11177). Other answers are those of the run's cases that have the same
relation; what the name of the subject holds is none ("Bank of Japan"). An observation holds how
often the target (`hits_new`) and the old answer (`hits_old`) are named, how many other answers are
(`value`), the tokens (`n_new`) and the text.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from retcon.cache import CacheEntry, recall
from retcon.edits import Case
from retcon.progress import Progress, silent
from retcon.scoring.metrics import Observer, metric
from retcon.scoring.metrics.prompts import exact
from retcon.scoring.observations import Moment, Observation
from retcon.writing_systems import begins_with, plain, times_named

if TYPE_CHECKING:
    from retcon.model.overlay import Overlay
    from retcon.model.tokens import Tokens
    from retcon.scoring.score import Look

Ids = tuple[int, ...]
# The answers of each relation that a run's cases have.
Answers = Mapping[str | None, Collection[str]]

REWRITE, PARAPHRASE, NEIGHBOUR = "free rewrite", "free paraphrase", "free neighbour"
NEW_TOKENS = 32
_RUN = 3
# Of what is kept in the cache: one more whenever the same names get other texts, and how many texts
# are written before they are kept.
_FORMAT = 1
_KEPT_TOGETHER = 512


class FreePrompt(NamedTuple):
    """A prompt of a case, behind which text is written.

    Attributes:
        case, kind, index: what it is.
        text: the prompt.
        subject: a name that the text may say again without naming an answer by it.
        line: whether the first line is all that is read.
    """

    case: Case
    kind: str
    index: int
    text: str
    subject: str | None = None
    line: bool = False


# The prompts of a case, behind which text is written.
FreePrompts = Callable[["Tokens", Case], list[FreePrompt]]


def of_edit(tokens: "Tokens", case: Case) -> list[FreePrompt]:
    """The prompt of an edit, and its paraphrases."""
    del tokens
    return [
        FreePrompt(case, kind, i, text, case.edit.subject)
        for kind, texts in ((REWRITE, [case.edit.text]), (PARAPHRASE, case.paraphrases))
        for i, text in enumerate(texts)
    ]


def _of_neighbours(tokens: "Tokens", case: Case) -> list[FreePrompt]:
    """The prompts of an edit's neighbours, where their truth is known."""
    del tokens
    if case.edit.target_old is None:
        return []
    return [FreePrompt(case, NEIGHBOUR, i, text) for i, text in enumerate(case.neighbours)]


def write(
    overlay: "Overlay",
    looks: "Sequence[Look]",
    prompts: FreePrompts,
    answers: "Answers",
    progress: Progress = silent,
) -> list[Observation]:
    """Let a model write behind some prompts of each case.

    Args:
        overlay, looks: the model under some updates, and the cases that are looked at under each.
        prompts: of a case.
        answers: those of each relation, which are looked for in what is written.
        progress: is told how many texts are written.
    """
    tokens = overlay.model.tokens
    owned = [
        (owner, prompt)
        for owner, look in enumerate(looks)
        for case in look.cases
        for prompt in prompts(tokens, case)
    ]
    heads = [tokens.prompt(prompt.text) for _, prompt in owned]
    owners = [owner for owner, _ in owned]
    untouched = overlay.model.as_loaded and not any(look.deltas for look in looks)
    texts = (_remembered if untouched else _written)(overlay, heads, owners, progress)
    moments = [Moment(look.when, look.step) for look in looks]
    return [
        _observed(tokens, prompt, ids, answers, moments[owner])
        for (owner, prompt), ids in zip(owned, texts, strict=True)
    ]


def _written(
    overlay: "Overlay", heads: Sequence[Ids], owners: Sequence[int], progress: Progress
) -> list[Ids]:
    """The tokens that are written behind some prompts, each under an update of its own."""
    from retcon.model.generate import greedy

    return greedy(overlay, heads, [NEW_TOKENS] * len(heads), owners, progress)


def _remembered(
    overlay: "Overlay", heads: Sequence[Ids], owners: Sequence[int], progress: Progress
) -> list[Ids]:
    """The tokens that the untouched model writes, read from the cache or written and kept there."""
    import torch

    from retcon.model.generate import ends_of

    def compute(group: list[int]) -> list[CacheEntry]:
        part = [heads[i] for i in group], [owners[i] for i in group]
        return [{"ids": torch.tensor(ids)} for ids in _written(overlay, *part, progress)]

    model = overlay.model
    ends = {"tokens": NEW_TOKENS, "ends": ends_of(model)}
    about = {"format": _FORMAT, "model": model.identity, **ends}
    names = [{**about, "behind": head} for head in heads]
    found = recall("texts", names, compute, together=_KEPT_TOGETHER)
    return [tuple(one.entry["ids"].tolist()) for one in found]


def _writing(prompts: FreePrompts, answers: "Answers") -> Observer:
    """Make an observer that writes behind some prompts of each case."""

    def together(
        overlay: "Overlay", looks: "Sequence[Look]", progress: Progress = silent
    ) -> list[Observation]:
        return write(overlay, looks, prompts, answers, progress)

    return Observer(together=together, prepare=lambda cases: _writing(prompts, answers_of(cases)))


def answers_of(cases: Sequence[Case]) -> "Answers":
    """Every answer of the cases, by relation."""
    answers: dict[str | None, set[str]] = defaultdict(set)
    for case in cases:
        if case.relation is not None:
            answers[case.relation] |= {case.edit.target, *filter(None, [case.edit.target_old])}
    return answers


FREELY = _writing(of_edit, {})
NEIGHBOURS = _writing(_of_neighbours, {})


def _observed(
    tokens: "Tokens", prompt: FreePrompt, ids: Sequence[int], answers: "Answers", moment: Moment
) -> Observation:
    """Count the answers that a continuation begins with and names."""
    edit = prompt.case.edit
    ids = _until_end(tokens, ids)
    text = tokens.decode_begun(ids)
    if prompt.line:
        text = text.lstrip().partition("\n")[0]
    old = None if edit.target_old is None else plain(tokens.spelt(edit.target_old))
    new = plain(tokens.spelt(edit.target))
    truth = old if prompt.kind == NEIGHBOUR else new
    of_relation = answers.get(prompt.case.relation, ())
    other = {plain(tokens.spelt(answer)) for answer in of_relation} - {old, new}
    words = plain(text)
    named = words
    if prompt.subject is not None:
        named = _without(plain(tokens.spelt(prompt.subject)), words, (new, old or new))
    return Observation(
        case=edit.id,
        relation=prompt.case.relation,
        kind=prompt.kind,
        index=prompt.index,
        when=moment.when,
        step=moment.step,
        n_new=len(ids),
        hits_new=times_named(named, new),
        hits_old=None if old is None else times_named(named, old),
        exact=begins_with(words, truth or new),
        value=float(sum(times_named(named, answer) > 0 for answer in other)),
        text=text,
    )


def _without(subject: str, words: str, answers: Sequence[str]) -> str:
    """A text without a subject's name, which may hold the old answer: "Bank of Japan".

    As it is where an answer holds the name.
    """
    return words if any(subject in one for one in answers) else words.replace(subject, "…")


def _until_end(tokens: "Tokens", ids: Sequence[int]) -> Sequence[int]:
    """The tokens before the one that ends a text, if it was said."""
    for place, one in enumerate(ids):
        if one in tokens.special:
            return ids[:place]
    return ids


metric("said", title="Says it freely", kind=REWRITE, shown="headline", observer=FREELY, rank=0)(
    exact
)
metric(
    "said_paraphrase",
    title="Says it, paraphrases",
    kind=PARAPHRASE,
    shown="headline",
    observer=FREELY,
    rank=1,
)(exact)
metric(
    "said_truth",
    title="Says its truth, neighbours",
    kind=NEIGHBOUR,
    shown="headline",
    observer=NEIGHBOURS,
    rank=4,
)(exact)


@metric(
    "stays",
    title="Says it and stays with it",
    kind=REWRITE,
    shown="headline",
    observer=FREELY,
    rank=2,
)
@metric(
    "stays_paraphrase",
    title="Says it and stays, paraphrases",
    kind=PARAPHRASE,
    observer=FREELY,
    rank=3,
)
def stays(row: Observation) -> float | None:
    """1 where it begins with the target, and neither the old nor another answer follows."""
    if row.exact is None or row.hits_old is None:
        return None
    return float(row.exact and not row.hits_old and not row.value)


@metric(
    "contradicts",
    title="Takes it back later",
    kind=REWRITE,
    observer=FREELY,
    better="lower",
    rank=5,
)
def contradicts(row: Observation) -> float | None:
    """1 where it begins with the target, and the old answer follows."""
    if row.exact is None or row.hits_old is None:
        return None
    return float(row.exact and row.hits_old > 0)


@metric(
    "leaks",
    title="Says the target of neighbours",
    kind=NEIGHBOUR,
    observer=NEIGHBOURS,
    better="lower",
    rank=6,
)
def leaks(row: Observation) -> float | None:
    """1 where the target is named of a neighbour, of whom it is not true."""
    return None if row.hits_new is None else float(row.hits_new > 0)


@metric("repeats", title="Repeats itself", kind=REWRITE, observer=FREELY, better="lower", rank=7)
def repeats(row: Observation) -> float | None:
    """Share of its runs of three words that were said before; None of fewer than three words."""
    words = (row.text or "").split()
    runs = [tuple(words[i : i + _RUN]) for i in range(len(words) - _RUN + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else None
