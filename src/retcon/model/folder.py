"""Check a model's folder before any library reads it: no code, no adapter, no odd numbers.

Only JSON is read here. What is refused is refused whatever a library would make of it: code that
a folder brings may be the model, so that a class of the same name without it would be another.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retcon.errors import ModelNotFound, UnsupportedModel

CONFIG = "config.json"
_ADAPTER = "adapter_config.json"
# What decides which program computes the tokens and the model.
_DECISIVE = (CONFIG, "tokenizer_config.json")
_KERNELS = ("attn_implementation", "experts_implementation", "kernel_config")
# transformers loads such shards without saying which tensors they lack.
_DISTRIBUTED = re.compile(r"shard-\d+-model-.*\.safetensors")
# The deepest models that were ever published have a few hundred blocks, or a few hundred experts.
_MOST = 10_000
_COUNTS = re.compile(r"layers?$|depth$|blocks$|experts?$")
_LARGEST = 64 * 2**20


def check_folder(folder: Path, name: str) -> None:
    """Refuse a folder that is no plain checkpoint of a language model.

    Raises:
        ModelNotFound: there is no configuration, or it cannot be read.
        UnsupportedModel: it is an adapter, asks for code of its own or for more blocks than any
            model has, or its weights are not of a kind that can be checked.
    """
    _refuse_adapter(folder, name)
    if not (folder / CONFIG).is_file():
        raise ModelNotFound(
            f"The folder {name!r} does not hold a causal language model: it has no {CONFIG}. Give "
            f"the folder that save_pretrained has written."
        )
    for file in _DECISIVE:
        if (folder / file).is_file():
            for path, key, value in _entries(read_json(folder / file)):
                _refuse_code(name, file, key, value)
                _refuse_depth(name, file, path, key, value)
    for file in folder.glob("*.index.json"):
        _refuse_elsewhere(name, file.name, read_json(file).get("weight_map"))
    sharded = next((f.name for f in folder.iterdir() if _DISTRIBUTED.fullmatch(f.name)), None)
    if sharded is not None:
        raise UnsupportedModel(
            f"The folder {name!r} holds a distributed checkpoint ({sharded}), of which nobody says "
            f"what is missing. Load it with transformers, save it with save_pretrained, and name "
            f"that folder."
        )


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object of a model's folder.

    Raises:
        ModelNotFound: it is too large, or none.
    """
    try:
        if file.stat().st_size > _LARGEST:
            raise ValueError(f"it is larger than {_LARGEST} bytes")
        value = json.loads(file.read_bytes())
        if not isinstance(value, dict):
            raise ValueError(f"it holds {type(value).__name__}, not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise ModelNotFound(f"{file} cannot be read: {error}.") from error
    return value


def _refuse_adapter(folder: Path, name: str) -> None:
    if not (folder / _ADAPTER).is_file():
        return
    base = read_json(folder / _ADAPTER).get("base_model_name_or_path")
    raise UnsupportedModel(
        f"The folder {name!r} holds a PEFT adapter ({_ADAPTER}) of {base or 'some model'!r}, and "
        f"an edit is of a model's own weights. Edit the base model, and import the adapter beside "
        f"it (retcon patch import); or merge it first, with PEFT's merge_and_unload and "
        f"save_pretrained, and name that folder."
    )


def _entries(content: Any, path: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yield place, key and value of everything in a JSON object, nested objects included."""
    waiting = [(path, content)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, list):
            waiting += [(place, each) for each in value if isinstance(each, dict | list)]
        elif isinstance(value, dict):
            for key, each in value.items():
                yield f"{place}{key}", key, each
                waiting.append((f"{place}{key}.", each))


def _refuse_code(name: str, file: str, key: str, value: Any) -> None:
    if key == "auto_map" and value:
        raise UnsupportedModel(
            f"{name!r} comes with Python code of its own: {file} says auto_map = "
            f"{json.dumps(value)[:200]}. Retcon runs no code of a model's folder. If transformers "
            f"itself knows this architecture, copy the folder and remove auto_map there; else "
            f"load model and tokenizer yourself, in a program that you trust them in, and give "
            f"both to retcon.model.handle.ModelHandle."
        )
    if key == "transformers_weights" and value is not None:
        _refuse_elsewhere(name, file, {key: value})
    kernels = key.removeprefix("_").removesuffix("_internal") in _KERNELS
    if kernels and "/" in json.dumps(value):
        raise UnsupportedModel(
            f"{name!r} asks for code from the hub: {file} says {key} = {json.dumps(value)[:200]}. "
            f"Retcon runs no code that a model names. Copy the folder and remove {key} there."
        )


def _refuse_elsewhere(name: str, file: str, parts: Any) -> None:
    """Refuse weights that are in another folder: this one is what is looked at."""
    for part in set(map(str, parts.values())) if isinstance(parts, dict) else ():
        if Path(part).name != part:
            raise ModelNotFound(
                f"{name!r}: {file} names {part!r}, which is no file of this folder. Is it whole?"
            )


def _refuse_depth(name: str, file: str, path: str, key: str, value: Any) -> None:
    if isinstance(value, int) and value > _MOST and _COUNTS.search(key):
        raise UnsupportedModel(
            f"{name!r} says in {file} that {path} is {value}. No model has more than {_MOST:,}; "
            f"building one would take hours."
        )
