"""Everything of the surroundings that can change a number: it stands in every record."""

import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

from retcon import __version__


def environment() -> dict[str, object]:
    """Versions, threads, the machine's kind, and the commit where it is known."""
    import torch  # by then it is there; a command that computes nothing should not wait for it

    packages = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "polars")
    commit = _commit()
    return {
        "retcon": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        **({"commit": commit} if commit else {}),
    }


@cache
def _commit() -> str | None:
    """The commit of the code, where it is run from a checkout; `-dirty` where it was changed."""
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():
        return None
    ask = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
