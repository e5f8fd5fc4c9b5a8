"""`retcon eval`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retcon.cli.console import (
    Device,
    Dtype,
    JsonFile,
    Layer,
    Layers,
    MethodName,
    Model,
    Revision,
    Set,
    bars,
    load_model,
    number,
    out,
    parse_layers,
    parse_settings,
    print_plan,
    table,
    versions,
    write_json,
)
from retcon.errors import InvalidSetting
from retcon.storage import check_writable

if TYPE_CHECKING:
    from retcon.edits import Case
    from retcon.evaluation.rows import Row
    from retcon.model.handle import ModelHandle


def evaluate(
    model: Model,
    cases: Annotated[
        str, typer.Option("--cases", help="CounterFact (.json), JSON lines, or `starter`.")
    ] = "starter",
    n: Annotated[
        int | None, typer.Option("--n", help="Take so many cases.", show_default="all")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Which n: order by sha256 of seed:id.")] = 0,
    method: MethodName = None,
    layer: Layer = None,
    layers: Layers = None,
    set: Set = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="single, batch:B, sequential or sequential-batch:B.", show_default="single"
        ),
    ] = None,
    patch: Annotated[
        Path | None, typer.Option("--patch", help="Score a saved patch in place of a method.")
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print memory and time, and stop.")] = False,
    revision: Revision = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    json: JsonFile = None,
) -> None:
    """Score a model on cases: as it is, with a method's edits, or with a saved patch."""
    from retcon.data.cases import load_cases, take

    chosen, settings = parse_layers(layer, layers), parse_settings(set)
    given = (method, chosen, settings or None, schedule)
    edits = any(value is not None for value in given)
    if edits and patch is not None:
        raise InvalidSetting("Give either --patch, or a method with its layers and settings.")
    picked = take(load_cases(cases), n, seed)
    if plan:
        print_plan(
            model, revision=revision, dtype=dtype, method=method, layers=chosen,
            settings=settings, edits=len(picked),
        )  # fmt: skip
        return
    check_writable(json)
    with bars() as progress:
        handle = load_model(model, revision=revision, dtype=dtype, device=device, progress=progress)
        if patch is not None:
            rows, about = _with_patch(handle, picked, patch)
        elif edits:
            from retcon.editing.trial import evaluate as try_out

            trial = try_out(
                handle, picked, method=method, layers=chosen, settings=settings,
                schedule=schedule or "single", progress=progress,
            )  # fmt: skip
            rows, about = trial.rows, trial.describe()
        else:
            from retcon.evaluation.scoring import score_cases

            rows, about = score_cases(handle, picked, when="pre", progress=progress), {}
    report = _report(rows)
    _print(model, report, about)
    write_json(
        json,
        {
            "model": model,
            "fingerprint": handle.fingerprint,
            "dtype": dtype,
            "cases": cases,
            "n": len(picked),
            "seed": seed,
            "ids": [case.edit.id for case in picked],
            **report,
            **about,
            "versions": versions(),
        },
    )


def _with_patch(
    handle: "ModelHandle", cases: "list[Case]", file: Path
) -> "tuple[list[Row], dict[str, object]]":
    from retcon.evaluation.scoring import score_cases
    from retcon.patch.format import load_patch

    patch = load_patch(file)
    patch.check(handle)
    rows = score_cases(handle, cases, when="pre")
    with patch.applied(handle):
        rows += score_cases(handle, cases, when="final")
    return rows, {"patch": str(file), **patch.about.model_dump(mode="json", exclude={"model"})}


def _report(rows: "list[Row]") -> dict[str, object]:
    """Scores and their intervals by time; null where nothing was scored then."""
    from retcon.evaluation.metrics import intervals, summarise

    by_time = {w: [r for r in rows if r.when == w] for w in ("pre", "immediate", "final")}
    return {
        **{when: summarise(found) if found else None for when, found in by_time.items()},
        "intervals": {when: intervals(found) for when, found in by_time.items() if found},
    }


def _print(model: str, report: dict[str, object], about: dict[str, object]) -> None:
    times = [w for w in ("pre", "immediate", "final") if isinstance(report[w], dict)]
    scores = {w: report[w] for w in times}
    spans = report["intervals"]
    assert isinstance(spans, dict)
    rows: list[list[str]] = []
    for name in ("ES", "PS", "NS", "S", "token_accuracy", "exact_match", "target_probability"):
        row = [name]
        for when in times:
            found = scores[when]
            assert isinstance(found, dict)
            row.append(f"{number(found[name])}{_span(spans[when].get(name))}")
        rows.append(row)
    columns = ["in %  (95 % interval)", *times]
    title = f"{model}: {about.get('method', 'unedited')} {about.get('schedule', '')}".strip()
    out.print(table(title, columns, rows))
    if "seconds_per_edit" in about:
        out.print(f"{about['seconds_per_edit']:.2f} seconds per edit, without second moments.")


def _span(pair: "tuple[float, float] | None") -> str:
    return "" if pair is None else f"  ({pair[0]:.1f} – {pair[1]:.1f})"
