"""`retcon eval`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from rich.markup import escape

from retcon.cli import choices
from retcon.cli import general as whole
from retcon.cli.choices import EditChoice, ModelChoice
from retcon.cli.console import bars, number, out, quiet_libraries, table, write_json
from retcon.cli.general import GeneralChoice
from retcon.cli.plan import print_plan
from retcon.environment import environment
from retcon.errors import InvalidSetting
from retcon.files import check_writable
from retcon.progress import Progress
from retcon.scoring.observations import TIMES, alike

if TYPE_CHECKING:
    from retcon.data.held_out import HeldOut
    from retcon.edits import Case
    from retcon.model.handle import ModelHandle
    from retcon.patch.patch import Patch
    from retcon.run.treatments import Treatment
    from retcon.scoring.metrics import Observer
    from retcon.scoring.observations import Observation
    from retcon.scoring.suites import General

Cases = Annotated[
    str,
    typer.Option(
        "--cases", help="A published data set (docs/data.md), plain JSON lines, starter, everyday."
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
After = Annotated[
    list[str] | None,
    typer.Option(
        "--after",
        help="Score it also after bf16, int8, int4, finetune:STEPS or with:PATCH. May be repeated.",
    ),
]


def evaluate(
    model: choices.Model,
    cases: Cases = "starter",
    n: Number = None,
    seed: Seed = 0,
    method: choices.Method = None,
    layer: choices.Layer = None,
    layers: choices.Layers = None,
    set: choices.Set = None,
    fast: choices.Fast = False,
    schedule: Schedule = None,
    refresh: choices.Refresh = "each-batch",
    guard: choices.Guard = "off",
    patch: PatchFile = None,
    after: After = None,
    option: choices.DataOption = None,
    skip_bad: choices.SkipBad = False,
    drift: whole.Drift = False,
    drift_text: whole.DriftText = None,
    ability: whole.AbilityItems = None,
    data: whole.DataFolder = None,
    metric: whole.Metrics = None,
    ask: whole.Ways = None,
    plan: choices.Plan = False,
    revision: choices.Revision = None,
    dtype: choices.Dtype = "float32",
    device: choices.Device = "cpu",
    json: choices.Json = None,
) -> None:
    """Score a model on cases: as it is, with a method's edits, or with a saved patch."""
    from retcon.data.cases import read_facts, take

    source = ModelChoice(name=model, revision=revision, dtype=dtype, device=device)
    choice = EditChoice.parse(method, layer, layers, set, schedule, refresh, guard, fast)
    _check_together(choice, patch, after or (), plan)
    facts = read_facts(cases, skip_bad=skip_bad, options=choices.parse_settings(option, "--option"))
    picked = take(facts.cases, n, seed)
    if plan:
        print_plan(source, choice, len(picked), json=json)
        return
    check_writable(json)
    beside = GeneralChoice(drift=drift, text=drift_text, items=ability, data=data, seed=seed)
    names = (*whole.asked_in(ask), *(metric or ()))
    request = _Asked(picked, beside.load(), names, tuple(after or ()))
    result = _run(source, choice, patch, request)
    _print(model, result, request)
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
            "skipped": [str(bad) for bad in facts.skipped],
            **result.record(),
            "versions": environment(),
        },
    )


class _Found(NamedTuple):
    """Rows, and what decided them.

    corpus: from which the second moments are; apart: whether that is other text than was read;
    after: rows after each treatment.
    """

    rows: "list[Observation]"
    about: Mapping[str, object]
    corpus: str | None = None
    apart: bool | None = None
    after: "Mapping[str, list[Observation]]" = MappingProxyType({})


class _Asked(NamedTuple):
    """Request: cases, text and tasks, and names of metrics and treatments."""

    cases: "list[Case]"
    general: "General"
    metrics: tuple[str, ...]
    after: tuple[str, ...] = ()

    def observers(self) -> "tuple[Observer, ...]":
        """Observers of text, tasks and metrics."""
        from retcon.scoring.metrics import observers

        given = (self.general.observer,) if self.general.asked else ()
        return (*observers(self.metrics), *given)


class _Scores(NamedTuple):
    """Rows, scores and intervals by time; None: nothing was scored then."""

    rows: "dict[str, list[Observation]]"
    levels: dict[str, dict[str, float | None] | None]
    intervals: dict[str, dict[str, tuple[float, float] | None]]

    @classmethod
    def of(cls, seen: "Sequence[Observation]") -> "_Scores":
        from retcon.scoring.metrics import intervals, summarise

        rows = {when: found for when in TIMES if (found := [r for r in seen if r.when == when])}
        means = {when: summarise(found) for when, found in rows.items()}
        levels = {
            when: {name: whole.finite(value) for name, value in means[when].items()}
            if when in means
            else None
            for when in TIMES
        }
        return cls(rows, levels, {when: intervals(found) for when, found in rows.items()})


class _Result(NamedTuple):
    """Scores, after each treatment too, and what decided them."""

    fingerprint: str
    scores: _Scores
    about: Mapping[str, object]
    whole: Mapping[str, object]
    treated: Mapping[str, _Scores]

    def record(self) -> dict[str, object]:
        """All of it, as `--json` has it."""
        after = {
            name: {**scores.levels, "intervals": scores.intervals}
            for name, scores in self.treated.items()
        }
        return {
            **self.scores.levels,
            "intervals": self.scores.intervals,
            **self.whole,
            **self.about,
            **({"after": after} if after else {}),
        }


