"""A judge of one's own: a function that says whether what the model wrote is right.

    judge(prompt, answer, truth) -> True, False, or None where it cannot tell

The answer is what the model writes freely behind the prompt of an edit and each of its paraphrases
(`freely`), the truth the target of the edit. No judge comes with Retcon, and none is asked unless
it is named. Its name goes into every record, as the kind of its rows, so the name should say which
judge it was: of a model that judges, which one, and by which instructions. A text on which the
judge fails has no verdict, and is left out of the score and counted in a warning.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from retcon.errors import InvalidVerdict, RetconWarning
from retcon.progress import Progress, silent
from retcon.scoring.metrics import METRICS, Observer, metric
from retcon.scoring.metrics.freely import FREELY, PARAPHRASE, REWRITE
from retcon.scoring.metrics.prompts import exact
from retcon.scoring.observations import Observation
from retcon.writing_systems import quoted

if TYPE_CHECKING:
    from retcon.model.overlay import Overlay
    from retcon.scoring.score import Look

# judge(prompt, answer, truth): True, False, or None. What it returns is looked at.
Judge = Callable[[str, str, str], object]

_JUDGES: dict[str, Judge] = {}


def judged(name: str, judge: Judge) -> Observer:
    """Enter a judge's verdicts as the metrics `name` and `name_paraphrase`.

    A judge that is entered again under its name takes the place of the one before, so that a cell
    of a notebook can be run twice.

    Args:
        name: of the judge, as it is to stand in records.
        judge: takes prompt, answer and truth.

    Returns:
        What asks it: one of the `metrics` of `retcon.evaluate` and `retcon.score`.

    Raises:
        InvalidPlugin: another metric has the name.
    """
    known = METRICS.all().get(name)
    if known is not None and known.observer is not None and known.kind == _kind(name, REWRITE):
        _JUDGES[name] = judge
        return known.observer

    def ask(
        overlay: "Overlay", looks: "Sequence[Look]", progress: Progress = silent
    ) -> list[Observation]:
        return _verdicts(name, overlay, looks, progress)

    observer = Observer(together=ask)
    for kind, suffix, of in ((REWRITE, "", ""), (PARAPHRASE, "_paraphrase", ", paraphrases")):
        metric(
            f"{name}{suffix}",
            title=f"Right by {name}{of}",
            kind=_kind(name, kind),
            observer=observer,
            rank=8,
        )(right)
    _JUDGES[name] = judge
    return observer


def right(row: Observation) -> float | None:
    """1 where a judge of one's own says that what the model writes is right."""
    return exact(row)


def _kind(name: str, kind: str) -> str:
    """The kind of a judge's rows."""
    return f"judged by {name}, {kind}"


def _verdicts(
    name: str, overlay: "Overlay", looks: "Sequence[Look]", progress: Progress
) -> list[Observation]:
    """Let the model write, and ask the judge of each text."""
    cases = {case.edit.id: case for look in looks for case in look.cases}
    assert FREELY.together is not None
    written = FREELY.together(overlay, looks, progress)
    rows: list[Observation] = []
    failures: list[str] = []
    for done, row in enumerate(written):
        progress("judging", done, len(written))
        case, answer = cases[row.case], row.text or ""
        prompt = case.edit.text if row.kind == REWRITE else case.paraphrases[row.index]
        try:
            verdict = _verdict(name, prompt, answer, case.edit.target)
        except _Failed as failure:
            failures.append(str(failure))
            verdict = None
        place = (row.case, row.relation, _kind(name, row.kind), row.index, row.when, row.step)
        rows.append(Observation(*place, exact=verdict, text=answer))
    progress("judging", len(written), len(written))
    if failures:
        warnings.warn(
            f"The judge {name} failed on {len(failures)} of {len(written)} texts, which are left "
            f"out of its score. The first: {failures[0]}",
            RetconWarning,
            stacklevel=2,
        )
    return rows


class _Failed(Exception):
    """A judge raised, and why."""


def _verdict(name: str, prompt: str, answer: str, truth: str) -> bool | None:
    """The judge's verdict on a text.

    Raises:
        InvalidVerdict: it is none.
        _Failed: the judge raised.
    """
    try:
        verdict = _JUDGES[name](prompt, answer, truth)
    except Exception as error:
        raise _Failed(
            f"behind {quoted(prompt)} it raised {type(error).__name__}: {error}"
        ) from error
    if verdict is None or isinstance(verdict, bool):
        return verdict
    raise InvalidVerdict(
        f"The judge {name} returned {verdict!r} ({type(verdict).__name__}) behind "
        f"{quoted(prompt)}. A verdict is True, False, or None where it cannot tell: let it return "
        f"one of these."
    )
