"""What a target's δ cannot change, computed once: the prefixes of many texts, and the stream.

δ is added at the lookup token of layer L, so neither the tokens before it nor the blocks up to L
ever see it. Of the former the keys and values are kept, in two parts, because texts of one
context begin with the same sampled words: those that a context's texts share, run once for all of
them, and the rest of each text up to its lookup token. Of the latter the stream that leaves them
is kept, at the lookup token and behind it.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

from retcon.model import hooks
from retcon.model.handle import ModelHandle
from retcon.model.tokens import by_length

Insertion = Literal["block", "down"]


class Place(NamedTuple):
    """Where δ is added: the output of block `layer`, or of its down-projection."""

    layer: int
    insertion: Insertion

    @property
    def first_live(self) -> int:
        """The first block that runs in every pass."""
        return self.layer + (self.insertion == "block")


class TargetRow(NamedTuple):
    """One text of one edit: its ids, the lookup position, which positions predict.

    shared: how many first tokens it has in common with the other texts of its context; at most
    `lookup`.
    """

    ids: tuple[int, ...]
    lookup: int
    predicts: tuple[int, ...]
    shared: int = 0

    @property
    def suffix(self) -> int:
        """Number of tokens from the lookup token on."""
        return len(self.ids) - self.lookup

    @property
    def tail(self) -> int:
        """Number of tokens between the shared ones and the lookup token."""
        return self.lookup - self.shared


class KeyValues(NamedTuple):
    """Keys and values of some tokens in some blocks, each (rows, heads, tokens, width)."""

    keys: list[Tensor]
    values: list[Tensor]

    def select(self, rows: Int[Tensor, " rows"], tokens: int) -> "KeyValues":
        """Those of the given rows, and of the first tokens only."""
        return KeyValues(
            [keys[rows, :, :tokens] for keys in self.keys],
            [values[rows, :, :tokens] for values in self.values],
        )

    def join(self, later: "KeyValues") -> "KeyValues":
        """These tokens and, behind them, later ones."""
        return KeyValues(
            [torch.cat(pair, dim=2) for pair in zip(self.keys, later.keys, strict=True)],
            [torch.cat(pair, dim=2) for pair in zip(self.values, later.values, strict=True)],
        )

    def from_block(self, first: int) -> "KeyValues":
        """Without the blocks before `first`."""
        return KeyValues(self.keys[first:], self.values[first:])

    def cache(self, blocks: int) -> Cache:
        """For a model of so many blocks; those before the first of these do not run."""
        layers: list[CacheLayerMixin] = []
        for keys, values in zip(self.keys, self.values, strict=True):
            layer = DynamicLayer()
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
            layers.append(layer)
        # Blocks that do not run need one too, for its length.
        return Cache(layers=[*layers[:1] * (blocks - len(layers)), *layers])


class Prefix(NamedTuple):
    """What no δ of these rows can change.

    shared: keys and values of the distinct beginnings of texts; start: which of them each row has.
    tail: of what follows up to the lookup token, by row. stream: what enters the first live block,
    at the lookup token and behind it. Shorter ones are filled up on the right, and masked.
    """

    rows: Sequence[TargetRow]
    shared: KeyValues
    start: Int[Tensor, " rows"]
    tail: KeyValues
    stream: Float[Tensor, "rows suffix hidden"]

    def before(self, rows: Int[Tensor, " rows"]) -> tuple[KeyValues, Bool[Tensor, "rows prefix"]]:
        """Keys and values before the lookup tokens of some rows, and which of them are real."""
        chosen = [self.rows[i] for i in rows.tolist()]
        shared, visible = _beginnings(self.shared, self.start[rows], chosen)
        lengths = [row.tail for row in chosen]
        tail = self.tail.select(rows, max(lengths))
        return shared.join(tail), torch.cat([visible, _first(lengths, rows.device)], dim=1)


def read_prefix(
    handle: ModelHandle, rows: Sequence[TargetRow], place: Place, tokens: int
) -> Prefix | None:
    """Run once what comes before δ, `tokens` tokens at a time.

    None where the model's cache is not plain keys and values.
    """
    # A text may begin with its lookup token. It then lends its first token, which masks hide.
    beginnings = [row.ids[: max(1, row.shared)] for row in rows]
    distinct = sorted(set(beginnings))
    start = torch.tensor([distinct.index(ids) for ids in beginnings], device=handle.device)
    with torch.no_grad():
        shared = _read_beginnings(handle, distinct)
        if shared is None:
            return None
        behind = _Behind(handle, rows, shared, start, tokens)
        stream = behind.stream(place)
        # Where no block is live, the last one's are kept all the same: a cache has a length.
        first = min(place.first_live, handle.layers - 1)
        return Prefix(rows, shared.from_block(first), start, behind.tails(first), stream)


def _read_beginnings(handle: ModelHandle, texts: Sequence[tuple[int, ...]]) -> KeyValues | None:
    batch = handle.tokens.pad(texts)
    # One logit: the head's own work is not wanted.
    with hooks.change_input(handle.architecture.head, lambda hidden: hidden[:1, :1]):
        cache = handle.model(
            input_ids=batch.input_ids.to(handle.device),
            attention_mask=batch.attention_mask.to(handle.device),
            use_cache=True,
        ).past_key_values
    length = batch.input_ids.shape[1]
    return _plain(cache, length, handle.layers)


def _plain(cache: object, length: int, blocks: int) -> KeyValues | None:
    """What a cache holds, if that is keys and values of every token in every block."""
    layers = list(cache.layers) if isinstance(cache, Cache) else []
    found = KeyValues([], [])
    for layer in layers:
        if not isinstance(layer, DynamicLayer) or layer.keys is None or layer.values is None:
            return None
        if layer.keys.shape[2] != length:
            return None
        found.keys.append(layer.keys)
        found.values.append(layer.values)
    return found if len(layers) == blocks else None


class _Behind:
    """Passes over what follows the shared beginnings of some rows."""

    def __init__(
        self,
        handle: ModelHandle,
        rows: Sequence[TargetRow],
        shared: KeyValues,
        start: Int[Tensor, " rows"],
        tokens: int,
    ) -> None:
        self.handle, self.rows, self.shared, self.start = handle, rows, shared, start
        self.tokens = tokens

    def tails(self, first: int) -> KeyValues:
        """Keys and values of each row's tail, in the blocks from `first` on."""
        widest = max(row.tail for row in self.rows)
        empty = self.shared.from_block(first).select(self.start, 0)
        found = KeyValues(*([_widened(t, widest) for t in side] for side in empty))
        asked = [i for i, row in enumerate(self.rows) if row.tail]
        head = self.handle.architecture.head
        for rows in self._parts(asked, [self.rows[i].tail for i in asked]):
            texts = [self.rows[i].ids[self.rows[i].shared : self.rows[i].lookup] for i in rows]
            with hooks.change_input(head, lambda hidden: hidden[:1, :1]):
                read = self._run(rows, texts).past_key_values
            width = max(len(text) for text in texts)
            for into, layer in zip(
                zip(found.keys, found.values, strict=True), read.layers[first:], strict=True
            ):
                into[0][rows, :, :width] = layer.keys[:, :, -width:]
                into[1][rows, :, :width] = layer.values[:, :, -width:]
        return found

    def stream(self, place: Place) -> Float[Tensor, "rows suffix hidden"]:
        """What leaves the last block that is not live, at the lookup token and behind it."""
        widest = max(row.suffix for row in self.rows)
        stream = self.handle.site(place.layer).weight.new_zeros(
            len(self.rows), widest, self.handle.hidden
        )
        last = place.first_live - 1
        if last < 0:
            return stream
        block = self.handle.architecture.blocks[last]
        texts = [row.ids[row.shared :] for row in self.rows]
        for rows in self._parts(list(range(len(texts))), [len(text) for text in texts]):

            def keep(_layer: int, y: Tensor, rows: list[int] = rows) -> None:
                for i, states in zip(rows, y, strict=True):
                    tail, suffix = self.rows[i].tail, self.rows[i].suffix
                    stream[i, :suffix] = states[tail : tail + suffix]

            with hooks.read_outputs({last: block}, len(rows), keep):
                hooks.run_until(block, lambda rows=rows: self._run(rows, [texts[i] for i in rows]))
        return stream

    def _parts(self, rows: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
        for group in by_length(lengths, self.tokens):
            yield [rows[i] for i in group]

    def _run(self, rows: Sequence[int], texts: Sequence[Sequence[int]]) -> Any:
        """The model's own forward over these tokens behind the shared beginnings of the rows."""
        index = torch.tensor(rows, device=self.handle.device)
        chosen = [self.rows[i] for i in rows]
        past, visible = _beginnings(self.shared, self.start[index], chosen)
        ids = self.handle.tokens.pad(texts).input_ids.to(self.handle.device)
        shared = torch.tensor([[row.shared] for row in chosen], device=ids.device)
        return self.handle.model(
            input_ids=ids,
            # What fills a text up stands behind it and is never seen by it.
            attention_mask=torch.cat([visible, visible.new_ones(ids.shape)], dim=1).long(),
            position_ids=shared + torch.arange(ids.shape[1], device=ids.device),
            past_key_values=past.cache(self.handle.layers),
            use_cache=True,
        )


def _beginnings(
    shared: KeyValues, start: Int[Tensor, " rows"], rows: Sequence[TargetRow]
) -> tuple[KeyValues, Bool[Tensor, "rows shared"]]:
    """The shared beginnings of some rows, and which of their tokens are real."""
    lengths = [row.shared for row in rows]
    width = max(1, *lengths)
    return shared.select(start, width), _first(lengths, start.device, width)


def _first(
    lengths: Sequence[int], device: torch.device, width: int | None = None
) -> Bool[Tensor, "rows width"]:
    """A mask of the first tokens of each row."""
    positions = torch.arange(max(lengths) if width is None else width, device=device)
    return positions < torch.tensor(lengths, device=device).unsqueeze(1)


def _widened(states: Tensor, tokens: int) -> Float[Tensor, "rows heads tokens width"]:
    rows, heads, _, width = states.shape
    return states.new_zeros(rows, heads, tokens, width)
