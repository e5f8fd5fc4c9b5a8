"""Find, in any decoder, the matrices that an edit writes, by structure and behaviour.

A block's editable site is the last linear map of its MLP, the "down-projection". Which one it is,
and whether its output is simply added to the residual stream, is measured: see `behaviour`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from retcon.errors import UnknownName, UnsupportedModel
from retcon.model import offload as offloading
from retcon.model.behaviour import BlockProbe, Found, hollow, is_linear, is_packed, widths
from retcon.model.offload import Away

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
        """Location of the parameter if accelerate keeps it away, else None."""
        return offloading.away(self.module, "weight")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Structure of a model: its editable matrices, and why other layers have none.

    Attributes:
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
        """Number of parameters of the whole model."""
        return sum(p.numel() for p in self.model.parameters())

    @cached_property
    def block_parameters(self) -> tuple[int, ...]:
        """Number of parameters of each block."""
        blocks = self.architecture.blocks
        return tuple(sum(p.numel() for p in block.parameters()) for block in blocks)

    def linear_maps(self) -> Iterator[tuple[str, bool]]:
        """The path of every linear map in the blocks, and whether its weight is (d_in, d_out)."""
        path = f"{self.architecture.block_path}."
        for name, module in self.model.named_modules():
            if name.startswith(path) and isinstance(module, nn.Linear | Conv1D):
                yield name, isinstance(module, Conv1D)

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
    """Read a model's structure. Without weights only the order is seen in which maps run.

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
            down = _down_projection(BlockProbe(model, blocks, reference))
        except UnsupportedModel as error:
            reasons.append(str(error))
            continue
        sites, unavailable = _sites(block_path, blocks, down.path)
        return Architecture(
            blocks=tuple(blocks),
            block_path=block_path,
            down_path=down.path,
            sites=sites,
            unavailable=unavailable,
            head=head,
            tied=_is_tied(model, head),
            additive=down.additive,
            block_returns_tuple=down.returns_tuple,
        )
    packed = next((kind for block in blocks for kind in _packed_maps(block)), None)
    reason = f"its MLPs are quantised ({packed}). {_SERVE_BESIDE}" if packed else reasons[0]
    raise UnsupportedModel(f"{type(model).__name__} cannot be edited: {reason}")


def _down_projection(probe: BlockProbe) -> Found:
    """A block's down-projection; of a model without weights what it does is taken for granted."""
    if not offloading.missing(probe.model):
        return probe.down_projection()
    with hollow(probe.model):
        return Found(path=probe.last_map()[0], additive=True, returns_tuple=False)


def _is_tied(model: PreTrainedModel, head: nn.Module) -> bool:
    """True if the head is the embeddings; offloading makes two tensors of one."""
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
        if module is None or not is_linear(module):
            unavailable[layer] = f"its block has no linear map at {down_path!r}"
            if module is not None and is_packed(module):
                unavailable[layer] = f"{down_path!r} is quantised there. {_SERVE_BESIDE}"
            continue
        d_in, d_out = widths(module)
        sites[layer] = Site(
            layer=layer,
            path=f"{block_path}.{layer}.{down_path}.weight",
            module=module,
            transposed=isinstance(module, Conv1D),
            d_in=d_in,
            d_out=d_out,
        )
    return sites, unavailable


def _packed_maps(block: nn.Module) -> list[str]:
    """Classes of a block's quantised linear maps."""
    return [type(module).__name__ for module in block.modules() if is_packed(module)]
