"""Write docs/map.md: every file of src/retcon with the first line of its module docstring.

Run `python docs/write_map.py` after adding, moving or describing a file; a test compares.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "retcon"
PAGE = ROOT / "docs" / "map.md"
HEAD = """# Map of the source

Every file of `src/retcon`, and the first line of its docstring. A folder builds on those before it.
`python docs/write_map.py` writes this page.
"""
FOLDERS = (
    ".",
    *("algebra", "model", "data", "data/sets", "features", "method"),
    *("patch", "patch/export", "scoring", "scoring/metrics", "run", "run/rules"),
    *("toyworld", "study", "report", "report/charts", "cli", "cli/commands"),
)


def first_line(path: Path) -> str:
    """Read the first line of a module's docstring; empty without one."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]


def page() -> str:
    """Make the page: a table for each folder."""
    folders: dict[str, list[Path]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        folders.setdefault(path.parent.relative_to(SOURCE).as_posix(), []).append(path)
    known = [name for name in FOLDERS if name in folders]
    parts = [HEAD]
    for name in [*known, *sorted(folders.keys() - set(known))]:
        rows = [(path, first_line(path)) for path in folders[name]]
        title = "retcon" if name == "." else f"retcon/{name}"
        table = [f"| `{path.name}` | {line} |" for path, line in rows if line]
        if table:
            parts.append(
                "\n".join([f"## {title}\n", "| file | what it is for |", "|---|---|", *table, ""])
            )
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
