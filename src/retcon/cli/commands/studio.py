"""`retcon studio`."""

from typing import Annotated

import typer

from retcon.cli.console import out, warn

Source = Annotated[
    str,
    typer.Argument(
        metavar="MODEL|STUDY", help="A model, as of `retcon edit`, or the folder of a study."
    ),
]
Host = Annotated[str, typer.Option("--host", help="The address to answer on.")]
Port = Annotated[
    int | None,
    typer.Option("--port", min=1, max=65535, help="The port.", show_default="8765, or a free one"),
]


def studio(
    source: Source = "smollm2-135m",
    host: Host = "127.0.0.1",
    port: Port = None,
) -> None:
    """Open pages in the browser: edit a model and keep its facts, or look through a study.

    They are served on this machine alone, unless --host says otherwise, until Ctrl-C.
    """
    from retcon.studio.drawing import need_extra

    need_extra()
    from retcon.studio.app import application
    from retcon.studio.serving import address, bound, open_to_others, serve

    with bound(host, port) as listening:
        if open_to_others(listening):
            warn(f"Everybody who can reach {host} can read and edit here: there is no password.")
        out.print(f"Retcon studio: {address(listening)} (Ctrl-C ends it)", soft_wrap=True)
        serve(application([], "/edit"), listening)
