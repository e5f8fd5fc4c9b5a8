"""Find, in any decoder, the matrices that an edit writes: by structure and behaviour, not names.

A block's editable site is the last linear map of its MLP, the "down-projection". It is found by
running a few tokens through one block: of the linear maps that return to the hidden width, it is
the one that runs last and whose input, with the others silenced, depends on its own position
only (attention's output map mixes positions). Whether its output is simply added to the residual
stream is measured the same way.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from retcon.errors import UnknownName, UnsupportedModel
from retcon.model import hooks, offloading
from retcon.model.offloading import Away

# What to do about weights that nothing can be added to.
_SERVE_BESIDE = (
    "An edit does not fit between the steps of quantised weights. Edit the checkpoint that they "
    "were made from, and serve the patch beside them, as an adapter on the quantised model: "
    "retcon patch export PATCH --to peft, or --to gguf"
)


@dataclass(frozen=True, kw_only=True)
class Site:
    """One editable matrix W (d_out, d_in), whatever the layout in which it is stored."""

    layer: int
    path: str
    module: nn.Module
    transposed: bool
    d_in: int
    d_out: int

    @property
    def weight(self) -> Tensor:
        """The parameter as (d_out, d_in): a view of the live one, so that writing to it edits it.

        Where accelerate keeps it away, what it is now, brought here: writing is `put`.
        """
        stored = offloading.value(self.module, "weight")
        return stored.mT if self.transposed else stored

    @property
    def device(self) -> torch.device:
        """The device that the matrix is multiplied on."""
        return offloading.device_of(self.module)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the matrix is loaded in."""
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return weight.dtype

    @property
    def away(self) -> Away | None:
        """Where accelerate keeps the parameter, if it does so."""
        return offloading.away(self.module, "weight")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What Retcon knows of a model's structure.

    additive: a change of the down-projection's output appears unchanged in the block's output;
    false for post-norm blocks (Gemma-2, OLMo-2) and scaled residuals (Granite).
    unavailable: layers that cannot be edited, each with the reason.
    """

    blocks: tuple[nn.Module, ...]
    block_path: str
    down_path: str
    sites: dict[int, Site]
    unavailable: dict[int, str]
    head: nn.Module
    tied: bool
    additive: bool
    block_returns_tuple: bool


@dataclass(frozen=True, kw_only=True)
class Outline:
    """A model's name, configuration and structure: all that can be said without its weights."""

    name: str
    model: PreTrainedModel
    architecture: Architecture

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(self.architecture.blocks)

    @cached_property
    def parameters(self) -> int:
        """How many numbers the whole model has."""
        return sum(p.numel() for p in self.model.parameters())

    @cached_property
    def block_parameters(self) -> tuple[int, ...]:
        """How many numbers each block has."""
        blocks = self.architecture.blocks
        return tuple(sum(p.numel() for p in block.parameters()) for block in blocks)

    def site(self, layer: int) -> Site:
        """The editable matrix of a layer.

        Raises:
            UnknownName: there is no such layer.
            UnsupportedModel: there is, and it cannot be edited.
        """
        site = self.architecture.sites.get(layer)
        if site is not None:
            return site
        if layer in self.architecture.unavailable:
            reason = self.architecture.unavailable[layer]
            raise UnsupportedModel(f"Layer {layer} of {self.name} cannot be edited: {reason}.")
        raise UnknownName(
            f"{self.name} has no layer {layer}. Its layers are 0 to {self.layers - 1}."
        )


def discover(model: PreTrainedModel) -> Architecture:
    """Read a model's structure. On the meta device behaviour is taken for granted.

    Raises:
        UnsupportedModel: no blocks, no head, or no MLP down-projection could be made out.
    """
    block_path, blocks = _find_blocks(model)
    head = model.get_output_embeddings()
    if head is None:
        raise UnsupportedModel(f"{type(model).__name__} has no output head to read a target from.")
    reasons: list[str] = []
    for reference in blocks:
        try:
            found = _Probe(model, blocks, reference).down_projection()
        except UnsupportedModel as error:
            reasons.append(str(error))
            continue
        sites, unavailable = _sites(block_path, blocks, found.path)
        return Architecture(
            blocks=tuple(blocks),
            block_path=block_path,
            down_path=found.path,
            sites=sites,
            unavailable=unavailable,
            head=head,
            tied=_is_tied(model, head),
            additive=found.additive,
            block_returns_tuple=found.returns_tuple,
        )
    packed = next((kind for block in blocks for kind in _packed_maps(block)), None)
    reason = f"its MLPs are quantised ({packed}). {_SERVE_BESIDE}" if packed else reasons[0]
    raise UnsupportedModel(f"{type(model).__name__} cannot be edited: {reason}")


