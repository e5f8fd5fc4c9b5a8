"""Tell what a patch comes to: each fact's verdict, the scores, and what else has changed."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from retcon.edits import Case
from retcon.model.handle import ModelHandle
from retcon.patch.patch import Patch
from retcon.progress import Progress, silent
from retcon.run.asked import (
    FactVerdict,
    ask,
    check_asking,
    reasons,
    shortfall,
    with_verdicts,
    worst_first,
)
from retcon.run.evaluate import score
from retcon.run.harm import Harm, harm_of
from retcon.run.own_words import Remarks, own_words, remarks
from retcon.scoring.exact_match import continuations
from retcon.scoring.metrics import summarise
from retcon.scoring.score import check_cases

# How many facts are shown, those that are not said first.
SHOWN = 12


class PatchOutcome(NamedTuple):
    """A patch with its verdicts, and what it comes to.

    Attributes:
        verdicts: of all facts, those that are not said first.
        before: what the model says without the patch behind the prompts of the facts that are
            shown.
        scores: by time, of all facts.
        shortfall: which facts are not said; empty where all are.
        harm: which probes have changed.
        remarks: what the model says in other words around the facts.
    """

    patch: Patch
    verdicts: list[FactVerdict]
    before: Mapping[str, str]
    scores: Mapping[str, Mapping[str, float | None]]
    shortfall: str
    harm: Harm
    remarks: Remarks

    def told(self) -> list[str]:
        """Sentences that a user should read: the patch's notes, what is not said, what changed."""
        said = (self.shortfall, self.harm.told(), self.remarks.told())
        return [*self.patch.notes, *filter(None, said)]


def check_outcome(model: ModelHandle, cases: Sequence[Case]) -> None:
    """Refuse, before any work is done, cases that cannot be edited, scored or asked for.

    Raises:
        InvalidEdit: words that the tokenizer does not know, or too many tokens.
    """
    check_cases(model.tokens, cases)
    check_asking(model.tokens, cases)


def outcome_of(
    model: ModelHandle, cases: Sequence[Case], patch: Patch, progress: Progress = silent
) -> PatchOutcome:
    """Look at some cases without a patch and with it; the model is as before afterwards.

    Args:
        model: a model, which may hold other edits.
        cases: the facts, and the prompts by which they are judged.
        patch: edits of this model.
        progress: is told what is done.

    Raises:
        PatchMismatch: the patch is of another model.
    """
    seen = score(model, cases, patch=patch, progress=progress)
    verdicts = worst_first(ask(model, cases, patch=patch, progress=progress))
    settings = patch.about.settings
    texts = [one.prompt for one in verdicts[:SHOWN]]
    before = dict(zip(texts, continuations(model, texts, progress=progress), strict=True))
    own = own_words(model, cases, progress)
    with patch.applied(model):
        changed = remarks(model, own, progress)
    return PatchOutcome(
        with_verdicts(patch, verdicts),
        verdicts,
        before,
        {when: summarise(seen.at(when)) for when in seen.times},
        shortfall(verdicts, reasons(model.tokens, cases, verdicts, settings), settings),
        harm_of(seen.at("pre"), seen.at("final"), cases),
        changed,
    )
