"""Forward passes for target optimisation that compute only what a target can change.

A vector δ added at the lookup token of layer L changes nothing before that token and nothing in
blocks up to L. So the whole text runs once; the keys and values of the tokens before the lookup
token and the stream entering block L+1 are kept; and each step runs the model's own forward over
the lookup token and what follows, through the blocks behind L only. Rows of equal suffix length
run together, so no suffix is padded.

Whether this is exact for an architecture is not assumed: at δ = 0 both ways must give the same
logits, and where they do not (alibi positions, recurrent blocks) the full forward is used.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

from retcon.model import hooks
from retcon.model.handle import ModelHandle

Insertion = Literal["block", "down"]


class TargetRow(NamedTuple):
    """One text of one edit: its ids, the lookup position, and which positions predict."""

    ids: tuple[int, ...]
    lookup: int
    predicts: tuple[int, ...]

    @property
    def suffix(self) -> int:
        """Number of tokens from the lookup token on."""
        return len(self.ids) - self.lookup


class Place(NamedTuple):
    """Where δ is added: the output of block `layer`, or of its down-projection."""

    layer: int
    insertion: Insertion


@runtime_checkable
class Passes(Protocol):
    """Logits of some rows, given the vector that is added at their lookup tokens."""

    def __call__(
        self, rows: Int[Tensor, " rows"], delta: Float[Tensor, "rows hidden"]
    ) -> Float[Tensor, "predictions vocabulary"]: ...


def passes_for(
    handle: ModelHandle, rows: Sequence[TargetRow], place: Place, tokens: int
) -> tuple[Passes, bool]:
    """The cheapest exact way to run these rows (all of one suffix length), and whether it is short.

    tokens: how many tokens one pass over whole texts may hold.
    """
    short = _SuffixPasses.read(handle, rows, place, tokens)
    if short is not None:
        return short, True
    return _FullPasses(handle, rows, place), False


class _Gather:
    """Lets the output head see only the positions that predict a target."""

    def __init__(
        self, row: Int[Tensor, " predictions"], position: Int[Tensor, " predictions"]
    ) -> None:
        self.row, self.position = row, position

    def __call__(self, hidden: Float[Tensor, "rows length h"]) -> Float[Tensor, "1 predictions h"]:
        return hidden[self.row, self.position].unsqueeze(0)


def _gather(rows: Sequence[TargetRow], device: torch.device, *, from_lookup: bool) -> _Gather:
    pairs = [
        (i, position - (row.lookup if from_lookup else 0))
        for i, row in enumerate(rows)
        for position in row.predicts
    ]
    index = torch.tensor(pairs, device=device)
    return _Gather(index[:, 0], index[:, 1])


class _FullPasses:
    """Whole texts through the whole model: what every architecture can do."""

    def __init__(self, handle: ModelHandle, rows: Sequence[TargetRow], place: Place) -> None:
        self.handle, self.rows, self.place = handle, rows, place

    def __call__(
        self, rows: Int[Tensor, " rows"], delta: Float[Tensor, "rows hidden"]
    ) -> Float[Tensor, "predictions vocabulary"]:
        chosen = [self.rows[i] for i in rows.tolist()]
        lookup = torch.tensor([row.lookup for row in chosen], device=delta.device)

        def add(y: Tensor) -> Tensor:
            index = torch.arange(len(chosen), device=delta.device)
            return y.index_put((index, lookup), delta.to(y.dtype), accumulate=True)

        architecture, layer = self.handle.architecture, self.place.layer
        down = self.handle.site(layer).module
        where = architecture.blocks[layer] if self.place.insertion == "block" else down
        with hooks.change_outputs([where], len(chosen), add):
            return _whole(self.handle, chosen, use_cache=False)[0]


def _whole(
    handle: ModelHandle, rows: Sequence[TargetRow], *, use_cache: bool
) -> tuple[Float[Tensor, "predictions vocabulary"], Cache | None]:
    """Logits at the predicting positions of whole texts, padded on the right."""
    batch = handle.tokens.pad([row.ids for row in rows])
    gather = _gather(rows, handle.device, from_lookup=False)
    with hooks.change_input(handle.architecture.head, gather):
        out = handle.model(
            input_ids=batch.input_ids.to(handle.device),
            attention_mask=batch.attention_mask.to(handle.device),
            use_cache=use_cache,
        )
    return out.logits[0], out.past_key_values if use_cache else None


class _PrefixLayer(DynamicLayer):
    """Keys and values of one layer before the lookup token: read in every step, never grown."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: object, **_kwargs: object
    ) -> tuple[Tensor, Tensor]:
        assert self.keys is not None and self.values is not None
        return (
            torch.cat([self.keys, key_states], dim=-2),
            torch.cat([self.values, value_states], dim=-2),
        )


class _Prefix(NamedTuple):
    """What a pass over whole texts leaves for the passes over their suffixes."""

    keys: list[Float[Tensor, "rows heads prefix width"]]
    values: list[Float[Tensor, "rows heads prefix width"]]
    stream: Float[Tensor, "rows suffix hidden"]


