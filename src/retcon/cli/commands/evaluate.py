"""`retcon eval`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from rich.markup import escape

from retcon.cli import general as whole
from retcon.cli import options
from retcon.cli.console import bars, number, out, quiet_libraries, table, versions, write_json
from retcon.cli.general import GeneralChoice
from retcon.cli.options import EditChoice, ModelChoice
from retcon.cli.plan import print_plan
from retcon.errors import InvalidSetting
from retcon.files import check_writable
from retcon.progress import Progress
from retcon.scoring.observations import alike

if TYPE_CHECKING:
    from retcon.data.held_out import HeldOut
    from retcon.edits import Case
    from retcon.model.handle import ModelHandle
    from retcon.patch.patch import Patch
    from retcon.scoring.metrics import Observer
    from retcon.scoring.observations import Observation
    from retcon.scoring.suites import General

Cases = Annotated[
    str,
    typer.Option(
        "--cases", help="CounterFact, zsRE, KnowEdit, MQuAKE, plain JSON lines, or `starter`."
    ),
]
Number = Annotated[int | None, typer.Option("--n", help="Take so many cases.", show_default="all")]
Seed = Annotated[int, typer.Option("--seed", help="Which n: order by sha256 of seed:id.")]
Schedule = Annotated[
    str | None,
    typer.Option(
        help="single, batch:B, sequential, sequential-batch:B, adaptive-aimd:B, adaptive-energy:B.",
        show_default="single",
    ),
]
PatchFile = Annotated[
    Path | None,
    typer.Option("--patch", help="Score a saved patch, or a ledger, in place of a method."),
]


def evaluate(
    model: options.Model,
    cases: Cases = "starter",
    n: Number = None,
    seed: Seed = 0,
    method: options.Method = None,
    layer: options.Layer = None,
    layers: options.Layers = None,
    set: options.Set = None,
    schedule: Schedule = None,
    refresh: options.Refresh = "each-batch",
    guard: options.Guard = "off",
    patch: PatchFile = None,
    option: options.DataOption = None,
    skip_bad: options.SkipBad = False,
    drift: whole.Drift = False,
    drift_text: whole.DriftText = None,
    ability: whole.AbilityItems = None,
    data: whole.DataFolder = None,
    metric: whole.Metrics = None,
    plan: options.Plan = False,
    revision: options.Revision = None,
    dtype: options.Dtype = "float32",
    device: options.Device = "cpu",
    json: options.Json = None,
) -> None:
    """Score a model on cases: as it is, with a method's edits, or with a saved patch."""
    from retcon.data.cases import read_facts, take

    source = ModelChoice(name=model, revision=revision, dtype=dtype, device=device)
    choice = EditChoice.parse(method, layer, layers, set, schedule, refresh, guard)
    if patch is not None:
        _check_alone(choice, plan)
    found = read_facts(cases, skip_bad=skip_bad, options=options.parse_settings(option, "--option"))
    picked = take(found.cases, n, seed)
    if plan:
        print_plan(source, choice, len(picked), json=json)
        return
    check_writable(json)
    beside = GeneralChoice(drift=drift, text=drift_text, items=ability, data=data, seed=seed)
    asked = _Asked(picked, beside.load(), tuple(metric or ()))
    result = _run(source, choice, patch, asked)
    _print(model, result, asked)
    write_json(
        json,
        {
            "model": model,
            "fingerprint": result.fingerprint,
            "dtype": dtype,
            "cases": cases,
            "n": len(picked),
            "seed": seed,
            "ids": [case.edit.id for case in picked],
            "skipped": [str(bad) for bad in found.skipped],
            **result.scores,
            "intervals": result.intervals,
            **result.whole,
            **result.about,
            "versions": versions(),
        },
    )


class _Found(NamedTuple):
    """Rows, and what decided them.

    corpus: from which the second moments are; apart: whether that is other text than was read.
    """

    rows: "list[Observation]"
    about: Mapping[str, object]
    corpus: str | None = None
    apart: bool | None = None


class _Asked(NamedTuple):
    """What is looked at: cases, text and tasks, and names of metrics."""

    cases: "list[Case]"
    general: "General"
    metrics: tuple[str, ...]

    def observers(self) -> "tuple[Observer, ...]":
        """How that is looked at."""
        from retcon.scoring.metrics import observers

        given = (self.general.observer,) if self.general.asked else ()
        return (*observers(self.metrics), *given)


class _Result(NamedTuple):
    """Rows and scores by time (scores None: nothing was scored then), and what decided them."""

    fingerprint: str
    rows: "dict[str, list[Observation]]"
    scores: dict[str, dict[str, float | None] | None]
    intervals: dict[str, dict[str, tuple[float, float] | None]]
    about: Mapping[str, object]
    whole: Mapping[str, object]


def _check_alone(choice: EditChoice, plan: bool) -> None:
    """Beside a saved patch there is nothing to choose, and nothing to plan."""
    if choice.given:
        raise InvalidSetting("Give either --patch, or a method with its layers and settings.")
    if plan:
        raise InvalidSetting(
            "--plan is about making edits, and those of a patch are made. Leave one of them out."
        )