def _check_together(
    choice: EditChoice, patch: Path | None, after: Sequence[str], plan: bool
) -> None:
    """Beside a saved patch there is nothing to choose, and nothing to plan."""
    if patch is not None and choice.given:
        raise InvalidSetting("Give either --patch, or a method with its layers and settings.")
    if patch is not None and plan:
        raise InvalidSetting(
            "--plan is about making edits, and those of a patch are made. Leave one of them out."
        )
    if after and choice.given:
        raise InvalidSetting(
            "--after is about a saved patch, or the model as it is. Save the edits first (retcon "
            "edit --output FILE), and score that file: --patch FILE --after …"
        )


def _run(source: ModelChoice, choice: EditChoice, file: Path | None, request: _Asked) -> _Result:
    quiet_libraries()
    from retcon.patch.ledger import read_source
    from retcon.run.treatments import Treatment

    request.observers()  # a metric that does not exist is told before a model is loaded
    with bars() as progress:
        # Patches first: a damaged one should not cost the loading of a model.
        treatments = [Treatment.of(name) for name in request.after]
        patch = None if file is None else read_source(file)
        model = source.load(progress)
        if choice.given:
            seen = _with_method(model, request, choice, progress)
        else:
            seen = _as_it_is(model, request, patch, treatments, progress)
        if patch is not None:
            about = {"patch": str(file), **patch.about.model_dump(mode="json", exclude={"model"})}
            seen = seen._replace(about=about)
    return _result(model, seen, request.general)


def _with_method(
    model: "ModelHandle", request: _Asked, choice: EditChoice, progress: Progress
) -> _Found:
    from retcon.method.presets import resolve
    from retcon.run.evaluate import evaluate

    recipe = resolve(
        model.outline, method=choice.method, layers=choice.layers, settings=choice.settings
    )
    corpus = recipe.settings.get("corpus")
    apart = _apart(request.general.text, corpus)
    run = evaluate(
        model,
        request.cases,
        method=choice.method,
        layers=choice.layers,
        settings=choice.settings,
        schedule=choice.schedule or "single",
        metrics=request.observers(),
        progress=progress,
    )
    return _Found(alike(run.rows), run.describe(), _name(corpus), apart)


def _as_it_is(
    model: "ModelHandle",
    request: _Asked,
    patch: "Patch | None",
    treatments: "Sequence[Treatment]",
    progress: Progress,
) -> _Found:
    """The model by itself, and with a patch in it where there is one; after treatments too."""
    from retcon.run.evaluate import score

    corpus = None if patch is None else patch.about.settings.get("corpus")
    apart = _apart(request.general.text, corpus)
    rows, *after = (
        score(
            model,
            request.cases,
            patch=patch,
            after=treatment,
            metrics=request.observers(),
            progress=progress,
        ).rows
        for treatment in (None, *treatments)
    )
    by_name = dict(zip(request.after, after, strict=True))
    return _Found(rows, {}, _name(corpus), apart, by_name)


def _name(corpus: object) -> str | None:
    return None if corpus is None else str(corpus)


def _apart(text: "HeldOut | None", corpus: object) -> bool | None:
    """True if what is read is other text than that of the second moments; None: not known."""
    from retcon.data.held_out import check_apart

    return None if text is None or corpus is None else check_apart(text, str(corpus))


def _result(model: "ModelHandle", seen: _Found, general: "General") -> _Result:
    scores = _Scores.of(seen.rows)
    return _Result(
        fingerprint=model.fingerprint,
        scores=scores,
        about=seen.about,
        whole=whole.describe(general, scores.rows, seen.corpus, seen.apart),
        treated={name: _Scores.of(rows) for name, rows in seen.after.items()},
    )


def _print_scores(title: str, scores: _Scores, *, others: bool) -> None:
    """Print a table of scores of prompts, and one of the others where there are any."""
    from retcon.scoring.metrics import metrics

    levels = {when: means for when, means in scores.levels.items() if means is not None}
    rows = [
        [
            metric.title,
            *(
                f"{number(means.get(metric.name))}{_span(scores.intervals[when].get(metric.name))}"
                for when, means in levels.items()
            ),
        ]
        for metric in metrics("headline", "table", scored=True)
        if any(means.get(metric.name) is not None for means in levels.values())
    ]
    out.print(table(title, ["in %  (95 % interval)", *levels], rows))
    beside = whole.print_table(scores.rows)
    if others and beside.row_count:
        out.print(beside)


def _print(model: str, result: _Result, request: _Asked) -> None:
    about = result.about
    title = f"{model}: {about.get('method', 'unedited')} {about.get('schedule', '')}".strip()
    others = bool(request.observers())
    _print_scores(title, result.scores, others=others)
    for name, scores in result.treated.items():
        _print_scores(f"{model} after {name}", scores, others=others)
    for remark in whole.remarks(request.metrics, result.scores.rows):
        out.print(escape(remark), soft_wrap=True)
    if "seconds_per_edit" in about:
        out.print(f"{about['seconds_per_edit']:.2f} seconds per edit, without second moments.")
    steps = about.get("steps")
    for step in steps if isinstance(steps, list) else []:
        if step["note"]:
            out.print(f"at {step['at']} facts: {escape(str(step['note']))}")
    if request.general.asked and "method" in about and not _read_after(result.scores.rows):
        out.print(
            "The model as a whole was not read after the edits: each batch met the untouched "
            "model, and no model holds them all. Use --schedule sequential-batch:B, or one batch "
            "of all cases."
        )


def _read_after(rows: "Mapping[str, list[Observation]]") -> bool:
    """True if passages or items were read after the edits."""
    from retcon.scoring.observations import ITEM, PASSAGE

    kinds = {row.kind.partition(":")[0] for when in rows if when != "pre" for row in rows[when]}
    return not kinds.isdisjoint((PASSAGE, ITEM))


def _span(pair: tuple[float, float] | None) -> str:
    return "" if pair is None else f"  ({pair[0]:.1f} – {pair[1]:.1f})"
