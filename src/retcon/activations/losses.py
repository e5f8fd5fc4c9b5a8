"""The target loss of many edits as one function of their δ, run in micro-batches.

Every edit has its texts: each context with the target behind it, whose tokens should be predicted,
and "{subject} is a", whose next-token distribution should stay. Texts run together whoever's they
are, and texts of edits that are done do not run at all.
"""

from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from retcon.activations.contexts import locate
from retcon.activations.passes import packed, passes_for
from retcon.activations.prefix import Place, TargetRow
from retcon.edits import Edit
from retcon.model.handle import ModelHandle
from retcon.model.tokens import Tokens


class Losses(NamedTuple):
    """Terms of the loss, a row per edit; 0 where an edit was not asked for.

    nll: mean over contexts of the target's mean negative log-probability per token. kl: divergence
    at the subject. said: whether every token of the target is the most probable in every context.
    """

    nll: Float[Tensor, " edits"]
    kl: Float[Tensor, " edits"]
    said: Bool[Tensor, " edits"]


class _Text(NamedTuple):
    """One text of one edit and the tokens it should predict: none where nothing should change."""

    owner: int
    row: TargetRow
    wanted: tuple[int, ...]


class TargetLoss:
    """The loss of every edit, and its gradient.

    kl: weight of the divergence. micro_batch: suffix tokens in one pass. short: whether passes
    over suffixes could be used.
    """

    def __init__(
        self,
        handle: ModelHandle,
        edits: Sequence[Edit],
        prefixes: Sequence[str],
        place: Place,
        *,
        kl: float,
        micro_batch: int,
    ) -> None:
        self._contexts, self._kl, self._micro_batch = len(prefixes), kl, micro_batch
        by_context = [_targets(handle.tokens, edits, prefix) for prefix in prefixes]
        about = _subjects(handle.tokens, edits)
        self._texts = [text for texts in [*by_context, about] for text in _share(texts)]
        self._owner = torch.tensor([text.owner for text in self._texts], device=handle.device)
        rows = [text.row for text in self._texts]
        self._passes, self.short = passes_for(handle, rows, place, micro_batch)
        self._initial = self._at_the_subjects(handle, len(edits))

    def __call__(
        self,
        delta: Float[Tensor, "edits hidden"],
        active: Bool[Tensor, " edits"],
        *,
        backward: bool,
    ) -> Losses:
        """The terms of the active edits; the gradient of nll + kl is added to `delta.grad`."""
        found = Losses(
            nll=delta.new_zeros(len(delta)),
            kl=delta.new_zeros(len(delta)),
            said=torch.ones_like(active),
        )
        for rows in self._micro_batches(active[self._owner]):
            with torch.set_grad_enabled(backward):
                logits = self._logits(rows, delta)
                loss = self._nll(logits, rows, found) + self._kl * self._kept(logits, rows, found)
                if backward:
                    loss.backward()
        return found

    def _micro_batches(self, wanted: Bool[Tensor, " texts"]) -> Iterator[Int[Tensor, " rows"]]:
        return packed(wanted.nonzero()[:, 0], self._passes.lengths, self._micro_batch)

    def _logits(
        self, rows: Int[Tensor, " rows"], delta: Float[Tensor, "edits hidden"]
    ) -> Float[Tensor, "predictions vocabulary"]:
        logits = self._passes(rows, delta[self._owner[rows]])
        return logits if logits.dtype == torch.float64 else logits.float()

    def _nll(
        self,
        logits: Float[Tensor, "predictions vocabulary"],
        rows: Int[Tensor, " rows"],
        found: Losses,
    ) -> Float[Tensor, ""]:
        """The sum of the first term over some texts; each edit's is added to what was found."""
        texts = [self._texts[i] for i in rows.tolist()]
        # −100 is PyTorch's mark of a position that asks for nothing.
        wanted = torch.tensor(
            [token for text in texts for token in text.wanted or (-100,)], device=logits.device
        )
        lengths = torch.tensor([len(text.wanted) or 1 for text in texts], device=logits.device)
        owner = self._owner[rows].repeat_interleave(lengths)
        each = torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
        each = each / lengths.repeat_interleave(lengths) / self._contexts
        found.nll.index_add_(0, owner, each.detach().to(found.nll))
        missed = (wanted >= 0) & (logits.detach().argmax(-1) != wanted)
        found.said[owner[missed]] = False
        return each.sum()

    def _kept(
        self,
        logits: Float[Tensor, "predictions vocabulary"],
        rows: Int[Tensor, " rows"],
        found: Losses,
    ) -> Float[Tensor, ""]:
        """The sum of KL(p ‖ p at δ = 0) behind "{subject} is a"."""
        place, owner = self._where_kept(rows)
        if not len(place):
            return logits.new_zeros(())
        logp = logits[place].log_softmax(-1)
        each = (logp.exp() * (logp - self._initial[owner])).sum(-1)
        found.kl.index_add_(0, owner, each.detach().to(found.kl))
        return each.sum()

    def _where_kept(
        self, rows: Int[Tensor, " rows"]
    ) -> tuple[Int[Tensor, " kept"], Int[Tensor, " kept"]]:
        """Among the predictions of some texts, those that should stay, and whose they are."""
        texts = [self._texts[i] for i in rows.tolist()]
        asked = [(text.owner, bool(text.wanted)) for text in texts for _ in text.wanted or (0,)]
        kept = [(place, owner) for place, (owner, wanted) in enumerate(asked) if not wanted]
        place, owner = torch.tensor(kept, dtype=torch.long, device=rows.device).view(-1, 2).T
        return place, owner

    @torch.no_grad()
    def _at_the_subjects(
        self, handle: ModelHandle, edits: int
    ) -> Float[Tensor, "edits vocabulary"]:
        """Log p behind "{subject} is a" of each edit, at δ = 0."""
        asked = torch.tensor([not text.wanted for text in self._texts], device=handle.device)
        zero = torch.zeros(edits, handle.hidden, dtype=handle.dtype, device=handle.device)
        owners: list[Tensor] = []
        found: list[Tensor] = []
        for rows in self._micro_batches(asked):
            found.append(self._logits(rows, zero).log_softmax(-1))
            owners.append(self._owner[rows])
        return torch.cat(found)[torch.cat(owners).argsort()]


def _targets(tokens: Tokens, edits: Sequence[Edit], prefix: str) -> list[_Text]:
    """Every edit's prompt and target in one context."""
    texts: list[_Text] = []
    for owner, edit in enumerate(edits):
        lookup = locate(tokens, edit, prefix).lookup
        whole = tokens.continuation(prefix + edit.text, edit.target)
        predicts = tuple(range(whole.start - 1, len(whole.ids) - 1))
        texts.append(_Text(owner, TargetRow(whole.ids[:-1], lookup, predicts), whole.target))
    return texts


def _subjects(tokens: Tokens, edits: Sequence[Edit]) -> list[_Text]:
    """Every edit's "{subject} is a", up to the subject's last token."""
    texts: list[_Text] = []
    for owner, edit in enumerate(edits):
        subject = edit.subject.rstrip()
        ids, lookup = tokens.locate(f"{subject} is a", len(subject))
        texts.append(_Text(owner, TargetRow(ids[: lookup + 1], lookup, (lookup,)), ()))
    return texts


def _share(texts: Sequence[_Text]) -> list[_Text]:
    """The same, knowing how many first tokens all of them have in common."""
    columns = zip(*(text.row.ids for text in texts), strict=False)
    common = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    shared = min([common, *(text.row.lookup for text in texts)])
    return [text._replace(row=text.row._replace(shared=shared)) for text in texts]
