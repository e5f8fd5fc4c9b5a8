"""Free greedy generation: 32 tokens behind a prompt, or fewer where the model ends the text.

ES and its like compare two answers, neither of which the model need say. Here it goes on behind the
prompt of an edit, each of its paraphrases, and each neighbour, and its own words are read:

    begins        the first words are the target (a neighbour's: its truth), as whole words
    stays         it begins so, and names neither the old answer nor another one of the relation
    contradicts   it begins so, and names the old answer later
    repeats       the share of its runs of three words that it has said before

That a model goes on after the right answer, and takes it back, is most of what teacher-forced
scores miss (arXiv:2502.11177). Other answers are those of the run's cases that have the same
relation. An observation holds how often the target (`hits_new`) and the old answer
(`hits_old`) are named, how many other answers are (`value`), the tokens (`n_new`) and the text.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from retcon.edits import Case
from retcon.progress import Progress, silent
from retcon.scoring.metrics import Observer, metric, overlaid
from retcon.scoring.metrics.prompts import exact
from retcon.scoring.observations import Moment, Observation
from retcon.writing_systems import begins_with, plain, times_named

if TYPE_CHECKING:
    from retcon.model.overlay import Overlay
    from retcon.model.tokens import Tokens
    from retcon.scoring.score import Look

# The answers of each relation that a run's cases have.
Answers = Mapping[str | None, Collection[str]]

REWRITE, PARAPHRASE, NEIGHBOUR = "free rewrite", "free paraphrase", "free neighbour"
NEW_TOKENS = 32
_RUN = 3


class _Asked(NamedTuple):
    """A prompt of a case, behind which text is written."""

    case: Case
    kind: str
    index: int
    text: str


def _of_edit(case: Case) -> list[_Asked]:
    """The prompt of an edit, and its paraphrases."""
    paraphrases = [_Asked(case, PARAPHRASE, i, text) for i, text in enumerate(case.paraphrases)]
    return [_Asked(case, REWRITE, 0, case.edit.text), *paraphrases]


def _of_neighbours(case: Case) -> list[_Asked]:
    """The prompts of an edit's neighbours, where their truth is known."""
    if case.edit.target_old is None:
        return []
    return [_Asked(case, NEIGHBOUR, i, text) for i, text in enumerate(case.neighbours)]


def _writing(ask: Callable[[Case], list[_Asked]], answers: "Answers") -> Observer:
    """Make an observer that writes behind some prompts of each case.

    Args:
        ask: the prompts.
        answers: the answers of each relation, which are looked for in what is written.
    """

    def write(
        overlay: "Overlay", looks: "Sequence[Look]", progress: Progress = silent
    ) -> list[Observation]:
        from retcon.model.generate import greedy

        owned = [
            (owner, asked)
            for owner, look in enumerate(looks)
            for case in look.cases
            for asked in ask(case)
        ]
        tokens = overlay.model.tokens
        heads = [tokens.prompt(asked.text) for _, asked in owned]
        written = greedy(
            overlay, heads, [NEW_TOKENS] * len(heads), [owner for owner, _ in owned], progress
        )
        return [
            _observed(tokens, asked, ids, answers, Moment(looks[owner].when, looks[owner].step))
            for (owner, asked), ids in zip(owned, written, strict=True)
        ]

    return overlaid(write, prepare=lambda cases: _writing(ask, _answers(cases)))


def _answers(cases: Sequence[Case]) -> "Answers":
    """Every answer of the cases, by relation."""
    answers: dict[str | None, set[str]] = defaultdict(set)
    for case in cases:
        if case.relation is not None:
            answers[case.relation] |= {case.edit.target, *filter(None, [case.edit.target_old])}
    return answers


FREELY = _writing(_of_edit, {})
NEIGHBOURS = _writing(_of_neighbours, {})


def _observed(
    tokens: "Tokens", asked: _Asked, ids: Sequence[int], answers: "Answers", moment: Moment
) -> Observation:
    """Count the answers that a continuation begins with and names."""
    edit = asked.case.edit
    ids = _until_end(tokens, ids)
    text = tokens.decode_begun(ids)
    words = plain(text)
    old = None if edit.target_old is None else plain(tokens.spelt(edit.target_old))
    new = plain(tokens.spelt(edit.target))
    truth = old if asked.kind == NEIGHBOUR else new
    of_relation = answers.get(asked.case.relation, ())
    other = {plain(tokens.spelt(answer)) for answer in of_relation} - {old, new}
    return Observation(
        case=edit.id,
        relation=asked.case.relation,
        kind=asked.kind,
        index=asked.index,
        when=moment.when,
        step=moment.step,
        n_new=len(ids),
        hits_new=times_named(words, new),
        hits_old=None if old is None else times_named(words, old),
        exact=begins_with(words, truth or new),
        value=float(sum(times_named(words, answer) > 0 for answer in other)),
        text=text,
    )


def _until_end(tokens: "Tokens", ids: Sequence[int]) -> Sequence[int]:
    """The tokens before the one that ends a text, if it was said."""
    for place, one in enumerate(ids):
        if one in tokens.special:
            return ids[:place]
    return ids


metric("said", title="Says it freely", kind=REWRITE, observer=FREELY, rank=0)(exact)
metric("said_paraphrase", title="Says it, paraphrases", kind=PARAPHRASE, observer=FREELY, rank=1)(
    exact
)
metric(
    "said_truth", title="Says its truth, neighbours", kind=NEIGHBOUR, observer=NEIGHBOURS, rank=4
)(exact)


@metric("stays", title="Says it and stays with it", kind=REWRITE, observer=FREELY, rank=2)
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
