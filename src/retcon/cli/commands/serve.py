"""`retcon serve`: an edited model, and its base, behind OpenAI's protocol, for trying."""

from typing import Annotated

import typer

from retcon.cli import choices
from retcon.cli.commands.compare import PatchSource
from retcon.cli.console import Interrupted, bars, out, quiet_libraries
from retcon.files import cache_folder, make_folder, workplace

Port = Annotated[int, typer.Option(help="Of 127.0.0.1.", min=1, max=65535)]


def serve(
    model: choices.Model,
    patch: PatchSource,
    port: Port = 8000,
    revision: choices.Revision = None,
    dtype: choices.Dtype = "float32",
) -> None:
    """Serve a model with a patch, and without it, on this machine alone, until Ctrl-C.

    Clients of OpenAI's protocol find both at http://127.0.0.1:PORT/v1, as the models `edited` and
    `base`, both in --dtype. The server is `transformers serve`. It is for trying; to serve many,
    export the patch.
    """
    from retcon.patch.ledger import read_source
    from retcon.run.serving import (
        BASE,
        EDITED,
        HOST,
        check_server,
        lay_out,
        serve_folder,
    )

    check_server(port)
    quiet_libraries()
    read = read_source(patch)
    with workplace(make_folder(cache_folder())) as folder:
        with bars() as progress:
            lay_out(folder, model, read, revision=revision, dtype=dtype, progress=progress)
        out.print(
            f"Serving the models `{EDITED}` and `{BASE}` at http://{HOST}:{port}/v1. Ctrl-C ends.",
            soft_wrap=True,
        )
        try:
            raise typer.Exit(serve_folder(folder, port, dtype))
        except KeyboardInterrupt as stop:
            raise Interrupted("Nothing is served any more.") from stop
