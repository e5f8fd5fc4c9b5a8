"""A device that is none: tensors in main memory that say they are elsewhere, and do not mix.

Inside `pretend()` whatever is moved to, or made on, `DEVICE` counts as being there, and so does all
that is computed from it. An operation on tensors of both places raises as it would on a GPU. So a
forgotten `.to(device)` fails on a machine that has nothing but a CPU. Results are the CPU's own, to
the last bit.

Where a tensor is, is known by its storage: views, and what autograd keeps, share it.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# A type of device that torch can name and nothing has a special way for.
DEVICE = torch.device("ipu", 0)
_COPIES = ("_to_copy", "copy_", "copy", "_copy_from")
# Operations whose second argument may be in main memory: places to look at.
_INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")
_AWAY = ("numpy", "__array__")


class _There:
    """The storages that count as being on the device.

    inside: whether a function that was given some of them is running: what it makes is there too.
    """

    def __init__(self) -> None:
        self._kept: dict[int, StorageWeakRef] = {}
        self.inside = False

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._kept

    def add(self, tensor: Tensor) -> None:
        ref = StorageWeakRef(tensor.untyped_storage())
        # The reference keeps the address from being used again.
        self._kept[ref.cdata] = ref
        if len(self._kept) > 20_000:
            self._kept = {k: one for k, one in self._kept.items() if not one.expired()}

    def discard(self, tensor: Tensor) -> None:
        self._kept.pop(tensor.untyped_storage()._cdata, None)


class _Dispatched(TorchDispatchMode):
    """Sees every operation, those of a backward pass too."""

    def __init__(self, there: _There) -> None:
        super().__init__()
        self.there = there
        self.random = torch.Generator().manual_seed(0)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        on = [x for x in given if x in self.there]
        if on and name not in _COPIES:
            apart = args[2:] if name in _INDEXING and args[0] in self.there else (args, kwargs)
            self._refuse(name, apart)
        if name == "multinomial" and on:
            kwargs["generator"] = self.random  # a device has random numbers of its own
        out = func(*args, **kwargs)
        on = on or (not given and self.there.inside)
        written = name in _COPIES and name != "_to_copy"
        if (args and args[0] in self.there) if written else on:
            for one in tree_leaves(out):
                if isinstance(one, Tensor):
                    self.there.add(one)
        return out

    def _refuse(self, name: str, given: Any) -> None:
        """A number in main memory may meet anything; else all are in one place."""
        tensors = [x for x in tree_leaves(given) if isinstance(x, Tensor)]
        off = [x for x in tensors if x.ndim and x not in self.there]
        if off and len(off) < len(tensors):
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but {name} got one of shape "
                f"{tuple(off[0].shape)} on cpu and others on {DEVICE}."
            )


class _Called(TorchFunctionMode):
    """Sees what is asked of tensors by name: where they are, and to be moved or made elsewhere."""

    def __init__(self, there: _There) -> None:
        super().__init__()
        self.there = there

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if func == Tensor.device.__get__:
            return DEVICE if args[0] in self.there else func(*args, **kwargs)
        if name in _AWAY and args[0] in self.there:
            raise TypeError(f"can't convert {DEVICE} device type tensor to numpy. Use .cpu() first")
        if name in ("to", "cpu") and isinstance(args[0], Tensor):
            return self._moved(name, args[0], [*args[1:], *kwargs.values()])
        like = name == "new_tensor" and args[0] in self.there
        asked = "device" in kwargs and kwargs["device"] is not None
        if asked:
            kwargs["device"], there = _here(kwargs["device"])
        with self._inside(args, kwargs, asked):
            out = func(*args, **kwargs)
        if like or (asked and there):
            for one in tree_leaves(out):
                if isinstance(one, Tensor):
                    self.there.add(one)
        elif asked:
            self._leave(out, args)
        return out

    @contextmanager
    def _inside(self, args: Any, kwargs: Any, asked: bool) -> Generator[None, None, None]:
        """While a function runs, which makes tensors where its own are unless it was asked."""
        before = self.there.inside
        given = tree_leaves((args, kwargs))
        on = any(isinstance(x, Tensor) and x in self.there for x in given)
        self.there.inside = before or (on and not asked)
        try:
            yield
        finally:
            self.there.inside = before

    def _leave(self, out: Any, args: Any) -> None:
        """What was asked for in main memory is there, whatever it is like."""
        for one in tree_leaves(out):
            if isinstance(one, Tensor) and not any(one is x for x in tree_leaves(args)):
                self.there.discard(one)

    def _moved(self, name: str, source: Tensor, asked: list[Any]) -> Tensor:
        """A tensor as `to` gives it; elsewhere it is a copy."""
        was = goes = source in self.there
        out = source
        for one in asked:
            if isinstance(one, torch.dtype | Tensor):
                out = Tensor.to(out, one if isinstance(one, torch.dtype) else one.dtype)
            if isinstance(one, torch.device | str):
                goes = _here(one)[1]
            if isinstance(one, Tensor):
                goes = one in self.there
        if name == "cpu":
            goes = False
        if goes != was and out.untyped_storage().data_ptr() == source.untyped_storage().data_ptr():
            out = out.clone()
        if goes != was:
            (self.there.add if goes else self.there.discard)(out)
        return out


def _here(device: Any) -> tuple[torch.device, bool]:
    """The device to compute on in the place of the one that was asked for; whether it was ours."""
    asked = torch.device(device) if not isinstance(device, torch.device) else device
    if asked.type == DEVICE.type:
        return torch.device("cpu"), True
    return asked, False


@contextmanager
def pretend() -> Generator[None, None, None]:
    """Let there be `DEVICE`."""
    there = _There()
    with _Dispatched(there), _Called(there):
        yield
