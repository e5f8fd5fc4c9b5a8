"""Ask a model for each of its facts, freely, and judge what it says: a verdict a fact.

A fact is asked for by its own prompt and its paraphrases, as a question in plain text, and in the
tokenizer's chat template where it has one.

    said        its own prompt is answered with the target, and so is every other way of asking
    partly      its own prompt is, and not every other way
    not said    its own prompt is not

A continuation has to begin with the target; an answer to a question has to name it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from retcon.edits import Case
from retcon.errors import first_few
from retcon.model.handle import ModelHandle
from retcon.model.overlay import Overlay
from retcon.model.tokens import Tokens
from retcon.patch.patch import Patch, VerdictWord
from retcon.progress import Progress, silent
from retcon.scoring.metrics.freely import PARAPHRASE, REWRITE, FreePrompt, of_edit, write
from retcon.scoring.metrics.prompts import exact
from retcon.scoring.metrics.questions import CHAT, QUESTION, named
from retcon.scoring.observations import Observation
from retcon.scoring.score import Look

# The ways of asking by the kind of their observations, and how each is judged.
_WAYS = {
    REWRITE: ("prompt", exact),
    PARAPHRASE: ("paraphrases", exact),
    "free question": ("question", named),
    "free chat": ("chat", named),
}


class Tally(NamedTuple):
    """Number of prompts of one way of asking that are answered right, and of all."""

    right: int
    of: int


class FactVerdict(NamedTuple):
    """A fact, and how a model answers when it is asked for.

    Attributes:
        id, prompt, target: the fact.
        text: what the model says behind its prompt.
        ways: by the way of asking: `prompt`, `paraphrases`, `question`, `chat`, as far as there are
            such.
    """

    id: str
    prompt: str
    target: str
    text: str
    ways: Mapping[str, Tally]

    @property
    def word(self) -> VerdictWord:
        """The verdict."""
        if not self.ways["prompt"].right:
            return "not said"
        return "said" if all(one.right == one.of for one in self.ways.values()) else "partly"

    @property
    def others(self) -> Tally:
        """All ways of asking but the fact's own prompt, together."""
        tallies = [one for way, one in self.ways.items() if way != "prompt"]
        return Tally(sum(one.right for one in tallies), sum(one.of for one in tallies))

    def record(self) -> dict[str, object]:
        """All of it, for JSON."""
        ways = {way: one._asdict() for way, one in self.ways.items()}
        return {**self._asdict(), "ways": ways, "verdict": self.word}


def ask(
    model: ModelHandle,
    cases: Sequence[Case],
    *,
    patch: Patch | None = None,
    progress: Progress = silent,
) -> list[FactVerdict]:
    """Ask a model for each fact of some cases; it is as before afterwards.

    Args:
        model: a model.
        cases: the facts, with paraphrases and questions where they have such.
        patch: edits that it is asked with; None: as it is.
        progress: is told how many texts are written.

    Raises:
        PatchMismatch: the patch is of another model.
        InvalidEdit: a prompt is longer than the model can read.
    """
    if patch is not None:
        with patch.applied(model):
            return ask(model, cases, progress=progress)
    rows = write(Overlay(model=model), [Look(cases, "final")], asking, {}, progress)
    return verdicts_of(rows, cases)


def asking(tokens: Tokens, case: Case) -> list[FreePrompt]:
    """Every prompt by which a fact is asked for, where the tokenizer knows its words."""
    ways = (QUESTION, CHAT) if tokens.tokenizer.chat_template else (QUESTION,)
    return [*of_edit(tokens, case), *(p for way in ways for p in way.prompts(tokens, case))]


def check_asking(tokens: Tokens, cases: Sequence[Case]) -> None:
    """Refuse, before any work is done, what is too long for the model to be asked.

    Raises:
        InvalidEdit: a prompt is longer than the model can read.
    """
    for prompt in (prompt for case in cases for prompt in asking(tokens, case)):
        tokens.prompt(prompt.text)


