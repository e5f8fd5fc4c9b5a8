"""`retcon patch show`."""

from pathlib import Path
from typing import Annotated

import typer

from retcon.cli import options
from retcon.cli.console import number, out, table, write_json

app = typer.Typer(no_args_is_help=True, help="Look at saved edits.")


@app.callback()
def _patch() -> None:
    """Look at saved edits."""


@app.command("show")
def show(
    file: Annotated[Path, typer.Argument(help="A patch file.", show_default=False)],
    json: options.Json = None,
) -> None:
    """Show what a patch changes, of which model, and how it was made."""
    from retcon.patch.format import load_patch

    patch = load_patch(file)
    about = patch.about
    facts = [
        ["base model", f"{about.model}  (fingerprint {about.base[:16]}…)"],
        ["method", f"{about.method}, {about.schedule}"],
        ["made by", f"retcon {about.retcon}"],
        ["size", f"{file.stat().st_size / 1e3:.1f} kB"],
        ["settings", ", ".join(f"{k}={v}" for k, v in about.settings.items())],
    ]
    out.print(table(str(file), ["", "patch"], facts))
    layers = [
        [str(k), str(d.rank), f"{d.left.shape[1]} x {d.right.shape[1]}", number(d.norm(), 3)]
        for k, d in patch.deltas.items()
    ]
    out.print(table("Changes", ["layer", "rank", "matrix", "norm of ΔW"], layers))
    edits = [[e.id, e.text, e.target_old or "–", e.target] for e in patch.edits]
    out.print(table("Facts", ["id", "prompt", "before", "now"], edits))
    write_json(
        json,
        {
            **about.model_dump(mode="json"),
            "norms": {str(k): d.norm() for k, d in patch.deltas.items()},
        },
    )
