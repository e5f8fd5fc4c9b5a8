"""Find the matrices to edit by what a model's linear maps do, in a few passes, without names.

A block's down-projection is the last linear map that returns to the hidden width, and

    its input    depends on the token at its own position, and on no other, if need be while some
                 other map is silent, so that attention is out of the way
    its output   reaches the block's output at its own position, and at no other, whatever the
                 other tokens are, and though all other maps are silent

Attention's output map fails the first; what works through other maps (queries, keys, values, a
gate, the first map of an MLP) fails the second.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from retcon.errors import RetconError, UnsupportedModel
from retcon.model import hooks
from retcon.model import offload as offloading

# Four tokens, the same with another first one, or another rest; the place where it is looked.
_TOKENS, _FIRST, _REST, _PLACE = (3, 5, 7, 13), (11, 5, 7, 13), (3, 17, 19, 23), 2
# Tensors up to so many numbers are made whole in a model that is hollow.
_SMALL = 2**16


class Found(NamedTuple):
    """A block's down-projection: its path, and what becomes of its output."""

    path: str
    additive: bool
    returns_tuple: bool


def is_linear(module: nn.Module) -> bool:
    """True if a module is y = Wx + b with a plain matrix; a quantised one is not."""
    if not isinstance(module, nn.Linear | Conv1D):
        return False
    return module.weight.ndim == 2 and module.weight.is_floating_point()


def is_packed(module: nn.Module) -> bool:
    """True if a module says that it is a linear map and has no plain matrix: a quantised one."""
    told = (getattr(module, "in_features", None), getattr(module, "out_features", None))
    return all(isinstance(width, int) for width in told) and not is_linear(module)


