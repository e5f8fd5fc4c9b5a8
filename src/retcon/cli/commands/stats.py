"""`retcon stats`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from retcon.cli import choices
from retcon.cli.choices import ModelChoice, parse_layers, parse_settings
from retcon.cli.console import bars, number, out, print_files, table, write_json
from retcon.errors import InvalidSetting
from retcon.files import check_writable

if TYPE_CHECKING:
    from retcon.features.second_moments import MomentOptions, SecondMoment
    from retcon.model.handle import ModelHandle


def stats(
    model: choices.Model,
    layer: choices.Layer = None,
    layers: choices.Layers = None,
    set: choices.Set = None,
    revision: choices.Revision = None,
    dtype: choices.Dtype = "float32",
    device: choices.Device = "cpu",
    pull: Annotated[
        str | None,
        typer.Option(
            metavar="REPO", help="First take what this hub repository has.", show_default=False
        ),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(metavar="REPO", help="Upload them there afterwards.", show_default=False),
    ] = None,
    public: choices.Public = False,
    dry_run: choices.DryRun = False,
    json: choices.Json = None,
) -> None:
    """Collect the second moments of some layers (all, if none is named) in one pass; cache them."""
    source = ModelChoice(name=model, revision=revision, dtype=dtype, device=device)
    chosen, settings = parse_layers(layer, layers), parse_settings(set)
    if push is None and (public or dry_run):
        raise InvalidSetting("--public and --dry-run are of uploads: say --push REPO.")
    check_writable(json)
    with bars() as progress:
        handle = source.load(progress)
        from retcon.features.moments_on_hub import pull_moments
        from retcon.features.second_moments import MomentOptions, describe, load_moments
        from retcon.method.entries import options_from

        moment_options = options_from(MomentOptions(), settings)
        wanted = chosen if chosen is not None else tuple(sorted(handle.architecture.sites))
        if pull is not None:
            taken = pull_moments(handle, wanted, moment_options, pull, progress=progress)
            said = ", ".join(map(str, taken)) or "none that was missing"
            out.print(f"Layers taken from {escape(pull)}: {said}.", soft_wrap=True)
        rows: list[list[str]] = []
        tokens: dict[int, int] = {}
        # One matrix at a time: all of a large model's would not fit.
        for k, moment in load_moments(handle, wanted, moment_options, progress):
            tokens[k] = moment.tokens
            rows.append([str(k), *_row(moment, moment_options.jitter)])
    columns = ["layer", "tokens", "tokens / d_in", "mean diagonal", "smallest pivot"]
    out.print(table(f"Second moments of {model} on {moment_options.corpus}", columns, rows))
    if push is not None:
        _push(handle, wanted, moment_options, push, public=public, dry_run=dry_run)
    write_json(
        json,
        {"model": model, "fingerprint": handle.fingerprint, **describe(moment_options, tokens)},
    )


def _row(moment: "SecondMoment", jitter: float) -> list[str]:
    """Figures of a layer's moments; their memory is the factor's afterwards."""
    from retcon.algebra.whitening import Cholesky

    mean = moment.into_mean()
    diagonal = float(mean.diagonal().mean())
    factor = Cholesky.of(mean, jitter=jitter, overwrite=True)
    return [
        str(moment.tokens),
        number(moment.tokens / factor.width),
        f"{diagonal:.3g}",
        f"{float(factor.factor.diagonal().min() ** 2):.2g}",
    ]


def _push(
    handle: "ModelHandle",
    layers: Sequence[int],
    chosen: "MomentOptions",
    repo: str,
    *,
    public: bool,
    dry_run: bool,
) -> None:
    import tempfile
    from pathlib import Path

    from retcon.features.moments_on_hub import push_moments, shared_files, write_card

    files = shared_files(handle, layers, chosen)
    with tempfile.TemporaryDirectory() as folder:
        card = write_card(Path(folder), handle, files, chosen).stat().st_size
    sizes = {name: file.stat().st_size for name, file in files.items()} | {"README.md": card}
    print_files(sizes, repo, public=public, dry_run=dry_run)
    if not dry_run:
        address = push_moments(handle, layers, chosen, repo, public=public)
        out.print(f"Uploaded: {escape(address)}", soft_wrap=True)
