"""`retcon edit`."""

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
from retcon.errors import InvalidEdit
from retcon.storage import check_writable

if TYPE_CHECKING:
    from retcon.edits import Case


def edit(
    model: Model,
    fact: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--fact",
            metavar="PROMPT TARGET",
            show_default=False,
            help="One fact; its subject in braces: 'The capital of {France} is' Rome.",
        ),
    ] = None,
    facts: Annotated[
        Path | None,
        typer.Option("--facts", help="Many facts: JSON lines, or CounterFact.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Save the patch to this file.")
    ] = None,
    method: MethodName = None,
    layer: Layer = None,
    layers: Layers = None,
    set: Set = None,
    schedule: Annotated[
        str | None,
        typer.Option(help="sequential or sequential-batch:B. Default: one batch of all."),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print memory and time, and stop.")] = False,
    revision: Revision = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    json: JsonFile = None,
) -> None:
    """Rewrite facts: make the patch, show before and after, and save it with -o."""
    chosen, settings = parse_layers(layer, layers), parse_settings(set)
    cases = _cases(fact, facts)
    if plan:
        print_plan(
            model, revision=revision, dtype=dtype, method=method, layers=chosen,
            settings=settings, edits=len(cases),
        )  # fmt: skip
        return
    check_writable(json)
    check_writable(output)
    with bars() as progress:
        handle = load_model(model, revision=revision, dtype=dtype, device=device, progress=progress)
        from retcon.editing.making import edit as make
        from retcon.evaluation.generation import continuations
        from retcon.evaluation.scoring import score_cases
        from retcon.methods.presets import choose

        # Before anything is scored: a name that does not exist should not cost a minute.
        choose(handle.outline, method=method, layers=chosen, settings=settings)
        texts = [case.edit.text for case in cases[:8]]
        before = score_cases(handle, cases, when="pre", progress=progress)
        said_before = continuations(handle, texts)
        patch = make(
            handle,
            [case.edit for case in cases],
            method=method,
            layers=chosen,
            settings=settings,
            schedule=schedule,
            progress=progress,
        )
        with patch.applied(handle):
            after = score_cases(handle, cases, when="final", progress=progress)
            said_after = continuations(handle, texts)
    from retcon.evaluation.metrics import summarise

    pairs = [
        [text, _short(one), _short(two)]
        for text, one, two in zip(texts, said_before, said_after, strict=True)
    ]
    out.print(table("What the model says", ["prompt", "before", "after"], pairs))
    scores = {"pre": summarise(before), "final": summarise(after)}
    rows = [
        [name, number(scores["pre"][name]), number(scores["final"][name])]
        for name in scores["pre"]
        if scores["final"][name] is not None
    ]
    out.print(table("Scores, in %", ["", "pre", "final"], rows))
    if output is not None:
        patch.save(output)
        size = output.stat().st_size / 1e3
        out.print(
            f"Saved [bold]{output}[/] ({size:.1f} kB). Look at it: retcon patch show {output}",
            soft_wrap=True,
        )
    write_json(
        json,
        {"model": model, **patch.about.model_dump(mode="json"), **scores, "versions": versions()},
    )


def _cases(fact: tuple[str, str] | None, facts: Path | None) -> "list[Case]":
    from retcon.data.cases import load_cases
    from retcon.edits import Case, Edit

    if (fact is None) == (facts is None):
        raise InvalidEdit("Say what to edit: one fact with --fact PROMPT TARGET, or --facts FILE.")
    if fact is not None:
        return [Case(edit=Edit.parse(fact[0], fact[1]))]
    assert facts is not None
    return load_cases(facts)


def _short(text: str) -> str:
    return " ".join(text.split())[:60]
