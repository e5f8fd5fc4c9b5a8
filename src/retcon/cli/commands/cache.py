"""`retcon cache`."""

from typing import Annotated, Literal

import typer

from retcon.cache import clear, limit, usage
from retcon.cli import options
from retcon.cli.console import number, out, table, write_json
from retcon.storage import cache_folder, check_writable


def cache(
    action: Annotated[
        Literal["show", "clear"], typer.Argument(help="Show what is there, or remove it.")
    ] = "show",
    kind: Annotated[
        str | None,
        typer.Argument(
            help="targets, keys, scores: the `entries`, which `clear` takes; moments, corpora, "
            "models or fingerprints; or `all`, which are shown.",
            show_default=False,
        ),
    ] = None,
    json: options.Json = None,
) -> None:
    """Show what Retcon keeps: files and size of each kind. `retcon cache clear` removes entries."""
    check_writable(json)
    most = limit()
    # The large kinds take long to make again, so they have to be named.
    found = usage(kind or "all") if action == "show" else clear(kind or "entries")
    title = "In the cache" if action == "show" else "Removed from the cache"
    rows = [[u.kind, str(u.files), number(u.bytes / 1e6, 2), str(u.folder)] for u in found]
    out.print(table(title, ["kind", "files", "MB", "folder"], rows))
    if action == "show":
        out.print(f"Entries may take {most / 1e6:.0f} MB (RETCON_CACHE_LIMIT, in bytes).")
    kinds = {one.kind: {**one._asdict(), "folder": str(one.folder)} for one in found}
    about = {"action": action, "folder": str(cache_folder()), "limit": most, "kinds": kinds}
    write_json(json, about)