def _run(source: ModelChoice, choice: EditChoice, file: Path | None, asked: _Asked) -> _Result:
    quiet_libraries()
    from retcon.patch.ledger import read_source

    asked.observers()  # a metric that does not exist is told before a model is loaded
    with bars() as progress:
        # The patch first: a damaged one should not cost the loading of a model.
        patch = None if file is None else read_source(file)
        model = source.load(progress)
        if choice.given:
            found = _with_method(model, asked, choice, progress)
        else:
            found = _as_it_is(model, asked, patch, progress)
        if patch is not None:
            about = {"patch": str(file), **patch.about.model_dump(mode="json", exclude={"model"})}
            found = found._replace(about=about)
    return _result(model, found, asked.general)


def _with_method(
    model: "ModelHandle", asked: _Asked, choice: EditChoice, progress: Progress
) -> _Found:
    from retcon.method.presets import resolve
    from retcon.run.evaluate import evaluate

    made = resolve(
        model.outline, method=choice.method, layers=choice.layers, settings=choice.settings
    )
    corpus = made.settings.get("corpus")
    apart = _apart(asked.general.text, corpus)
    run = evaluate(
        model,
        asked.cases,
        method=choice.method,
        layers=choice.layers,
        settings=choice.settings,
        schedule=choice.schedule or "single",
        metrics=asked.observers(),
        progress=progress,
    )
    return _Found(alike(run.rows), run.describe(), _name(corpus), apart)


def _as_it_is(
    model: "ModelHandle", asked: _Asked, patch: "Patch | None", progress: Progress
) -> _Found:
    """The model by itself, and with a patch in it where there is one."""
    from retcon.run.evaluate import score

    corpus = None if patch is None else patch.about.settings.get("corpus")
    apart = _apart(asked.general.text, corpus)
    seen = score(model, asked.cases, patch=patch, metrics=asked.observers(), progress=progress)
    return _Found(seen.rows, {}, _name(corpus), apart)


def _name(corpus: object) -> str | None:
    return None if corpus is None else str(corpus)


def _apart(text: "HeldOut | None", corpus: object) -> bool | None:
    """Whether what is read is other text than that of the second moments; None: not known."""
    from retcon.data.held_out import check_apart

    return None if text is None or corpus is None else check_apart(text, str(corpus))


def _result(model: "ModelHandle", found: _Found, general: "General") -> _Result:
    from retcon.scoring.metrics import intervals, summarise

    by_time = {w: rows for w in whole.TIMES if (rows := [r for r in found.rows if r.when == w])}
    scores = {when: summarise(rows) for when, rows in by_time.items()}
    return _Result(
        fingerprint=model.fingerprint,
        rows=by_time,
        scores={
            when: {name: whole.finite(value) for name, value in scores[when].items()}
            if when in scores
            else None
            for when in whole.TIMES
        },
        intervals={when: intervals(rows) for when, rows in by_time.items()},
        about=found.about,
        whole=whole.describe(general, by_time, found.corpus, found.apart),
    )


def _print(model: str, result: _Result, asked: _Asked) -> None:
    from retcon.scoring.metrics import metrics

    scores = {when: found for when, found in result.scores.items() if found is not None}
    rows = [
        [
            metric.title,
            *(
                f"{number(found[metric.name])}{_span(result.intervals[when].get(metric.name))}"
                for when, found in scores.items()
            ),
        ]
        for metric in metrics("headline", "table", of_prompts=True)
        if any(found[metric.name] is not None for found in scores.values())
    ]
    about = result.about
    title = f"{model}: {about.get('method', 'unedited')} {about.get('schedule', '')}".strip()
    out.print(table(title, ["in %  (95 % interval)", *scores], rows))
    if "seconds_per_edit" in about:
        out.print(f"{about['seconds_per_edit']:.2f} seconds per edit, without second moments.")
    steps = about.get("steps")
    for step in steps if isinstance(steps, list) else []:
        if step["note"]:
            out.print(f"at {step['at']} facts: {escape(str(step['note']))}")
    if not asked.observers():
        return
    out.print(whole.print_table(result.rows))
    if asked.general.asked and "method" in about and not _read_after(result.rows):
        out.print(
            "The model as a whole was not read after the edits: each batch met the untouched "
            "model, and no model holds them all. Use --schedule sequential-batch:B, or one batch "
            "of all cases."
        )


def _read_after(rows: "Mapping[str, list[Observation]]") -> bool:
    """Whether passages or items were read after the edits."""
    from retcon.scoring.observations import ITEM, PASSAGE

    kinds = {row.kind.partition(":")[0] for when in rows if when != "pre" for row in rows[when]}
    return not kinds.isdisjoint((PASSAGE, ITEM))


def _span(pair: tuple[float, float] | None) -> str:
    return "" if pair is None else f"  ({pair[0]:.1f} – {pair[1]:.1f})"