def _is_tied(model: PreTrainedModel, head: nn.Module) -> bool:
    """Whether the head is the embeddings; offloading makes two tensors of one."""
    embedding = model.get_input_embeddings()
    first, second = offloading.away(embedding, "weight"), offloading.away(head, "weight")
    if first is None or second is None:
        return getattr(head, "weight", None) is embedding.weight
    return bool(getattr(model, "all_tied_weights_keys", None))


def _find_blocks(model: PreTrainedModel) -> tuple[str, list[nn.Module]]:
    """The list of decoder blocks: as long as the configuration says, and the heaviest such."""
    depth = model.config.get_text_config(decoder=True).num_hidden_layers
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth
    }
    if not lists:
        raise UnsupportedModel(
            f"{type(model).__name__} has no list of {depth} blocks, as its configuration promises."
        )
    path = max(lists, key=lambda name: sum(p.numel() for p in lists[name].parameters()))
    return path, list(lists[path])


def _sites(
    block_path: str, blocks: list[nn.Module], down_path: str
) -> tuple[dict[int, Site], dict[int, str]]:
    """The site of every block that has a linear map at `down_path`."""
    sites: dict[int, Site] = {}
    unavailable: dict[int, str] = {}
    for layer, block in enumerate(blocks):
        module = dict(block.named_modules()).get(down_path)
        if module is None or not _is_linear(module):
            unavailable[layer] = f"its block has no linear map at {down_path!r}"
            if module is not None and _is_packed(module):
                unavailable[layer] = f"{down_path!r} is quantised there. {_SERVE_BESIDE}"
            continue
        d_in, d_out = _widths(module)
        sites[layer] = Site(
            layer=layer,
            path=f"{block_path}.{layer}.{down_path}.weight",
            module=module,
            transposed=isinstance(module, Conv1D),
            d_in=d_in,
            d_out=d_out,
        )
    return sites, unavailable


def _is_linear(module: nn.Module) -> bool:
    """Whether a module is y = Wx + b with a plain matrix: a quantised one is not."""
    if not isinstance(module, nn.Linear | Conv1D):
        return False
    return module.weight.ndim == 2 and module.weight.is_floating_point()


def _is_packed(module: nn.Module) -> bool:
    """Whether a module says that it is a linear map and has no plain matrix: a quantised one."""
    widths = (getattr(module, "in_features", None), getattr(module, "out_features", None))
    return all(isinstance(width, int) for width in widths) and not _is_linear(module)


def _packed_maps(block: nn.Module) -> list[str]:
    """Classes of a block's quantised linear maps."""
    return [type(module).__name__ for module in block.modules() if _is_packed(module)]


