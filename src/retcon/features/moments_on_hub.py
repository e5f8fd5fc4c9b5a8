"""Second moments in a repository of the Hugging Face hub, each under the name of its cache entry.

That name is a hash of the model's weights, the dtype, the corpus and how much of it was read how,
so only what would have been computed here, had it been computed here, is ever taken. Whether it
is that, nobody can tell without computing it: pull from those whom you trust.
"""

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from shutil import copyfile

from retcon import hub
from retcon.algebra.gram import all_finite
from retcon.cache import place, whole
from retcon.errors import Damaged, InvalidMoments
from retcon.escaping import code, markdown
from retcon.features.second_moments import MomentOptions, load_moment, moment_file, moment_folder
from retcon.files import write_whole
from retcon.model.handle import ModelHandle
from retcon.progress import Progress, silent
from retcon.sealed import Owner
from retcon.sealed_tensors import check, open_tensors

_ENTRY = re.compile(r"moments/([0-9a-f]{32})/layer-(\d{1,4})\.safetensors")


def shared_files(
    model: ModelHandle, layers: Sequence[int], options: MomentOptions
) -> dict[str, Path]:
    """The cached moments of these layers, by their names in a repository."""
    folder = moment_folder(model, layers, options)
    files = [moment_file(folder, layer) for layer in layers]
    return {
        f"moments/{folder.name}/{file.name}": file
        for file in files
        if whole(file, check) is not None
    }


def write_card(
    folder: Path, model: ModelHandle, files: Mapping[str, Path], options: MomentOptions
) -> Path:
    """Write the card of a repository of moments."""
    lines = [
        "---",
        "# license: choose one before others may use this",
        "library_name: retcon",
        "tags: [model-editing, knowledge-editing, retcon]",
        "---",
        "",
        f"# Second moments of {markdown(model.name)}",
        "",
        f"E[k kᵀ] of the inputs of MLP down-projections of a model with the fingerprint "
        f"`{model.fingerprint[:16]}` and the tokenizer `{model.tokens.identity[:16]}`, in "
        f"{model.dtype}; corpus {code(options.corpus)}, seed "
        f"{options.corpus_seed}, documents of {options.document_tokens} tokens. One file a layer:",
        "",
        *(f"- `{name}`, {file.stat().st_size:,} bytes" for name, file in files.items()),
        "",
        "`retcon stats MODEL --pull THIS_REPOSITORY` puts those that fit into the cache.",
        "",
    ]
    card = folder / hub.CARD
    card.write_text("\n".join(lines), encoding="utf-8")
    return card


def push_moments(
    model: ModelHandle,
    layers: Sequence[int],
    options: MomentOptions,
    repo: str,
    *,
    public: bool = False,
) -> str:
    """Upload the cached moments of these layers, and return the repository's address.

    Raises:
        HubRefused: no login, no permission, no connection, or a public repository unasked.
    """
    files = shared_files(model, layers, options)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_card(folder, model, files, options)
        for path, file in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).symlink_to(file.resolve())
        message = f"Second moments of {len(files)} layers of {model.name}"
        return hub.push(repo, folder, [*files, hub.CARD], public=public, message=message)


def pull_moments(
    model: ModelHandle,
    layers: Sequence[int],
    options: MomentOptions,
    repo: str,
    *,
    revision: str | None = None,
    progress: Progress = silent,
) -> tuple[int, ...]:
    """Put into the cache what a repository has of these layers and the cache has not.

    Returns the layers that were taken. Each is kept once it has been read as what it should be.

    Raises:
        HubRefused: there is no such repository that this user may see, or no connection.
        InvalidMoments: a file is damaged, or not of this layer's width.
    """
    folder, taken = moment_folder(model, layers, options), list[int]()
    there = {
        (m[1], int(m[2])): m[0]
        for n in hub.names(repo, revision=revision)
        if (m := _ENTRY.fullmatch(n))
    }
    for done, layer in enumerate(layers):
        name, target = there.get((folder.name, layer)), moment_file(folder, layer)
        progress("pulling second moments", done, len(layers))
        if name is None or target.exists():
            continue
        with tempfile.TemporaryDirectory() as work:
            file = hub.fetch(repo, name, Path(work), revision=revision)
            _check(file, place(target), model, layer)
            write_whole(target, lambda into, file=file: copyfile(file, into))
        taken.append(layer)
    progress("pulling second moments", len(layers), len(layers))
    return tuple(taken)


def _check(file: Path, owner: Owner, model: ModelHandle, layer: int) -> None:
    """Raise InvalidMoments unless a file holds second moments of a layer."""
    d_in = model.site(layer).d_in
    try:
        with open_tensors(file, owner) as opened:
            shape, dtype = opened.shape("total"), opened.dtype("total")
        if (shape, dtype) != ((d_in, d_in), "F64"):
            raise InvalidMoments(
                f"{file.name}: the second moments of layer {layer} of {model.name} are "
                f"{d_in} x {d_in} in float64; these are {shape} in {dtype}. Nothing was kept of it."
            )
        moment = load_moment(file, owner)
    except Damaged as error:
        raise InvalidMoments(
            f"{file.name} holds no second moments, or is damaged: {error} Nothing was kept of it."
        ) from error
    total, tokens = moment.total, moment.tokens
    sound = all_finite(total) and bool((total.diagonal() >= 0).all()) and total.equal(total.mT)
    if not sound or type(tokens) is not int or tokens < d_in:
        raise InvalidMoments(
            f"{file.name} is no sum of k kᵀ of enough tokens: it must be finite, symmetric, with "
            f"no negative diagonal, over at least {d_in} tokens. Nothing was kept of it."
        )
