"""The only code that reaches into a forward pass: read, add, replace, gather, stop.

Everything is a context manager that leaves no trace. Block outputs are tensors in some
architectures and tuples in others; they are told apart here and nowhere else.
"""

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from retcon.errors import UnsupportedModel


class Stop(Exception):
    """Raised in a hook and caught here: a forward pass has computed all that is wanted."""


def _hidden(output: Any, rows: int) -> Tensor:
    """The hidden states in a module's input or output, always as (row, position, feature).

    Some modules hand out a tuple or a list that starts with them, some (OPT's MLP) see all
    positions of all rows in one axis.

    Raises:
        UnsupportedModel: they are something else.
    """
    hidden: Any = output[0] if isinstance(output, tuple | list) else output
    if not isinstance(hidden, Tensor) or hidden.ndim not in (2, 3):
        shape = list(hidden.shape) if isinstance(hidden, Tensor) else type(hidden).__name__
        raise UnsupportedModel(
            f"its blocks hand on {shape}, where hidden states (row, position, feature) are needed"
        )
    return hidden.view(rows, -1, hidden.shape[-1]) if hidden.ndim == 2 else hidden


@contextmanager
def read_inputs(
    modules: Mapping[int, nn.Module], rows: int, keep: Callable[[int, Tensor], None]
) -> Generator[None, None, None]:
    """Call `keep(layer, x)` with the input of each module as it runs on so many rows."""

    def hook(layer: int) -> Callable[..., None]:
        return lambda _module, args: keep(layer, _hidden(args, rows))

    with ExitStack() as stack:
        for layer, module in modules.items():
            stack.enter_context(module.register_forward_pre_hook(hook(layer)))
        yield


@contextmanager
def read_outputs(
    modules: Mapping[int, nn.Module], rows: int, keep: Callable[[int, Tensor], None]
) -> Generator[None, None, None]:
    """Call `keep(layer, y)` with the main output of each module as it runs on so many rows."""

    def hook(layer: int) -> Callable[..., None]:
        return lambda _module, _args, output: keep(layer, _hidden(output, rows))

    with ExitStack() as stack:
        for layer, module in modules.items():
            stack.enter_context(module.register_forward_hook(hook(layer)))
        yield


@contextmanager
def change_outputs(
    modules: Iterable[nn.Module], rows: int, change: Callable[[Tensor], Tensor]
) -> Generator[None, None, None]:
    """Let each module return `change(y)` in the place of its main output y."""

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        if isinstance(output, tuple | list):
            return (change(_hidden(output, rows)), *output[1:])
        return change(_hidden(output, rows)).view(output.shape)

    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(module.register_forward_hook(hook))
        yield


@contextmanager
def silenced(modules: Iterable[nn.Module]) -> Generator[None, None, None]:
    """Let each module return zeros, of whatever shape its main output has."""

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        if isinstance(output, tuple | list):
            return (torch.zeros_like(output[0]), *output[1:])
        return torch.zeros_like(output)

    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(module.register_forward_hook(hook))
        yield


@contextmanager
def add_to_outputs(
    modules: Mapping[int, nn.Module], rows: int, change: Callable[[int, Tensor], Tensor]
) -> Generator[None, None, None]:
    """Let each module return `y + change(layer, x)`, x its input and y its output on the rows."""

    def hook(layer: int) -> Callable[..., Tensor]:
        def add(_module: nn.Module, args: Any, output: Tensor) -> Tensor:
            return output + change(layer, _hidden(args, rows)).view(output.shape)

        return add

    with ExitStack() as stack:
        for layer, module in modules.items():
            stack.enter_context(module.register_forward_hook(hook(layer)))
        yield


def returns_tuple(module: nn.Module, run: Callable[[], object]) -> bool:
    """True if a module returns its hidden states in a tuple, seen in one pass that ends there."""
    seen: list[bool] = []

    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        seen.append(isinstance(output, tuple | list))

    with module.register_forward_hook(hook):
        run_until(module, run)
    return seen[0]


@contextmanager
def change_input(
    module: nn.Module, change: Callable[[Tensor], Tensor]
) -> Generator[None, None, None]:
    """Let the module see `change(x)` in the place of its first input x."""
    with module.register_forward_pre_hook(lambda _m, args: (change(args[0]), *args[1:])):
        yield


@contextmanager
def replaced(
    blocks: Iterable[nn.Module], output: Callable[[], Tensor], *, as_tuple: bool
) -> Generator[None, None, None]:
    """Do not run these blocks: each returns `output()` at once.

    Hooks cannot skip a module's work, so the instance's `forward` is shadowed.
    """

    def forward(*_args: Any, **_kwargs: Any) -> Any:
        return (output(), None) if as_tuple else output()

    shadowed = list(blocks)
    saved = [block.__dict__.get("forward") for block in shadowed]
    try:
        for block in shadowed:
            block.__dict__["forward"] = forward
        yield
    finally:
        for block, original in zip(shadowed, saved, strict=True):
            del block.__dict__["forward"]
            if original is not None:
                block.__dict__["forward"] = original


def run_until(module: nn.Module, run: Callable[[], object]) -> None:
    """Run a forward pass and end it as soon as `module` has returned."""

    def hook(_module: nn.Module, _args: Any, _output: Any) -> None:
        raise Stop

    with module.register_forward_hook(hook), torch.no_grad():
        try:
            run()
        except Stop:
            return
    raise RuntimeError("The forward pass never reached the module it was to stop after.")


@contextmanager
def traced(
    modules: Mapping[str, nn.Module], seen: list[tuple[str, Tensor]]
) -> Generator[None, None, None]:
    """Append (name, input) to `seen` for each module, in the order in which they run."""

    def hook(name: str) -> Callable[..., None]:
        return lambda _module, args: seen.append((name, args[0]))

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.enter_context(module.register_forward_pre_hook(hook(name)))
        yield
