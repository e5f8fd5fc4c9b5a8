"""Printing of all commands: the terminal, progress bars, tables, JSON files."""

import json
import os
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from retcon.cli.telling import telling
from retcon.errors import RetconWarning
from retcon.progress import Progress
from retcon.sealed import Looked
from retcon.writing_systems import visible

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


# What this command has warned of, in its order: it is a part of what `--json` writes.
_warned: list[str] = []


class Interrupted(Exception):
    """Ctrl-C, with what has become of the work."""


def fail(message: str) -> None:
    """Say what went wrong, on the error stream."""
    err.print(f"[bold red]error:[/] {escape(visible(message))}", soft_wrap=True)


def warn(message: str) -> None:
    """Say what the user should know before she goes on, on the error stream."""
    _warned.append(message)
    err.print(f"[yellow]warning:[/] {escape(visible(message))}", soft_wrap=True)


@contextmanager
def warnings_told() -> Generator[None, None, None]:
    """Say each of the library's own warnings once; those of others are Python's."""
    _warned.clear()
    others = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if not issubclass(category, RetconWarning):
            others(message, category, filename, lineno, file, line)
        elif str(message) not in _warned:
            warn(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always", RetconWarning)
        warnings.showwarning = show
        yield


def bars() -> AbstractContextManager[Progress]:
    """Show how work is getting on: see `telling`."""
    return telling(err)


def quiet_libraries() -> None:
    """Keep other libraries' bars and advice off the terminal."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A plain table; all columns but the first are right-aligned where they hold numbers."""
    grid = Table(
        title=escape(visible(title)), title_justify="left", title_style="bold", header_style="bold"
    )
    for number, column in enumerate(columns):
        cells = [row[number] for row in rows]
        numeric = number > 0 and all(_is_number(cell) for cell in cells)
        grid.add_column(escape(column), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(escape(visible(cell)) for cell in row))
    return grid


def show_looked(title: str, kinds: Sequence[Looked]) -> None:
    """Print what was found whole, without a digest and damaged, and of the last each with why."""
    rows = [[f.kind, str(f.whole), str(f.unsealed), str(len(f.damaged))] for f in kinds]
    out.print(table(title, ["kind", "whole", "without a digest", "damaged"], rows))
    if any(f.unsealed for f in kinds):
        out.print(
            "Without a digest of its own: written before there were any. It is used, and not all "
            "of it can be checked."
        )
    for why in (why for f in kinds for why in f.damaged):
        out.print(f"[red]damaged[/] {escape(visible(why))}", soft_wrap=True)


def print_files(files: Mapping[str, int], repo: str, *, public: bool, dry_run: bool) -> None:
    """Print names and sizes of the files of an upload, and who will see them.

    Args:
        files: sizes in bytes, by name.
        repo: OWNER/NAME on the hub.
        public: everybody will see them.
        dry_run: nothing is uploaded.
    """
    rows = [[name, f"{size:,}"] for name, size in files.items()]
    seen = "public" if public else "private"
    out.print(table(f"To {repo} ({seen})", ["file", "bytes"], rows))
    out.print("A README.md that the repository has already stays as it is.")
    if dry_run:
        out.print("Nothing was uploaded.")


def number(value: float | None, digits: int = 1) -> str:
    """A number for a table; an en dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def write_json(path: Path | None, value: Mapping[str, object]) -> None:
    """Write a result for scripts, with what was warned of."""
    if path is None:
        return
    from retcon.files import write_whole

    text = json.dumps({**value, "warnings": _warned}, indent=2, ensure_ascii=False) + "\n"
    write_whole(path, lambda work: work.write_text(text, encoding="utf-8"))


def _is_number(cell: str) -> bool:
    return cell.replace("–", "0").replace(".", "").replace("-", "").replace("%", "").isdecimal()
