"""Other ways of asking: negated, turned round, chosen between, and behind words that mislead.

Each form makes prompts with answers of a case; the model's preference is read as that of ES is, by
mean negative log-probability per token, and ties fail:

    negated          "… is not": is the target still preferred?           (arXiv:2510.00625)
    affirmed         "… is TARGET. True or false?": is True preferred?
    denied           "… is OLD. True or false?": is False preferred?
    chosen           two answers with letters, in an order that the case's id decides: the letter
                     of the target                                        (arXiv:2604.05995)
    chosen_of_four   the same with two more answers of the relation, which the id draws from those
                     of the run's cases
    repeated         the old answer three times, then the prompt: is the target preferred?
    doubted          "Is it OLD?", then the prompt                        (both: arXiv:2505.12636)
    distracted       the sentence of a neighbour, whose answer is the old one, then the prompt
    introduced       a sentence about the subject that says nothing of it, then the prompt
    reversed         the sentence the other way round, in the words of the relation: is the subject
                     more probable behind the one with the target than behind that with the old
                     answer? It does not name the subject, so methods that put facts before prompts
                     put none before it.

A small model may be unable to do a form at all, so every score stands beside the untouched model's.
Where a form takes logic, the untouched model is asked it about its own old answers (`control_…`),
and what it does no better than by chance is marked (`retcon.scoring.metrics.unable`).

Cases without an old answer have none of these. A prompt that cannot be negated by "not" has no
negation, a relation without a wording no reverse, one with too few answers no choice of four, and a
tokenizer that does not know a form's words cannot be asked in it: these are missing, not 0.
"""

import hashlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import permutations
from typing import TYPE_CHECKING, NamedTuple

from retcon.data.wordings import reverse_of
from retcon.edits import Case
from retcon.progress import Progress, silent
from retcon.scoring.metrics import METRICS, Control, Metric, Observer, Value
from retcon.scoring.metrics.freely import Answers, answers_of
from retcon.scoring.metrics.prompts import kept, won
from retcon.scoring.observations import Moment, Observation
from retcon.writing_systems import join

if TYPE_CHECKING:
    from retcon.model.overlay import Overlay
    from retcon.model.tokens import Tokens
    from retcon.scoring.score import Look

_NEGATED = re.compile(r"\b(is|was|are|were)\s*\Z")
_LETTERS = "ABCD"


class Statement(NamedTuple):
    """A prompt, and an answer behind it."""

    prompt: str
    answer: str


class Form(NamedTuple):
    """A statement that is compared with others, the most probable of which counts."""

    statement: Statement
    rivals: tuple[Statement, ...]


# The forms of a case, by the kind and index of their observations.
Forms = Callable[["Tokens", Case], Mapping[tuple[str, int], Form]]


class _Fact(NamedTuple):
    """A case that has an old answer, with two others of its relation, if there are as many."""

    case: Case
    target: str
    old: str
    others: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The prompt."""
        return self.case.edit.text


def either(prompt: str, answer: str, rival: str) -> Form:
    """Two answers behind one prompt."""
    return Form(Statement(prompt, answer), (Statement(prompt, rival),))


def negated(fact: _Fact) -> Form | None:
    """The prompt with "not" at its end, where it ends in a form of "to be"."""
    if not _NEGATED.search(fact.text):
        return None
    return either(f"{fact.text.rstrip()} not", fact.target, fact.old)


def affirmed(fact: _Fact) -> Form:
    """True or false, of the target."""
    return either(_doubt(fact, fact.target), "True", "False")


def denied(fact: _Fact) -> Form:
    """True or false, of the old answer."""
    return either(_doubt(fact, fact.old), "False", "True")


def chosen(fact: _Fact) -> Form:
    """A letter for each of two answers."""
    return _choice(fact, (fact.target, fact.old), fact.target)


def chosen_of_four(fact: _Fact) -> Form | None:
    """A letter for each of four answers: that of the target."""
    answers = (fact.target, fact.old, *fact.others)
    return _choice(fact, answers, fact.target) if len(answers) == 4 else None


def old_of_four(fact: _Fact) -> Form | None:
    """The same choice: the letter of the old answer."""
    answers = (fact.target, fact.old, *fact.others)
    return _choice(fact, answers, fact.old) if len(answers) == 4 else None


def repeated(fact: _Fact) -> Form:
    """The old answer three times before the prompt."""
    return either(f"{f'{fact.old}. ' * 3}{fact.text}", fact.target, fact.old)


def doubted(fact: _Fact) -> Form:
    """A question for the old answer before the prompt."""
    return either(f"Is it {fact.old}? {fact.text}", fact.target, fact.old)


def distracted(fact: _Fact) -> Form | None:
    """A neighbour's sentence before the prompt, where there is one."""
    if not fact.case.neighbours:
        return None
    before = join(fact.case.neighbours[0], fact.old)
    return either(f"{before}. {fact.text}", fact.target, fact.old)


