"""`retcon patch`: look at saved edits, stack and undo them, and bring them to other programs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from retcon.cli import choices
from retcon.cli.commands import audit as audits
from retcon.cli.commands import hub, shipping
from retcon.cli.commands import ledger as ledgers
from retcon.cli.console import number, out, table, write_json
from retcon.files import check_writable

if TYPE_CHECKING:
    from retcon.patch.patch import Patch, Provenance


app = typer.Typer(no_args_is_help=True, help="Look at saved edits, stack, undo and export them.")


@app.callback()
def _patch() -> None:
    """Look at saved edits, stack, undo and export them."""


app.command("add")(ledgers.add)
app.command("list")(ledgers.list_)


@app.command("show")
def show(
    source: choices.Source,
    entry: Annotated[
        int | None, typer.Argument(metavar="[ENTRY]", help="One entry of a ledger.")
    ] = None,
    json: choices.Json = None,
) -> None:
    """Show what a patch changes, of which model, and how it was made."""
    from retcon.patch.ledger import Ledger, read_source

    patch = read_source(source) if entry is None else Ledger(Path(source)).patch(entry)
    about = patch.about
    facts = [
        ["base model", f"{about.model}  (fingerprint {about.base[:16]}…)"],
        ["method", f"{about.method}, {about.scheduled}"],
        ["made by", f"retcon {about.retcon}"],
        ["size", _size(source, patch)],
        *_settings(about),
    ]
    title = source if entry is None else f"{source}, entry {entry}"
    out.print(table(title, ["", "patch"], facts))
    layers = [
        [str(k), str(d.rank), f"{d.left.shape[1]} x {d.right.shape[1]}", number(d.norm(), 3)]
        for k, d in patch.deltas.items()
    ]
    out.print(table("Changes", ["layer", "rank", "matrix", "norm of ΔW"], layers))
    edits = [
        [e.id, e.text, e.target_old or "–", e.target, record.verdict or "–"]
        for e, record in zip(patch.edits, about.edits, strict=True)
    ]
    out.print(table("Facts", ["id", "prompt", "before", "asked for", "verdict"], edits))
    write_json(
        json,
        {
            **about.model_dump(mode="json"),
            "norms": {str(k): d.norm() for k, d in patch.deltas.items()},
        },
    )


@app.command("diff")
def diff(first: choices.Source, second: choices.Source, json: choices.Json = None) -> None:
    """Show in what two patches of one model differ: facts, settings, and changes by layer."""
    from retcon.patch.combine import difference
    from retcon.patch.ledger import read_source

    changes = difference(read_source(first), read_source(second))
    facts = [["first only", e.text, e.target, ""] for e in changes.only_first]
    facts += [["second only", e.text, "", e.target] for e in changes.only_second]
    facts += [["both", a.text, a.target, b.target] for a, b in changes.retargeted]
    if facts:
        out.print(table("Facts", ["in", "prompt", "first", "second"], facts))
    settings = [[name, str(a), str(b)] for name, (a, b) in changes.settings.items()]
    if settings:
        out.print(table("Settings", ["", "first", "second"], settings))
    layers = [
        [str(k), *(number(v, 3) for v in (d.first, d.second, d.difference, d.cosine))]
        for k, d in changes.layers.items()
    ]
    columns = ["layer", "‖ΔW‖ first", "second", "of their difference", "cosine"]
    out.print(table("Changes", columns, layers))
    if not facts:
        out.print("Both hold the same facts.")
    write_json(
        json,
        {
            "facts": [
                dict(zip(("in", "prompt", "first", "second"), f, strict=True)) for f in facts
            ],
            "settings": {name: list(pair) for name, pair in changes.settings.items()},
            "layers": {str(k): d._asdict() for k, d in changes.layers.items()},
        },
    )


@app.command("stack")
def stack(
    sources: Annotated[
        list[str], typer.Argument(metavar="PATCH...", help=choices.SOURCE, show_default=False)
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Save the sum to this file.", show_default=False)
    ],
) -> None:
    """Make one patch of a ledger's stack, or of several patches of one model: their sum."""
    from retcon.errors import PatchMismatch
    from retcon.patch.combine import stack as together
    from retcon.patch.ledger import read_source

    check_writable(output)
    patches = [read_source(source) for source in sources]
    first = patches[0].about
    for source, patch in zip(sources, patches, strict=True):
        if patch.about.base != first.base:
            raise PatchMismatch(
                f"{source} is for {patch.about.model!r} (fingerprint {patch.about.base[:12]}…), "
                f"{sources[0]} for {first.model!r} ({first.base[:12]}…). Only patches of one "
                f"model can be added up."
            )
    named = {str(place): patch for place, patch in enumerate(patches, start=1)}
    combined = together(named, base=first.base, model=first.model)
    combined.save(output)
    out.print(
        f"Saved [bold]{escape(str(output))}[/]: {len(combined.about.edits)} facts in layers "
        f"{', '.join(map(str, combined.about.layers)) or 'none'}.",
        soft_wrap=True,
    )


app.command("undo")(ledgers.undo)
app.command("redo")(ledgers.redo)
app.command("verify")(ledgers.verify)
app.command("audit")(audits.audit)
app.command("export")(shipping.export)
app.command("import")(shipping.import_)
app.command("push")(hub.push)
app.command("pull")(hub.pull)


def _settings(about: "Provenance") -> list[list[str]]:
    """The settings, or what the parts of a stack are."""
    from retcon.patch.combine import parts_of
    from retcon.patch.patch import scheduled

    parts = parts_of(about)
    if not parts:
        return [["settings", ", ".join(f"{k}={v}" for k, v in about.settings.items())]]
    return [
        [
            f"part {name}",
            f"{part.get('method')}, {scheduled(str(part.get('schedule')), part.get('refresh'))}, "
            f"layers {part.get('layers')}, "
            f"{part.get('facts')} facts",
        ]
        for name, part in parts.items()
    ]


def _size(source: str, patch: "Patch") -> str:
    """Size of a file; of a stack, what its factors take."""
    if Path(source).is_file():
        return f"{Path(source).stat().st_size / 1e3:.1f} kB"
    numbers = sum(d.left.numel() + d.right.numel() for d in patch.deltas.values())
    return f"{4 * numbers / 1e3:.1f} kB of factors"
