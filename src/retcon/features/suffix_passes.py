"""Forward passes for target optimisation that compute only what a target can change.

Each step runs the model's own forward over the lookup token and what follows, through the blocks
behind δ only; what comes before was read once (`prefix.py`). Rows are sorted by suffix and packed
into passes of like length, whoever's they are.

Whether this is exact for an architecture is not assumed: at δ = 0 both ways must give the same
logits, and where they do not (alibi positions, recurrent blocks) the full forward is used.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retcon.features.prefix_cache import DeltaPlace, Prefix, TargetRow, read_prefix
from retcon.model import hooks
from retcon.model.forward import logits_at, reading_at, run
from retcon.model.handle import ModelHandle

# A pass reads all weights, whatever it holds: as long as so many tokens take to compute. Rows of
# unlike length share a pass as long as filling them up costs less than a pass of their own.
_PASS_COST = 32
# On a GPU launching a pass takes as long as computing so many.
_PASS_COST_ON_GPU = 512


@runtime_checkable
class Passes(Protocol):
    """Logits of some rows, given the vector that is added at their lookup tokens.

    Attributes:
        lengths: how many tokens each row takes in a pass.
    """

    lengths: list[int]

    def __call__(
        self, rows: Int[Tensor, " rows"], delta: Float[Tensor, "rows hidden"]
    ) -> Float[Tensor, "predictions vocabulary"]: ...


def passes_for(
    model: ModelHandle, rows: Sequence[TargetRow], place: DeltaPlace, tokens: int
) -> tuple[Passes, bool]:
    """The cheapest exact way to run these rows, and whether it is the short one.

    Args:
        tokens: how many tokens one pass may hold.
    """
    prefix = read_prefix(model, rows, place, tokens)
    if prefix is not None:
        short = _SuffixPasses(model, place, prefix)
        if short.reproduces_whole_texts():
            return short, True
    return _FullPasses(model, rows, place), False


def packed(
    rows: Int[Tensor, " rows"], lengths: Sequence[int], predictions: Sequence[int], size: int
) -> Iterator[Tensor]:
    """Rows in passes of at most `size` tokens and predictions (or one row), longest first.

    A prediction counts as a token, since its logits need about as much memory. Shorter rows are
    filled up as long as that costs less than a pass of their own.
    """
    worth = _PASS_COST if rows.device.type == "cpu" else _PASS_COST_ON_GPU
    order = sorted(rows.tolist(), key=lambda row: (lengths[row], row))
    group: list[int] = []
    for row in order:
        longest = lengths[row]
        filled = sum(longest - lengths[i] for i in [*group, row])
        cost = (len(group) + 1) * longest + sum(predictions[i] for i in [*group, row])
        if group and (filled > worth or cost > size):
            yield torch.tensor(group, device=rows.device)
            group = []
        group.append(row)
    if group:
        yield torch.tensor(group, device=rows.device)


def _predicting(rows: Sequence[TargetRow], *, from_lookup: bool) -> list[tuple[int, int]]:
    """Row and position of every token that predicts one of a target's."""
    return [
        (i, position - (row.lookup if from_lookup else 0))
        for i, row in enumerate(rows)
        for position in row.predicts
    ]


class _FullPasses:
    """Whole texts through the whole model: what every architecture can do."""

    def __init__(self, model: ModelHandle, rows: Sequence[TargetRow], place: DeltaPlace) -> None:
        self.model, self.rows, self.place = model, rows, place
        self.lengths = [len(row.ids) for row in rows]

    def __call__(
        self, rows: Int[Tensor, " rows"], delta: Float[Tensor, "rows hidden"]
    ) -> Float[Tensor, "predictions vocabulary"]:
        chosen = [self.rows[i] for i in rows.tolist()]
        lookup = torch.tensor([row.lookup for row in chosen], device=delta.device)

        def add(y: Tensor) -> Tensor:
            index = torch.arange(len(chosen), device=y.device)
            return y.index_put((index, lookup.to(y.device)), delta.to(y), accumulate=True)

        architecture, layer = self.model.architecture, self.place.layer
        down = self.model.site(layer).module
        where = architecture.blocks[layer] if self.place.insertion == "block" else down
        with hooks.change_outputs([where], len(chosen), add):
            return _whole_texts(self.model, chosen)