def introduced(fact: _Fact) -> Form:
    """A sentence that names the subject before the prompt."""
    before = f"Many people have heard of {fact.case.edit.subject.strip()}."
    return either(f"{before} {fact.text}", fact.target, fact.old)


def turned_round(fact: _Fact) -> Form | None:
    """The subject behind the reverse sentences of both answers, where the relation has one."""
    new, old = (reverse_of(fact.case, answer) for answer in (fact.target, fact.old))
    if new is None or old is None:
        return None
    subject = fact.case.edit.subject
    return Form(Statement(new, subject), (Statement(old, subject),))


def _doubt(fact: _Fact, answer: str) -> str:
    return f"{join(fact.text, answer)}. True or false? Answer:"


def _choice(fact: _Fact, answers: tuple[str, ...], right: str) -> Form:
    """Letters for some answers, in an order that the case's id decides."""
    orders = list(permutations(answers))
    order = orders[int.from_bytes(_drawn(fact.case), "little") % len(orders)]
    lettered = dict(zip(order, _LETTERS, strict=False))
    options = "\n".join(f"{letter}. {answer}" for answer, letter in lettered.items())
    prompt = f"Complete the sentence: {fact.text} …\n{options}\nAnswer:"
    statements = {answer: Statement(prompt, letter) for answer, letter in lettered.items()}
    return Form(statements.pop(right), tuple(statements.values()))


def _drawn(case: Case, *salt: str) -> bytes:
    """Random bytes of a case's own."""
    return hashlib.sha256(" ".join([case.edit.id, *salt]).encode()).digest()


# By the kind of their observations.
FORMS: dict[str, Callable[[_Fact], Form | None]] = {
    "form negated": negated,
    "form true or false:target": affirmed,
    "form true or false:old": denied,
    "form chosen": chosen,
    "form chosen of four:target": chosen_of_four,
    "form chosen of four:old": old_of_four,
    "form repeated": repeated,
    "form doubted": doubted,
    "form distracted": distracted,
    "form introduced": introduced,
    "form reversed": turned_round,
}


def forms_of(case: Case, answers: Collection[str] = ()) -> dict[str, Form]:
    """Every form that a case has, by the kind of its observation; none without another old answer.

    Args:
        case: a case.
        answers: those of its relation, of which two are drawn.
    """
    old = case.edit.target_old
    if old is None or old == case.edit.target:
        return {}
    others = sorted({*answers} - {case.edit.target, old}, key=lambda one: _drawn(case, one))
    fact = _Fact(case, case.edit.target, old, tuple(others[:2]))
    made = {kind: form(fact) for kind, form in FORMS.items()}
    return {kind: form for kind, form in made.items() if form is not None}


def compare(
    overlay: "Overlay", looks: "Sequence[Look]", forms: Forms, progress: Progress = silent
) -> list[Observation]:
    """Score every statement of every form, where the tokenizer knows its words.

    Args:
        overlay, looks: the model under some updates, and the cases that are looked at under each.
        forms: of a case.
        progress: is told how many statements are scored.
    """
    from retcon.scoring.score import Behind, observed, score_under

    asked = [
        (owner, case, place, form)
        for owner, look in enumerate(looks)
        for case in look.cases
        for place, form in _known(overlay.model.tokens, case, forms).items()
    ]
    texts = [
        Behind(one.prompt, one.answer, owner)
        for owner, _, _, form in asked
        for one in (form.statement, *form.rivals)
    ]
    scores = iter(score_under(overlay, texts, progress))
    rows: list[Observation] = []
    for owner, case, place, form in asked:
        moment = Moment(looks[owner].when, looks[owner].step)
        new, *old = (next(scores) for _ in (form.statement, *form.rivals))
        rows.append(observed(case, *place, moment, new, min(old, key=lambda score: score.nll)))
    return rows


