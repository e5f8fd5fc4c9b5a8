"""`retcon methods`."""

from typing import Annotated

import typer
from rich.markup import escape

from retcon.cli.choices import told_layers
from retcon.cli.console import out, quiet_libraries, table


def methods(
    name: Annotated[
        str | None, typer.Argument(help="Show the equation and every setting of this one.")
    ] = None,
) -> None:
    """List the editing methods, or show one with its equation, settings and presets."""
    quiet_libraries()
    from retcon.method.entries import methods as all_methods

    if name is not None:
        _show(name)
        return
    rows = [
        [entry.name, entry.summary, entry.paper.replace("https://arxiv.org/abs/", "arXiv:")]
        for entry in all_methods().values()
    ]
    out.print(table("Methods", ["name", "what it does", "paper"], rows))
    out.print("Settings and equation of one: [bold]retcon methods NAME[/]")


def _show(name: str) -> None:
    import inspect

    from retcon.method.entries import find_method
    from retcon.method.presets import families

    entry = find_method(name)
    module = inspect.getmodule(entry.factory)
    out.print(f"[bold]{entry.title}[/]  {entry.paper}\n")
    out.print(escape(inspect.getdoc(module) or ""))
    out.print()
    out.print(escape("\n".join((inspect.getdoc(entry.factory) or "").splitlines()[2:])))
    settings = [
        [key, _plain(setting.default), setting.group or "method"]
        for key, setting in entry.settings().items()
    ]
    out.print(table("Settings (--set name=value)", ["name", "default", "group"], settings))
    presets = [
        [family.name, told_layers(row.layers), _pairs(row.settings), row.source]
        for family in families()
        for row in family.presets
        if row.method == name
    ]
    out.print(table("Presets", ["model", "layers", "settings", "source"], presets))


def _pairs(settings: dict[str, object]) -> str:
    return ", ".join(f"{key}={_plain(value)}" for key, value in settings.items()) or "defaults"


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return ",".join(str(part) for part in value)
    return str(value)
