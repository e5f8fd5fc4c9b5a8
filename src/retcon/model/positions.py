"""Limits on the number of tokens that a model reads, and what happens beyond them."""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedModel

from retcon.errors import InvalidEdit

# Rows that a table of positions may have beside one for each: OPT's has two.
_BESIDE = 2


class Positions(NamedTuple):
    """The positions of a model.

    Attributes:
        count: how many it was made for; None: any number.
        table: whether each has a row of its own, so that there is nothing behind the last;
            otherwise the model reads on, and worse.
    """

    count: int | None = None
    table: bool = False

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Positions":
        """Read the limits of a model from its configuration and its tables."""
        count = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if not isinstance(count, int) or count < 1:
            return cls()
        rows = {len(table) for table in _tables(model)}
        return cls(count, any(count <= n <= count + _BESIDE for n in rows))

    @property
    def most(self) -> int | None:
        """Largest number of tokens that can be read at all; None: any number."""
        return self.count if self.table else None

    def room(self, behind: int, wanted: int) -> int:
        """Number of the wanted tokens that find a place behind `behind` tokens."""
        return wanted if self.most is None else max(0, min(wanted, self.most - behind))

    def check(self, tokens: int, text: str) -> str | None:
        """Check a text's length; return a warning if it is longer than the model was made for.

        Args:
            text: what the message calls it.

        Raises:
            InvalidEdit: a table has no row for its last token.
        """
        if self.count is None or tokens <= self.count:
            return None
        if self.table:
            raise InvalidEdit(
                f"{text} has {tokens} tokens, and the model has {self.count} positions: it cannot "
                f"read what is behind them. Shorten it, or take a model with a longer context."
            )
        return (
            f"{text} has {tokens} tokens, more than the {self.count} that the model was made for. "
            f"What the model says behind them may mean little."
        )


def _tables(model: PreTrainedModel) -> Iterator[Tensor]:
    """Yield tensors that may hold a row for each position: other embeddings, and buffers."""
    words = model.get_input_embeddings()
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module is not words:
            yield module.weight
    yield from (buffer for buffer in model.buffers() if buffer.ndim == 2)
