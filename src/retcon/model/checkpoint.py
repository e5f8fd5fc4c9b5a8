"""A checkpoint on disk, read a tensor at a time: no model is built, and never all of it is held.

A safetensors file is eight bytes with the length of its header, the header (JSON: dtype, shape and
place of each tensor), and the tensors' bytes. Headers are read by the safetensors library, which
checks that places fit the file; a shard in which some matrices change is written tensor by tensor.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from retcon.errors import ModelNotFound, NotExportable
from retcon.model.architectures import Outline
from retcon.model.handle import fingerprint_of
from retcon.model.load import checkpoint_folder, outline
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
class Checkpoint:
    """The files of a model, and its structure.

    Raises:
        NotExportable: its weights are not in safetensors files, or are quantised.
    """

    folder: Path
    outline: Outline

    @classmethod
    def open(
        cls, name: str, *, revision: str | None = None, progress: Progress = silent
    ) -> "Checkpoint":
        """The checkpoint of that name: an alias, a folder, or a hub id.

        Raises:
            ModelNotFound: it is not here and cannot be fetched.
            UnsupportedModel: it is here and cannot be edited.
        """
        folder = checkpoint_folder(name, revision=revision, progress=progress)
        structure = outline(str(folder), progress=progress)
        return cls(folder, Outline(
            name=name, model=structure.model, architecture=structure.architecture
        ))  # fmt: skip

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
        """Of every parameter the shard in which it is, and its name there.

        Raises:
            NotExportable: a parameter that is not in the files under a name like its own.
        """
        stored = {name: shard for shard in self.shards for name in shard.pieces}
        parameters = {name: tuple(p.shape) for name, p in self.outline.model.named_parameters()}
        prefix = self.outline.model.base_model_prefix + "."
        found: dict[str, str] = {}
        for name in parameters:
            near = (name, name.removeprefix(prefix), prefix + name)
            other = next((other for other in near if other in stored), None)
            if other is not None:
                found[name] = other
        taken = set(found.values())
        left = [name for name in stored if name not in taken]
        for name in parameters.keys() - found.keys():
            # Some architectures store a tensor under another name; then its shape must be its own.
            alike = [o for o in left if stored[o].pieces[o].shape == parameters[name]]
            if len(alike) != 1:
                raise NotExportable(
                    f"{self.folder} holds no tensor {name!r}: transformers converts this "
                    f"checkpoint as it loads it. Load the model, save it with save_pretrained, "
                    f"and name that folder."
                )
            found[name] = alike[0]
        return {name: (stored[other], other) for name, other in found.items()}

    def tensor(self, parameter: str) -> Tensor:
        """A parameter as it is stored, mapped from the disk."""
        shard, name = self.homes[parameter]
        with safe_open(shard.file, framework="pt") as stream:
            return stream.get_tensor(name)

    @cached_property
    def fingerprint(self) -> str:
        """What `ModelHandle.fingerprint` would be if the checkpoint were loaded."""
        names = sorted(name for name, _ in self.outline.model.named_parameters())
        return fingerprint_of((name, self.tensor(name)) for name in names)


def write_safetensors(
    target: Path,
    pieces: Mapping[str, Piece],
    write: Callable[[str, BinaryIO], object],
    metadata: Mapping[str, str],
) -> None:
    """Write a safetensors file, a tensor at a time. write: put a tensor's bytes into the file."""
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
    """What a float tensor of that shape will be in a file."""
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
