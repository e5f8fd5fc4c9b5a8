"""Options `--drift`, `--ability`, `--metric` and `--ask`: what they read, print and record."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from retcon.cli.console import table
from retcon.errors import InvalidSetting, UnknownName
from retcon.scoring.observations import ITEM, PASSAGE, PROMPTS, TIMES

if TYPE_CHECKING:
    from retcon.data.tasks import Task
    from retcon.scoring.intervals import Estimate
    from retcon.scoring.metrics import Metric
    from retcon.scoring.observations import Observation
    from retcon.scoring.suites import General

    ByTime = Mapping[str, Sequence[Observation]]

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
Metrics = Annotated[
    list[str] | None,
    typer.Option(
        "--metric", help="Observe what this metric is read off, beside prompts. May be repeated."
    ),
]
Ways = Annotated[
    str | None,
    typer.Option("--ask", help="Ask freely: plain, question, chat, or several of them (a,b)."),
]
DataFolder = Annotated[
    Path | None,
    typer.Option("--data", help="Where the tasks' files are.", show_default="RETCON_DATA"),
]


@dataclass(frozen=True, kw_only=True)
class GeneralChoice:
    """Measurements to make beside the cases, as typed."""

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
    general: "General", rows: "ByTime", corpus: str | None, apart: bool | None
) -> dict[str, object]:
    """Record of the model as a whole; null where it was not asked.

    Args:
        general: text and tasks.
        rows: observations, by time.
        corpus: text that the second moments are from.
        apart: True if that is other text than was read; None: not known.
    """
    return {
        "drift": _describe_drift(general, rows, corpus, apart) if general.text else None,
        "ability": {task.name: _describe_task(task, rows) for task in general.tasks} or None,
    }


def print_table(rows: "ByTime") -> Table:
    """One row a metric, one column a time, and what has changed since `pre`."""
    from retcon.scoring.metrics import metrics

    read = {when: [r for r in found if r.kind not in PROMPTS] for when, found in rows.items()}
    read = {when: found for when, found in read.items() if found}
    lines = [_line(metric, read) for metric in metrics(scored=False)]
    changed = ["change"] if len(read) > 1 else []
    columns = ["[95 % interval]", *read, *changed]
    return table("beside scores of prompts", columns, [line for line in lines if line])


def asked_in(ways: str | None) -> tuple[str, ...]:
    """The metrics that the ways of asking bring which `--ask` names.

    Raises:
        UnknownName: there is no such way.
    """
    from retcon.scoring.metrics.questions import WAYS

    names = [] if ways is None else [name.strip() for name in ways.split(",")]
    for name in names:
        if name not in WAYS:
            raise UnknownName.among("way of asking", name, WAYS)
    return tuple(WAYS[name] for name in names)


def remarks(names: Sequence[str], rows: "ByTime") -> list[str]:
    """Sentences about forms that the model cannot do, and metrics that were asked for in vain.

    Args:
        names: of metrics that were asked for.
        rows: observations, by time.
    """
    from retcon.scoring.metrics import METRICS, metrics, unable

    known = [metric for metric in metrics() if not metric.of_prompts and _line(metric, rows)]
    lines = [unable(metric, _level_before(rows)) for metric in known]
    absent = [name for name in names if METRICS.find(name) not in known]
    lines += [
        f"{name} was not measured: it had nothing to look at. The cases may lack what it needs, "
        f"such as a question or an old answer, the tokenizer its words, or the model an edit."
        for name in absent
        if not METRICS.find(name).of_prompts
    ]
    return [line for line in lines if line]


def _level_before(rows: "ByTime") -> "Callable[[str], Estimate]":
    """Estimates of metrics before any edit."""
    from retcon.scoring.metrics import estimate

    return lambda name: estimate(rows.get("pre", ()), name)


def _line(metric: "Metric", rows: "ByTime") -> list[str]:
    """The row of a metric; empty where it was not observed."""
    from retcon.scoring.metrics import UNABLE, change, estimate, unable

    levels = {when: estimate(found, metric.name) for when, found in rows.items()}
    known = [when for when in rows if levels[when].mean is not None]
    if not known:
        return []
    unit = f", {metric.scale.unit}" if metric.scale.unit else ""
    name = f"{metric.title}{unit} ({levels[known[-1]].cases})"
    if unable(metric, _level_before(rows)):
        name += f", {UNABLE}"
    line = [name, *(metric.scale.told(level) for level in levels.values())]
    if len(rows) > 1:
        moved = change(rows[known[0]], rows[known[-1]], metric.name)
        line.append(metric.scale.change_told(moved) if len(known) > 1 else "–")
    return line


def finite(value: float | None) -> float | None:
    """A number as JSON can say it, which has no infinity."""
    return value if value is not None and isfinite(value) else None


def _describe_drift(
    general: "General", rows: "ByTime", corpus: str | None, apart: bool | None
) -> dict[str, object]:
    text = general.text
    assert text is not None
    return {
        "text": text.source,
        "identity": text.identity,
        "seed": text.seed,
        "length": general.length,
        "passages": list(text.texts),
        "corpus": corpus,
        "apart_from_corpus": apart,
        **{when: _passages(rows.get(when, ())) for when in TIMES},
        "ratio": _changed("perplexity", rows),
    }


def _describe_task(task: "Task", rows: "ByTime") -> dict[str, object]:
    kind = f"{ITEM}:{task.name}"
    own = {when: [row for row in found if row.kind == kind] for when, found in rows.items()}
    return {
        "rule": task.rule,
        "items": [item.number for item in task.items],
        **{when: _answers(own.get(when, ())) for when in TIMES},
        "change": _changed("tasks", own),
    }


def _passages(rows: "Sequence[Observation]") -> dict[str, object] | None:
    from retcon.scoring.metrics import estimate, level

    passages = [row for row in rows if row.kind == PASSAGE]
    mean = level(passages, "perplexity")
    if mean is None:
        return None
    return {
        "perplexity": finite(estimate(passages, "perplexity").mean),
        "nll": mean.value,
        "tokens": sum(row.n_new or 0 for row in passages),
        "by_passage": [(row.nll_new or 0.0) * (row.n_new or 0) for row in passages],
    }


def _answers(rows: "Sequence[Observation]") -> dict[str, object] | None:
    from retcon.scoring.metrics import estimate

    if not rows:
        return None
    accuracy, low, high, _ = estimate(rows, "tasks")
    return {"accuracy": accuracy, "interval": [low, high], "right": [row.exact for row in rows]}


def _changed(metric: str, rows: "ByTime") -> list[float | None] | None:
    """A metric after the edits, where it was observed then, against `pre`, with its interval."""
    from retcon.scoring.metrics import change

    for when in ("final", "immediate"):
        estimate = change(rows["pre"], rows.get(when, ()), metric)
        if estimate.mean is not None:
            return [finite(value) for value in estimate[:3]]
    return None
