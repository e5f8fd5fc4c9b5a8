"""`retcon eval`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from retcon.cli import options
from retcon.cli.console import bars, number, out, quiet_libraries, table, versions, write_json
from retcon.cli.options import EditChoice, ModelChoice
from retcon.cli.plan import print_plan
from retcon.errors import InvalidSetting
from retcon.progress import Progress
from retcon.storage import check_writable

if TYPE_CHECKING:
    from retcon.edits import Case
    from retcon.evaluation.rows import Row
    from retcon.model.handle import ModelHandle
    from retcon.patch.format import Patch

Cases = Annotated[
    str, typer.Option("--cases", help="CounterFact (.json), JSON lines, or `starter`.")
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
    plan: options.Plan = False,
    revision: options.Revision = None,
    dtype: options.Dtype = "float32",
    device: options.Device = "cpu",
    json: options.Json = None,
) -> None:
    """Score a model on cases: as it is, with a method's edits, or with a saved patch."""
    from retcon.data.cases import load_cases, take

    source = ModelChoice(name=model, revision=revision, dtype=dtype, device=device)
    choice = EditChoice.parse(method, layer, layers, set, schedule, refresh, guard)
    if patch is not None:
        _check_alone(choice, plan)
    picked = take(load_cases(cases), n, seed)
    if plan:
        print_plan(source, choice, len(picked))
        return
    check_writable(json)
    result = _run(source, choice, patch, picked)
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
            **result.scores,
            "intervals": result.intervals,
            **result.about,
            "versions": versions(),
        },
    )


class _Result(NamedTuple):
    """Scores by time (None: nothing was scored then), their intervals, and what decided them."""

    fingerprint: str
    scores: dict[str, dict[str, float | None] | None]
    intervals: dict[str, dict[str, tuple[float, float] | None]]
    about: Mapping[str, object]


def _check_alone(choice: EditChoice, plan: bool) -> None:
    """Beside a saved patch there is nothing to choose, and nothing to plan."""
    if choice.given:
        raise InvalidSetting("Give either --patch, or a method with its layers and settings.")
    if plan:
        raise InvalidSetting(
            "--plan is about making edits, and those of a patch are made. Leave one of them out."
        )


def _run(
    source: ModelChoice, choice: EditChoice, file: Path | None, cases: "list[Case]"
) -> _Result:
    quiet_libraries()
    from retcon.evaluation.scoring import score_cases
    from retcon.patch.sources import read_source

    with bars() as progress:
        # The patch first: a damaged one should not cost the loading of a model.
        patch = None if file is None else read_source(file)
        model = source.load(progress)
        if patch is not None:
            rows = _with_patch(model, cases, patch, progress)
            about = {"patch": str(file), **patch.about.model_dump(mode="json", exclude={"model"})}
        elif choice.given:
            rows, about = _with_method(model, cases, choice, progress)
        else:
            rows, about = score_cases(model, cases, when="pre", progress=progress), {}
    return _result(model, rows, about)


def _with_method(
    model: "ModelHandle", cases: "list[Case]", choice: EditChoice, progress: Progress
) -> "tuple[list[Row], dict[str, object]]":
    from retcon.editing.trial import evaluate as try_out

    trial = try_out(
        model, cases, method=choice.method, layers=choice.layers, settings=choice.settings,
        schedule=choice.schedule or "single", progress=progress,
    )  # fmt: skip
    return trial.rows, trial.describe()


def _with_patch(
    model: "ModelHandle", cases: "list[Case]", patch: "Patch", progress: Progress
) -> "list[Row]":
    from retcon.evaluation.scoring import score_cases

    patch.check(model)
    pre = score_cases(model, cases, when="pre", progress=progress)
    with patch.applied(model):
        return pre + score_cases(model, cases, when="final", progress=progress)


def _result(model: "ModelHandle", rows: "list[Row]", about: Mapping[str, object]) -> _Result:
    from retcon.evaluation.metrics import intervals, summarise

    by_time = {w: [row for row in rows if row.when == w] for w in ("pre", "immediate", "final")}
    return _Result(
        fingerprint=model.fingerprint,
        scores={when: summarise(found) if found else None for when, found in by_time.items()},
        intervals={when: intervals(found) for when, found in by_time.items() if found},
        about=about,
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
        for name in ("ES", "PS", "NS", "S", "token_accuracy", "exact_match", "target_probability")
    ]
    about = result.about
    title = f"{model}: {about.get('method', 'unedited')} {about.get('schedule', '')}".strip()
    out.print(table(title, ["in %  (95 % interval)", *scores], rows))
    if "seconds_per_edit" in about:
        out.print(f"{about['seconds_per_edit']:.2f} seconds per edit, without second moments.")
    steps = about.get("steps")
    for step in steps if isinstance(steps, list) else []:
        if step["note"]:
            out.print(f"at {step['at']} facts: {step['note']}")


def _span(pair: tuple[float, float] | None) -> str:
    return "" if pair is None else f"  ({pair[0]:.1f} – {pair[1]:.1f})"
