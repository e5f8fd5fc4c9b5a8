"""Read and replace weights that accelerate keeps away from the model.

A weight that is offloaded to disk or to main memory is a meta tensor in the model. A hook on its
module brings the values in from a map of names while the module runs, and takes them out again.
What is edited is put into the memory in front of that map, which accelerate asks first. No file is
written: the one on the disk may be the checkpoint itself.

Everything here goes by hooks, never by whether a tensor is on the meta device just now: a pass
that ended early leaves some values in.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from accelerate.hooks import AlignDevicesHook, SequentialHook
from accelerate.utils import OffloadedWeightsLoader, PrefixedDataset
from torch import Tensor, nn
from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Away:
    """Location of an offloaded tensor: its map, its name there, and the device it computes on.

    Attributes:
        memory: what the map asks first.
    """

    memory: dict[str, Tensor]
    loader: OffloadedWeightsLoader | None
    key: str
    device: torch.device
    dtype: torch.dtype

    @property
    def stored(self) -> bool:
        """True if the disk has the tensor, whatever is in memory."""
        return self.loader is not None and self.key in self.loader.index

    @property
    def changed(self) -> bool:
        """True if memory holds another tensor than the disk."""
        return self.stored and self.key in self.memory

    def read(self) -> Tensor:
        """The values, as the module sees them: not to be written to."""
        kept: Tensor = (self.loader or self.memory)[self.key]
        return kept.detach().to(device=self.device, dtype=self.dtype)

    def put(self, values: Tensor) -> None:
        """Let the module see these values from now on; they must not be written to afterwards."""
        self.memory[self.key] = values.to(self.dtype)

    def drop(self) -> None:
        """Let the module see what is on the disk again."""
        assert self.stored
        self.memory.pop(self.key, None)


def away(module: nn.Module, name: str) -> Away | None:
    """Find a module's own parameter or buffer where accelerate keeps it away from the model.

    None as well where it does so by a hook on another module, or from a map of an unknown kind.
    """
    tensor = getattr(module, name, None)
    for hook in _hooks(module):
        if not hook.offload or hook.weights_map is None or not isinstance(tensor, Tensor):
            continue
        mapping, key = hook.weights_map, name
        while isinstance(mapping, PrefixedDataset):
            mapping, key = mapping.dataset, f"{mapping.prefix}{key}"
        loader = mapping if isinstance(mapping, OffloadedWeightsLoader) else None
        memory = mapping if loader is None else loader.state_dict
        if isinstance(memory, dict) and key in mapping:
            return Away(
                memory=memory, loader=loader, key=key, device=_device(hook), dtype=tensor.dtype
            )
    return None


def value(module: nn.Module, name: str) -> Tensor:
    """A module's own parameter or buffer, wherever it is; not to be written to where it is away."""
    found = away(module, name)
    return getattr(module, name).detach() if found is None else found.read()


def device_of(module: nn.Module) -> torch.device:
    """The device that a module with a weight computes on."""
    for hook in _hooks(module):
        if hook.execution_device is not None:
            return _device(hook)
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.device


def parameters(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Every parameter by name, in the order of names, each read when it is asked for."""
    for name in sorted(_names(model)):
        yield name, _read(model, name)


def weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Every parameter, and every buffer that would be saved, in the order of names."""
    for name in sorted([*_names(model), *saved_buffers(model)]):
        yield name, _read(model, name)


def saved_buffers(model: PreTrainedModel) -> list[str]:
    """Names of the buffers that would be saved."""
    saved = set(model.state_dict())
    return [name for name, _ in model.named_buffers() if name in saved]


def saved(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Everything that would be saved, by name, in the order of names."""
    for name, tensor in sorted(model.state_dict().items()):
        yield name, _read(model, name) if tensor.is_meta else tensor


@contextmanager
def read_again(model: PreTrainedModel) -> Generator[None, None, None]:
    """Let passes inside keep no offloaded weight for their gradient: it is read a second time.

    Otherwise all blocks of such a pass would be held at once, from its forward to its backward.
    """
    homes = [
        (module, name)
        for module in model.modules()
        if _hooks(module)
        for name, _ in module.named_parameters(recurse=False)
        if away(module, name) is not None
    ]

    def pack(tensor: Tensor) -> Tensor | _Again:
        for module, name in homes:
            weight = getattr(module, name)
            if weight.is_meta:
                continue
            if weight.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr():
                offset = int(tensor.storage_offset()) - int(weight.storage_offset())
                return _Again(module, name, tensor.size(), tensor.stride(), offset)
        return tensor

    def unpack(kept: Tensor | _Again) -> Tensor:
        return kept.read() if isinstance(kept, _Again) else kept

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack) if homes else nullcontext():
        yield


class _Again(NamedTuple):
    """A view of an offloaded weight, to be read when it is needed."""

    module: nn.Module
    name: str
    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    def read(self) -> Tensor:
        whole = value(self.module, self.name)
        return whole.as_strided(self.size, self.stride, int(whole.storage_offset()) + self.offset)


def missing(model: PreTrainedModel) -> list[str]:
    """Parameters without values: on the meta device, and not to be had from accelerate."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.is_meta and away(*_owner(model, name)) is None
    ]


def _names(model: PreTrainedModel) -> list[str]:
    """Names of parameters, of tied ones the first: once offloaded, they are several tensors."""
    names = [name for name, _ in model.named_parameters()]
    aliases: set[str] = set(getattr(model, "all_tied_weights_keys", None) or ())
    kept = [name for name in names if name not in aliases]
    return kept if any(map(_hooks, model.modules())) else names


def _read(model: PreTrainedModel, name: str) -> Tensor:
    return value(*_owner(model, name))


def _owner(model: PreTrainedModel, name: str) -> tuple[nn.Module, str]:
    path, _, own = name.rpartition(".")
    return model.get_submodule(path), own


def _hooks(module: nn.Module) -> list[AlignDevicesHook]:
    hook = getattr(module, "_hf_hook", None)
    hooks = hook.hooks if isinstance(hook, SequentialHook) else [hook]
    return [one for one in hooks if isinstance(one, AlignDevicesHook)]


def _device(hook: AlignDevicesHook) -> torch.device:
    device = hook.execution_device
    return torch.device("cpu" if device is None else device)
