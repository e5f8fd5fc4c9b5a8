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
from retcon.scoring.rows import alike

if TYPE_CHECKING:
    from retcon.data.held_out import HeldOut
    from retcon.edits import Case
    from retcon.model.handle import ModelHandle
    from retcon.patch.patch import Patch
    from retcon.scoring.readings import Reading
    from retcon.scoring.rows import Row
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

# Shown even where nothing was scored; the others only where something was.
_ALWAYS = ("ES", "PS", "NS", "S", "token_accuracy", "exact_match", "target_probability")
_SHOWN = (
    *_ALWAYS, "paraphrase_token_accuracy", "locality_token_accuracy",
    "portability_token_accuracy", "portability_exact_match",
)  # fmt: skip


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
    asked = GeneralChoice(drift=drift, text=drift_text, items=ability, data=data, seed=seed)
    result = _run(source, choice, patch, picked, asked.load())
    _print(model, result)
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
    """Rows, what decided them, and what the model as a whole was like by time.

    corpus: from which the second moments are; apart: whether that is other text than was read.
    """

    rows: "list[Row]"
    about: Mapping[str, object]
    readings: "Mapping[str, Reading]"
    corpus: str | None = None
    apart: bool | None = None


class _Result(NamedTuple):
    """Scores by time (None: nothing was scored then), their intervals, and what decided them."""

    fingerprint: str
    scores: dict[str, dict[str, float | None] | None]
    intervals: dict[str, dict[str, tuple[float, float] | None]]
    about: Mapping[str, object]
    general: "General"
    readings: "Mapping[str, Reading]"
    whole: Mapping[str, object]


def _check_alone(choice: EditChoice, plan: bool) -> None:
    """Beside a saved patch there is nothing to choose, and nothing to plan."""
    if choice.given:
        raise InvalidSetting("Give either --patch, or a method with its layers and settings.")
    if plan:
        raise InvalidSetting(
            "--plan is about making edits, and those of a patch are made. Leave one of them out."
        )


def _run(
    source: ModelChoice,
    choice: EditChoice,
    file: Path | None,
    cases: "list[Case]",
    general: "General",
) -> _Result:
    quiet_libraries()
    from retcon.patch.sources import read_source

    with bars() as progress:
        # The patch first: a damaged one should not cost the loading of a model.
        patch = None if file is None else read_source(file)
        model = source.load(progress)
        if patch is not None:
            found = _with_patch(model, cases, patch, general, progress)
            about = {"patch": str(file), **patch.about.model_dump(mode="json", exclude={"model"})}
            found = found._replace(about=about)
        elif choice.given:
            found = _with_method(model, cases, choice, general, progress)
        else:
            found = _unedited(model, cases, general, progress)
    return _result(model, found, general)


def _unedited(
    model: "ModelHandle", cases: "list[Case]", general: "General", progress: Progress
) -> _Found:
    from retcon.scoring.score import score_cases

    rows = score_cases(model, cases, when="pre", progress=progress)
    return _Found(rows, {}, {"pre": general.read(model, progress)})


def _with_method(
    model: "ModelHandle",
    cases: "list[Case]",
    choice: EditChoice,
    general: "General",
    progress: Progress,
) -> _Found:
    from retcon.method.presets import resolve
    from retcon.run.evaluate import evaluate_measured

    made = resolve(
        model.outline, method=choice.method, layers=choice.layers, settings=choice.settings
    )
    corpus = made.settings.get("corpus")
    apart = _apart(general.text, corpus)
    found = evaluate_measured(
        model, cases, lambda handle: general.read(handle, progress), method=choice.method,
        layers=choice.layers, settings=choice.settings, schedule=choice.schedule or "single",
        progress=progress,
    )  # fmt: skip
    by_time = {str(when): reading for when, reading in found.measures.items()}
    return _Found(alike(found.run.rows), found.run.describe(), by_time, _name(corpus), apart)


def _with_patch(
    model: "ModelHandle",
    cases: "list[Case]",
    patch: "Patch",
    general: "General",
    progress: Progress,
) -> _Found:
    from retcon.scoring.score import score_cases

    patch.check(model)
    corpus = patch.about.settings.get("corpus")
    apart = _apart(general.text, corpus)
    rows = score_cases(model, cases, when="pre", progress=progress)
    readings = {"pre": general.read(model, progress)}
    with patch.applied(model):
        rows += score_cases(model, cases, when="final", progress=progress)
        readings["final"] = general.read(model, progress)
    return _Found(rows, {}, readings, _name(corpus), apart)


def _name(corpus: object) -> str | None:
    return None if corpus is None else str(corpus)


def _apart(text: "HeldOut | None", corpus: object) -> bool | None:
    """Whether what is read is other text than that of the second moments; None: not known."""
    from retcon.data.held_out import check_apart

    return None if text is None or corpus is None else check_apart(text, str(corpus))


def _result(model: "ModelHandle", found: _Found, general: "General") -> _Result:
    from retcon.scoring.metrics import intervals, summarise

    times = ("pre", "immediate", "final")
    by_time = {when: [row for row in found.rows if row.when == when] for when in times}
    return _Result(
        fingerprint=model.fingerprint,
        scores={when: summarise(rows) if rows else None for when, rows in by_time.items()},
        intervals={when: intervals(rows) for when, rows in by_time.items() if rows},
        about=found.about,
        general=general,
        readings=found.readings,
        whole=whole.describe(general, found.readings, found.corpus, found.apart),
    )


def _print(model: str, result: _Result) -> None:
    scores = {when: found for when, found in result.scores.items() if found is not None}
    rows = [
        [
            name,
            *(
                f"{number(found[name])}{_span(result.intervals[when].get(name))}"
                for when, found in scores.items()
            ),
        ]
        for name in _SHOWN
        if name in _ALWAYS or any(found[name] is not None for found in scores.values())
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
    if result.general.asked:
        out.print(whole.print_table(result.general, result.readings))
        if "method" in about and len(result.readings) == 1:
            out.print(
                "Not measured after the edits: each batch met the untouched model, and no model "
                "holds them all. Use --schedule sequential-batch:B, or one batch of all cases."
            )


def _span(pair: tuple[float, float] | None) -> str:
    return "" if pair is None else f"  ({pair[0]:.1f} – {pair[1]:.1f})"
