"""The facts of a study: the file, its checksum, and the choice of facts for each cell."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from retcon.data.cases import NAMED, find_file, in_order, read_facts, seeded
from retcon.data.held_out import held_out
from retcon.data.tasks import load_tasks
from retcon.edits import Case
from retcon.errors import InvalidStudy
from retcon.run.shared_keys import grouped
from retcon.scoring.suites import General
from retcon.study.points import Order, Split
from retcon.study.spec import DataSpec, Spec
from retcon.study.study import Data

# So many choices of facts are remembered.
_KEPT = 1000


class Picked(NamedTuple):
    """Cases in the order in which they are written, and the ids of those that are scored."""

    cases: tuple[Case, ...]
    scored: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """The facts of a study.

    Attributes:
        about: file, checksum and options.
        cases: all of them, in the file's order.
        tail: how many of the last are kept for tuning.
    """

    about: Data
    cases: tuple[Case, ...]
    tail: int
    _orders: dict[int, list[Case]] = field(default_factory=dict, init=False, compare=False)
    # What many places of a grid ask for again.
    _again: dict[object, bool] = field(default_factory=dict, init=False, compare=False)
    _shared: dict[object, list[list[int]]] = field(default_factory=dict, init=False, compare=False)
    _picked: dict[object, Picked] = field(default_factory=dict, init=False, compare=False)

    def ordered(self, seed: int) -> list[Case]:
        """Cases in the seeded order of `take`; if subjects are to be unique, the first of each."""
        if seed not in self._orders:
            place, cases = seeded(seed), self.cases
            if self.about.unique_subjects:
                first: dict[str, Case] = {}
                for case in sorted(cases, key=place):
                    first.setdefault(case.edit.subject, case)
                cases = tuple(first.values())
            self._orders[seed] = in_order(cases, place)
        return self._orders[seed]

    def edits_again(self, *, n: int, seed: int, split: Split) -> bool:
        """True if a fact is edited more than once by what `pick` would give."""
        if self.about.unique_subjects:
            return False
        if (n, seed, split) not in self._again:
            facts = [case.edit.fact for case in self._kept(seed, split)[:n]]
            self._again[n, seed, split] = len(set(facts)) < len(facts)
        return self._again[n, seed, split]

    def check_room(self, *, n: int, seed: int, split: Split) -> None:
        """Refuse more facts than there are.

        Raises:
            InvalidStudy: there are not so many.
        """
        cases = self.ordered(seed)
        room = len(self._kept(seed, split)) if split == "tail" else len(cases) - self.tail
        if n > room:
            tuning = f", of which {self.tail} are kept for tuning" if self.tail else ""
            raise InvalidStudy(
                f"n = {n} facts are asked for, and {self.about.cases} has {len(cases)}"
                f"{' with subjects of their own' if self.about.unique_subjects else ''}{tuning}. "
                f"Lower n, or take a larger file."
            )

    def pick(self, *, n: int, seed: int, order: Order, score: int, split: Split) -> Picked:
        """The first n of the seeded order, or of those kept for tuning; the first `score` scored.

        The seeded order is by sha256("seed:id"), order k > 0 by sha256("order:seed:k:id"): which
        facts are scored says nothing of when they are written. In order 0 it does (`spec`). An
        order by keys is that of the worker, who has the model: here it is the seeded one.

        Raises:
            InvalidStudy: there are not so many.
        """
        self.check_room(n=n, seed=seed, split=split)
        key = (n, seed, order, score, split)
        if key not in self._picked:
            if len(self._picked) > _KEPT:
                self._picked.clear()
            self._picked[key] = self._pick(n, seed, order, score, split)
        return self._picked[key]

    def _pick(self, n: int, seed: int, order: Order, score: int, split: Split) -> Picked:
        chosen = self._kept(seed, split)[:n]
        written = (
            in_order(chosen, lambda c: _place(c, seed, order))
            if isinstance(order, int) and order > 0
            else chosen
        )
        return Picked(tuple(written), tuple(case.edit.id for case in chosen[:score]))

    def shared_heads(self, n: int, seed: int, order: Order, split: Split) -> list[list[int]]:
        """Groups of facts whose texts are equal up to the subject's end: indices into `pick`'s."""
        key = (n, seed, order, split)
        if key not in self._shared:
            cases = self.pick(n=n, seed=seed, order=order, score=1, split=split).cases
            self._shared[key] = grouped([case.edit for case in cases], lambda edit: edit.head)
        return self._shared[key]

    def _kept(self, seed: int, split: Split) -> list[Case]:
        """The cases among which the first are taken."""
        cases = self.ordered(seed)
        return cases[len(cases) - self.tail :] if split == "tail" else cases


def load_facts(spec: Spec, data: Path | None) -> Facts:
    """Find and read the file of a study's facts.

    Raises:
        InvalidStudy: no such file, or not the file that the study is about.
        InvalidData: something in it is wrong.
    """
    wanted = spec.data
    if wanted.cases in NAMED:
        facts = read_facts(wanted.cases)
        sha256 = hashlib.sha256(repr(facts.cases).encode()).hexdigest()
        _check_same(wanted, sha256)
    else:
        path = _find(wanted.cases, [data, os.environ.get("RETCON_DATA"), spec.folder])
        with path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        _check_same(wanted, sha256)
        facts = read_facts(path, options=wanted.options, skip_bad=wanted.skip_bad)
    tail = spec.tuning.n if spec.tuning else 0
    about = Data(
        cases=wanted.cases,
        sha256=sha256,
        unique_subjects=wanted.unique_subjects,
        options=dict(facts.options),
        facts=len(facts.cases),
        skipped=len(facts.skipped),
    )
    return Facts(about, tuple(facts.cases), tail)


def _check_same(wanted: DataSpec, sha256: str) -> None:
    if wanted.sha256 not in (None, sha256):
        raise InvalidStudy(
            f"{wanted.cases} is not the file that this study is about: its sha256 is {sha256}, "
            f"not {wanted.sha256}. Bring that one, or change `data.sha256` (and the study's name)."
        )


def load_general(items: int, data: Path | None) -> General:
    """Held-out text, and so many items of each task of which there is a file.

    Raises:
        InvalidStudy: items > 0, and no folder was named.
        InvalidData: the folder has no task, or one that is wrong.
    """
    folder = data or os.environ.get("RETCON_DATA")
    if items and not folder:
        raise InvalidStudy(
            f"general: {items} items of each task are asked for. Give the folder of the tasks' "
            f"files with --data, or set RETCON_DATA; 0 reads held-out text alone."
        )
    tasks = load_tasks(Path(folder), n=items) if items and folder else ()
    return General(text=held_out(), tasks=tuple(tasks))


def _find(name: str, folders: Sequence[Path | str | None]) -> Path:
    path = find_file(name, folders)
    if path is None:
        looked = ", ".join(str(folder) for folder in folders if folder)
        raise InvalidStudy(
            f"The study's facts {name!r} were not found in {looked}. Give their folder with "
            f"--data, or set RETCON_DATA."
        )
    return path


def _place(case: Case, seed: int, order: int) -> str:
    return hashlib.sha256(f"order:{seed}:{order}:{case.edit.id}".encode()).hexdigest()
