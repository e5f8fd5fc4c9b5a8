"""A checkpoint on disk, read a tensor at a time, without building the model.

A safetensors file is eight bytes with the length of its header, the header (JSON: dtype, shape and
place of each tensor), and the tensors' bytes. Headers are read by the safetensors library, which
checks that places fit the file; a shard in which some matrices change is written tensor by tensor.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from retcon.errors import ModelNotFound, NotExportable
from retcon.model import offload as offloading
from retcon.model.fingerprints import Weights
from retcon.model.load import checkpoint_folder, outline, stored_weights
from retcon.model.structure import Outline
from retcon.progress import Progress, silent

# The header's names of the dtypes that weights can be cast to and from.
CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
}
FLOATS = {code: dtype for dtype, code in CODES.items()}
_ONE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_LARGEST_INDEX = 64 * 2**20
_COPIED = 2**24


class Piece(NamedTuple):
    """A tensor in a file: the header's name of its dtype, its shape, and its number of bytes."""

    code: str
    shape: tuple[int, ...]
    bytes: int


class Shard(NamedTuple):
    """A safetensors file: what is in it, where (from the file's start), and its metadata."""

    file: Path
    pieces: Mapping[str, Piece]
    starts: Mapping[str, int]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class CheckpointFiles:
    """The files of a model, and its structure.

    Raises:
        NotExportable: its weights are not in safetensors files, or are quantised.
    """

    folder: Path
    outline: Outline

    @classmethod
    def open(
        cls, name: str, *, revision: str | None = None, progress: Progress = silent
    ) -> "CheckpointFiles":
        """The checkpoint of that name: an alias, a folder, or a hub id.

        Raises:
            ModelNotFound: it is not here and cannot be fetched.
            UnsupportedModel: it is here and cannot be edited.
        """
        folder = checkpoint_folder(name, revision=revision, progress=progress)
        structure = outline(str(folder), progress=progress)
        return cls(
            folder, Outline(name=name, model=structure.model, architecture=structure.architecture)
        )

    def __post_init__(self) -> None:
        if getattr(self.outline.model.config, "quantization_config", None):
            raise NotExportable(
                f"The weights of {self.outline.name} are quantised, and an edit does not fit "
                f"between their steps. Serve it beside them: --to peft, or --to gguf."
            )

    @cached_property
    def shards(self) -> tuple[Shard, ...]:
        """The safetensors files.

        Raises:
            NotExportable: there are none.
            ModelNotFound: one is missing or damaged.
        """
        return tuple(_read_shard(self.folder / name) for name in _file_names(self.folder))

    @cached_property
    def homes(self) -> dict[str, tuple[Shard, str]]:
        """Shard and stored name of the parameters and buffers that are stored as they are.

        Those that transformers makes of several as it loads them, such as experts, are left out.
        """
        stored = {name: shard for shard in self.shards for name in shard.pieces}
        shapes = {name: tuple(t.shape) for name, t in self.outline.model.state_dict().items()}
        homes: dict[str, tuple[Shard, str]] = {}
        for name, own in _names(self.outline.model, stored).items():
            if shapes.get(own) == stored[name].pieces[name].shape:
                homes[own] = (stored[name], name)
        return homes

    def home(self, parameter: str) -> tuple[Shard, str]:
        """The shard in which a parameter is stored, and its name there.

        Raises:
            NotExportable: it is not stored as it is.
        """
        if parameter not in self.homes:
            raise NotExportable(
                f"{self.folder} holds no tensor {parameter!r}: transformers makes it of others as "
                f"it loads this checkpoint, and changes cannot be copied into those. Serve the "
                f"edit beside the model (--to peft), or apply the patch to the loaded model and "
                f"save that with save_pretrained."
            )
        return self.homes[parameter]

    def tensor(self, parameter: str) -> Tensor:
        """A parameter as it is stored, mapped from the disk."""
        shard, name = self.home(parameter)
        with safe_open(shard.file, framework="pt") as stream:
            return stream.get_tensor(name)

    @cached_property
    def weights(self) -> Weights:
        """Weights that `ModelHandle.weights` would name if the checkpoint were loaded.

        It is loaded where its tensors are not those of the model.
        """
        parameters = sorted(name for name, _ in self.outline.model.named_parameters())
        names = sorted({*parameters, *offloading.saved_buffers(self.outline.model)})
        if not all(name in self.homes for name in names):
            return stored_weights(self.folder)
        return Weights.read(((name, self.tensor(name)) for name in names), parameters)

    @property
    def fingerprint(self) -> str:
        """Fingerprint that `ModelHandle` would have if the checkpoint were loaded."""
        return self.weights.fingerprint


