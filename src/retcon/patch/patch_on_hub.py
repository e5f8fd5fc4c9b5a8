"""A patch in a repository of the Hugging Face hub: one file and its card."""

import tempfile
from pathlib import Path
from shutil import copyfile

from retcon import hub
from retcon.files import write_whole
from retcon.patch.export.card import write_card
from retcon.patch.patch import Patch, load_patch

FILE = "patch.safetensors"
# A licence is for the owner of the facts to choose; the hub shows none until this line says one.
_LICENCE = "# license: choose one before others may use this"


def write_repository(folder: Path, patch: Patch, repo: str) -> dict[str, int]:
    """Write into a folder what `push` uploads: names and sizes in bytes."""
    patch.save(folder / FILE)
    use = [
        "import retcon",
        "from huggingface_hub import hf_hub_download",
        "",
        f"model = retcon.load({patch.about.model!r})",
        f'patch = retcon.load_patch(hf_hub_download({repo!r}, "{FILE}"))',
        "with patch.applied(model):",
        "    ...",
    ]
    write_card(folder, patch, relation="adapter", library="retcon", use=use, remark=_LICENCE)
    return {name: (folder / name).stat().st_size for name in (FILE, hub.CARD)}


def push_patch(patch: Patch, repo: str, *, public: bool = False) -> str:
    """Upload a patch and its card, and return the repository's address.

    Raises:
        HubRefused: no login, no permission, no connection, or a public repository unasked.
    """
    with tempfile.TemporaryDirectory() as name:
        files = write_repository(Path(name), patch, repo)
        facts = len(patch.about.edits)
        message = f"Patch of {facts} fact{'' if facts == 1 else 's'} on {patch.about.model}"
        return hub.push(repo, Path(name), list(files), public=public, message=message)


def pull_patch(repo: str, target: Path, *, revision: str | None = None) -> Patch:
    """Download a patch, and keep it in `target` once it has been read as one.

    Raises:
        HubRefused: there is none that this user may see, or no connection.
        InvalidPatch: what is there is no patch; nothing is kept.
    """
    with tempfile.TemporaryDirectory() as name:
        file = hub.fetch(repo, FILE, Path(name), revision=revision)
        patch = load_patch(file)
        write_whole(target, lambda work: copyfile(file, work))
    return patch
