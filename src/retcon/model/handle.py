"""A loaded model and the matrices an edit may write: the only code that writes weights.

Every edited matrix has a float32 master; a change is added to it in float64 and cast once.
Restoring copies saved tensors back, bit for bit; nothing is ever subtracted. A matrix that
accelerate keeps on disk or in main memory is replaced where accelerate looks for it.
"""

import hashlib
import json
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from retcon.algebra.delta import LowRankDelta
from retcon.algebra.gram import all_finite
from retcon.errors import NotFinite, UnsupportedModel
from retcon.model import offload as offloading
from retcon.model.behaviour import looks_ahead
from retcon.model.fingerprints import Weights, fingerprint_of
from retcon.model.offload import Away
from retcon.model.positions import Positions
from retcon.model.structure import Architecture, Outline, Site, discover
from retcon.model.tokens import Tokens

# Rows of ΔW that are multiplied out at a time hold at most this many float64 numbers (128 MiB).
_CHUNK = 2**24
# Entries of a configuration that say where a model comes from and how it is stored, not what it is.
_NO_SETTINGS = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")


class ModelHandle:
    """A Hugging Face causal language model, its tokens and its editable sites.

    name: what the user called it. weights: what was found when these were loaded and looked at
    before; None: they are looked at now. fingerprint: names architecture and weights, whatever the
    dtype in which they were loaded.

    Raises:
        UnsupportedModel: no editable site, for the reason given; weights without values; an
            adapter; attention both ways; or tokens without an embedding.
        NotFinite: NaN or infinity in a weight.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        weights: Weights | None = None,
    ) -> None:
        model = _without_adapters(model, name)
        self.model = model.eval().requires_grad_(False)
        self.name = name
        self.tokens = Tokens(tokenizer, Positions.of(model))
        _check_present(model, name)
        self.outline = Outline(name=name, model=model, architecture=discover(model))
        self.weights = look_at(model, tokenizer, name) if weights is None else weights
        self._changed: frozenset[int] = frozenset()
        self._masters: dict[int, Tensor] = {}
        self._saved: list[dict[int, _Saved]] = []
        self._lent = 0

    @property
    def device(self) -> torch.device:
        """Device that token ids are sent to."""
        return offloading.device_of(self.model.get_input_embeddings())

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights outside the masters."""
        return self.model.dtype

    @property
    def architecture(self) -> Architecture:
        """The model's structure, as far as edits need it."""
        return self.outline.architecture

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return self.outline.layers

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return next(iter(self.architecture.sites.values())).d_out

    def site(self, layer: int) -> Site:
        """The editable matrix of a layer.

        Raises:
            UnknownName: there is no such layer.
            UnsupportedModel: there is, and it cannot be edited.
        """
        return self.outline.site(layer)

    @property
    def fingerprint(self) -> str:
        """The name of the weights as they were loaded, which a patch belongs to."""
        return self.weights.fingerprint

    @property
    def live_fingerprint(self) -> str:
        """The fingerprint of the weights as they are now, edits included."""
        if self.as_loaded:
            return self.fingerprint
        return fingerprint_of(offloading.parameters(self.model))

    @property
    def live_digest(self) -> str:
        """The digest of all weights as they are now, under which activations are cached."""
        if self._lent:
            return read_weights(self.model).digest
        if not self._changed:
            return self.weights.digest
        sites = [self.site(layer) for layer in sorted(self._changed)]
        return self.weights.with_tensors(
            (site.path, site.weight.mT if site.transposed else site.weight) for site in sites
        )

    def answers_to(self, base: str, digest: str | None) -> bool:
        """True if a patch that names these weights was made for this model, as loaded or as it is.

        Args:
            base: a fingerprint.
            digest: of all weights, where it is known.
        """
        if self.weights.answers_to(base, digest):
            return True
        now = None if self.as_loaded else self.live_fingerprint
        return base == now and digest in (None, self.live_digest)

    @property
    def as_loaded(self) -> bool:
        """True if no edit is in the weights, not even one too small for a fingerprint to show."""
        return not self._changed and not self._lent

    @property
    def identity(self) -> dict[str, str]:
        """Everything that decides, up to threads, the numbers that the model gives as loaded."""
        config = self.model.config.to_dict()
        settings = {name: value for name, value in config.items() if name not in _NO_SETTINGS}
        return {
            "weights": self.weights.digest,
            "tokens": self.tokens.identity,
            "settings": json.dumps(settings, sort_keys=True, default=str),
            "attention": str(getattr(self.model.config, "_attn_implementation", None)),
            "dtype": str(self.dtype),
            "device": self.device.type,
            "products": torch.get_float32_matmul_precision(),
        }

    def master(self, layer: int) -> Float[Tensor, "d_out d_in"]:
        """The matrix of a layer in float32: what edits add up in."""
        if self.weights_are_masters:
            return self.site(layer).weight
        if layer in self._masters:
            return self._masters[layer]
        return self.site(layer).weight.float()

    def write(self, deltas: Mapping[int, LowRankDelta]) -> None:
        """Add a change to each matrix. Inside `scratch()` it is undone at the end.

        Raises:
            NotFinite: a change holds NaN or infinity; nothing is written then.
        """
        self.check(deltas)
        for layer, delta in deltas.items():
            self._save(layer)
            self._changed |= {layer}
            self._add(layer, delta)

    def check(self, deltas: Mapping[int, LowRankDelta]) -> None:
        """Refuse changes that could not be written.

        Raises:
            NotFinite: a change holds NaN or infinity.
            UnsupportedModel: a change does not fit the matrix of its layer.
        """
        for layer, delta in deltas.items():
            for factor in (delta.left, delta.right):
                if not torch.isfinite(factor).all():
                    raise NotFinite(f"The change of layer {layer} holds NaN or infinity.")
            self._check_shape(layer, delta)

    @contextmanager
    def scratch(self) -> Generator["ModelHandle", None, None]:
        """Whatever is written inside is gone afterwards: the saved tensors are copied back."""
        self._saved.append({})
        changed = self._changed
        try:
            yield self
        finally:
            self._changed = changed
            for layer, saved in self._saved.pop().items():
                self._restore(layer, saved)

    @contextmanager
    def lent(self) -> Generator["ModelHandle", None, None]:
        """Whatever becomes of any weight inside, by others' hands too, is undone afterwards.

        Raises:
            UnsupportedModel: some weights are offloaded.
        """
        if any(parameter.is_meta for parameter in self.model.parameters()):
            raise UnsupportedModel(
                f"Some weights of {self.name} are offloaded, so they cannot be changed and brought "
                f"back. Load it whole: without --device auto, or on a machine that has the memory."
            )
        saved = [(weight, weight.detach().clone()) for weight in self.model.parameters()]
        masters = dict(self._masters)
        self._lent += 1
        try:
            yield self
        finally:
            for weight, before in saved:
                weight.data.copy_(before)
            self._masters = masters
            self._lent -= 1

    def overwrite(self, change: Callable[[str, Tensor], Tensor]) -> None:
        """Put `change(name, weight)` in the place of every weight. Only inside `lent()`."""
        assert self._lent, "the weights would not come back"
        for name, weight in self.model.named_parameters():
            weight.data.copy_(change(name, weight.data))

    def moved(self, layer: int) -> float:
        """‖W − W₀‖: how far a layer's matrix is from what it was outside every open `scratch()`."""
        return float(self.change(layer).norm())

    def change(self, layer: int, dtype: torch.dtype | None = None) -> Float[Tensor, "d_out d_in"]:
        """W − W₀ of a layer, W₀ as it was outside every open `scratch()`.

        Args:
            dtype: in which it is subtracted; None: the master's.
        """
        now = self.master(layer).to(dtype)
        return now - self._original(layer).to(now)

    def original_norm(self, layer: int) -> float:
        """‖W₀‖, of a layer's matrix as it was outside every open `scratch()`."""
        return float(self._original(layer).float().norm())

    def _original(self, layer: int) -> Tensor:
        for saved in self._saved:
            if layer in saved:
                weight, master, _ = saved[layer]
                return weight if master is None else master
        return self.master(layer)

    def weights_hash(self) -> str:
        """sha256 over every byte that would be saved, to prove that nothing moved."""
        digest = hashlib.sha256()
        for name, tensor in offloading.saved(self.model):
            digest.update(name.encode())
            digest.update(_bytes(tensor))
        return digest.hexdigest()

    @property
    def weights_are_masters(self) -> bool:
        """True if edits add up in the weights themselves, which are then never rounded."""
        return self.dtype in (torch.float32, torch.float64)

    def _check_shape(self, layer: int, delta: LowRankDelta) -> None:
        site = self.site(layer)
        shape = (delta.left.shape[1], delta.right.shape[1])
        if shape != (site.d_out, site.d_in):
            raise UnsupportedModel(
                f"A change of shape {shape[0]} x {shape[1]} does not fit layer {layer} of "
                f"{self.name}, which is {site.d_out} x {site.d_in}."
            )

    def _save(self, layer: int) -> None:
        if self._saved and layer not in self._saved[-1]:
            site, master = self.site(layer), self._masters.get(layer)
            away = site.away
            # What is away is replaced, never written to: it needs no copy.
            self._saved[-1][layer] = _Saved(
                site.weight.clone() if away is None else site.weight,
                None if master is None else master.clone(),
                stored=away is not None and away.stored and not away.changed,
            )

    def _restore(self, layer: int, saved: "_Saved") -> None:
        away = self.site(layer).away
        if away is None:
            self.site(layer).weight.copy_(saved.weight)
        elif saved.stored:
            away.drop()
        else:
            self._put(layer, away, saved.weight)
        self._masters.pop(layer, None)
        if saved.master is not None:
            self._masters[layer] = saved.master

    def _add(self, layer: int, delta: LowRankDelta) -> None:
        away, weight, master = self.site(layer).away, self.site(layer).weight, self.master(layer)
        if away is not None and self.weights_are_masters:
            master = master.clone()
        rows = max(1, _CHUNK // master.shape[1])
        for start in range(0, len(master), rows):
            part = slice(start, start + rows)
            change = delta.dense(part).to(master.device)
            master[part] = (master[part].double() + change).to(master.dtype)
        if not self.weights_are_masters:
            self._masters[layer] = master
        if away is not None:
            self._put(layer, away, master)
        elif not self.weights_are_masters:
            weight.copy_(master)

    def _put(self, layer: int, away: Away, weight: Tensor) -> None:
        away.put(weight.mT if self.site(layer).transposed else weight)


class _Saved(NamedTuple):
    """A matrix as it was, its master where it had one, and whether the disk has it anyhow."""

    weight: Tensor
    master: Tensor | None
    stored: bool


def look_at(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> Weights:
    """Look at every weight, and at what the model as a whole does; what its weights are.

    Raises:
        NotFinite: NaN or infinity in a weight.
        UnsupportedModel: attention both ways, or tokens without an embedding.
    """
    _check_embeddings(model, tokenizer, name)
    _check_finite(model)
    if looks_ahead(model):
        raise UnsupportedModel(
            f"{name} is no causal language model: a later token changes what it says at an earlier "
            f"position, as in an encoder. Where it can be a decoder (is_decoder in config.json of "
            f"BERT and its like), its weights must have been trained as one."
        )
    return read_weights(model)


def read_weights(model: PreTrainedModel) -> Weights:
    """Read fingerprint and digests of a model's weights, which may be offloaded."""
    parameters = [name for name, _ in model.named_parameters()]
    return Weights.read(offloading.weights(model), parameters)


def _without_adapters(model: torch.nn.Module, name: str) -> PreTrainedModel:
    """A model of transformers that nothing is wrapped around or put into."""
    plain = isinstance(model, PreTrainedModel)
    # What PEFT puts in the place of a module keeps that module under this name.
    inside = any(hasattr(module, "base_layer") for module in model.modules())
    if plain and not inside:
        return model
    where = "has adapters in it" if plain else f"is a {type(model).__name__}"
    raise UnsupportedModel(
        f"{name} {where}, and an edit is of the own weights of a model of transformers. Give the "
        f"base model; or merge the adapter first (merge_and_unload in PEFT, which returns the "
        f"merged model)."
    )


def _check_embeddings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str
) -> None:
    """Refuse a tokenizer with a token that has no row in the embeddings.

    Those that no text comes to, padding above all, need none.
    """
    embedding = model.get_input_embeddings()
    assert isinstance(embedding.weight, Tensor)
    rows, given = len(embedding.weight), set(map(int, tokenizer("a")["input_ids"]))
    idle = {str(t) for t in (tokenizer.pad_token, tokenizer.eos_token, tokenizer.unk_token)}
    beyond = sorted(
        (i, token)
        for token, i in tokenizer.get_vocab().items()
        if i >= rows and (token not in idle or i in given)
    )
    if beyond:
        raise UnsupportedModel(
            f"The tokenizer of {name} has {len(beyond)} tokens without an embedding, the first "
            f"{beyond[0][1]!r} (id {beyond[0][0]}): the model has {rows} rows, for ids up to "
            f"{rows - 1}. Use the tokenizer that belongs to these weights, or resize the "
            f"embeddings (resize_token_embeddings), train them, and save both."
        )


def _check_present(model: PreTrainedModel, name: str) -> None:
    absent = offloading.missing(model)
    if absent:
        raise UnsupportedModel(
            f"{len(absent)} weights of {name}, the first {absent[0]}, have no values: they are "
            f"offloaded in a way that no hook of accelerate on their own module undoes. Load the "
            f"model with retcon.load, or with from_pretrained and a device_map."
        )


def _check_finite(model: PreTrainedModel) -> None:
    for name, parameter in offloading.parameters(model):
        if parameter.is_floating_point() and not all_finite(parameter):
            raise NotFinite(
                f"The model's weight {name} holds NaN or infinity. The checkpoint is damaged, or "
                f"its values overflow in {parameter.dtype}; try --dtype float32."
            )


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
