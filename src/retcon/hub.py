"""Upload and download files of the Hugging Face hub: only on request, and private by default."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from retcon.errors import HubRefused

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CARD = "README.md"


def push(repo: str, folder: Path, files: Sequence[str], *, public: bool, message: str) -> str:
    """Upload these files of a folder, in one commit, and return the repository's address.

    The repository is made if there is none, private unless `public`. A card that it has already
    stays: its owner may have written into it, a licence for one.

    Raises:
        HubRefused: no login, no permission, no connection; or the repository is public and
            `public` was not said.
    """
    with _talking(repo) as api:
        created = api.create_repo(repo, private=not public, exist_ok=True)
        if not public and not api.repo_info(created.repo_id).private:
            raise HubRefused(
                f"{repo} is public, and nothing is published unasked. Nothing was uploaded. Say "
                f"--public, or name another repository."
            )
        there = {CARD} & set(api.list_repo_files(created.repo_id))
        uploaded = [name for name in files if name not in there]
        api.upload_folder(
            repo_id=created.repo_id,
            folder_path=folder,
            allow_patterns=uploaded,
            commit_message=message,
        )
    return str(created)


def names(repo: str, *, revision: str | None = None) -> list[str]:
    """The files of a repository.

    Raises:
        HubRefused: there is none that this user may see, or no connection.
    """
    with _talking(repo) as api:
        return list(api.list_repo_files(repo, revision=revision))


def fetch(repo: str, name: str, folder: Path, *, revision: str | None = None) -> Path:
    """Download one file into a folder of the caller's; it is not looked at.

    Raises:
        HubRefused: there is no such file that this user may see, or no connection.
    """
    with _talking(repo) as api:
        found = api.hf_hub_download(repo, name, revision=revision, local_dir=folder)
    assert isinstance(found, str)
    return Path(found)


@contextmanager
def _talking(repo: str) -> Generator["HfApi", None, None]:
    """The hub's client; what it raises, as one error that says what to do."""
    from huggingface_hub import HfApi

    # Of the client that this version of the package uses; versions differ in which.
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

    try:
        yield HfApi()
    except (HTTPError, OSError, ValueError) as error:
        lines = str(error).strip().splitlines()
        raise HubRefused(
            f"The hub did not do what was asked of {repo!r}: "
            f"{lines[0] if lines else type(error).__name__} Is the name OWNER/NAME right, are you "
            f"logged in (hf auth login), and is there a connection?"
        ) from error