def _names(model: PreTrainedModel, stored: Iterable[str]) -> dict[str, str]:
    """Map each stored tensor that is not made into another one to the model's name of it."""
    transforms = get_model_conversion_mapping(model)
    renaming = [each for each in transforms if isinstance(each, WeightRenaming)]
    converting = [each for each in transforms if isinstance(each, WeightConverter)]
    state: dict[str, Any] = model.state_dict()
    names: dict[str, str] = {}
    for name in stored:
        own, converted = rename_source_key(
            name, renaming, converting, model.base_model_prefix, state
        )
        if converted is None and own in state:
            names[name] = own
    return names


def write_safetensors(
    target: Path,
    pieces: Mapping[str, Piece],
    write: Callable[[str, BinaryIO], object],
    metadata: Mapping[str, str],
) -> None:
    """Write a safetensors file, a tensor at a time.

    Args:
        write: put a tensor's bytes into the file.
    """
    # Wide dtypes first, so that every tensor starts at a multiple of its width, as is the custom.
    names = sorted(pieces, key=lambda name: (-_width(pieces[name]), name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    place = 0
    for name in names:
        end = place + pieces[name].bytes
        header[name] = {
            "dtype": pieces[name].code,
            "shape": list(pieces[name].shape),
            "data_offsets": [place, end],
        }
        place = end
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with target.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            write(name, stream)


def piece_of(shape: tuple[int, ...], dtype: torch.dtype) -> Piece:
    """Describe a float tensor of that shape as it will be in a file."""
    return Piece(CODES[dtype], shape, torch.Size(shape).numel() * dtype.itemsize)


def write_tensor(tensor: Tensor, stream: BinaryIO) -> None:
    """A tensor's bytes, row-major and little-endian."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    stream.write(flat.view(torch.uint8).numpy().data)


def copy_piece(shard: Shard, name: str, stream: BinaryIO) -> None:
    """A stored tensor's bytes as they are."""
    with shard.file.open("rb") as source:
        source.seek(shard.starts[name])
        left = shard.pieces[name].bytes
        while left:
            part = source.read(min(left, _COPIED))
            stream.write(part)
            left -= len(part)


def _file_names(folder: Path) -> list[str]:
    index = folder / _INDEX
    if not index.is_file():
        if (folder / _ONE).is_file():
            return [_ONE]
        raise NotExportable(
            f"{folder} holds no {_ONE}. Only safetensors files are read: load the model, save it "
            f"with save_pretrained, and name that folder."
        )
    try:
        if index.stat().st_size > _LARGEST_INDEX:
            raise ValueError(f"it is larger than {_LARGEST_INDEX} bytes")
        names = {str(name) for name in json.loads(index.read_bytes())["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelNotFound(f"{index} is no index of a checkpoint: {error}.") from error
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelNotFound(
                f"{index} names {name!r}, which is no safetensors file of this folder."
            )
    return sorted(names)


def _read_shard(file: Path) -> Shard:
    try:
        with safe_open(file, framework="pt") as stream:
            metadata = dict(stream.metadata() or {})
        with file.open("rb") as raw:
            length = int.from_bytes(raw.read(8), "little")
            header = json.loads(raw.read(length))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ModelNotFound(f"{file} is no safetensors file, or damaged: {error}.") from error
    header.pop("__metadata__", None)
    pieces: dict[str, Piece] = {}
    starts: dict[str, int] = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        pieces[name] = Piece(entry["dtype"], tuple(entry["shape"]), end - begin)
        starts[name] = 8 + length + begin
    return Shard(file, pieces, starts, metadata)


def _width(piece: Piece) -> int:
    """Bytes of one number; 1 for the packed dtypes, which have no alignment."""
    count = torch.Size(piece.shape).numel()
    return max(1, piece.bytes // count) if count else 1