def _whole_texts(
    model: ModelHandle, rows: Sequence[TargetRow]
) -> Float[Tensor, "predictions vocabulary"]:
    """Logits at the predicting positions of whole texts, padded on the right."""
    return logits_at(model, [row.ids for row in rows], _predicting(rows, from_lookup=False))


class _SuffixPasses:
    """The lookup token and what follows, through the blocks behind the insertion only."""

    def __init__(self, model: ModelHandle, place: DeltaPlace, prefix: Prefix) -> None:
        self.model, self.place, self.prefix = model, place, prefix
        self.lengths = [row.suffix for row in prefix.rows]
        suffixes = [row.ids[row.lookup :] for row in prefix.rows]
        self.ids = model.tokens.pad(suffixes).input_ids.to(model.device)
        self.lookup = torch.tensor([row.lookup for row in prefix.rows], device=model.device)

    def reproduces_whole_texts(self) -> bool:
        """True if suffixes at δ = 0 give the logits of whole texts, by those rows most unlike."""
        rows = self.prefix.rows
        by_lookup = sorted(range(len(rows)), key=lambda i: rows[i].lookup)
        by_suffix = sorted(range(len(rows)), key=lambda i: rows[i].suffix)
        some = sorted({by_lookup[0], by_lookup[-1], by_suffix[0], by_suffix[-1]})
        with torch.no_grad():
            whole = _whole_texts(self.model, [rows[i] for i in some])
            zero = self.prefix.stream.new_zeros(len(some), self.model.hidden)
            short = self(torch.tensor(some, device=self.model.device), zero)
        tolerance = 1e-3 if short.dtype in (torch.float32, torch.float64) else 5e-2
        return bool((short - whole).norm() <= tolerance * whole.norm())

    def __call__(
        self, rows: Int[Tensor, " rows"], delta: Float[Tensor, "rows hidden"]
    ) -> Float[Tensor, "predictions vocabulary"]:
        architecture = self.model.architecture
        chosen = [self.prefix.rows[i] for i in rows.tolist()]
        suffix = max(row.suffix for row in chosen)
        stream = self.prefix.stream[rows, :suffix]

        def add(y: Tensor) -> Tensor:
            return torch.cat([y[:, :1] + delta.to(y).unsqueeze(1), y[:, 1:]], dim=1)

        with ExitStack() as stack:
            if self.place.insertion == "block":
                stream = add(stream)
            else:
                down = self.model.site(self.place.layer).module
                stack.enter_context(hooks.change_outputs([down], len(rows), add))
            stack.enter_context(
                hooks.replaced(
                    architecture.blocks[: self.place.first_live],
                    lambda: stream,
                    as_tuple=architecture.block_returns_tuple,
                )
            )
            places = _predicting(chosen, from_lookup=True)
            stack.enter_context(reading_at(self.model, places))
            return self._forward(rows, suffix)

    def _forward(
        self, rows: Int[Tensor, " rows"], suffix: int
    ) -> Float[Tensor, "predictions vocabulary"]:
        before = self.prefix.standing_before(rows)
        ids = self.ids[rows, :suffix]
        return run(
            self.model,
            ids,
            # What fills a suffix up stands behind it and is never seen by it.
            torch.cat([before.visible.long(), torch.ones_like(ids)], dim=1),
            positions=self.lookup[rows].unsqueeze(1) + torch.arange(suffix, device=ids.device),
            cache=before.cache(self.model.layers),
            keep_cache=True,
        ).logits[0]
