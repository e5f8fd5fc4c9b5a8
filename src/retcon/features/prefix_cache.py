"""A cache of all that a target's δ cannot change: the tokens before it, and the stream into it.

δ is added at the lookup token of layer L, so neither the tokens before it nor the blocks up to L
ever see it. Of the former the keys and values are kept, each token's once: texts of one context
begin with the same sampled words, and those run once for all of them. Of the latter the stream
that leaves them is kept, at the lookup token and behind it.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from retcon.model import hooks
from retcon.model.forward import reading_little, run, run_batch
from retcon.model.handle import ModelHandle
from retcon.model.tokens import by_length

Insertion = Literal["block", "down"]


class DeltaPlace(NamedTuple):
    """Place where δ is added: the output of block `layer`, or of its down-projection."""

    layer: int
    insertion: Insertion

    @property
    def first_live(self) -> int:
        """The first block that runs in every pass."""
        return self.layer + (self.insertion == "block")


class TargetRow(NamedTuple):
    """One text of one edit: its ids, the lookup position, which positions predict.

    Attributes:
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
    """Keys and values of tokens of any texts, by block, each (tokens, heads, width)."""

    keys: list[Tensor]
    values: list[Tensor]

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return len(self.keys[0])

    def from_block(self, first: int) -> "KeyValues":
        """Leave out the blocks before `first`."""
        return KeyValues(self.keys[first:], self.values[first:])

    @staticmethod
    def stack(parts: Sequence["KeyValues"]) -> "KeyValues":
        """All tokens of several such."""
        return KeyValues(
            [torch.cat(same) for same in zip(*(part.keys for part in parts), strict=True)],
            [torch.cat(same) for same in zip(*(part.values for part in parts), strict=True)],
        )


class Before(NamedTuple):
    """Cached keys and values before each row: indices, and a mask of non-padding."""

    key_values: KeyValues
    index: Int[Tensor, "rows prefix"]
    visible: Bool[Tensor, "rows prefix"]

    def cache(self, blocks: int) -> Cache:
        """Cache for a model of `blocks` blocks; those that are not kept do not run."""
        skipped = blocks - len(self.key_values.keys)
        return Cache(layers=[_Before(self, max(0, block - skipped)) for block in range(blocks)])


class _Before(DynamicLayer):
    """One block's part of it, put together when the block asks, and not kept.

    `keys` and `values` are those of the pass itself.
    """

    def __init__(self, before: Before, block: int) -> None:
        super().__init__()
        self.before, self.block = before, block
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: object, **_kwargs: object
    ) -> tuple[Tensor, Tensor]:
        self.keys, self.values = key_states, value_states
        stored, index, _ = self.before
        keys, values = stored.keys[self.block], stored.values[self.block]
        index = index.to(keys.device)  # blocks may be on several
        return (
            torch.cat([keys[index].transpose(1, 2), key_states], dim=2),
            torch.cat([values[index].transpose(1, 2), value_states], dim=2),
        )

    def get_seq_length(self) -> int:
        return self.before.index.shape[1]


class Prefix(NamedTuple):
    """Values that no δ of these rows can change, computed once.

    Attributes:
        key_values: keys and values in the live blocks.
        before: which of those tokens are before each row's lookup token.
        stream: input of the first live block, from the lookup token on.
    """

    rows: Sequence[TargetRow]
    key_values: KeyValues
    before: list[range | list[int]]
    stream: Float[Tensor, "rows suffix hidden"]

    def standing_before(self, rows: Int[Tensor, " rows"]) -> Before:
        """Gather what a pass over some rows reads of the tokens before them."""
        return _standing_before(
            self.key_values, [self.before[i] for i in rows.tolist()], rows.device
        )


def read_prefix(
    model: ModelHandle, rows: Sequence[TargetRow], place: DeltaPlace, tokens: int
) -> Prefix | None:
    """Run once what comes before δ, `tokens` tokens at a time.

    None where the model's cache is not plain keys and values.
    """
    beginnings = sorted({row.ids[: row.shared] for row in rows if row.shared})
    with torch.no_grad():
        # Some text has to run in any case, to see what kind of cache the model has.
        key_values = _read_beginnings(model, beginnings or [rows[0].ids[:1]])
        if key_values is None:
            return None
        ends = accumulate(map(len, beginnings), initial=0)
        where = {
            ids: range(end, end + len(ids)) for ids, end in zip(beginnings, ends, strict=False)
        }
        shared = [where.get(row.ids[: row.shared], range(0)) for row in rows]
        behind = _Behind(model, rows, key_values, shared, tokens)
        stream = behind.stream(place)
        # Where no block is live, the last one's are kept all the same.
        first = min(place.first_live, model.layers - 1)
        tails, before = behind.tails(first)
        everything = KeyValues.stack([key_values.from_block(first), *tails])
        return Prefix(rows, everything, before, stream)


