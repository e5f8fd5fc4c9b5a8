"""`retcon cache`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from retcon.cache import clear, limit, usage, verify
from retcon.cli import choices
from retcon.cli.console import bars, number, out, show_looked, table, write_json
from retcon.errors import Damaged
from retcon.files import cache_folder, check_writable


def cache(
    action: Annotated[
        Literal["show", "clear", "verify"],
        typer.Argument(help="Show what is there, remove it, or look whether it is whole."),
    ] = "show",
    kind: Annotated[
        str | None,
        typer.Argument(
            help="targets, keys, prefixes, scores, texts, sensitivity: the `entries`, which "
            "`clear` takes; moments, corpora, models or fingerprints; or `all`, which are shown.",
            show_default=False,
        ),
    ] = None,
    json: choices.Json = None,
) -> None:
    """Show what Retcon keeps: files and size of each kind. `retcon cache clear` removes entries."""
    check_writable(json)
    if action == "verify":
        _verify(kind or "all", json)
        return
    most = limit()
    # The large kinds take long to make again, so they have to be named.
    usages = usage(kind or "all") if action == "show" else clear(kind or "entries")
    title = "In the cache" if action == "show" else "Removed from the cache"
    rows = [[u.kind, str(u.files), number(u.bytes / 1e6, 2), str(u.folder)] for u in usages]
    out.print(table(title, ["kind", "files", "MB", "folder"], rows))
    if action == "show":
        out.print(f"Entries may take {most / 1e6:.0f} MB (RETCON_CACHE_LIMIT, in bytes).")
    kinds = {one.kind: {**one._asdict(), "folder": str(one.folder)} for one in usages}
    about = {"action": action, "folder": str(cache_folder()), "limit": most, "kinds": kinds}
    write_json(json, about)


def _verify(kind: str, json: Path | None) -> None:
    with bars() as progress:
        kinds = verify(kind, progress)
    show_looked(str(cache_folder()), kinds)
    write_json(json, {"folder": str(cache_folder()), "kinds": [one._asdict() for one in kinds]})
    bad = sum(len(one.damaged) for one in kinds)
    if bad:
        raise Damaged(
            f"{bad} in the cache are damaged. Each is made anew when it is asked for, or all go "
            f"with `retcon cache clear KIND`."
        )
