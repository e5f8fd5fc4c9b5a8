"""The cases of a cell: a table with a row each, and all that was observed of them as one script.

Pages load scripts, and not JSON, because a page that lies on a disk may load nothing else. A
script calls `retcon.take(NAME, VALUE)` with plain data.
"""

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import file_digest, sha256
from math import exp
from pathlib import Path
from typing import Any, NamedTuple

from retcon.data.cases import NAMED, find_file, read_facts
from retcon.data.wordings import questions_of
from retcon.edits import Case
from retcon.errors import InvalidData, RetconError, RetconWarning
from retcon.report.conditions import Arm
from retcon.report.numbers import MISSING
from retcon.report.results import Results
from retcon.scoring.metrics import METRICS, Metric, metrics
from retcon.scoring.observations import TIMES, Observation
from retcon.studio.browse_grid import ScoreColumn, as_json
from retcon.study.study import Data, Study

# Of probabilities and values, in scripts.
_DIGITS = 4
# The first of these that a cell has tells whether a case is said.
_SAYING = ("said", "exact_match", "ES")


class Texts(NamedTuple):
    """The facts of a study in words.

    Attributes:
        cases: by id; none where their file is not there.
        missing: a sentence on why they are not; else empty.
    """

    cases: Mapping[str, Case]
    missing: str = ""


def texts_of(study: Study, folder: Path | None) -> Texts:
    """Read the facts of a study, if their file is here and the one that the study is about.

    Args:
        study: whose facts they are.
        folder: in which the file may be; it is looked for in RETCON_DATA and in the study's folder
            too.
    """
    data = study.record.data
    try:
        return Texts({case.edit.id: case for case in _read(data, study.folder, folder)})
    except RetconError as error:
        return Texts({}, f"Facts are shown by their ids. {error}")


def _read(data: Data, study: Path, folder: Path | None) -> Sequence[Case]:
    """Raise InvalidData where the facts are not there, or others."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RetconWarning)  # said when the study was run
        if data.cases in NAMED:
            cases = read_facts(data.cases).cases
            digest = sha256(repr(tuple(cases)).encode()).hexdigest()
        else:
            path = find_file(data.cases, [folder, os.environ.get("RETCON_DATA"), study])
            if path is None:
                raise InvalidData(
                    f"Their file {data.cases} is not here: give its folder with --data, or set "
                    f"RETCON_DATA."
                )
            with path.open("rb") as stream:
                digest = file_digest(stream, "sha256").hexdigest()
            cases = read_facts(path, options=data.options, skip_bad=data.skipped > 0).cases
    if digest != data.sha256:
        raise InvalidData(f"{data.cases} is another file than the one that the study is about.")
    return cases


class CaseRow(NamedTuple):
    """A case in the table of its cell.

    Attributes:
        text: the prompt; None where the facts' file is not there.
        scores: in the columns of scores, in the metric's own unit; None where it has none.
        probabilities: of the target at `CellCases.times`, in per cent.
        said: whether it is said at the last time.
    """

    id: str
    relation: str | None
    text: str | None
    target: str | None
    old: str | None
    scores: tuple[float | None, ...]
    probabilities: tuple[float | None, ...]
    said: bool | None


@dataclass(frozen=True)
class CellCases:
    """The cases of a cell.

    Attributes:
        arm: the cell, as an arm of one run.
        results: that have its scores.
        texts: of the facts.
    """

    arm: Arm
    results: Results
    texts: Texts

    @property
    def cell(self) -> str:
        """Its id."""
        return self.arm.runs[0].cell

    @cached_property
    def when(self) -> str:
        """The last time at which its cases were scored."""
        times = [when for when in TIMES if self._measured(when)]
        return times[-1] if times else "pre"

    def _measured(self, when: str) -> list[Metric]:
        """The headline metrics of its cases at a time, S aside, which is of all cases together."""
        shown = self.results.measured([self.arm], when, "headline")
        return [metric for metric in shown if metric.scored and not metric.parts]

    @cached_property
    def columns(self) -> list[ScoreColumn]:
        """Scores of each case at the last time."""
        return [ScoreColumn(metric, self.when) for metric in self._measured(self.when)]

    @cached_property
    def times(self) -> list[str]:
        """The times at which the target's probability is known, the first and the last of them."""
        return [
            w for w in dict.fromkeys(("pre", self.when)) if self._values("target_probability", w)
        ]

    @cached_property
    def saying(self) -> Metric | None:
        """The metric that tells whether a case is said."""
        named = {column.metric.name for column in self.columns}
        return next((METRICS.find(name) for name in _SAYING if name in named), None)

    @property
    def writes(self) -> bool:
        """True if what the model wrote was kept."""
        texts = self.results.study.rows(self.cell)["text"]
        return texts.null_count() < len(texts)

    @cached_property
    def rows(self) -> list[CaseRow]:
        """The cases, in the order in which they were scored."""
        values = [self._values(column.metric.name, self.when) for column in self.columns]
        levels = [self._values("target_probability", when) for when in self.times]
        said = self._values(self.saying.name, self.when) if self.saying else {}
        return [
            CaseRow(
                case,
                relation,
                *self._words(case),
                scores=tuple(one.get(case) for one in values),
                probabilities=tuple(one.get(case) for one in levels),
                said=None if case not in said else said[case] == 100.0,
            )
            for case, relation in self._relations.items()
        ]

    def chosen(self, case: CaseRow) -> str:
        """Values of a case by which tables are filtered, as JSON."""
        said = {None: [], True: ["yes"], False: ["no"]}[case.said]
        return as_json({"relation": [case.relation], "said": said})

    def told(self, value: float | None, column: int) -> str:
        """A score of a case as it is shown: yes or no, where it is of one prompt alone."""
        if value is None:
            return MISSING
        if column in self._yes_or_no:
            return "yes" if value else "no"
        scale = self.columns[column].metric.scale
        return f"{value:.{0 if scale.of_shares else scale.digits}f}{' %' * scale.of_shares}"

    @cached_property
    def _yes_or_no(self) -> set[int]:
        """The columns in which every case has all or nothing."""
        columns = list(zip(*(row.scores for row in self.rows), strict=True))
        return {
            i
            for i, values in enumerate(columns)
            if self.columns[i].metric.scale.of_shares and {*values} <= {None, 0.0, 100.0}
        }

    def _values(self, metric: str, when: str) -> Mapping[str, float]:
        means = self.results.means(self.cell, when, metric)
        return {} if means is None else means.values

    @cached_property
    def _relations(self) -> dict[str, str | None]:
        """The relation of each case that has scores of its own."""
        known: dict[str, str | None] = {}
        for column in self.columns:
            means = self.results.means(self.cell, self.when, column.metric.name)
            for case, cluster in (means.clusters if means else {}).items():
                known.setdefault(case, None if cluster == f"case {case}" else cluster)
        return known

    def _words(self, case: str) -> tuple[str | None, str | None, str | None]:
        known = self.texts.cases.get(case)
        if known is None:
            return None, None, None
        return known.edit.text, known.edit.target, known.edit.target_old


