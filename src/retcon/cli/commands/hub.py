"""`retcon patch push` and `retcon patch pull`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from retcon.cli import choices
from retcon.cli.console import out, print_files, quiet_libraries, warn
from retcon.errors import StorageError
from retcon.files import check_writable

Repo = Annotated[
    str, typer.Argument(metavar="REPO", help="OWNER/NAME on the hub.", show_default=False)
]


def push(
    source: choices.Source,
    repo: Repo,
    public: choices.Public = False,
    dry_run: choices.DryRun = False,
) -> None:
    """Upload a patch and a card to the Hugging Face hub, into a private repository.

    The card and the patch hold the facts, the settings, and the name of the base model as it was
    given. --dry-run shows what would go, and asks nothing of the hub.
    """
    import tempfile

    from retcon.patch.ledger import read_source
    from retcon.patch.patch_on_hub import push_patch, write_repository

    quiet_libraries()
    patch = read_source(source)
    if patch.about.model.startswith(("/", "~", ".")):
        warn(
            f"The patch names its base model {patch.about.model!r}, a folder of this machine, and "
            f"so do the card and the file's header."
        )
    with tempfile.TemporaryDirectory() as folder:
        files = write_repository(Path(folder), patch, repo)
    print_files(files, repo, public=public, dry_run=dry_run)
    if not dry_run:
        out.print(f"Uploaded: {escape(push_patch(patch, repo, public=public))}", soft_wrap=True)


def pull(
    repo: Repo,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Save it here.", show_default="NAME.safetensors"),
    ] = None,
    revision: choices.Revision = None,
) -> None:
    """Download a patch from the hub, and keep it if it is one."""
    from retcon.patch.patch_on_hub import pull_patch

    quiet_libraries()
    target = output or Path(f"{repo.rpartition('/')[2]}.safetensors")
    if output is None and target.exists():
        raise StorageError(f"{target} exists already. Say with -o where the patch should go.")
    check_writable(target)
    about = pull_patch(repo, target, revision=revision).about
    out.print(
        f"Saved [bold]{escape(str(target))}[/]: {len(about.edits)} facts on "
        f"{escape(about.model)} (fingerprint {about.base[:16]}…), by {escape(about.method)}.",
        soft_wrap=True,
    )
