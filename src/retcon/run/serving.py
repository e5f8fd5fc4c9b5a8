"""Serve a model with and without a patch by `transformers serve`: OpenAI's protocol, on loopback.

The server runs in a folder in which both are, and a request names the one that it means:

    edited   a checkpoint of its own, with the patch in its weights
    base     a link to the model's own folder

An adapter is not served as such: `transformers serve` takes whole models.
"""

import os
import subprocess
import sys
from pathlib import Path
from socket import SO_REUSEADDR, SOL_SOCKET, socket

from transformers.utils.import_utils import is_serve_available

from retcon.errors import InvalidSetting, MissingExtra
from retcon.files import make_folder
from retcon.model.load import checkpoint_folder
from retcon.patch.patch import Patch
from retcon.progress import Progress, silent

EDITED, BASE = "edited", "base"
HOST = "127.0.0.1"


def check_server(port: int) -> None:
    """Refuse to serve, before any work is done, where it cannot be.

    Raises:
        MissingExtra: the packages that it needs are not installed.
        InvalidSetting: the port is taken.
    """
    if not is_serve_available():
        raise MissingExtra(
            "Serving is done by `transformers serve`, which needs packages of its own: "
            "pip install 'retcon-llm[serve]'."
        )
    with socket() as trying:
        trying.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        try:
            trying.bind((HOST, port))
        except OSError as error:
            raise InvalidSetting(
                f"Port {port} of this machine cannot be taken ({error.strerror or error}). Is "
                f"something served there already? Give another --port."
            ) from error


def lay_out(
    folder: Path,
    model: str,
    patch: Patch,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    progress: Progress = silent,
) -> None:
    """Put an edited model and its base into a folder, under the names of requests.

    Args:
        model: the base, by name or folder.
        patch: what is merged into it.
        dtype: in which the edit is merged; in half precision a part of it is lost.
        progress: is told how far merging is.

    Raises:
        PatchMismatch, NotExportable, StorageError: as `Patch.export`.
    """
    patch.export(
        "merged", folder / EDITED, model=model, revision=revision, progress=progress, dtype=dtype
    )
    own = checkpoint_folder(model, revision=revision, progress=progress)
    (folder / BASE).symlink_to(own.resolve(), target_is_directory=True)


def serve_folder(folder: Path, port: int, dtype: str = "float32") -> int:
    """Serve the models of a folder, and no others, until the server ends; its exit code.

    Both have one dtype, so that they differ by the edit alone.
    """
    hub = make_folder(folder / "hub")
    environment = {**os.environ, "HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command(port, dtype), cwd=folder, env=environment, check=False).returncode


def command(port: int, dtype: str = "float32") -> list[str]:
    """The command line of the server, which finds models by the folder that it runs in."""
    program = [sys.executable, "-m", "transformers.cli.transformers", "serve"]
    return [*program, "--dtype", dtype, "--host", HOST, "--port", str(port)]