def _read_beginnings(model: ModelHandle, texts: Sequence[tuple[int, ...]]) -> KeyValues | None:
    """Keys and values of every token of some texts, if that is what the model's cache holds."""
    batch = model.tokens.pad(texts)
    mask = batch.attention_mask
    with reading_little(model):
        found = run_batch(model, batch, keep_cache=True)
    # Some architectures have none: they carry a state from token to token, or nothing at all.
    cache = getattr(found, "past_key_values", None)
    layers = list(cache.layers) if isinstance(cache, Cache) else []
    key_values = KeyValues([], [])
    for layer in layers:
        # Not their kin, which keep something else beside keys and values.
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            return None
        assert isinstance(layer, DynamicLayer)
        if layer.keys is None or layer.values is None:
            return None
        if layer.keys.shape[2] != mask.shape[1]:
            return None
        key_values.keys.append(_real(layer.keys, mask.bool()))
        key_values.values.append(_real(layer.values, mask.bool()))
    return key_values if len(layers) == model.layers else None


class _Behind:
    """Passes over what follows the shared beginnings of some rows."""

    def __init__(
        self,
        model: ModelHandle,
        rows: Sequence[TargetRow],
        key_values: KeyValues,
        shared: Sequence[range],
        tokens: int,
    ) -> None:
        self.model, self.rows, self.key_values, self.shared = model, rows, key_values, shared
        self.tokens = tokens

    def tails(self, first: int) -> tuple[list[KeyValues], list[range | list[int]]]:
        """Keys and values of the rows' tails, in the blocks from `first` on, and whose they are."""
        parts: list[KeyValues] = []
        before: list[range | list[int]] = [*self.shared]
        end = self.key_values.tokens
        texts = [row.ids[row.shared : row.lookup] for row in self.rows]
        for rows in self._parts([len(text) for text in texts]):
            batch = self.model.tokens.pad([texts[i] for i in rows])
            with reading_little(self.model):
                cache = self._run(rows, batch.input_ids).past_key_values
            real = batch.attention_mask.bool().to(self.model.device)
            layers = cache.layers[first:]
            parts.append(
                KeyValues(
                    [_real(layer.keys, real) for layer in layers],
                    [_real(layer.values, real) for layer in layers],
                )
            )
            for i in rows:
                before[i] = [*self.shared[i], *range(end, end + len(texts[i]))]
                end += len(texts[i])
        return parts, before

    def stream(self, place: DeltaPlace) -> Float[Tensor, "rows suffix hidden"]:
        """Read the output of the last block that is not live, from the lookup token on."""
        widest = max(row.suffix for row in self.rows)
        stream = torch.zeros(
            (len(self.rows), widest, self.model.hidden),
            dtype=self.model.dtype,
            device=self.model.device,
        )
        last = place.first_live - 1
        if last < 0:
            return stream
        block = self.model.architecture.blocks[last]
        texts = [row.ids[row.shared :] for row in self.rows]
        for rows in self._parts([len(text) for text in texts]):

            def keep(_layer: int, y: Tensor, rows: list[int] = rows) -> None:
                for i, states in zip(rows, y, strict=True):
                    tail, suffix = self.rows[i].tail, self.rows[i].suffix
                    stream[i, :suffix] = states[tail : tail + suffix]

            ids = self.model.tokens.pad([texts[i] for i in rows]).input_ids
            with hooks.read_outputs({last: block}, len(rows), keep):
                hooks.run_until(block, lambda rows=rows, ids=ids: self._run(rows, ids))
        return stream

    def _parts(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Rows that have tokens, of similar length."""
        asked = [i for i, length in enumerate(lengths) if length]
        for group in by_length([lengths[i] for i in asked], self.tokens):
            yield [asked[i] for i in group]

    def _run(self, rows: Sequence[int], ids: Int[Tensor, "rows length"]) -> Any:
        """The model's own forward over these tokens behind the shared beginnings of the rows."""
        device = self.model.device
        before = _standing_before(self.key_values, [self.shared[i] for i in rows], device)
        start = torch.tensor([[self.rows[i].shared] for i in rows], device=device)
        return run(
            self.model,
            ids,
            # What fills a text up stands behind it and is never seen by it.
            torch.cat([before.visible.long(), torch.ones_like(ids).to(device)], 1),
            positions=start + torch.arange(ids.shape[1], device=device),
            cache=before.cache(self.model.layers),
            keep_cache=True,
        )


def _standing_before(
    key_values: KeyValues, tokens: Sequence[range | list[int]], device: torch.device
) -> Before:
    """Rows of references to kept tokens, filled up on the right with any."""
    lengths = torch.tensor([len(row) for row in tokens], device=device)
    width = int(lengths.max())
    index = torch.zeros(len(tokens), width, dtype=torch.long)
    for i, row in enumerate(tokens):
        index[i, : len(row)] = torch.tensor(list(row), dtype=torch.long)
    visible = torch.arange(width, device=device) < lengths.unsqueeze(1)
    return Before(key_values, index.to(device), visible)


def _real(
    states: Float[Tensor, "rows heads length width"], mask: Bool[Tensor, "rows length"]
) -> Float[Tensor, "tokens heads width"]:
    """The tokens that are no filling, one below the other."""
    return states.transpose(1, 2)[mask.to(states.device)]
