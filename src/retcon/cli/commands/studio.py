"""`retcon studio`."""

import re
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from retcon.cli import choices
from retcon.cli.choices import EditChoice, ModelChoice, login
from retcon.cli.console import Interrupted, bars, fail, out, quiet_libraries, warn
from retcon.errors import InvalidSetting, RetconError

if TYPE_CHECKING:
    from retcon.model.handle import ModelHandle
    from retcon.progress import Progress

Source = Annotated[
    str,
    typer.Argument(
        metavar="MODEL|STUDY", help="A model, as of `retcon edit`, or the folder of a study."
    ),
]
Folder = Annotated[
    Path | None,
    typer.Option(
        "--ledger", help="Where facts are kept.", show_default="ledger-MODEL, in this folder"
    ),
]
Bundled = Annotated[
    Path | None,
    typer.Option(
        "--bundle", metavar="DIR", help="Write the pages of STUDY into a new folder, and end."
    ),
]
DataFolder = Annotated[
    Path | None,
    typer.Option("--data", help="Where the facts of STUDY are. Default: RETCON_DATA, or in STUDY."),
]
Host = Annotated[str, typer.Option("--host", help="The address to answer on.")]
Port = Annotated[
    int | None,
    typer.Option("--port", min=1, max=65535, help="The port.", show_default="8765, or a free one"),
]


# Values of options that were not given, where that is not None.
_DEFAULTS = {"dtype": "float32", "device": "cpu", "host": "127.0.0.1"}


def studio(
    source: Source = "smollm2-135m",
    ledger: Folder = None,
    method: choices.Method = None,
    layer: choices.Layer = None,
    layers: choices.Layers = None,
    set: choices.Set = None,
    bundled: Bundled = None,
    data: DataFolder = None,
    host: Host = "127.0.0.1",
    port: Port = None,
    revision: choices.Revision = None,
    dtype: choices.Dtype = "float32",
    device: choices.Device = "cpu",
) -> None:
    """Open pages in the browser: edit a model and keep its facts, or look through a study.

    They are served on this machine alone, unless --host says otherwise, until Ctrl-C.
    """
    of_model = {
        **{"ledger": ledger, "method": method, "layer": layer, "layers": layers, "set": set},
        **{"revision": revision, "dtype": dtype, "device": device},
    }
    if bundled is not None:
        served = {"host": host, "port": port}
        _refuse({**of_model, **served}, "--bundle writes the pages of a study, and ends")
        write_bundle(Path(source), bundled, data)
        return
    from retcon.studio.drawing import need_extra

    need_extra()
    if _holds_study(Path(source)):
        _refuse(of_model, f"{source} is a study, of which no model is loaded")
        serve_study(Path(source), data, host, port)
        return
    _refuse({"data": data}, f"{source} is a model, and holds no study")
    choice = EditChoice.parse(method, layer, layers, set, None)
    named = ModelChoice(name=source, revision=revision, dtype=dtype, device=device)
    folder = ledger or Path(f"ledger-{_plain(source)}")
    with _told(host, port, "read and edit here") as listening:
        # A browser that comes before all is imported waits for its answer.
        quiet_libraries()
        from retcon.studio.app import application
        from retcon.studio.bench import Bench, Editing
        from retcon.studio.editing import edit_routes
        from retcon.studio.server import serve
        from retcon.studio.stacking import stack_routes

        how = Editing(method=choice.method, layers=choice.layers, settings=choice.settings)
        bench = Bench(
            source, loading(named, choice), folder, who=login(), editing=how, revision=revision
        )
        bench.ledger.check_place()
        bench.start()
        try:
            serve(application([*edit_routes(bench), *stack_routes(bench)], "/edit"), listening)
        except KeyboardInterrupt as stop:
            kept = f"The facts are kept in {folder}." if bench.begun else "No fact was written."
            raise Interrupted(kept) from stop
        finally:
            bench.jobs.end()


def _holds_study(source: Path) -> bool:
    """True of a study's folder or pack; of a name that is no path nothing is imported to tell."""
    if not source.exists():
        return False
    from retcon.study.study import holds_study

    return holds_study(source)


def _refuse(options: Mapping[str, object], why: str) -> None:
    """Raise InvalidSetting if an option was given that would do nothing."""
    for name, value in options.items():
        if value != _DEFAULTS.get(name):
            raise InvalidSetting(f"--{name} does nothing here: {why}. Leave it out.")


def serve_study(study: Path, data: Path | None, host: str, port: int | None) -> None:
    """Serve the pages of a study until Ctrl-C."""
    from retcon.studio.app import application
    from retcon.studio.browse import study_routes
    from retcon.studio.server import serve

    app = application(study_routes(study, data=data), "/study/index.html")
    with _told(host, port, "read the study here") as listening:
        try:
            serve(app, listening)
        except KeyboardInterrupt as stop:
            raise Interrupted(f"{study} is as it was.") from stop


@contextmanager
def _told(host: str, port: int | None, can: str) -> Generator[socket, None, None]:
    """A socket that listens; says where, and warns where others can reach it."""
    from retcon.studio.server import address, bound, open_to_others

    with bound(host, port) as listening:
        if open_to_others(listening):
            warn(f"Everybody who can reach {host} can {can}: there is no password.")
        out.print(f"Retcon studio: {address(listening)} (Ctrl-C ends it)", soft_wrap=True)
        yield listening


def loading(named: ModelChoice, choice: EditChoice) -> Callable[["Progress"], "ModelHandle"]:
    """Load a model, and say on the terminal, too, why it cannot be loaded or edited so."""

    def load(progress: "Progress") -> "ModelHandle":
        from retcon.method.presets import resolve

        try:
            model = named.load(progress)
            method, layers, settings = choice.method, choice.layers, choice.settings
            resolve(model.outline, method=method, layers=layers, settings=settings)
            return model
        except RetconError as error:
            fail(str(error))
            raise

    return load


def _plain(source: str) -> str:
    """Name of a model, as part of a folder's name."""
    name = Path(source).name if Path(source).name.strip(".") else Path(source).resolve().name
    return re.sub(r"[^A-Za-z0-9.]+", "-", name)


def write_bundle(study: Path, folder: Path, data: Path | None) -> None:
    """Write the pages of a study, and say where they are.

    Raises:
        InvalidSetting: there is no study to write pages of.
    """
    from retcon.study.study import holds_study

    if not holds_study(study):
        raise InvalidSetting(
            f"--bundle writes the pages of a study, and {study} holds none. Give the folder of a "
            f"study, as `retcon studio STUDY --bundle {folder}`."
        )
    with bars() as progress:
        from retcon.studio.browse import bundle

        written = bundle(study, folder, data=data, progress=progress)
    out.print(
        f"Wrote [bold]{escape(str(written.index))}[/]: {written.files:,} files, "
        f"{written.bytes / 1e6:.1f} MB. It opens in any browser, without a server.",
        soft_wrap=True,
    )
