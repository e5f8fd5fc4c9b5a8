"""Find what edits have changed beside their facts: probes that were right before, and are no more.

Probes are a case's neighbours, whose truth is the old answer, and its locality probes, which have
answers of their own. They are read off observations that were made for the scores, so that it costs
no further pass: an answer counts as right where each of its tokens is the most probable one, which
is where greedy generation begins with it.
"""

from collections.abc import Sequence
from typing import NamedTuple

from retcon.edits import Case, Probe
from retcon.errors import first_few
from retcon.scoring.observations import Observation


class ChangedProbe(NamedTuple):
    """A probe that was right before.

    Attributes:
        id: of the fact whose probe it is.
        prompt, answer: the probe.
        same_subject: whether it names the fact's subject.
    """

    id: str
    prompt: str
    answer: str
    same_subject: bool


class Harm(NamedTuple):
    """Probes that have changed, and how many were right before."""

    changed: tuple[ChangedProbe, ...]
    right_before: int

    def told(self) -> str:
        """Say which have changed; empty where none has."""
        if not self.changed:
            return ""
        names = first_few([f"{one.prompt!r} ({one.answer})" for one in self.changed])
        return (
            f"{len(self.changed):,} of {self.right_before:,} probes that were right before are not "
            f"any more: {names}."
        )

    def record(self) -> dict[str, object]:
        """All of it, for JSON."""
        return {**self._asdict(), "changed": [one._asdict() for one in self.changed]}


def harm_of(
    before: Sequence[Observation], after: Sequence[Observation], cases: Sequence[Case]
) -> Harm:
    """Compare the probes of some cases before and after edits.

    Args:
        before, after: observations of the same cases.
        cases: with their neighbours and locality probes.
    """
    was, now = _right(before), _right(after)
    probes = {place: probe for case in cases for place, probe in _probes(case).items()}
    known = [place for place in probes if was.get(place) and place in now]
    changed = tuple(probes[place] for place in known if not now[place])
    return Harm(changed, len(known))


def probes_of(cases: Sequence[Case]) -> list[Probe]:
    """The probes of some cases: neighbours, whose truth is the old answer, and locality."""
    return [
        Probe(prompt=one.prompt, answer=one.answer)
        for case in cases
        for one in _probes(case).values()
    ]


_Place = tuple[str, str, int]


def _right(rows: Sequence[Observation]) -> dict[_Place, bool]:
    """Tell of each probe whether every token of its answer is the most probable."""
    right: dict[_Place, bool] = {}
    for row in rows:
        hits, tokens = (
            (row.hits_old, row.n_old) if row.kind == "neighbour" else (row.hits_new, row.n_new)
        )
        if row.kind in ("neighbour", "locality") and tokens:
            right[row.case, row.kind, row.index] = hits == tokens
    return right


def _probes(case: Case) -> dict[_Place, ChangedProbe]:
    """The probes of a case, by their places among the observations."""
    edit = case.edit
    texts: dict[tuple[str, int], tuple[str, str]] = {}
    if edit.target_old is not None:
        texts = {
            ("neighbour", i): (text, edit.target_old) for i, text in enumerate(case.neighbours)
        }
    texts |= {("locality", i): (one.prompt, one.answer) for i, one in enumerate(case.locality)}
    subject = edit.subject.strip().casefold()
    return {
        (edit.id, kind, i): ChangedProbe(edit.id, text, answer, subject in text.casefold())
        for (kind, i), (text, answer) in texts.items()
    }
