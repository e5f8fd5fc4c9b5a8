"""Sealed files of tensors, each checked as it is read; and a look at a file of any kind.

The header of the safetensors file is the record, whose seal has the digest of every tensor, so
that one tensor, or the header alone, can be read and trusted.
"""

import hashlib
import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from retcon.errors import Damaged
from retcon.files import write_whole
from retcon.sealed import (
    SEAL,
    Owner,
    SealedRecord,
    check_folder,
    differs,
    digest,
    load_record,
    load_text,
    reading,
    seal,
    unseal,
)

if TYPE_CHECKING:
    # Looking into the cache should not wait for torch.
    from torch import Tensor

# Where the header of a safetensors file keeps the record.
_HEADER = "retcon"


def save_tensors(
    target: Path,
    tensors: Mapping[str, "Tensor"],
    owner: Owner,
    about: Mapping[str, object] | None = None,
    *,
    sync: bool = False,
) -> None:
    """Write tensors and a record about them, sealed together, whole or not at all.

    Raises:
        StorageError: no space or no permission.
    """
    from safetensors.torch import save_file

    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    digests = {name: _digest_of_tensor(stored[name]) for name in sorted(stored)}
    header = {_HEADER: json.dumps(seal(about or {}, owner, digests))}
    write_whole(target, lambda work: save_file(stored, work, header), sync=sync)


@dataclass(frozen=True)
class Tensors:
    """An open file of tensors, each of which is checked as it is read.

    Attributes:
        about: the record in the header, or what stands there in its place.
        metadata: the header.
    """

    path: Path
    about: Any
    sealed: bool
    metadata: Mapping[str, str]
    names: tuple[str, ...]
    _stream: safe_open
    _digests: Mapping[str, str]

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, which costs nothing."""
        return tuple(self._stream.get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """A tensor's dtype as the format calls it: F32, or F64."""
        return str(self._stream.get_slice(name).get_dtype())

    def read(self, name: str) -> "Tensor":
        """A tensor. It is a copy: a view of the file would change, or be gone, with the file.

        Raises:
            Damaged: it is not what was written.
        """
        tensor = self._stream.get_tensor(name).clone()
        if self.sealed and _digest_of_tensor(tensor) != self._digests[name]:
            raise differs(self.path)
        return tensor

    def read_all(self) -> dict[str, "Tensor"]:
        """Every tensor by its name.

        Raises:
            Damaged: one is not what was written.
        """
        return {name: self.read(name) for name in self.names}


@contextmanager
def open_tensors(path: Path, owner: Owner) -> Generator[Tensors, None, None]:
    """Open a file of tensors; its header and the list of its tensors are checked at once.

    Raises:
        Damaged: it is not what was written, or another's.
        FileNotFoundError: there is none.
    """
    with reading(path):
        try:
            with safe_open(path, framework="pt") as stream:
                metadata = stream.metadata() or {}
                record, digests = _header(metadata, owner, path)
                names = tuple(sorted(stream.keys()))
                if record.sealed and {*names} != {*digests}:
                    raise differs(path)
                yield Tensors(path, record.value, record.sealed, metadata, names, stream, digests)
        except SafetensorError as error:
            raise Damaged(f"{path} is damaged: {error}.") from error


def check(path: Path, owner: Owner) -> bool:
    """Look at all of a file or folder of any kind; whether it is sealed.

    Raises:
        Damaged: it is not what was written, or another's.
        FileNotFoundError: there is none.
    """
    if path.is_dir():
        return check_folder(path, owner)
    if path.suffix == ".safetensors":
        with open_tensors(path, owner) as opened:
            for name in opened.names:
                opened.read(name)
            return opened.sealed
    return (load_record if path.suffix == ".json" else load_text)(path, owner).sealed


def _header(
    metadata: Mapping[str, str], owner: Owner, path: Path
) -> tuple[SealedRecord, dict[str, str]]:
    """The record in a header, and the digests of the tensors that its seal tells."""
    text = metadata.get(_HEADER, "")
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    record = unseal(value, owner, path)
    if record.sealed:
        return record, value[SEAL]["tensors"]
    if any(f'"{SEAL}"' in each for each in metadata.values()):
        raise differs(path)
    return record, {}


def _digest_of_tensor(tensor: "Tensor") -> str:
    """sha256 of a tensor's dtype, shape and bytes."""
    import torch

    found = hashlib.sha256(digest([str(tensor.dtype), list(tensor.shape)]).encode())
    found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
