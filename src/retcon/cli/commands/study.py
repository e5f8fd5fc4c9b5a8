"""`retcon study`: from a YAML file to a report."""

import json as json_library
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from retcon.cli.choices import Json
from retcon.cli.console import (
    Interrupted,
    bars,
    out,
    quiet_libraries,
    show_looked,
    table,
    warn,
    write_json,
)
from retcon.errors import InvalidStudy, RetconError
from retcon.files import check_writable
from retcon.writing_systems import visible

if TYPE_CHECKING:
    from retcon.study.spec import Spec

app = typer.Typer(
    help="Run a grid of editing experiments from one YAML file, and report on it.",
    no_args_is_help=True,
)
File = Annotated[Path, typer.Argument(metavar="FILE", help="The study, as YAML.")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a study that was run.")]
Out = Annotated[Path, typer.Option("--out", help="The folder of the study; made if need be.")]
DataFolder = Annotated[
    Path | None,
    typer.Option(
        "--data", help="Where the file of facts is. Default: RETCON_DATA, or beside FILE."
    ),
]
Executor = Annotated[str, typer.Option("--executor", help="local, or ray (extra `ray`).")]
Workers = Annotated[int, typer.Option("--workers", min=0, help="Of Ray; 0: as many as fit.")]
Limit = Annotated[
    float | None, typer.Option("--limit", min=0, help="Begin no cell after so many seconds.")
]


@app.command()
def validate(file: File) -> None:
    """Check a study file: keys, types, methods, settings, and how these go together."""
    spec = _load(file)
    every = " (a place of `layer: all` counts once)" if _spans_layers(spec) else ""
    name, blocks = escape(visible(spec.name)), len(spec.blocks)
    out.print(
        f"[green]✓[/] {name}: {blocks} blocks, {len(spec.entries)} places{every}.", soft_wrap=True
    )


@app.command()
def plan(
    file: File,
    folder: Annotated[Path | None, typer.Option("--out", help="A folder it was run in.")] = None,
    data: DataFolder = None,
    rate: Annotated[
        float | None, typer.Option("--gflops", help="Of another machine. Default: measured here.")
    ] = None,
    json: Json = None,
) -> None:
    """Show cells, time, memory and disk, and what is done already. Loads no weights."""
    spec = _load(file)
    check_writable(json)
    with bars() as progress:
        progress("planning", 0, 1)
        quiet_libraries()
        from retcon.cli.studies import print_plan
        from retcon.run.cost import measured_rate
        from retcon.study.estimates import estimate
        from retcon.study.planning import plan as make
        from retcon.study.planning import warned_of
        from retcon.study.study import read_study
        from retcon.study.tuning import RULE

        known = None if folder is None else read_study(folder)
        prints = (
            {} if known is None else {(m.name, m.dtype): m.fingerprint for m in known.record.models}
        )
        tuned = () if known is None else known.tuned
        rule = RULE if known is None else known.record.tuning
        study_plan = warned_of(
            make(spec, data=data, fingerprints=prints, tuned=tuned, rule=rule, guess=True)
        )
        done = {c.id for c in study_plan.cells if known is not None and known.is_done(c.id)}
        speed = measured_rate() if rate is None else rate * 1e9
        costs = estimate(study_plan, speed, done)
        progress("planning", 1, 1)
    print_plan(study_plan, costs, done, speed)
    cells = {k: {**c._asdict(), "seconds": c.seconds} for k, c in costs.items()}
    write_json(
        json,
        {
            "name": spec.name,
            "places": len(study_plan.points),
            "cells": len(study_plan.cells),
            "done": sorted(done),
            "gflops": speed / 1e9,
            "to_be_run": cells,
            "refused": [p.model_dump(mode="json") for p in study_plan.points if p.refused],
        },
    )


@app.command()
def run(
    file: File,
    folder: Out,
    data: DataFolder = None,
    executor: Executor = "local",
    workers: Workers = 0,
    limit: Limit = None,
) -> None:
    """Run the cells that are not done yet; interrupt it whenever you like."""
    run_spec(_load(file), folder, data, executor, workers, limit)


@app.command()
def resume(
    folder: Folder,
    data: DataFolder = None,
    executor: Executor = "local",
    workers: Workers = 0,
    limit: Limit = None,
) -> None:
    """Go on with the study of a folder, by the file it was last run with."""
    from retcon.study.spec import load_spec
    from retcon.study.study import FILE, read_file, read_study

    read_study(folder)
    read_file(folder)
    run_spec(load_spec(folder / FILE), folder, data, executor, workers, limit)


@app.command()
def status(folder: Folder, json: Json = None) -> None:
    """Show how far a study is."""
    from retcon.cli.studies import print_status
    from retcon.study.study import read_study

    study = read_study(folder)
    print_status(study)
    points = [{**p.model_dump(mode="json"), "done": study.is_done(p.cell)} for p in study.points]
    write_json(json, {"name": study.record.name, "points": points})


@app.command()
def verify(folder: Folder, json: Json = None) -> None:
    """Look whether all that a study's folder holds is what was written, and its own."""
    from retcon.study.study import read_study
    from retcon.study.verifying import verify as look

    check_writable(json)
    study = read_study(folder)
    with bars() as progress:
        kinds = look(study, progress)
    show_looked(str(folder), kinds)
    write_json(json, {"name": study.record.name, "kinds": [one._asdict() for one in kinds]})
    bad = sum(len(one.damaged) for one in kinds)
    if bad:
        raise InvalidStudy(
            f"{bad} things in {folder} are not what was written; which, and why, is above."
        )


@app.command()
def report(
    folder: Folder,
    findings: Annotated[
        list[str] | None,
        typer.Option(
            "--findings",
            metavar="NAME",
            help="Claims to test: a set, as batch-size, a single one, or none; several times for "
            "several. Default: those of the study file.",
        ),
    ] = None,
) -> None:
    """Write the report of what is done, and show its tables. Needs no torch."""
    from retcon.report import page
    from retcon.report.terminal import brief
    from retcon.study.study import read_study

    with bars() as progress:
        progress("reading the rows", 0, 1)
        content = page.make_report(read_study(folder), findings)
        progress("reading the rows", 1, 1)
    for one in brief(content.results, content.findings):
        out.print(table(one.title, one.columns, one.rows))
    for line in (*content.answers, *content.summary):
        out.print(line, markup=False)
    with bars() as progress:
        progress("drawing the page", 0, 1)
        written = page.write(content)
        progress("drawing the page", 1, 1)
    out.print(
        f"Wrote [bold]{escape(str(written.html))}[/], and {escape(str(written.rows.parent))}/ "
        "with charts, tables and rows.",
        soft_wrap=True,
    )


@app.command()
def export(
    folder: Folder,
    output: Annotated[Path, typer.Option("--output", "-o", help="A .parquet file.")],
) -> None:
    """Put all rows, each with its place in the grid, into one parquet file. Needs no torch."""
    from retcon.report import tables
    from retcon.study.study import read_study

    check_writable(output)
    study = read_study(folder)
    written = tables.export(study, output)
    waiting = [p for p in study.points if not p.refused and not study.is_done(p.cell)]
    if waiting:
        warn(
            f"{len(waiting):,} of {len(study.points):,} places of the grid are not done, and have "
            f"no rows in it. Go on with them: retcon study resume {folder}"
        )
    out.print(
        f"Wrote [bold]{escape(str(written))}[/] ({written.stat().st_size / 1e6:.1f} MB).",
        soft_wrap=True,
    )


@app.command()
def pack(
    folder: Folder,
    target: Annotated[
        Path | None, typer.Option("--out", help="A new folder. Default: DIR-packed, beside DIR.")
    ] = None,
) -> None:
    """Write all finished cells as four files, which every command reads like DIR."""
    from retcon.cli.studies import print_packed
    from retcon.study.packing import pack as write
    from retcon.study.study import read_study

    study = read_study(folder)
    whole = folder.resolve()
    with bars() as progress:
        packed = write(study, target or whole.with_name(f"{whole.name}-packed"), progress=progress)
    print_packed(packed, folder)


@app.command()
def schema() -> None:
    """Print the JSON schema of study files, for editors."""
    from retcon.study.spec import json_schema

    typer.echo(json_library.dumps(json_schema(), indent=2))


def run_spec(
    spec: "Spec",
    folder: Path,
    data: Path | None = None,
    executor: str = "local",
    workers: int = 0,
    limit: float | None = None,
) -> None:
    """Run a study and say how it ended.

    Raises:
        InvalidStudy: it cannot be run, or some cells failed.
    """
    from retcon.cli.studies import print_outcome

    try:
        with bars() as progress:
            quiet_libraries()
            from retcon.study.runner import run_cells

            outcome = run_cells(
                spec,
                folder,
                data=data,
                executor=executor,
                workers=workers,
                limit=limit,
                progress=progress,
            )
    except KeyboardInterrupt:
        raise Interrupted(
            f"Batches that were finished are kept: retcon study resume {folder}"
        ) from None
    print_outcome(outcome, folder)
    if outcome.failed:
        number = len(outcome.failed)
        what = (
            "1 cell could not be run; its reason is"
            if number == 1
            else (f"{number} cells could not be run; their reasons are")
        )
        raise InvalidStudy(f"{what} above.")


def _load(file: Path) -> "Spec":
    """A study file, after its methods were asked."""
    from retcon.study.spec import load_spec

    spec = load_spec(file)
    with bars() as progress:
        progress("asking the methods", 0, 1)
        quiet_libraries()
        from retcon.study.checking import check

        check(spec, file)
        _check_findings(spec, file)
        progress("asking the methods", 1, 1)
    return spec


def _check_findings(spec: "Spec", file: Path) -> None:
    """Refuse findings that the report could not test.

    Raises:
        InvalidStudy: one does not exist; the message says on which line.
    """
    from retcon.report.findings import select
    from retcon.study.spec import located

    try:
        select(spec.findings)
    except RetconError as error:
        raise InvalidStudy(f"{located(file, spec.text, ('findings',))}: {error}") from None


def _spans_layers(spec: "Spec") -> bool:
    return any(entry.layers is None for entry in spec.entries)
