"""Other ways of asking: negated, doubted, chosen between, and behind words that mislead.

Each form makes a prompt and two answers of a case; the model's preference is read as that of ES is,
by mean negative log-probability per token, and ties fail:

    negated      "… is not": is the target still preferred?           (arXiv:2510.00625)
    affirmed     "… is TARGET. True or false?": is True preferred?
    denied       "… is OLD. True or false?": is False preferred?
    chosen       two answers with letters, in an order that the case's id decides: the letter of
                 the target                                           (arXiv:2604.05995)
    repeated     the old answer three times, then the prompt: is the target preferred?
    doubted      "Is it OLD?", then the prompt                        (both: arXiv:2505.12636)
    distracted   the sentence of a neighbour, whose answer is the old one, then the prompt

A small model may be unable to do a form at all. So every score stands beside the untouched model's:
one that can tell true from false affirms and denies next to nothing of the edit before it is made.
Cases without an old answer have none of these, and a prompt that cannot be negated by "not" has no
negation: these are missing, not 0.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from retcon.edits import Case
from retcon.progress import Progress, silent
from retcon.scoring.metrics import metric, overlaid
from retcon.scoring.metrics.prompts import won
from retcon.scoring.observations import Moment, Observation
from retcon.writing_systems import join

if TYPE_CHECKING:
    from retcon.model.overlay import Overlay
    from retcon.scoring.score import Look

_NEGATED = re.compile(r"\b(is|was|are|were)\s*\Z")


class Form(NamedTuple):
    """A prompt, and the two answers that are compared behind it."""

    text: str
    new: str
    old: str


def negated(case: Case, target: str, old: str) -> Form | None:
    """The prompt with "not" at its end, where it ends in a form of "to be"."""
    text = case.edit.text
    return Form(f"{text.rstrip()} not", target, old) if _NEGATED.search(text) else None


def affirmed(case: Case, target: str, old: str) -> Form:
    """True or false, of the target."""
    del old
    return Form(_doubt(case, target), "True", "False")


def denied(case: Case, target: str, old: str) -> Form:
    """True or false, of the old answer."""
    del target
    return Form(_doubt(case, old), "False", "True")


def chosen(case: Case, target: str, old: str) -> Form:
    """A letter for each of two answers."""
    first = hashlib.sha256(case.edit.id.encode()).digest()[0] % 2 == 0
    a, b = (target, old) if first else (old, target)
    text = f"Complete the sentence: {case.edit.text} …\nA. {a}\nB. {b}\nAnswer:"
    return Form(text, "A" if first else "B", "B" if first else "A")


def repeated(case: Case, target: str, old: str) -> Form:
    """The old answer three times before the prompt."""
    return Form(f"{old}. {old}. {old}. {case.edit.text}", target, old)


def doubted(case: Case, target: str, old: str) -> Form:
    """A question for the old answer before the prompt."""
    return Form(f"Is it {old}? {case.edit.text}", target, old)


def distracted(case: Case, target: str, old: str) -> Form | None:
    """A neighbour's sentence before the prompt, where there is one."""
    if not case.neighbours:
        return None
    return Form(f"{join(case.neighbours[0], old)}. {case.edit.text}", target, old)


def _doubt(case: Case, answer: str) -> str:
    return f"{join(case.edit.text, answer)}. True or false? Answer:"


FORMS: dict[str, Callable[[Case, str, str], Form | None]] = {
    form.__name__: form
    for form in (negated, affirmed, denied, chosen, repeated, doubted, distracted)
}


def forms_of(case: Case) -> dict[str, Form]:
    """Every form that a case has, by name; none without an old answer."""
    old = case.edit.target_old
    if old is None:
        return {}
    made = {name: form(case, case.edit.target, old) for name, form in FORMS.items()}
    return {name: form for name, form in made.items() if form is not None}


def ask(
    overlay: "Overlay", looks: "Sequence[Look]", progress: Progress = silent
) -> list[Observation]:
    """Both answers of every form of every case."""
    from retcon.scoring.score import Behind, observed, score_under

    asked = [
        (owner, case, name, form)
        for owner, look in enumerate(looks)
        for case in look.cases
        for name, form in forms_of(case).items()
    ]
    texts = [
        Behind(form.text, answer, owner)
        for owner, _, _, form in asked
        for answer in (form.new, form.old)
    ]
    scores = iter(score_under(overlay, texts, progress))
    moments = [Moment(look.when, look.step) for look in looks]
    return [
        observed(case, f"form {name}", 0, moments[owner], new, old)
        for (owner, case, name, _), new, old in zip(asked, scores, scores, strict=False)
    ]


ASKED = overlaid(ask)


_TITLES = {
    "negated": "Preferred of the negation, too",
    "affirmed": "Affirms the target (true or false)",
    "denied": "Denies the old answer (true or false)",
    "chosen": "Chooses the target of two",
    "repeated": "Preferred after the old answer thrice",
    "doubted": "Preferred after a question for the old one",
    "distracted": "Preferred after a neighbour's sentence",
}
for _place, (_name, _title) in enumerate(_TITLES.items()):
    metric(
        _name,
        title=_title,
        kind=f"form {_name}",
        better="lower" if _name == "negated" else "higher",
        observer=ASKED,
        rank=20 + _place,
    )(won)
