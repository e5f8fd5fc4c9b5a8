"""Questions: the fact asked for in plain text, and in the tokenizer's chat template.

    question   "Question: What is the mother tongue of Danielle Darrieux?", a line, "Answer:"
    chat       the question as a user's message

They are a case's own questions, or its relation's (`retcon.data.wordings`). Each is asked in two
ways. Freely, 32 tokens or fewer, as in `freely`, but an answer in a sentence is right too: "The
mother tongue of Danielle Darrieux is English." So there

    said          the answer names the target, as whole words
    stays         and neither the old answer nor another one of the relation
    contradicts   it names the target and the old answer

An answer ends with its line in plain text, where the model would go on with questions of its own,
and in a chat where the model ends it. The subject may be said again, and what its name holds does
not count ("Bank of Japan"). And by preference:

    preferred     the target is more probable per token than the old answer, where the answer begins

Cases without a question, and without an old answer where one is compared, are missing. A tokenizer
without a chat template cannot be asked in a chat, which is said before any work is done.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from retcon.data.wordings import questions_of
from retcon.edits import Case
from retcon.progress import Progress, silent
from retcon.scoring.metrics import METRICS, Metric, Observer, Value
from retcon.scoring.metrics.forms import Form, check, compare, either
from retcon.scoring.metrics.freely import Answers, FreePrompt, answers_of, write
from retcon.scoring.metrics.prompts import won
from retcon.scoring.observations import Observation

if TYPE_CHECKING:
    from retcon.model.overlay import Overlay
    from retcon.model.tokens import Tokens
    from retcon.scoring.score import Look

# The metric that brings each way of asking, by its name: with it come the others of that way.
WAYS: Mapping[str, str] = {"plain": "said", "question": "said_question", "chat": "said_chat"}

Pose = Callable[["Tokens", str], str]


def in_plain_text(tokens: "Tokens", question: str) -> str:
    """The prompt of a question in plain text."""
    del tokens
    return f"Question: {question}\nAnswer:"


def in_a_chat(tokens: "Tokens", question: str) -> str:
    """The prompt of a question in the tokenizer's chat template."""
    return tokens.chat(question)


class Way(NamedTuple):
    """A way to put a question.

    Attributes:
        name: in kinds of observations, and behind names of metrics.
        title: in tables.
        pose: makes the prompt of a question.
        line: whether the answer ends with its line.
        rank: of its first metric in tables.
    """

    name: str
    title: str
    pose: Pose
    line: bool
    rank: int

    def posed(self, tokens: "Tokens", case: Case) -> list[str]:
        """The prompts of a case's questions."""
        return [self.pose(tokens, question) for question in questions_of(case)]

    def prompts(self, tokens: "Tokens", case: Case) -> list[FreePrompt]:
        """The prompts behind which the model writes, where the tokenizer knows their words."""
        return [
            FreePrompt(case, f"free {self.name}", i, text, case.edit.subject, self.line)
            for i, text in enumerate(self.posed(tokens, case))
            if tokens.knows(text)
        ]

    def forms(self, tokens: "Tokens", case: Case) -> dict[tuple[str, int], Form]:
        """Both answers behind the same prompts."""
        new, old = case.edit.target, case.edit.target_old
        if old is None:
            return {}
        texts = enumerate(self.posed(tokens, case))
        return {(f"form {self.name}", i): either(text, new, old) for i, text in texts}

    def check(self, tokens: "Tokens", cases: Sequence[Case]) -> None:
        """Refuse what cannot be asked, or is too long for the model.

        Raises:
            InvalidSetting, InvalidEdit: the tokenizer cannot put it so, or a prompt is too long.
        """
        self.pose(tokens, "Who?")  # it is told whatever the cases are
        for prompt in (prompt for case in cases for prompt in self.prompts(tokens, case)):
            tokens.prompt(prompt.text)
        check(tokens, cases, self.forms)


def _asking(way: Way, answers: Answers) -> Observer:
    """Make the observer of a way.

    Args:
        answers: those of each relation, which are looked for in what is written.
    """

    def together(
        overlay: "Overlay", looks: "Sequence[Look]", progress: Progress = silent
    ) -> list[Observation]:
        return [
            *write(overlay, looks, way.prompts, answers, progress),
            *compare(overlay, looks, way.forms, progress),
        ]

    return Observer(
        together=together,
        prepare=lambda cases: _asking(way, answers_of(cases)),
        check=way.check,
    )


def named(row: Observation) -> float | None:
    """1 where a free answer to the question names the target."""
    return None if row.hits_new is None else float(row.hits_new > 0)


def stayed(row: Observation) -> float | None:
    """1 where a free answer to the question names the target, and no other answer."""
    if row.hits_new is None or row.hits_old is None:
        return None
    return float(row.hits_new > 0 and not row.hits_old and not row.value)


def taken_back(row: Observation) -> float | None:
    """1 where a free answer to the question names both the target and the old answer."""
    if row.hits_new is None or row.hits_old is None:
        return None
    return float(row.hits_new > 0 and row.hits_old > 0)


# How each name begins, what it is called in tables, what it is read off, and how.
_METRICS: tuple[tuple[str, str, str, Value], ...] = (
    ("said", "Says it", "free", named),
    ("stays", "Says it and stays with it", "free", stayed),
    ("contradicts", "Names both answers", "free", taken_back),
    ("preferred", "Preferred", "form", won),
)


QUESTION = Way("question", "asked a question", in_plain_text, line=True, rank=10)
CHAT = Way("chat", "asked in a chat", in_a_chat, line=False, rank=14)
for _way in (QUESTION, CHAT):
    _observer = _asking(_way, {})
    for _place, (_name, _begins, _kind, _value) in enumerate(_METRICS):
        METRICS.enter(
            f"{_name}_{_way.name}",
            Metric(
                name=f"{_name}_{_way.name}",
                title=f"{_begins}, {_way.title}",
                kind=f"{_kind} {_way.name}",
                value=_value,
                better="lower" if _value is taken_back else "higher",
                rank=_way.rank + _place,
                observer=_observer,
            ),
        )
