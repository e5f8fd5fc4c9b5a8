"""Views: what was seen of an entry and of its facts, kept in files beside the ledger.

So a page can be opened again at once, after a restart too, and shows what was seen then.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from retcon.edits import Case, Edit, Probe
from retcon.files import write_whole
from retcon.run.close_up import LookupPlace, Sight, Watched

V = TypeVar("V", bound=BaseModel)


class _View(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TokenView(_View):
    """A next token and its probability."""

    text: str
    probability: float


class SightView(_View):
    """A continuation of a prompt, and the probability of each watched answer."""

    text: str
    top: tuple[TokenView, ...]
    probabilities: tuple[float, ...]

    @classmethod
    def of(cls, sight: Sight) -> "SightView":
        """Make the view of what was seen."""
        top = tuple(TokenView(**one._asdict()) for one in sight.said.top)
        return cls(text=sight.said.text, top=top, probabilities=sight.probabilities)


class RowView(_View):
    """A prompt that was looked at, before an edit and, where there is one, after it."""

    kind: str
    shown: str
    answers: tuple[str, ...]
    before: SightView
    after: SightView | None = None

    @property
    def last(self) -> SightView:
        """The later of the two."""
        return self.before if self.after is None else self.after


class Disturbance(_View):
    """Predicted interference of a new fact with one that is there.

    Attributes:
        name: of the fact that is there, `ENTRY:ID`, and its text.
        gives: what the new fact adds at the other's key, in units of its own residual.
        takes: the other way round.
    """

    name: str
    text: str
    gives: float
    takes: float

    @property
    def size(self) -> float:
        """The greater of both."""
        return max(abs(self.gives), abs(self.takes))


class Foresight(_View):
    """Predicted interference of a new fact with those that are there.

    Attributes:
        facts: the most disturbed or disturbing ones, the greatest first.
        unknown: why it is not known.
    """

    facts: tuple[Disturbance, ...] = ()
    unknown: str = ""


class FactView(_View):
    """A fact, where it is looked up, and what was seen of it.

    Attributes:
        tokens: of its prompt.
        span: numbers of the subject's first token and of the lookup token.
        foresight: what was predicted before it was written.
    """

    prompt: str
    subject: str
    target: str
    tokens: tuple[str, ...]
    span: tuple[int, int]
    rows: tuple[RowView, ...]
    foresight: Foresight = Foresight()

    def of_kind(self, *kinds: str) -> list[RowView]:
        """The rows of some kinds."""
        return [row for row in self.rows if row.kind in kinds]


class VerdictView(_View):
    """A fact of an entry, and how the model answered when it was asked for it."""

    id: str
    prompt: str
    target: str
    before: str
    after: str
    word: str
    right: int
    of: int


class CaseView(_View):
    """A fact with the prompts by which it is judged, as it is kept for a later look."""

    id: str
    prompt: str
    subject: str
    target: str
    target_old: str | None = None
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()
    relation: str | None = None
    probes: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, case: Case) -> "CaseView":
        """Make the view of a case."""
        edit = case.edit
        probes = (*case.portability, *case.locality)
        return cls(
            id=edit.id,
            prompt=edit.prompt,
            subject=edit.subject,
            target=edit.target,
            target_old=edit.target_old,
            paraphrases=case.paraphrases,
            neighbours=case.neighbours,
            questions=case.questions,
            relation=case.relation,
            probes=tuple((one.prompt, one.answer) for one in probes),
        )

    @property
    def case(self) -> Case:
        """The case itself."""
        named = ("id", "prompt", "subject", "target", "target_old")
        return Case(
            edit=Edit(**{name: getattr(self, name) for name in named}),
            paraphrases=self.paraphrases,
            neighbours=self.neighbours,
            questions=self.questions,
            relation=self.relation,
            locality=tuple(Probe(prompt=prompt, answer=answer) for prompt, answer in self.probes),
        )


class EntryView(_View):
    """An entry: its facts with their verdicts, the scores, and what else is to be said."""

    cases: tuple[CaseView, ...]
    verdicts: tuple[VerdictView, ...]
    scores: tuple[tuple[str, float | None, float | None], ...] = ()
    remarks: tuple[str, ...] = ()


class Shelf:
    """The folder of the views of a ledger."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def entry(self, number: int) -> EntryView | None:
        """The view of an entry; None where there is none that can be read."""
        return _read(EntryView, self._file(number))

    def fact(self, number: int, place: int) -> FactView | None:
        """The view of a fact of an entry; None where there is none that can be read."""
        return _read(FactView, self._file(number, place))

    def keep(self, view: EntryView | FactView, number: int, place: int | None = None) -> None:
        """Write a view.

        Raises:
            StorageError: no space or no permission.
        """
        text = json.dumps(view.model_dump(mode="json"), ensure_ascii=False)
        file = self._file(number, place)
        write_whole(file, lambda work: work.write_text(text, encoding="utf-8"))

    def _file(self, number: int, place: int | None = None) -> Path:
        name = f"{number:06d}" if place is None else f"{number:06d}-{place:06d}"
        return self.folder / f"{name}.json"


def _read(kind: type[V], file: Path) -> V | None:
    """A view is only what was seen once: one that is missing or damaged can be had again."""
    try:
        return kind.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None


def rows_of(
    rows: Sequence[Watched], before: Sequence[Sight], after: Sequence[Sight] | None = None
) -> tuple[RowView, ...]:
    """The views of some prompts that were looked at."""
    then = [None] * len(rows) if after is None else [SightView.of(one) for one in after]
    return tuple(
        RowView(
            kind=row.kind,
            shown=row.shown,
            answers=row.answers,
            before=SightView.of(seen),
            after=late,
        )
        for row, seen, late in zip(rows, before, then, strict=True)
    )


def fact_view(case: Case, place: LookupPlace, rows: tuple[RowView, ...]) -> FactView:
    """The view of a fact."""
    edit = case.edit
    return FactView(
        prompt=edit.prompt,
        subject=edit.subject,
        target=edit.target,
        tokens=place.tokens,
        span=place.subject,
        rows=rows,
    )