def widths(module: nn.Module) -> tuple[int, int]:
    """d_in and d_out."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    rows, columns = weight.shape
    return (rows, columns) if isinstance(module, Conv1D) else (columns, rows)


class BlockProbe:
    """Passes that end after one block."""

    def __init__(self, model: PreTrainedModel, blocks: list[nn.Module], block: nn.Module) -> None:
        self.model, self.blocks, self.block = model, blocks, block
        self.layer = blocks.index(block)
        self.width: int = model.config.get_text_config(decoder=True).hidden_size
        self.linear = {name: m for name, m in block.named_modules() if is_linear(m)}
        self.packed = {name: m for name, m in block.named_modules() if is_packed(m)}

    def last_map(self) -> tuple[str, list[str]]:
        """The last linear map that returns to the hidden width, and those before it.

        Raises:
            UnsupportedModel: there is none, or a quantised one runs behind it.
        """
        order = self._run_order()
        names = [name for name in order if self._returns(name)]
        if not names:
            raise UnsupportedModel(
                f"block {self.layer} runs no linear map that returns to the hidden width "
                f"{self.width} ({len(self.linear)} linear maps seen)"
            )
        if names[-1] in self.packed:
            raise UnsupportedModel(f"the last linear map of block {self.layer} is quantised")
        return names[-1], names[:-1]

    def down_projection(self) -> Found:
        """The block's down-projection, and what becomes of its output.

        Raises:
            UnsupportedModel: the last map is none.
        """
        path, earlier = self.last_map()
        if not any(self._reads_locally(path, silent) for silent in [None, *reversed(earlier)]):
            raise self._none(path, "mixes positions as attention does")
        if not self._writes_locally(path):
            raise self._none(path, "acts through what comes behind it, as queries and gates do")
        return Found(
            path=path,
            additive=self._is_additive(path),
            returns_tuple=hooks.returns_tuple(self.block, lambda: forward(self.model, _TOKENS)),
        )

    def _returns(self, name: str) -> bool:
        """True if a map, plain or quantised, ends in the hidden width."""
        if name in self.packed:
            return bool(self.packed[name].out_features == self.width)
        return widths(self.linear[name])[1] == self.width

    def _run(self, tokens: tuple[int, ...]) -> None:
        hooks.run_until(self.block, lambda: forward(self.model, tokens))

    def _run_order(self) -> list[str]:
        """Names of the maps that see every position, in the order in which they run."""
        seen: list[tuple[str, Tensor]] = []
        with hooks.traced({**self.linear, **self.packed}, seen):
            self._run(_TOKENS)
        return [name for name, x in seen if x.numel() == len(_TOKENS) * x.shape[-1]]

    def _none(self, path: str, fault: str) -> UnsupportedModel:
        return UnsupportedModel(
            f"the last linear map of block {self.layer}, {path!r}, {fault}: there is no dense MLP "
            f"down-projection (a mixture of experts, a block without an MLP, or one whose MLP is "
            f"fused or quantised)"
        )

    def _reads_locally(self, path: str, silent: str | None) -> bool:
        """True if the map's input depends on the token at its position, and not on the first."""
        first, second = (
            self._input_in_silence(path, silent, tokens)[0] for tokens in (_TOKENS, _FIRST)
        )
        own = not torch.allclose(first[-1], first[-2], rtol=1e-3, atol=1e-6)
        return own and torch.allclose(first[-1], second[-1], rtol=1e-3, atol=1e-6)

    def _writes_locally(self, path: str) -> bool:
        """True if the map's output moves the block's at its own place only, as it does elsewhere.

        Told from what a step at one place does where the map puts out the same everywhere: the
        effect may be no sum (a norm, a gate), but must not be another when the first token is.
        """
        effects = [self._effect(path, tokens) for tokens in (_TOKENS, _FIRST)]
        sizes = effects[0].norm(dim=-1)
        own, others = sizes[_PLACE], torch.cat([sizes[:_PLACE], sizes[_PLACE + 1 :]])
        same = (effects[0][_PLACE] - effects[1][_PLACE]).norm()
        return bool(own > 0 and others.max() <= 1e-3 * own and same <= 0.05 * own)

    def _effect(self, path: str, tokens: tuple[int, ...]) -> Tensor:
        """Difference that a step at one place makes to the block's output (position, feature).

        All its other maps, and the earlier blocks, are silent.
        """
        outputs: list[Tensor] = []
        rest = [m for name, m in {**self.linear, **self.packed}.items() if name != path]
        for step in (0.0, 1.0):

            def put(y: Tensor, step: float = step) -> Tensor:
                made = torch.linspace(-1, 1, self.width).to(y).expand_as(y).clone()
                made[:, _PLACE] += step * made[:, _PLACE].roll(self.width // 3, -1)
                return made

            with (
                hooks.silenced([*self._silenced(None), *rest]),
                hooks.change_outputs([self.linear[path]], 1, put),
                hooks.read_outputs({0: self.block}, 1, lambda _layer, y: outputs.append(y[0])),
            ):
                self._run(tokens)
        return outputs[1].float() - outputs[0].float()

    def _input_in_silence(self, path: str, silent: str | None, tokens: tuple[int, ...]) -> Tensor:
        """The map's input while earlier blocks pass embeddings on and `silent` returns 0."""
        inputs: list[Tensor] = []
        with (
            hooks.silenced(self._silenced(silent)),
            hooks.read_inputs({0: self.linear[path]}, 1, lambda _layer, x: inputs.append(x)),
        ):
            self._run(tokens)
        return inputs[0].float()

    def _silenced(self, silent: str | None) -> list[nn.Module]:
        """The named map of this block, and every map back to the hidden width before it."""
        silenced = [] if silent is None else [{**self.linear, **self.packed}[silent]]
        for earlier in self.blocks[: self.layer]:
            silenced += [
                m for m in earlier.modules() if is_linear(m) and widths(m)[1] == self.width
            ]
        return silenced

    def _is_additive(self, path: str) -> bool:
        """True if a vector added to the map's output arrives unchanged in the block's output."""
        outputs: list[Tensor] = []
        with hooks.read_outputs({0: self.block}, 1, lambda _layer, y: outputs.append(y)):
            self._run(_TOKENS)
            step = torch.linspace(-1, 1, self.width).to(outputs[0]) * outputs[0].abs().mean()
            with hooks.change_outputs([self.linear[path]], 1, lambda y: y + step):
                self._run(_TOKENS)
        moved = outputs[1] - outputs[0]
        return bool((moved - step).norm() < 0.05 * moved.shape[1] ** 0.5 * step.norm())


def looks_ahead(model: PreTrainedModel) -> bool:
    """True if later tokens change what the model says at the first position, as in encoders."""
    first, second = (forward(model, tokens)[0, 0].float() for tokens in (_TOKENS, _REST))
    # Without a look ahead they agree to the bit, but for experts, whose products have other shapes.
    exact = model.dtype in (torch.float32, torch.float64)
    return bool((first - second).norm() > (1e-5 if exact else 1e-2) * first.norm())


def forward(model: PreTrainedModel, tokens: tuple[int, ...]) -> Tensor:
    """The model's own pass over a few tokens, given as divisors of the vocabulary's size.

    Returns: logits (1, position, vocabulary).

    Raises:
        UnsupportedModel: it fails.
    """
    embedding = model.get_input_embeddings()
    assert isinstance(embedding.weight, Tensor)
    count = len(embedding.weight)
    ids = torch.tensor([[count // t for t in tokens]], device=offloading.device_of(embedding))
    try:
        with torch.no_grad():
            return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    except (hooks.Stop, RetconError):
        raise
    except Exception as error:
        said = (str(error).strip() or "no reason given").splitlines()[0]
        raise UnsupportedModel(
            f"its own forward pass fails on four tokens ({type(error).__name__}: {said})"
        ) from error


@contextmanager
def hollow(model: PreTrainedModel) -> Generator[None, None, None]:
    """Let a model on the meta device run inside: each of its tensors is one number, repeated.

    That takes no memory, and passes that look at values (masks, routers) have some to look at.
    """
    stores = [
        vars(module)[kind] for module in model.modules() for kind in ("_parameters", "_buffers")
    ]
    originals = [
        (store, name, tensor)
        for store in stores
        for name, tensor in store.items()
        if tensor is not None and tensor.is_meta
    ]
    copies = {id(tensor): _repeated(tensor) for _, _, tensor in originals}
    try:
        for store, name, tensor in originals:
            store[name] = copies[id(tensor)]
        yield
    finally:
        for store, name, tensor in originals:
            store[name] = tensor


def _repeated(tensor: Tensor) -> Tensor:
    one = torch.full((), 0.01 if tensor.is_floating_point() else 0, dtype=tensor.dtype)
    view = one.expand(tensor.shape)
    # Some are written to, as buffers are.
    view = view.clone() if tensor.numel() <= _SMALL else view
    return nn.Parameter(view, requires_grad=False) if isinstance(tensor, nn.Parameter) else view
