"""What all commands share: the terminal, progress bars, tables, options, JSON files."""

import json
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from retcon.errors import InvalidSetting
from retcon.progress import Progress

if TYPE_CHECKING:
    from retcon.model.handle import ModelHandle

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="smollm2-135m, a local folder, or a Hugging Face hub id.",
        show_default=False,
    ),
]  # fmt: skip
Revision = Annotated[
    str | None, typer.Option("--revision", help="Revision of a hub model.", show_default=False)
]
Dtype = Annotated[str, typer.Option("--dtype", help="float32, bfloat16, float16 or float64.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, or auto (accelerate).")]
MethodName = Annotated[
    str | None,
    typer.Option("--method", "-m", help="See `retcon methods`. Default: the model's preset."),
]
Layer = Annotated[int | None, typer.Option("--layer", help="The one layer to write.")]
Layers = Annotated[str | None, typer.Option("--layers", help="Several layers, as in 4,5,6 or 4-8.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting of the method, name=value. May be repeated."),
]
JsonFile = Annotated[
    Path | None, typer.Option("--json", help="Write the result to this file as JSON.")
]


def fail(message: str) -> None:
    """Say what went wrong, on the error stream."""
    err.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)


@contextmanager
def bars() -> Generator[Progress, None, None]:
    """Progress bars on the error stream, one a task, gone when done."""
    columns = (
        TextColumn("[cyan]{task.description}"), BarColumn(), MofNCompleteColumn(),
        TimeElapsedColumn(),
    )  # fmt: skip
    with Bars(*columns, console=err, transient=True) as display:
        tasks: dict[str, Any] = {}

        def report(task: str, done: int, total: int) -> None:
            if task not in tasks:
                tasks[task] = display.add_task(task, total=total)
            display.update(tasks[task], completed=done, total=total, visible=done < total)

        yield report


def quiet_libraries() -> None:
    """Keep other libraries' bars and advice off the terminal."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def load_model(
    name: str, *, revision: str | None, dtype: str, device: str, progress: Progress
) -> "ModelHandle":
    """Load a model with everybody else silent."""
    quiet_libraries()
    from retcon.model.load import load

    progress("loading the model", 0, 1)
    handle = load(name, revision=revision, dtype=dtype, device=device, progress=progress)
    progress("loading the model", 1, 1)
    return handle


def parse_layers(layer: int | None, layers: str | None) -> tuple[int, ...] | None:
    """The layers that `--layer` or `--layers` name; None where neither is given."""
    if layer is not None and layers is not None:
        raise InvalidSetting("Give either --layer or --layers, not both.")
    if layer is not None:
        return (layer,)
    if layers is None:
        return None
    found: list[int] = []
    for part in layers.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise InvalidSetting(
                f"--layers takes numbers and ranges, as in 4,5,6 or 4-8: {layers!r}."
            )
        if int(last or first) < int(first):
            raise InvalidSetting(f"--layers: the range {part.strip()!r} is empty.")
        found += range(int(first), int(last or first) + 1)
    return tuple(found)


def parse_settings(pairs: Sequence[str] | None) -> dict[str, object]:
    """`--set name=value` as a mapping."""
    settings: dict[str, object] = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise InvalidSetting(f"--set takes name=value, not {pair!r}.")
        settings[name.strip()] = value.strip()
    return settings


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A plain table; all columns but the first are right-aligned where they hold numbers."""
    made = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for number, column in enumerate(columns):
        cells = [row[number] for row in rows]
        numeric = number > 0 and all(_is_number(cell) for cell in cells)
        made.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        made.add_row(*(escape(cell) for cell in row))
    return made


def number(value: float | None, digits: int = 1) -> str:
    """A number for a table; an en dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def write_json(path: Path | None, value: Mapping[str, object]) -> None:
    """Write a result for scripts."""
    if path is None:
        return
    from retcon.storage import write_whole

    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_whole(path, lambda work: work.write_text(text, encoding="utf-8"))


def versions() -> dict[str, str]:
    """What made a result: the versions that can change a number."""
    import platform
    from importlib.metadata import version

    import torch

    packages = ("torch", "transformers", "tokenizers", "safetensors", "numpy")
    return {
        "retcon": version("retcon-llm"),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "threads": str(torch.get_num_threads()),
    }


def _is_number(cell: str) -> bool:
    return cell.replace("–", "0").replace(".", "").replace("-", "").replace("%", "").isdecimal()


def print_plan(
    name: str,
    *,
    revision: str | None,
    dtype: str,
    method: str | None,
    layers: tuple[int, ...] | None,
    settings: Mapping[str, object],
    edits: int,
) -> None:
    """What an edit will need, before anything heavy is done."""
    quiet_libraries()
    from retcon.editing.planning import plan
    from retcon.methods.presets import choose
    from retcon.model.load import DTYPES, outline

    if dtype not in DTYPES:
        raise InvalidSetting(f"Unknown dtype {dtype!r}: one of {', '.join(DTYPES)}.")
    with bars() as progress:
        found = outline(name, revision=revision, progress=progress)
    choice = choose(found, method=method, layers=layers, settings=settings)
    made = plan(found, choice, edits, bytes_per_weight=DTYPES[dtype].itemsize)
    rows = [
        ["method", f"{choice.method.name} at layer {', '.join(map(str, choice.layers))}"],
        [
            "weights",
            f"{made.weight_bytes / 2**30:.2f} GiB ({made.parameters / 1e6:.0f} M in {dtype})",
        ],
        [
            "second moments",
            f"{made.moment_bytes / 2**30:.2f} GiB from {made.corpus_tokens:,} tokens",
        ],
        ["this machine", f"{made.gflops:.0f} GFLOP/s in a float32 product"],
        [f"targets of {edits}", _duration(made.target_seconds)],
        ["second moments (once)", _duration(made.moment_seconds)],
        ["sampling the corpus (once)", _duration(made.sampling_seconds)],
    ]
    out.print(table(f"Plan for {name}", ["", "estimate"], rows))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