def _widths(module: nn.Module) -> tuple[int, int]:
    """d_in and d_out."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    rows, columns = weight.shape
    return (rows, columns) if isinstance(module, Conv1D) else (columns, rows)


@dataclass(frozen=True, kw_only=True)
class _Found:
    path: str
    additive: bool
    returns_tuple: bool


class _Probe:
    """A few forward passes that end after one block, to see what its linear maps do."""

    def __init__(self, model: PreTrainedModel, blocks: list[nn.Module], block: nn.Module) -> None:
        self.model, self.blocks, self.block = model, blocks, block
        self.layer = blocks.index(block)
        self.width: int = model.config.get_text_config(decoder=True).hidden_size
        self.linear = {name: m for name, m in block.named_modules() if _is_linear(m)}
        embedding = model.get_input_embeddings()
        assert isinstance(embedding.weight, Tensor)
        self.device, vocabulary = offloading.device_of(embedding), len(embedding.weight)
        self.bare = bool(offloading.missing(model))
        self.tokens = [vocabulary // 3, vocabulary // 5, vocabulary // 7]
        self.other_tokens = [vocabulary // 11, vocabulary // 5, vocabulary // 7]

    def down_projection(self) -> _Found:
        """The block's down-projection, and what becomes of its output."""
        order = self._run_order()
        candidates = [name for name in order if _widths(self.linear[name])[1] == self.width]
        if not candidates:
            raise UnsupportedModel(
                f"block {self.layer} runs no linear map that returns to the hidden width "
                f"{self.width} ({len(self.linear)} linear maps seen)"
            )
        path = candidates[-1]
        if self.bare:
            return _Found(path=path, additive=True, returns_tuple=False)
        if not any(self._is_local(path, other) for other in [None, *candidates[:-1]]):
            raise UnsupportedModel(
                f"the last linear map of block {self.layer}, {path!r}, mixes positions as "
                f"attention does: there is no dense MLP down-projection (a mixture of experts, or "
                f"a block without an MLP)"
            )
        return _Found(
            path=path,
            additive=self._is_additive(path),
            returns_tuple=hooks.returns_tuple(self.block, lambda: self._forward(self.tokens)),
        )

    def _forward(self, tokens: list[int]) -> None:
        ids = torch.tensor([tokens], device=self.device)
        self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)

    def _run(self, tokens: list[int]) -> None:
        hooks.run_until(self.block, lambda: self._forward(tokens))

    def _run_order(self) -> list[str]:
        """Names of the linear maps that see every position, in the order in which they run."""
        seen: list[tuple[str, Tensor]] = []
        with hooks.traced(self.linear, seen):
            self._run(self.tokens)
        return [name for name, x in seen if x.numel() == len(self.tokens) * x.shape[-1]]

    def _is_local(self, path: str, silent: str | None) -> bool:
        """Whether the map's input at a position depends on the token there, and on no other.

        Told from the input at the last of three positions when the first token changes, while
        another map is silent: with attention's output gone, what is left to the MLP is its own
        position. Attention's output map never passes: its input mixes positions, or is gone with
        the value map.
        """
        first, second = (
            self._input_in_silence(path, silent, tokens)
            for tokens in (self.tokens, self.other_tokens)
        )
        own = not torch.allclose(first[0, -1], first[0, -2], rtol=1e-3, atol=1e-6)
        return own and torch.allclose(first[0, -1], second[0, -1], rtol=1e-3, atol=1e-6)

    def _input_in_silence(self, path: str, silent: str | None, tokens: list[int]) -> Tensor:
        """The map's input while earlier blocks pass embeddings on and `silent` returns 0."""
        kept: list[Tensor] = []
        with (
            hooks.change_outputs(self._silenced(silent), 1, torch.zeros_like),
            hooks.read_inputs({self.layer: self.linear[path]}, 1, lambda _layer, x: kept.append(x)),
        ):
            self._run(tokens)
        return kept[0].float()

    def _silenced(self, silent: str | None) -> list[nn.Module]:
        """The named map of this block, and every map back to the hidden width before it."""
        silenced = [self.linear[silent]] if silent is not None else []
        for earlier in self.blocks[: self.layer]:
            silenced += [
                m for m in earlier.modules() if _is_linear(m) and _widths(m)[1] == self.width
            ]
        return silenced

    def _is_additive(self, path: str) -> bool:
        """Whether a vector added to the map's output arrives unchanged in the block's output."""
        outputs: list[Tensor] = []
        with hooks.read_outputs({self.layer: self.block}, 1, lambda _layer, y: outputs.append(y)):
            self._run(self.tokens)
            step = torch.linspace(-1, 1, self.width).to(outputs[0]) * outputs[0].abs().mean()
            with hooks.change_outputs([self.linear[path]], 1, lambda y: y + step):
                self._run(self.tokens)
        moved = outputs[1] - outputs[0]
        return bool((moved - step).norm() < 0.05 * moved.shape[1] ** 0.5 * step.norm())
