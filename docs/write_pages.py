"""Pages of the documentation that are written from the code.

Run `python docs/write_pages.py` after adding, moving or describing a file of the source: it writes
docs/map.md, and a test compares. The public API, the help of every command and the keys of a
study file go to docs/reference, which git ignores; `make docs` writes them.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import retcon

DOCS = Path(__file__).parent
SOURCE = DOCS.parent / "src" / "retcon"
REFERENCE = DOCS / "reference"
# A bar inside a cell of a table.
BAR = r"\|"
HEAD = """# Map of the source

Every file of `src/retcon`, and the first line of its docstring. A folder builds on those before it.
`python docs/write_pages.py` writes this page.
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


def map_page() -> str:
    """The map of the source: a table for each folder."""
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


def cell(text: str) -> str:
    """Text as one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", BAR).replace("[", r"\[").replace("<", r"\<")


# The help of every command, from the parser.


def commands(group: Any, name: str = "retcon") -> Iterator[tuple[str, Any]]:
    """Every command below a group, with the words that call it."""
    for word, command in group.commands.items():
        yield f"{name} {word}", command
        if hasattr(command, "commands"):
            yield from commands(command, f"{name} {word}")


def command_section(name: str, command: Any) -> str:
    """A command's help as Markdown: how it is called, and a table of its options."""
    from typer import Context

    context = Context(command, info_name=name)
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    records = [parameter.get_help_record(context) for parameter in command.params]
    rows = [
        f"| `{option.replace('|', BAR)}` | {cell(text)} |" for option, text in filter(None, records)
    ]
    help_text = "\n".join(line.strip() for line in (command.help or "").splitlines())
    parts = [f"{'#' * len(name.split())} {name}\n", f"```text\n{usage}\n```\n", f"{help_text}\n"]
    if rows and not hasattr(command, "commands"):
        parts += ["| option | meaning |\n|---|---|", *rows, ""]
    return "\n".join(parts)


def command_page() -> str:
    """The page of all commands."""
    from typer.main import get_command

    from retcon.cli.main import app

    sections = [command_section(name, command) for name, command in commands(get_command(app))]
    head = (
        "# Commands\n\nThe same as `retcon COMMAND --help` prints. `retcon --plugin FILE.py …` "
        "runs a Python file first ([extend Retcon](../extend/README.md)).\n"
    )
    return "\n".join([head, *sections])


# The public names, from their docstrings.


def api_page() -> str:
    """The page of all public names: functions first, then classes."""
    names = [name for name in retcon.__all__ if not name.startswith("_")]
    parts = [
        "# Python\n\nEverything that `import retcon` gives. "
        "Names are loaded when they are first used.\n"
    ]
    for title, kind in (("Functions", "autofunction"), ("Classes", "autoclass")):
        chosen = [name for name in names if name[0].isupper() == (kind == "autoclass")]
        members = "\n   :members:" if kind == "autoclass" else ""
        parts.append(f"## {title}\n")
        for name in chosen:
            parts.append(
                f"### {name}\n\n```{{eval-rst}}\n.. {kind}:: retcon.{name}{members}\n```\n"
            )
    return "\n".join(parts)


# The keys of a study file, from its schema.


def meanings(description: str) -> dict[str, str]:
    """What a docstring says of each attribute."""
    _, _, attributes = description.partition("Attributes:\n")
    entries = re.split(r"\n(?= {4}\w+:)", "\n" + attributes.rstrip())
    pairs = (entry.strip().partition(":") for entry in entries if entry.strip())
    return {name: text.strip() for name, _, text in pairs}


def values(schema: dict[str, Any]) -> str:
    """The values that a key may have, in words."""
    if "anyOf" in schema:
        return ", ".join(text for each in schema["anyOf"] if (text := values(each)))
    if "$ref" in schema:
        return (
            f"[{schema['$ref'].rpartition('/')[2]}](#{schema['$ref'].rpartition('/')[2].lower()})"
        )
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of ({values(schema.get('items', {}))})"
    words = {"null": "", "object": "mapping", "boolean": "true or false", "string": "text"}
    return words.get(str(schema.get("type")), str(schema.get("type", "anything")))


def schema_section(title: str, schema: dict[str, Any]) -> str:
    """A part of a study file: its keys, what they may be, and what they are for."""
    description = schema.get("description", "")
    text = meanings(description)
    required = schema.get("required", [])
    rows = [
        f"| `{key}`{'' if key not in required else ' (needed)'} | {values(each)} "
        f"| {cell(text.get(key, ''))} |"
        for key, each in schema["properties"].items()
    ]
    prose = description.partition("Attributes:")[0].strip()
    return "\n".join(
        [f"## {title}\n", f"{prose}\n", "| key | value | meaning |", "|---|---|---|", *rows, ""]
    )


def schema_page() -> str:
    """The page of all keys of a study file."""
    from retcon.study.spec import json_schema

    schema = json_schema()
    parts = [
        "# Study files\n\nEvery key of a study's YAML file. `retcon study schema` prints the same "
        "as a [JSON schema](../study.schema.json), for editors. How a grid is written is told in "
        "[studies](../studies.md).\n",
        schema_section("A study", schema),
        *(schema_section(name, each) for name, each in schema["$defs"].items()),
    ]
    return "\n".join(parts)


# Pages in their files.

WRITTEN = {"api": api_page, "cli": command_page, "schema": schema_page}


def write_reference() -> None:
    """Write the pages of the reference, each only where it has changed."""
    REFERENCE.mkdir(exist_ok=True)
    for name, page in WRITTEN.items():
        path, text = REFERENCE / f"{name}.md", page()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    (DOCS / "map.md").write_text(map_page(), encoding="utf-8")
    write_reference()