def observed_script(cell: CellCases, name: str) -> str:
    """All that was observed of the cases of a cell, as a script.

    Args:
        cell: its cases.
        name: of the cell, in words.
    """
    shown = {row.id for row in cell.rows}
    times: dict[str, int] = {}
    kinds: dict[str, int] = {}
    cases: dict[str, dict[tuple[int, int], list[Any]]] = {}
    for values in cell.results.study.rows(cell.cell).select(Observation._fields).iter_rows():
        row = Observation(*values)
        if row.case not in shown:
            continue
        when = row.when if row.when in TIMES else f"{row.when}, after batch {row.step:,}"
        place = kinds.setdefault(row.kind, len(kinds)), row.index
        seen = _seen(row, times.setdefault(when, len(times)))
        cases.setdefault(row.case, {}).setdefault(place, []).append(seen)
    observed = {
        case: [[*place, *seen] for place, seen in by_place.items()]
        for case, by_place in cases.items()
    }
    value = {
        "name": name,
        "times": [*times],
        "kinds": [*kinds],
        "titles": [_titled(kind) for kind in kinds],
        # JavaScript puts names that are numbers into another order.
        "order": [row.id for row in cell.rows],
        "cases": observed,
    }
    return script(f"cells/{cell.cell}", value)


def _seen(row: Observation, time: int) -> list[Any]:
    """A time, both probabilities in per cent, whether it is right, a value, and a text."""
    seen = [
        time,
        _per_cent(row.nll_new),
        _per_cent(row.nll_old),
        None if row.exact is None else int(row.exact),
        None if row.value is None else _short(row.value),
        row.text,
    ]
    while seen[-1] is None and len(seen) > 1:
        seen.pop()
    return seen


def _per_cent(nll: float | None) -> float | int | None:
    return None if nll is None else _short(100 * exp(-nll))


def _short(value: float) -> float | int:
    """A number with as many digits as are shown."""
    rounded = float(f"{value:.{_DIGITS}g}")
    return int(rounded) if rounded.is_integer() else rounded


def _titled(kind: str) -> str:
    """The title of the first metric that reads a kind; empty where only controls do."""
    return next((one.title for one in metrics("headline", "table") if one.reads(kind)), "")


def facts_script(texts: Texts, among: Iterable[str]) -> str:
    """The facts in words, as a script.

    Args:
        texts: of all facts.
        among: ids of those that are shown.
    """
    facts = {case: _fact(texts.cases[case]) for case in among if case in texts.cases}
    return script("facts", {"missing": texts.missing, "facts": facts})


def _fact(case: Case) -> dict[str, Any]:
    before, _, after = case.edit.prompt.partition("{}")
    words = {
        "rewrite": [case.edit.text],
        "paraphrase": case.paraphrases,
        "neighbour": case.neighbours,
        "portability": [probe.prompt for probe in case.portability],
        "locality": [probe.prompt for probe in case.locality],
        "question": questions_of(case),
    }
    return {
        "relation": case.relation,
        "prompt": [before, case.edit.subject, after],
        "target": case.edit.target,
        "old": case.edit.target_old,
        "texts": {kind: [*prompts] for kind, prompts in words.items() if prompts},
    }


def script(name: str, value: object) -> str:
    """A script that hands over a value under a name."""
    return f"retcon.take({as_json(name)},{as_json(value)});\n"


def ids(cells: Iterable[CellCases]) -> Iterator[str]:
    """The cases of some cells, each once."""
    seen: set[str] = set()
    for cell in cells:
        for row in cell.rows:
            if row.id not in seen:
                seen.add(row.id)
                yield row.id
