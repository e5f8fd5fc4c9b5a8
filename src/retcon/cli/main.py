"""`retcon`: each command parses, makes one call of the library, and prints.

Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from retcon import __version__
from retcon.cli.commands import (
    cache,
    compare,
    demo,
    edit,
    evaluate,
    methods,
    patch,
    probe,
    serve,
    stats,
    studio,
    study,
    sweep,
)
from retcon.cli.console import Interrupted, fail, warnings_told
from retcon.cli.endings import Received, like_ctrl_c
from retcon.errors import RetconError

# What a command exits with when Ctrl-C has ended it.
INTERRUPTED = 130
_AS_BEFORE = (
    "The model is as before, and so is every file that was not yet said to be written. What was "
    "made of targets, corpora and second moments is kept in the cache, and the same command goes "
    "on from there."
)

app = typer.Typer(
    name="retcon",
    help="Rewrite facts inside language models, keep each edit, and measure what it costs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


_FIRST = """\
Retcon rewrites facts inside language models, keeps each edit, and measures what it costs.

Begin with one of these:
  retcon demo           rewrite 8 facts in a small real model, and undo it (minutes, offline)
  retcon studio         type a fact in the browser, watch, undo it (extra `studio`)
  retcon probe MODEL    see whether a model of yours can be edited, and where
  retcon edit smollm2-135m -o p.safetensors \\
    --fact "The mother tongue of {Danielle Darrieux} is" English

Then see what it did (retcon compare MODEL --patch p.safetensors), keep the books
(retcon patch add ledger p.safetensors), or compare methods (retcon study).
All commands: retcon --help. One of them: retcon COMMAND --help."""


def _version(asked: bool | None) -> None:
    if asked:
        typer.echo(f"retcon {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool | None,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = None,
    plugin: Annotated[
        list[Path] | None,
        typer.Option("--plugin", help="Run this Python file first: methods, batch rules, …"),
    ] = None,
) -> None:
    """Rewrite facts inside language models, keep each edit, and measure what it costs."""
    from retcon.registry import load_plugin

    for path in plugin or ():
        load_plugin(path)


app.command("edit")(edit.edit)
app.command("eval")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("chat")(compare.chat)
app.command("serve")(serve.serve)
app.command("probe")(probe.probe)
app.command("stats")(stats.stats)
app.command("methods")(methods.methods)
app.add_typer(patch.app, name="patch")
app.add_typer(study.app, name="study")
app.command("sweep")(sweep.sweep)
app.command("studio")(studio.studio)
app.command("cache")(cache.cache)
app.command("demo")(demo.demo)


def run() -> None:
    """Run the command line: 0 done, 2 a mistake that can be mended, 130 interrupted, 143 ended."""
    if len(sys.argv) == 1 and "_RETCON_COMPLETE" not in os.environ:  # as a shell sets it
        typer.echo(_FIRST)
        return
    signal = Received()
    try:
        with like_ctrl_c(signal), warnings_told():
            app(prog_name="retcon")
    except RetconError as error:
        fail(str(error))
        sys.exit(2)
    except Interrupted as stop:
        fail(f"{signal.name}. {stop}")
        sys.exit(signal.code)
    except (SystemExit, KeyboardInterrupt) as stop:
        ended = isinstance(stop, KeyboardInterrupt) or stop.code == INTERRUPTED
        if not ended and signal.number is None:
            raise
        fail(f"{signal.name}. {_AS_BEFORE}")
        sys.exit(signal.code)
