"""In-context facts: no weight is written; facts are put before the prompts that may need them.

    score(prompt, fact) = Σ_{w in both} idf(w) / Σ_{w in fact} idf(w)    idf(w) = log(1 + N / n_w)

N facts are kept, n_w of them with the word w (IDF: Spärck Jones 1972, J. Documentation 28(1)). It
is the upper baseline that costs no edit (IKE, arXiv:2305.12740, has demonstrations as well, which
take a training set; here there is the fact alone). A fact's words are those of its prompt with its
subject, without case; its target is what a prompt does not hold. Of the facts whose score is at
least `threshold`, the `shown` best are put before the prompt, a line each, the best last, nearest
to the prompt; of equal ones the later edit is the better. So a fact whose words all stand in the
prompt has the score 1, and one of which only the relation does, or only the subject, about a half
or less, as rare as these words are. A fact that is edited again is kept with its last target only.

What is measured so is retrieval and reading together. Texts become longer by the facts, and nothing
can be saved as a patch.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log
from typing import Annotated

from pydantic import Field

from retcon.data.wordings import questions_of
from retcon.edits import Case, Edit, Probe
from retcon.method.base import NoFeatures, Update
from retcon.method.entries import method
from retcon.model.handle import ModelHandle
from retcon.progress import Progress, silent
from retcon.writing_systems import join

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Nothing:
    """A beginning that depends on nothing."""

    def begin(self, model: ModelHandle, progress: Progress = silent) -> tuple[Edit, ...]:
        """Begin without facts."""
        del model, progress
        return ()


@dataclass(frozen=True, kw_only=True)
class InContext:
    """Facts before prompts. Settings as of `in_context`. The state is the facts that are kept."""

    shown: int
    threshold: float
    layers: tuple[int, ...] = ()
    max_batch: int | None = None

    @property
    def setup(self) -> Nothing:
        """Settings of the beginning: none."""
        return Nothing()

    @property
    def accumulate(self) -> bool:
        """Facts of earlier batches are kept."""
        return True

    def features(
        self,
        model: ModelHandle,
        edits: Sequence[Edit],
        state: tuple[Edit, ...],
        progress: Progress = silent,
    ) -> NoFeatures:
        """Return the edits alone: nothing has to be read."""
        del model, state, progress
        return NoFeatures(tuple(edits))

    def solve(
        self,
        model: ModelHandle,
        features: NoFeatures,
        state: tuple[Edit, ...],
        progress: Progress = silent,
    ) -> Update[tuple[Edit, ...]]:
        """Change no layer; the facts are to be kept."""
        del model, state, progress
        return Update(tuple(edit.id for edit in features.edits), {}, features.edits)

    def carry(self, state: tuple[Edit, ...], increment: tuple[Edit, ...]) -> tuple[Edit, ...]:
        """The facts that are kept, each with its last target."""
        last = {edit.fact: edit for edit in increment}
        before = tuple(edit for edit in state if edit.fact not in last)
        return before + tuple(last.values())

    def rewrite(self, cases: Sequence[Case], state: tuple[Edit, ...]) -> list[Case]:
        """The cases with the facts before every text that the model is given of them."""
        index = _Index(state)

        def with_facts(text: str) -> str:
            return index.before(text, self.shown, self.threshold) + text

        def with_facts_before(probe: Probe) -> Probe:
            return replace(probe, prompt=with_facts(probe.prompt))

        return [
            replace(
                case,
                edit=_behind(index.before(case.edit.text, self.shown, self.threshold), case.edit),
                paraphrases=tuple(map(with_facts, case.paraphrases)),
                neighbours=tuple(map(with_facts, case.neighbours)),
                openings=tuple(map(with_facts, case.openings)),
                portability=tuple(map(with_facts_before, case.portability)),
                locality=tuple(map(with_facts_before, case.locality)),
                questions=tuple(map(with_facts, questions_of(case))),
            )
            for case in cases
        ]


class _Index:
    """Facts by their words."""

    def __init__(self, facts: Sequence[Edit]) -> None:
        self._facts = facts
        words = [_words(fact.text) for fact in facts]
        self._with: dict[str, list[int]] = {}
        for i, own in enumerate(words):
            for word in own:
                self._with.setdefault(word, []).append(i)
        self._rare = {word: log(1 + len(facts) / len(own)) for word, own in self._with.items()}
        self._whole = [sum(self._rare[word] for word in sorted(own)) for own in words]

    def before(self, text: str, shown: int, threshold: float) -> str:
        """Text to put before a prompt: nothing, or lines that state the facts it may be about."""
        common: defaultdict[int, float] = defaultdict(float)
        # In one order, so that the sums do not depend on that of a set.
        for word in sorted(_words(text)):
            for i in self._with.get(word, ()):
                common[i] += self._rare[word]
        # A sum in another order may be a rounding below the whole.
        scores = {i: found / self._whole[i] + 1e-9 for i, found in common.items()}
        good = sorted((score, i) for i, score in scores.items() if score >= threshold)
        facts = [self._facts[i] for _, i in good[-shown:]]
        return "".join(f"{join(fact.text, fact.target)}.\n" for fact in facts)


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.casefold()))


def _behind(context: str, edit: Edit) -> Edit:
    """Put a text before an edit's prompt; no `{}` in it is taken for the subject's."""
    return replace(edit, prompt=context.replace("{}", "{ }") + edit.prompt) if context else edit


@method("in_context", title="In context", paper="https://arxiv.org/abs/2305.12740", writes=False)
def in_context(
    layers: tuple[int, ...] = (),
    *,
    shown: Annotated[int, Field(ge=1)] = 1,
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.5,
) -> InContext:
    """Facts before the prompt: no edit at all; they are retrieved for each prompt.

    Layers are not used.

    Args:
        shown: how many facts, at most.
        threshold: the share of a fact's words, weighted by how rare they are among the facts, that
            a prompt must hold.
    """
    del layers
    return InContext(shown=shown, threshold=threshold)
