"""`retcon sweep`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retcon.cli import choices
from retcon.cli.choices import parse_layers, parse_settings
from retcon.cli.commands.study import run_spec
from retcon.cli.console import number, out, table
from retcon.errors import InvalidStudy

if TYPE_CHECKING:
    from retcon.report.conditions import Arm
    from retcon.report.results import Results
    from retcon.study.spec import Spec

Layers = Annotated[str, typer.Option("--layers", help="all, or some, as in 0-7 or 1,2,5.")]
Scores = ("ES", "PS", "NS", "S")


def sweep(
    model: choices.Model,
    folder: Annotated[Path, typer.Option("--out", help="The study's folder; made if need be.")],
    cases: Annotated[
        str,
        typer.Option(
            "--cases",
            help="CounterFact (.json), JSON lines, starter, everyday, toyworld, toyworld-small.",
        ),
    ] = "starter",
    layers: Layers = "all",
    n: Annotated[int, typer.Option("--n", help="So many facts, each edited alone.", min=1)] = 48,
    seed: Annotated[int, typer.Option("--seed", help="Which n.")] = 0,
    method: Annotated[str, typer.Option("--method", "-m", help="See `retcon methods`.")] = "emmet",
    set: choices.Set = None,
    skip_bad: choices.SkipBad = False,
    dtype: choices.Dtype = "float32",
    device: choices.Device = "cpu",
) -> None:
    """Find the layer to edit: single edits at each, scored, and which layers are as good."""
    from retcon.study.spec import parse_spec

    chosen = parse_layers(None, None if layers == "all" else layers)
    text = _study(
        {"name": f"sweep of {model}", "model": model, "dtype": dtype, "device": device},
        _data(Path(cases), skip_bad),
        "all" if chosen is None else list(chosen),
        {"method": method, "n": n, "seed": seed, "settings": parse_settings(set)},
    )
    _run_and_print(parse_spec(text, Path.cwd() / "sweep.yaml"), folder)


def _data(cases: Path, skip_bad: bool) -> dict[str, object]:
    """Facts of the study: a set as typed; of a file its whole path, to resume from elsewhere."""
    named = str(cases.resolve()) if cases.is_file() else str(cases)
    said: dict[str, object] = {"cases": named, "unique_subjects": True}
    return {**said, "skip_bad": True} if skip_bad else said


def _study(
    head: Mapping[str, object],
    data: Mapping[str, object],
    layer: str | Sequence[int],
    block: Mapping[str, object],
) -> str:
    """The study file of a sweep: it can be kept, changed and run by `retcon study`."""
    import yaml

    keys = {
        "retcon_study": 1,
        **head,
        "data": data,
        "blocks": [{"name": "layers", "schedule": "single", "layer": layer, **block}],
    }
    return yaml.safe_dump(keys, sort_keys=False, allow_unicode=True)


def _run_and_print(spec: "Spec", folder: Path) -> None:
    from retcon.report.layers import recommend, sweeps
    from retcon.report.results import Results
    from retcon.study.study import read_study

    run_spec(spec, folder)
    results = Results(read_study(folder))
    recommendations = recommend(results)
    if not recommendations:
        raise InvalidStudy(
            "No layer can be recommended: S needs facts with target_old, paraphrases and "
            "neighbours. The other scores are in `retcon study report`."
        )
    best = recommendations[0]
    rows = [
        ["+".join(map(str, layer)), *_scores(results, arm), _verdict(layer, best.layer, best.tied)]
        for layer, arm in sorted(sweeps(results)[0].items())
    ]
    columns = ["layer", *Scores, ""]
    out.print(table(f"{spec.name}: in % (95 % interval)", columns, rows))
    tied = ", ".join("+".join(map(str, layer)) for layer in best.tied)
    name = "+".join(map(str, best.layer))
    out.print(f"Recommended: [bold]layer {name}[/], S {number(best.score.mean)}.")
    out.print(
        f"Statistically indistinguishable from it: {tied}."
        if tied
        else "Every other layer is worse.",
        soft_wrap=True,
    )


def _scores(results: "Results", arm: "Arm") -> list[str]:
    estimates = [results.estimate(arm, "immediate", score) for score in Scores]
    return [
        number(one.mean) + ("" if one.low is None else f" ({one.low:.1f} – {one.high:.1f})")
        for one in estimates
    ]


def _verdict(layer: tuple[int, ...], best: tuple[int, ...], tied: Sequence[tuple[int, ...]]) -> str:
    return "best" if layer == best else "tied" if layer in tied else ""
