"""`retcon compare` and `retcon chat`: a model as it is, and with a patch, side by side."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.prompt import Prompt

from retcon.cli import choices
from retcon.cli.choices import ModelChoice
from retcon.cli.console import bars, out, table, write_json
from retcon.errors import InvalidData, RetconError
from retcon.writing_systems import visible

if TYPE_CHECKING:
    from retcon.model.handle import ModelHandle
    from retcon.patch.patch import Patch
    from retcon.run.compare import Beside, Said

PatchSource = Annotated[
    str,
    typer.Option(
        "--patch",
        "-p",
        metavar="PATCH",
        help=choices.SOURCE,
        show_default=False,
    ),
]
Tokens = Annotated[int, typer.Option(help="Length of a continuation.", min=1, max=1000)]
Top = Annotated[int, typer.Option(help="How many next tokens to name.", min=1, max=50)]
Ask = Annotated[
    str, typer.Option("--ask", help="Put each text plain, as a question, or in a chat.")
]
System = Annotated[
    str | None,
    typer.Option("--system", help="With --ask chat: a message before it.", show_default=False),
]


def compare(
    model: choices.Model,
    patch: PatchSource,
    prompts: Annotated[
        Path | None,
        typer.Option(help="A prompt a line.", show_default="the patch's own facts"),
    ] = None,
    tokens: Tokens = 12,
    top: Top = 3,
    ask: Ask = "plain",
    system: System = None,
    revision: choices.Revision = None,
    dtype: choices.Dtype = "float32",
    device: choices.Device = "cpu",
    json: choices.Json = None,
) -> None:
    """Let a model speak with and without a patch, behind each prompt of a file."""
    lines = None if prompts is None else _lines(prompts)
    source = ModelChoice(name=model, revision=revision, dtype=dtype, device=device)
    loaded, read = _load(source, patch)
    texts = lines or [edit.text for edit in read.edits]
    if not texts:
        raise InvalidData("The patch names no facts. Give a file with a prompt a line: --prompts.")
    answers = _speak(loaded, read, texts, tokens, top, ask, system)
    rows = [
        [row.prompt, _cell(row.base), _cell(row.edited), "yes" if row.changed else "no"]
        for row in answers
    ]
    out.print(table(f"{model}, {patch}", ["prompt", "base", "edited", "changed"], rows))
    changed = sum(row.changed for row in answers)
    out.print(f"{changed} of {len(answers)} continuations changed.")
    write_json(
        json,
        {
            "model": model,
            "patch": patch,
            "prompts": [
                {
                    "prompt": row.prompt,
                    "changed": row.changed,
                    "base": _described(row.base),
                    "edited": _described(row.edited),
                }
                for row in answers
            ],
        },
    )


def chat(
    model: choices.Model,
    patch: PatchSource,
    tokens: Tokens = 24,
    top: Top = 3,
    ask: Ask = "plain",
    system: System = None,
    revision: choices.Revision = None,
    dtype: choices.Dtype = "float32",
    device: choices.Device = "cpu",
) -> None:
    """Type the beginning of a text; the model goes on with and without a patch.

    Texts are taken as they are: facts are written where plain text reads them. With --ask chat each
    is a message of its own in the model's chat template. An empty line, Ctrl-D or Ctrl-C ends it.
    """
    source = ModelChoice(name=model, revision=revision, dtype=dtype, device=device)
    loaded, read = _load(source, patch)
    _check(loaded, ask, system)
    typed = sys.stdin.isatty()
    if typed:
        out.print("Begin a text, as in 'The capital of France is'. An empty line ends.")
    while text := _next_line(typed):
        try:
            (row,) = _speak(loaded, read, [text], tokens, top, ask, system)
        except RetconError as error:
            out.print(f"[yellow]{escape(visible(str(error)))}[/]", soft_wrap=True)
            continue
        sides = [["base", _cell(row.base)], ["edited", _cell(row.edited)]]
        out.print(table(text if not typed else "", ["", "goes on"], sides))


def _next_line(typed: bool) -> str:
    """Read what the user types, or the next line of a pipe; empty at the end."""
    try:
        line = Prompt.ask("[bold]>[/]", console=out) if typed else sys.stdin.readline()
    except (EOFError, KeyboardInterrupt):
        return ""
    return line.strip()


def _load(source: ModelChoice, patch: str) -> "tuple[ModelHandle, Patch]":
    from retcon.patch.ledger import read_source

    # The patch first: a damaged one should not cost the loading of a model.
    read = read_source(patch)
    with bars() as progress:
        model = source.load(progress)
    read.check(model)
    return model, read


def _check(model: "ModelHandle", ask: str, system: str | None) -> None:
    """Refuse a way of asking that this model does not have, before anything is typed."""
    from retcon.run.compare import posed

    posed(model.tokens, ["Who?"], ask, system)


def _speak(
    model: "ModelHandle",
    patch: "Patch",
    texts: Sequence[str],
    tokens: int,
    top: int,
    ask: str,
    system: str | None,
) -> "list[Beside]":
    from retcon.run.compare import side_by_side

    return side_by_side(model, patch, texts, tokens=tokens, top=top, ask=ask, system=system)


def _cell(side: "Said") -> str:
    """The continuation on one line, and the next tokens below it."""
    top = "  ".join(f"{a.text or '␣'} {100 * a.probability:.0f} %" for a in side.top)
    return f"{' '.join(side.text.split())}\n{top}"


def _described(side: "Said") -> dict[str, object]:
    return {"text": side.text, "top": [answer._asdict() for answer in side.top]}


def _lines(file: Path) -> list[str]:
    from retcon.data.text import read_lines

    lines = [line.strip() for line in read_lines(file) if line.strip()]
    if not lines:
        raise InvalidData(f"{file} holds no prompts. Write one a line.")
    return lines