class _SuffixPasses:
    """The lookup token and what follows, through the blocks behind the insertion only."""

    def __init__(
        self, handle: ModelHandle, rows: Sequence[TargetRow], place: Place, prefix: _Prefix
    ) -> None:
        self.handle, self.rows, self.place, self.prefix = handle, rows, place, prefix
        device = handle.device
        suffix = rows[0].suffix
        self.ids = torch.tensor([row.ids[row.lookup :] for row in rows], device=device)
        lookup = torch.tensor([[row.lookup] for row in rows], device=device)
        self.positions = lookup + torch.arange(suffix, device=device)
        visible: Bool[Tensor, "rows prefix"] = (
            torch.arange(prefix.keys[0].shape[2], device=device) < lookup
        )
        self.mask = torch.cat([visible, visible.new_ones(len(rows), suffix)], dim=1).long()

    @classmethod
    def read(
        cls, handle: ModelHandle, rows: Sequence[TargetRow], place: Place, tokens: int
    ) -> "_SuffixPasses | None":
        """Run the whole texts once. None where passes over suffixes do not reproduce them."""
        longest = max(len(row.ids) for row in rows)
        size = max(1, tokens // longest)
        parts: list[_Prefix] = []
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            with torch.no_grad():
                prefix, logits = _read_prefix(handle, part, place, max(r.lookup for r in rows))
            if prefix is None:
                return None
            if not cls(handle, part, place, prefix)._reproduces(logits):
                return None
            parts.append(prefix)
        joined = _Prefix(
            keys=[torch.cat(layer) for layer in zip(*(p.keys for p in parts), strict=True)],
            values=[torch.cat(layer) for layer in zip(*(p.values for p in parts), strict=True)],
            stream=torch.cat([p.stream for p in parts]),
        )
        return cls(handle, rows, place, joined)

    def _reproduces(self, whole: Float[Tensor, "predictions vocabulary"]) -> bool:
        """Whether suffixes at δ = 0 give the logits of the whole texts."""
        rows = torch.arange(len(self.ids))
        with torch.no_grad():
            short = self(rows, self.prefix.stream.new_zeros(len(rows), self.prefix.stream.shape[2]))
        tolerance = 1e-3 if short.dtype in (torch.float32, torch.float64) else 5e-2
        return bool((short - whole).norm() <= tolerance * whole.norm())

    def __call__(
        self, rows: Int[Tensor, " rows"], delta: Float[Tensor, "rows hidden"]
    ) -> Float[Tensor, "predictions vocabulary"]:
        architecture, layer = self.handle.architecture, self.place.layer
        stream = self.prefix.stream[rows]

        def add(y: Tensor) -> Tensor:
            return torch.cat([y[:, :1] + delta.to(y.dtype).unsqueeze(1), y[:, 1:]], dim=1)

        with ExitStack() as stack:
            if self.place.insertion == "block":
                stream, first_live = add(stream), layer + 1
            else:
                down = self.handle.site(layer).module
                stack.enter_context(hooks.change_outputs([down], len(rows), add))
                first_live = layer
            stack.enter_context(
                hooks.replaced(
                    architecture.blocks[:first_live],
                    lambda: stream,
                    as_tuple=architecture.block_returns_tuple,
                )
            )
            chosen = [self.rows[i] for i in rows.tolist()]
            gather = _gather(chosen, delta.device, from_lookup=True)
            stack.enter_context(hooks.change_input(architecture.head, gather))
            return self.handle.model(
                input_ids=self.ids[rows],
                attention_mask=self.mask[rows],
                position_ids=self.positions[rows],
                past_key_values=self._cache(rows),
                use_cache=True,
            ).logits[0]

    def _cache(self, rows: Int[Tensor, " rows"]) -> Cache:
        """The prefix cache; blocks that do not run need one too, for its length."""
        live: list[CacheLayerMixin] = [
            _PrefixLayer(keys[rows], values[rows])
            for keys, values in zip(self.prefix.keys, self.prefix.values, strict=True)
        ]
        skipped = len(self.handle.architecture.blocks) - len(live)
        return Cache(layers=[*live[:1] * skipped, *live])


def _read_prefix(
    handle: ModelHandle, rows: Sequence[TargetRow], place: Place, length: int
) -> tuple[_Prefix | None, Float[Tensor, "predictions vocabulary"]]:
    """One pass over whole texts; None where its cache is not plain keys and values."""
    before = place.layer if place.insertion == "block" else place.layer - 1
    streams: list[Tensor] = []
    with ExitStack() as stack:
        if before >= 0:
            block = {before: handle.architecture.blocks[before]}
            stack.enter_context(
                hooks.read_outputs(block, len(rows), lambda _layer, y: streams.append(y))
            )
        logits, cache = _whole(handle, rows, use_cache=True)
    longest = max(len(row.ids) for row in rows)
    # Where no block is live, the last one's are kept all the same: a cache must have a length.
    first = min(before + 1, handle.layers - 1)
    live = [] if cache is None else list(cache.layers)[first:]
    plain = [layer for layer in live if isinstance(layer, DynamicLayer)]
    if len(plain) < handle.layers - first or any(p.get_seq_length() != longest for p in plain):
        return None, logits
    hidden = streams[0] if streams else logits.new_zeros(len(rows), longest, handle.hidden)
    suffix = torch.arange(rows[0].suffix, device=handle.device)
    position = torch.tensor([[row.lookup] for row in rows], device=handle.device) + suffix
    index = torch.arange(len(rows), device=handle.device).unsqueeze(1)
    prefix = _Prefix(
        keys=[_fit(layer.keys, length) for layer in plain],
        values=[_fit(layer.values, length) for layer in plain],
        stream=hidden[index, position],
    )
    return prefix, logits


def _fit(states: Tensor | None, length: int) -> Float[Tensor, "rows heads prefix width"]:
    """The first `length` positions, a copy so that the rest can be freed; zeros where too few."""
    assert states is not None
    kept = states[:, :, :length]
    return torch.nn.functional.pad(kept, (0, 0, 0, length - kept.shape[2])).clone()
