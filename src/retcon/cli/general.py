"""`--drift` and `--ability`: what is asked, how it prints, and what a record says of it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.table import Table

from retcon.cli.console import number, table
from retcon.errors import InvalidSetting

if TYPE_CHECKING:
    from retcon.scoring.intervals import Estimate
    from retcon.scoring.readings import Ability, Perplexity, Reading
    from retcon.scoring.suites import General

Drift = Annotated[
    bool, typer.Option("--drift", help="Measure perplexity on held-out text, before and after.")
]
DriftText = Annotated[
    str | None,
    typer.Option(help="On this text or JSON-lines file.", show_default="the built-in passages"),
]
AbilityItems = Annotated[
    int | None,
    typer.Option("--ability", help="Answer so many items of each task, before and after."),
]
DataFolder = Annotated[
    Path | None,
    typer.Option("--data", help="Where the tasks' files are.", show_default="RETCON_DATA"),
]
T = TypeVar("T")

# The times at which the model as a whole is measured, in their order.
_TIMES = ("pre", "immediate", "final")


@dataclass(frozen=True, kw_only=True)
class GeneralChoice:
    """What to measure beside the cases, as typed."""

    drift: bool
    text: str | None
    items: int | None
    data: Path | None
    seed: int

    def load(self) -> "General":
        """The passages and items that are to be read.

        Raises:
            InvalidData, InvalidSetting: files that are missing or wrong, or numbers below 1.
        """
        from retcon.data.held_out import BUILT_IN, held_out
        from retcon.data.tasks import load_tasks
        from retcon.scoring.suites import General

        text = None
        if self.drift or self.text is not None:
            text = held_out(self.text or BUILT_IN, seed=self.seed)
        if self.items is None:
            return General(text=text)
        folder = self.data or os.environ.get("RETCON_DATA")
        if not folder:
            raise InvalidSetting(
                "--ability needs the folder of the tasks' files: give --data, or set RETCON_DATA."
            )
        return General(text=text, tasks=load_tasks(Path(folder), n=self.items, seed=self.seed))


def describe(
    general: "General", readings: "Mapping[str, Reading]", corpus: str | None, apart: bool | None
) -> dict[str, object]:
    """What a record says of the model as a whole; null where it was not asked.

    corpus: from which the second moments are, and whether that is other text (None: not known).
    """
    return {
        "drift": _describe_drift(general, readings, corpus, apart) if general.text else None,
        "ability": _describe_ability(readings) if general.tasks else None,
    }


def print_table(general: "General", readings: "Mapping[str, Reading]") -> Table:
    """One row a measure, one column a time, and what has changed since `pre`."""
    times = [when for when in _TIMES if when in readings]
    rows: list[list[str]] = []
    if general.text is not None:
        found = {when: readings[when].perplexity for when in times}
        rows.append(_drift_row(general.text.source, found))
    for index, task in enumerate(general.tasks):
        abilities = {when: readings[when].abilities[index] for when in times}
        rows.append(_ability_row(f"{task.name}, % of {len(task.items)} items", abilities))
    changed = ["change"] if len(times) > 1 else []
    return table("the model as a whole", ["(95 % interval)", *times, *changed], rows)


def _describe_drift(
    general: "General", readings: "Mapping[str, Reading]", corpus: str | None, apart: bool | None
) -> dict[str, object]:
    from retcon.scoring.readings import ratio

    text = general.text
    assert text is not None
    found = {when: reading.perplexity for when, reading in readings.items()}
    values = {when: _values(found.get(when)) for when in _TIMES}
    after, before = _last(found), found["pre"]
    change = None if after is None or before is None else ratio(before, after)
    return {
        "text": text.source,
        "identity": text.identity,
        "seed": text.seed,
        "length": general.length,
        "passages": list(text.texts),
        "corpus": corpus,
        "apart_from_corpus": apart,
        **values,
        "ratio": None if change is None else [_finite(x) for x in change[:3]],
    }


def _describe_ability(readings: "Mapping[str, Reading]") -> dict[str, object]:
    from retcon.scoring.readings import change

    record: dict[str, object] = {}
    for index, task in enumerate(readings["pre"].abilities):
        found = {when: reading.abilities[index] for when, reading in readings.items()}
        after = _last(found)
        record[task.task] = {
            "rule": task.rule,
            "items": list(task.items),
            **{when: _accuracy(found.get(when)) for when in _TIMES},
            "change": None if after is None else list(change(found["pre"], after)[:3]),
        }
    return record


def _values(found: "Perplexity | None") -> dict[str, object] | None:
    if found is None:
        return None
    return {
        "perplexity": _finite(found.value),
        "nll": found.nll,
        "tokens": found.tokens,
        "by_passage": [passage.nll for passage in found.passages],
    }


def _accuracy(found: "Ability | None") -> dict[str, object] | None:
    if found is None:
        return None
    accuracy, low, high, _ = found.estimate()
    return {"accuracy": accuracy, "interval": [low, high], "right": list(found.right)}


def _drift_row(source: str, found: "Mapping[str, Perplexity | None]") -> list[str]:
    from retcon.scoring.readings import ratio

    before, after = found["pre"], _last(found)
    assert before is not None
    name = f"perplexity, {Path(source).name}, {before.tokens} tokens"
    cells = [name, *("–" if one is None else f"{one.value:.2f}" for one in found.values())]
    if after is not None:
        cells.append(f"× {_span(ratio(before, after), 3)}")
    return cells


def _ability_row(name: str, found: "Mapping[str, Ability]") -> list[str]:
    from retcon.scoring.readings import change

    cells = [name, *(_span(one.estimate(), 1) for one in found.values())]
    after = _last(found)
    if after is not None:
        cells.append(f"{_span(change(found['pre'], after), 1, sign='+')} points")
    return cells


def _last(found: Mapping[str, T]) -> T | None:
    """What was found after the edits, where anything was."""
    return next((found[when] for when in ("final", "immediate") if when in found), None)


def _span(found: "Estimate", digits: int, sign: str = "") -> str:
    mean, low, high, _ = found
    if mean is None or low is None or high is None:
        return number(mean, digits)
    return f"{mean:{sign}.{digits}f}  ({low:{sign}.{digits}f} – {high:{sign}.{digits}f})"


def _finite(value: float | None) -> float | None:
    """JSON has no infinity."""
    return value if value is not None and isfinite(value) else None
