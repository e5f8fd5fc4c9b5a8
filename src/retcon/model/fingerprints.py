"""Names of weights: a short fingerprint, and a digest of every byte.

    fingerprint   sha256 over an even sample of each tensor: what cells, patches and ledgers name
    digest        sha256 over everything: what decides whether two models are the same

Both are of numbers rounded to bfloat16, so that a checkpoint has one of each whether it is loaded
in float32, float64 or bfloat16. Rounding to float16 comes out elsewhere: what is loaded in it is
named by what is stored, and what was named after that rounding is known again. Reading every byte
takes a while, so what was found, and that it was found good, is kept beside size and times of the
folder's files, and believed while they stay.
"""

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from math import gcd
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from retcon.cache import place, whole
from retcon.errors import Damaged, StorageError
from retcon.files import cache_folder
from retcon.sealed import Owner, digest, load_record, save_record

# How many elements of each tensor enter the fingerprint.
_SAMPLES = 4096
# Raise it where another thing is looked at before a model is found good.
_FORMAT = 1
# Tensors of which the digest is computed at a time.
_HASHING = min(8, os.cpu_count() or 1)
# Rows of a tensor that are rounded at a time hold about this many numbers.
_CHUNK = 2**22


class Weights(BaseModel):
    """Fingerprint and digests of a model's weights.

    Attributes:
        rounded: what the fingerprint would be after a rounding to float16.
        digests: of each tensor.
    """

    model_config = ConfigDict(extra="forbid")
    fingerprint: str
    rounded: str
    digests: dict[str, str]

    @property
    def digest(self) -> str:
        """Digest of all tensors together."""
        return hashlib.sha256(json.dumps(sorted(self.digests.items())).encode()).hexdigest()

    def with_tensors(self, changed: Iterable[tuple[str, Tensor]]) -> str:
        """The digest with other values of some tensors."""
        digests = {**self.digests, **{name: digest_of(tensor) for name, tensor in changed}}
        return self.model_copy(update={"digests": digests}).digest

    def answers_to(self, base: str, digest: str | None) -> bool:
        """True if a fingerprint, and a digest if there is one, name these weights."""
        if base == self.fingerprint:
            return digest in (None, self.digest)
        return base == self.rounded

    @classmethod
    def read(cls, tensors: Iterable[tuple[str, Tensor]], parameters: Iterable[str]) -> "Weights":
        """Read tensors in the order of their names; the fingerprint is of the parameters alone."""
        named, digests = {*parameters}, dict[str, Future[str]]()
        samples, rounded = hashlib.sha256(), hashlib.sha256()
        busy: deque[Future[str]] = deque()
        # A forked process has lost torch's pool of threads. Setting its size renews it, before
        # several threads find it gone at once.
        torch.set_num_threads(torch.get_num_threads())
        with ThreadPoolExecutor(max_workers=_HASHING) as threads:
            for name, tensor in tensors:
                digests[name] = threads.submit(digest_of, tensor)
                busy.append(digests[name])
                if name in named:
                    samples.update(_sample(name, tensor))
                    rounded.update(_sample(name, tensor, torch.float16))
                # Tensors that are read from a disk for this should not pile up.
                if len(busy) > _HASHING:
                    busy.popleft().result()
            found = {name: one.result() for name, one in digests.items()}
        return cls(fingerprint=samples.hexdigest(), rounded=rounded.hexdigest(), digests=found)


def fingerprint_of(parameters: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 of names, shapes and an even sample of each tensor, in the order of names."""
    samples = hashlib.sha256()
    for name, tensor in parameters:
        samples.update(_sample(name, tensor))
    return samples.hexdigest()


def digest_of(tensor: Tensor) -> str:
    """sha256 of a tensor's shape and of all its numbers."""
    digest = hashlib.sha256(json.dumps(list(tensor.shape)).encode())
    for part in tensor.detach().reshape(-1).split(_CHUNK):
        rounded = part.to(torch.bfloat16) if part.is_floating_point() else part
        digest.update(rounded.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _sample(name: str, tensor: Tensor, through: torch.dtype | None = None) -> bytes:
    """A tensor's name and shape, and some of its numbers, rounded to another dtype before."""
    flat = tensor.detach().reshape(-1)
    # A stride without a factor in common with the rows' length meets every column.
    stride = max(1, len(flat) // _SAMPLES)
    while gcd(stride, tensor.shape[-1] if tensor.ndim else 1) > 1:
        stride += 1
    sample = flat[::stride].to(through).to(torch.bfloat16).cpu().contiguous()
    what = json.dumps([name, list(tensor.shape)]).encode()
    return what + sample.view(torch.uint8).numpy().tobytes()


class Known:
    """Record of the weights found when a folder was last loaded in a dtype."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        files = {
            file.name: [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
            for file in sorted(folder.iterdir())
            if file.is_file() and (stat := file.stat())
        }
        what = [str(folder.resolve()), files, str(dtype), _FORMAT, version("transformers")]
        self.path = cache_folder() / "fingerprints" / f"{digest(what)}.json"

    def read(self) -> Weights | None:
        """Read the record; None where there is none, or the files have changed."""
        return whole(self.path, _load)

    def keep(self, weights: Weights) -> None:
        """Remember it. A cache that cannot be written costs the next load its time."""
        with suppress(StorageError):
            save_record(self.path, weights.model_dump(), place(self.path))


def _load(path: Path, owner: Owner) -> Weights:
    record = load_record(path, owner)
    if not record.sealed:
        raise Damaged(f"{path} is damaged: it has no seal.")
    return Weights.model_validate(record.value)
