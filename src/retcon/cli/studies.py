"""Printing of the commands of a study."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from retcon.cli.console import out, table, warn
from retcon.cli.plan import duration, gibibytes

if TYPE_CHECKING:
    from retcon.study.estimates import CellCost
    from retcon.study.packing import Packed
    from retcon.study.planning import StudyPlan
    from retcon.study.runner import StudyOutcome
    from retcon.study.study import Study

_COLUMNS = ("block", "places", "cells", "done", "refused", "time left")


def print_plan(
    plan: "StudyPlan", costs: "dict[str, CellCost]", done: set[str], rate: float
) -> None:
    """Blocks with their cells and time, then what it all takes."""
    rows = _tuning_rows(plan, costs, done)
    seen: set[str] = {cell.id for tuning in plan.tunings for cell in tuning.cells}
    for name in dict.fromkeys(point.block for point in plan.points):
        places = [place for place in plan.places if place.point.block == name]
        cells = {place.cell.id for place in places if place.cell is not None} - seen
        seen |= cells
        refused = sum(place.point.refused is not None for place in places)
        rows.append(_row(name, len(places), cells, refused, costs, done))
    title = f"{plan.spec.name}: {len(plan.points)} places, {len(plan.cells)} cells"
    out.print(table(title, _COLUMNS, rows))
    print_refusals([(p.block, p.refused) for p in plan.points if p.refused is not None])
    print_costs(list(costs.values()), rate)


def print_refusals(refused: Sequence[tuple[str, str]]) -> None:
    """Print each reason once, with how many places it is of."""
    for block, why in dict.fromkeys(refused):
        number = refused.count((block, why))
        out.print(
            f"[yellow]refused[/] {escape(f'{block}, {number} of its places: {why}')}",
            soft_wrap=True,
        )


def print_costs(costs: "list[CellCost]", rate: float) -> None:
    """Time by what it goes to, memory and disk."""
    if not costs:
        out.print("All cells are done.")
        return
    targets = sum(c.made for c in costs)
    names = {
        "moments": "second moments, sampling",
        "targets": f"{targets:,} targets, at most",
        "solves": "solves",
        "scoring": "scoring",
        "seconds": "all",
    }
    rows = [[text, duration(sum((getattr(c, k) for c in costs), 0.0))] for k, text in names.items()]
    rows += [
        ["memory, at most", gibibytes(max(c.memory for c in costs))],
        ["disk, when done", gibibytes(sum(c.disk for c in costs))],
        ["disk, on the way", gibibytes(max(c.scratch for c in costs))],
    ]
    title = f"At {rate / 1e9:,.0f} GFLOP/s; an order-of-magnitude estimate"
    out.print(table(title, ["", "estimate"], rows))


def print_outcome(outcome: "StudyOutcome", folder: Path) -> None:
    """Print how a run ended, and what to do next."""
    for note in outcome.notes:
        out.print(f"[yellow]note[/] {escape(note)}", soft_wrap=True)
    for cell, why in outcome.failed.items():
        print_failure(cell, why)
    out.print(_how_many(outcome), soft_wrap=True)
    left = outcome.cells - outcome.done - len(outcome.failed) - len(outcome.busy)
    for cell, who in outcome.busy.items():
        out.print(f"{cell} is being run by {escape(who)}.", soft_wrap=True)
    if left > 0:
        out.print(f"{left} are left: retcon study resume {escape(str(folder))}", soft_wrap=True)
    elif outcome.done:
        out.print(f"Read them: retcon study report {escape(str(folder))}", soft_wrap=True)


def _how_many(outcome: "StudyOutcome") -> str:
    """Say how many cells are done, and since when."""
    if not outcome.cells:
        return "No place of this study can be run: retcon study status tells why."
    count = f"{outcome.done} of {outcome.cells} cells are done"
    if outcome.own == outcome.done:
        return f"{count}."
    if outcome.own:
        return f"{count}, {outcome.done - outcome.own} of them were before."
    nothing = outcome.done == outcome.cells
    return f"{count}, and were before: " + (
        "nothing was left to run." if nothing else "this run has finished none."
    )


def print_failure(cell: str, why: str) -> None:
    """Why a cell could not be run."""
    out.print(f"[red]failed[/] {cell}: {escape(why)}", soft_wrap=True)


def print_status(study: "Study") -> None:
    """Blocks with how many of their cells are done, without looking at any model."""
    rows: list[list[str]] = []
    for name in dict.fromkeys(point.block for point in study.points):
        points = [point for point in study.points if point.block == name]
        named = {p.cell for p in points if p.cell is not None}
        done = sum(study.is_done(cell) for cell in named)
        waits = sum(p.cell is None and p.refused is None for p in points)
        refused = sum(p.refused is not None for p in points)
        under = sum(_begun(study, cell) for cell in named)
        rows.append([name, *map(str, (len(points), len(named), done, under, waits, refused))])
    columns = ["block", "places", "cells", "done", "begun", "to be tuned", "refused"]
    done = {p.cell for p in study.finished()}
    known = {p.cell for p in study.points if p.cell is not None}
    title = f"{study.record.name}: {len(done)} of {len(known)} cells done"
    out.print(table(title, columns, rows))
    print_refusals([(p.block, p.refused) for p in study.points if p.refused is not None])
    for warning in study.record.warnings:
        warn(warning)
    for cell in sorted(known):
        why = study.failure(cell)
        if why is not None:
            print_failure(cell, why)


def print_packed(packed: "Packed", folder: Path) -> None:
    """Print what is in a pack, what is not, and what cannot be known of it."""
    if packed.missing:
        number = len(packed.missing)
        cells = (
            "1 cell is not done, and is" if number == 1 else f"{number} cells are not done, and are"
        )
        warn(f"{cells} not in the pack: {', '.join(packed.missing)}. {folder} keeps them.")
    if packed.unsealed:
        out.print(
            f"{packed.unsealed} of the cells have a record without a digest of its own: they were "
            "written before there were any, and the pack says so.",
            soft_wrap=True,
        )
    size = sum(path.stat().st_size for path in packed.folder.iterdir())
    out.print(
        f"Wrote [bold]{escape(str(packed.folder))}[/]: {packed.cells:,} cells, {packed.rows:,} "
        f"rows, {size / 1e6:.1f} MB. {escape(str(folder))} is as it was.",
        soft_wrap=True,
    )


def _begun(study: "Study", cell: str) -> bool:
    """True if a cell has batches behind it and others before it."""
    return not study.is_done(cell) and any(study.cell(cell).glob("step-*.safetensors"))


def _tuning_rows(
    plan: "StudyPlan", costs: "dict[str, CellCost]", done: set[str]
) -> list[list[str]]:
    cells = {cell.id for tuning in plan.tunings for cell in tuning.cells}
    return [_row("(tuning of ridges)", len(plan.tunings), cells, 0, costs, done)] if cells else []


def _row(
    name: str,
    places: int,
    cells: set[str],
    refused: int,
    costs: "dict[str, CellCost]",
    done: set[str],
) -> list[str]:
    left = sum((costs[cell].seconds for cell in cells if cell in costs), 0.0)
    finished = len(cells & done)
    return [name, str(places), str(len(cells)), str(finished), str(refused), duration(left)]
