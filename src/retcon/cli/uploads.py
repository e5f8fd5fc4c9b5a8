"""What goes to the hub, shown before it goes."""

from collections.abc import Mapping

from retcon.cli.console import out, table


def print_files(files: Mapping[str, int], repo: str, *, public: bool, dry_run: bool) -> None:
    """Names and sizes of the files of an upload, and who will see them."""
    rows = [[name, f"{size:,}"] for name, size in files.items()]
    seen = "public" if public else "private"
    out.print(table(f"To {repo} ({seen})", ["file", "bytes"], rows))
    out.print("A README.md that the repository has already stays as it is.")
    if dry_run:
        out.print("Nothing was uploaded.")