def check(tokens: "Tokens", cases: Sequence[Case], forms: Forms) -> None:
    """Refuse forms that are too long for the model.

    Raises:
        InvalidEdit: the text of one has more tokens than the model can read.
    """
    for case in cases:
        for form in _known(tokens, case, forms).values():
            for one in (form.statement, *form.rivals):
                tokens.continuation(one.prompt, one.answer)


def _known(tokens: "Tokens", case: Case, forms: Forms) -> dict[tuple[str, int], Form]:
    """The forms of a case of which the tokenizer knows every word."""
    return {
        place: form
        for place, form in forms(tokens, case).items()
        if all(tokens.knows(join(*one)) for one in (form.statement, *form.rivals))
    }


def _asking(answers: Answers) -> Observer:
    """Make the observer of all forms.

    Args:
        answers: of each relation.
    """

    def forms(tokens: "Tokens", case: Case) -> dict[tuple[str, int], Form]:
        del tokens
        made = forms_of(case, answers.get(case.relation, ()))
        return {(kind, 0): form for kind, form in made.items()}

    def together(
        overlay: "Overlay", looks: "Sequence[Look]", progress: Progress = silent
    ) -> list[Observation]:
        return compare(overlay, looks, forms, progress)

    return Observer(
        together=together,
        prepare=lambda cases: _asking(answers_of(cases)),
        check=lambda tokens, cases: check(tokens, cases, forms),
    )


ASKED = _asking({})


def subject_won(row: Observation) -> float | None:
    """1 where the subject is more probable behind the target's reverse sentence. Ties fail."""
    return won(row)


def held(row: Observation) -> float | None:
    """1 where, before any edit, the old answer is preferred, or taken for the true one."""
    return kept(row) if row.when == "pre" else None


def right(row: Observation) -> float | None:
    """1 where, before any edit, what follows from the old answer is preferred."""
    return won(row) if row.when == "pre" else None


def _enter(
    name: str, title: str, kind: str, *, value: Value = won, rank: int, control: Control | None
) -> None:
    """Enter the metric of a form."""
    made = Metric(
        name=name,
        title=title,
        kind=kind,
        value=value,
        better="lower" if name == "negated" else "higher",
        rank=rank,
        observer=ASKED,
        control=control,
    )
    METRICS.enter(name, made)


def _control(name: str, kind: str, value: Value, chance: float = 50.0) -> Control:
    """Enter a metric of the untouched model alone; the control that reads it."""
    made = Metric(
        name=f"control_{name}",
        title=f"Right before any edit, {name.replace('_', ' ')}",
        kind=kind,
        value=value,
        shown="record",
        observer=ASKED,
    )
    METRICS.enter(made.name, made)
    return Control(metric=made.name, chance=chance)


_TRUE_OR_FALSE = _control("true_or_false", "form true or false", held)
_enter(
    "negated",
    "Preferred of the negation, too",
    "form negated",
    rank=20,
    control=_control("negated", "form negated", right),
)
_enter(
    "affirmed",
    "Affirms the target (true or false)",
    "form true or false:target",
    rank=21,
    control=_TRUE_OR_FALSE,
)
_enter(
    "denied",
    "Denies the old answer (true or false)",
    "form true or false:old",
    rank=22,
    control=_TRUE_OR_FALSE,
)
_enter(
    "chosen",
    "Chooses the target of two",
    "form chosen",
    rank=23,
    control=_control("chosen", "form chosen", held),
)
_enter(
    "chosen_of_four",
    "Chooses the target of four",
    "form chosen of four:target",
    rank=24,
    control=_control("chosen_of_four", "form chosen of four:old", right, 25.0),
)
_enter(
    "reversed",
    "Subject preferred, the other way round",
    "form reversed",
    value=subject_won,
    rank=25,
    control=_control("reversed", "form reversed", held),
)
_CONTEXTS = {
    "repeated": "Preferred after the old answer thrice",
    "doubted": "Preferred after a question for the old one",
    "distracted": "Preferred after a neighbour's sentence",
    "introduced": "Preferred after a sentence about the subject",
}
for _place, (_name, _title) in enumerate(_CONTEXTS.items()):
    _enter(_name, _title, f"form {_name}", rank=26 + _place, control=None)