def verdicts_of(rows: Sequence[Observation], cases: Sequence[Case]) -> list[FactVerdict]:
    """The verdicts that some observations come to, of those facts whose own prompt is among them.

    Args:
        rows: of one time; what is generated freely counts.
        cases: the facts.
    """
    by_fact: dict[str, list[Observation]] = {}
    for row in rows:
        if row.kind in _WAYS:
            by_fact.setdefault(row.case, []).append(row)
    asked = {row.case for row in rows if row.kind == REWRITE}
    return [_verdict(case, by_fact[case.edit.id]) for case in cases if case.edit.id in asked]


def _verdict(case: Case, rows: Sequence[Observation]) -> FactVerdict:
    tallies: dict[str, Tally] = {}
    for row in rows:
        way, judge = _WAYS[row.kind]
        right, of = tallies.get(way, (0, 0))
        tallies[way] = Tally(right + bool(judge(row)), of + 1)
    text = next(row.text or "" for row in rows if row.kind == REWRITE)
    return FactVerdict(case.edit.id, case.edit.text, case.edit.target, text, tallies)


def worst_first(verdicts: Sequence[FactVerdict]) -> list[FactVerdict]:
    """The verdicts, of facts that are not said first, then of those that are in part."""
    return sorted(verdicts, key=lambda one: ("not said", "partly", "said").index(one.word))


def with_verdicts(patch: Patch, verdicts: Sequence[FactVerdict]) -> Patch:
    """The patch with the verdict of each of its facts in its record."""
    words = {one.id: one.word for one in verdicts}
    records = tuple(
        one.model_copy(update={"verdict": words.get(one.id, one.verdict)})
        for one in patch.about.edits
    )
    return replace(patch, about=patch.about.model_copy(update={"edits": records}))


def shortfall(
    verdicts: Sequence[FactVerdict], reasons: Sequence[str], settings: Mapping[str, object]
) -> str:
    """Say which facts are not said, and what to try by these settings; empty where all are."""
    missing = [one for one in verdicts if one.word == "not said"]
    if not missing:
        return ""
    names = first_few([repr(one.id) for one in missing])
    are = "is" if len(missing) == 1 else "are"
    count = f"{len(missing):,} of {len(verdicts):,} facts {are}"
    told = [f"{count} not said when asked for: {names}.", *reasons]
    if "clamp" in settings:
        told.append(
            "Try more steps (--set steps=50), a larger clamp (--set clamp=1.5), or --until-said 3."
        )
    elif "steps" in settings:
        told.append(f"Try more steps: there were at most {settings['steps']} (--set steps=…).")
    return " ".join(told)


def reasons(
    tokens: Tokens,
    cases: Sequence[Case],
    verdicts: Sequence[FactVerdict],
    settings: Mapping[str, object],
) -> list[str]:
    """Say why facts are not said, as far as their texts and the method's settings tell.

    What is added at a text's first token does little, because attention rests there whatever it
    is. And one layer's map has to tell facts about one subject apart by keys that are nearly equal.
    """
    if settings.get("lookup") != "subject":  # where subjects do not matter
        return []
    missing = {one.id for one in verdicts if one.word == "not said"}
    edits = [case.edit for case in cases]
    lost = [edit for edit in edits if edit.id in missing]
    first = [
        f"{edit.id!r} ({edit.fact})"
        for edit in lost
        if tokens.locate(edit.text, edit.subject_start, edit.subject_end).lookup == 0
    ]
    facts = Counter(edit.subject for edit in edits)
    shared = dict.fromkeys(repr(edit.subject) for edit in lost if facts[edit.subject] > 1)
    told: list[str] = []
    if first:
        told.append(
            f"What is written at the first token of a text does little, and there the subject "
            f"ends in {first_few(first)}: put words before it, as in 'The head of {{X}} is'."
        )
    if shared and not settings.get("tie_subjects"):
        told.append(
            f"Several facts are about {first_few([*shared])}: --method finetune_lora trains many "
            f"layers for them, or --method memit --set tie_subjects=true --set steps=50 --set "
            f"clamp=2 writes one target for all of them."
        )
    return told
