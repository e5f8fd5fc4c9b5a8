"""`retcon cache`."""

from collections.abc import Sequence
from typing import Annotated

import typer

from retcon.cache import Usage, clear, limit, usage
from retcon.cli import options
from retcon.cli.console import number, out, table, write_json
from retcon.storage import cache_folder, check_writable

app = typer.Typer(help="Show what Retcon keeps, or remove it.")


@app.callback(invoke_without_command=True)
def cache(context: typer.Context, json: options.Json = None) -> None:
    """Show what Retcon keeps in its cache: files and size of each kind."""
    if context.invoked_subcommand is not None:
        return
    check_writable(json)
    found, most = usage(), limit()
    columns = ["kind", "files", "MB", "folder"]
    out.print(table(f"Cache: {cache_folder()}", columns, _rows(found)))
    out.print(f"Targets, keys and scores may take {most / 1e6:.0f} MB (RETCON_CACHE_LIMIT, bytes).")
    kinds = {one.kind: {**one._asdict(), "folder": str(one.folder)} for one in found}
    write_json(json, {"folder": str(cache_folder()), "limit": most, "kinds": kinds})


@app.command("clear")
def remove(
    kind: Annotated[
        str | None,
        typer.Argument(
            help="targets, keys, scores, moments, corpora, models, or all. Default: the first three.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Remove what is kept: what is quickly made again, or the kind that is named."""
    out.print(table("Removed", ["kind", "files", "MB", "folder"], _rows(clear(kind))))


def _rows(found: Sequence[Usage]) -> list[list[str]]:
    return [[one.kind, str(one.files), number(one.bytes / 1e6), str(one.folder)] for one in found]
