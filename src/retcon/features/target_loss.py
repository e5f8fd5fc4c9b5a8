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

from retcon.edits import Edit
from retcon.features.contexts import around, locate
from retcon.features.prefix_cache import DeltaPlace, TargetRow
from retcon.features.suffix_passes import packed, passes_for
from retcon.model import offload as offloading
from retcon.model.forward import in_full
from retcon.model.handle import ModelHandle
from retcon.model.tokens import Tokens

# The context of "{subject} is a", beside 0, 1, … of the prefixes.
_SUBJECT = -1


class Losses(NamedTuple):
    """Terms of the loss, a row per edit; of an edit that was not asked for, what was last seen.

    Attributes:
        nll: mean over contexts of the target's mean negative log-probability per token, as last
            seen of each.
        seen: the same over the contexts of this pass.
        kl: divergence at the subject.
        margin: the least, over contexts and tokens of the target, of its log-probability over that
            of the best other token, as last seen; −∞ where margins are not asked for.
        predicted: whether every token of the target is the most probable in every context but the
            first, the bare prompt (in that one, where it is alone).
        complete: whether every context has been seen.
    """

    nll: Float[Tensor, " edits"]
    seen: Float[Tensor, " edits"]
    kl: Float[Tensor, " edits"]
    margin: Float[Tensor, " edits"]
    predicted: Bool[Tensor, " edits"]
    complete: bool


class _Text(NamedTuple):
    """One text of one edit and the tokens it should predict: none where nothing should change."""

    owner: int
    context: int
    row: TargetRow
    target: tuple[int, ...]


class TargetLoss:
    """The loss of every edit, and its gradient.

    kl: weight of the divergence. micro_batch: suffix tokens in one pass. margins: whether they are
    computed. ending: follows each target. short: whether passes over suffixes could be used.
    """

    def __init__(
        self,
        model: ModelHandle,
        edits: Sequence[Edit],
        prefixes: Sequence[str],
        place: DeltaPlace,
        *,
        kl: float,
        micro_batch: int,
        margins: bool = False,
        ending: str = "",
    ) -> None:
        self._model, self._kl, self._micro_batch = model.model, kl, micro_batch
        by_context = [
            _targets(model.tokens, edits, i, prefix, ending) for i, prefix in enumerate(prefixes)
        ]
        about = _subjects(model.tokens, edits)
        self._texts = [text for texts in [*by_context, about] for text in _share(texts)]
        self._owner = _column([text.owner for text in self._texts], model)
        self._context = _column([text.context for text in self._texts], model)
        self._passes, self.short = passes_for(model, self.rows, place, micro_batch)
        self._initial = self._at_the_subjects(model, len(edits))
        # What was last seen of each context; NaN: nothing yet.
        shape = (len(edits), len(prefixes))
        self._nll = self._initial.new_full(shape, float("nan"))
        self._said = torch.zeros(shape, dtype=torch.bool, device=model.device)
        self._margin = self._initial.new_full(shape, -torch.inf)
        self._margins = margins
        self._divergence = self._initial.new_zeros(len(edits))

    def __call__(
        self,
        delta: Float[Tensor, "edits hidden"],
        active: Bool[Tensor, " edits"],
        contexts: Sequence[int],
        *,
        backward: bool,
    ) -> Losses:
        """The terms of the active edits, by the given contexts.

        The gradient of the mean nll over these contexts + kl is added to `delta.grad`.
        """
        seen = torch.isin(self._context, _column([*contexts, _SUBJECT], self._context))
        for rows in self._micro_batches(active[self._owner] & seen):
            with torch.set_grad_enabled(backward), offloading.read_again(self._model):
                logits = self._logits(rows, delta)
                nll = self._target_terms(logits, rows) / len(contexts)
                loss = nll + self._kl * self._subject_terms(logits, rows)
                if backward:
                    loss.backward()
        return Losses(
            nll=self._nll.nanmean(1),
            seen=self._nll[:, list(contexts)].mean(1),
            kl=self._divergence.clone(),
            margin=self._margin.amin(1),
            predicted=self._said[:, min(1, self._said.shape[1] - 1) :].all(1),
            complete=not bool(self._nll.isnan().all(0).any()),
        )

    @property
    def seen(self) -> dict[str, Tensor]:
        """Last loss of every context: live tensors, to be saved or overwritten."""
        seen = {"nll": self._nll, "said": self._said, "divergence": self._divergence}
        return {**seen, "margin": self._margin} if self._margins else seen

    @property
    def rows(self) -> list[TargetRow]:
        """Every text that a full pass runs."""
        return [text.row for text in self._texts]

    def _micro_batches(self, chosen: Bool[Tensor, " texts"]) -> Iterator[Int[Tensor, " rows"]]:
        predictions = [len(text.row.predicts) for text in self._texts]
        rows = chosen.nonzero()[:, 0]
        return packed(rows, self._passes.lengths, predictions, self._micro_batch)

    def _logits(
        self, rows: Int[Tensor, " rows"], delta: Float[Tensor, "edits hidden"]
    ) -> Float[Tensor, "predictions vocabulary"]:
        return in_full(self._passes(rows, delta[self._owner[rows]]))

    def _target_terms(
        self, logits: Float[Tensor, "predictions vocabulary"], rows: Int[Tensor, " rows"]
    ) -> Float[Tensor, ""]:
        """The sum over texts of the target's mean negative log-probability; each is noted."""
        texts = [self._texts[i] for i in rows.tolist()]
        # −100 is PyTorch's mark of a position that asks for nothing.
        labels = _column([token for text in texts for token in text.target or (-100,)], logits)
        lengths = _column([len(text.target) or 1 for text in texts], logits)
        row = torch.arange(len(texts), device=logits.device).repeat_interleave(lengths)
        each = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        means = each.new_zeros(len(texts)).index_add(0, row, each) / lengths
        missed = torch.zeros_like(means).index_add(
            0, row, (logits.detach().argmax(-1) != labels).to(means)
        )
        targets = self._context[rows] != _SUBJECT
        place = (self._owner[rows][targets], self._context[rows][targets])
        self._nll[place] = means.detach()[targets].to(self._nll)
        self._said[place] = missed[targets] == 0
        if self._margins:
            least = torch.full_like(means, torch.inf).detach()
            least.scatter_reduce_(0, row, _leads(logits.detach(), labels), "amin")
            self._margin[place] = least[targets].to(self._margin)
        return means.sum()

    def _subject_terms(
        self, logits: Float[Tensor, "predictions vocabulary"], rows: Int[Tensor, " rows"]
    ) -> Float[Tensor, ""]:
        """The sum of KL(p ‖ p at δ = 0) behind "{subject} is a"; each is noted."""
        place, owner = self._where_kept(rows)
        if not len(place):
            return logits.new_zeros(())
        logp = logits[place].log_softmax(-1)
        each = (logp.exp() * (logp - self._initial[owner])).sum(-1)
        self._divergence[owner] = each.detach().to(self._divergence)
        return each.sum()

    def _where_kept(
        self, rows: Int[Tensor, " rows"]
    ) -> tuple[Int[Tensor, " kept"], Int[Tensor, " kept"]]:
        """Find the predictions of some texts that should stay as they are, and their edits."""
        texts = [self._texts[i] for i in rows.tolist()]
        predictions = [(text.owner, text.target) for text in texts for _ in text.target or (0,)]
        staying = [(place, owner) for place, (owner, new) in enumerate(predictions) if not new]
        place, owner = torch.tensor(staying, dtype=torch.long, device=rows.device).view(-1, 2).T
        return place, owner

    @torch.no_grad()
    def _at_the_subjects(self, model: ModelHandle, edits: int) -> Float[Tensor, "edits vocabulary"]:
        """Log p behind "{subject} is a" of each edit, at δ = 0."""
        without_target = torch.tensor(
            [not text.target for text in self._texts], device=model.device
        )
        zero = torch.zeros(edits, model.hidden, dtype=model.dtype, device=model.device)
        owners: list[Tensor] = []
        parts: list[Tensor] = []
        for rows in self._micro_batches(without_target):
            parts.append(self._logits(rows, zero).log_softmax(-1))
            owners.append(self._owner[rows])
        return torch.cat(parts)[torch.cat(owners).argsort()]


def _leads(
    logits: Float[Tensor, "predictions vocabulary"], labels: Int[Tensor, " predictions"]
) -> Float[Tensor, " predictions"]:
    """Leads of tokens over the best other one, in nats."""
    best = logits.topk(2, dim=-1)
    own = logits.gather(1, labels.clamp_min(0).unsqueeze(1))[:, 0]
    leads = best.indices[:, 0] == labels
    return own - torch.where(leads, best.values[:, 1], best.values[:, 0])


def _column(values: Sequence[int], like: Tensor | ModelHandle) -> Int[Tensor, " values"]:
    return torch.tensor(values, dtype=torch.long, device=like.device)


def _targets(
    tokens: Tokens, edits: Sequence[Edit], context: int, prefix: str, ending: str
) -> list[_Text]:
    """Every edit's prompt and target in one context, and what ends the target."""
    texts: list[_Text] = []
    for owner, edit in enumerate(edits):
        lookup = locate(tokens, edit, prefix).lookup
        whole = tokens.continuation(around(prefix, edit.text), edit.ended(ending))
        predicts = tuple(range(whole.start - 1, len(whole.ids) - 1))
        row = TargetRow(whole.ids[:-1], lookup, predicts)
        texts.append(_Text(owner, context, row, whole.target))
    return texts


def _subjects(tokens: Tokens, edits: Sequence[Edit]) -> list[_Text]:
    """Every edit's "{subject} is a", up to the subject's last token."""
    texts: list[_Text] = []
    for owner, edit in enumerate(edits):
        subject = edit.subject.rstrip()
        ids, lookup = tokens.locate(f"{subject} is a", 0, len(subject))
        row = TargetRow(ids[: lookup + 1], lookup, (lookup,))
        texts.append(_Text(owner, _SUBJECT, row, ()))
    return texts


def _share(texts: Sequence[_Text]) -> list[_Text]:
    """Note how many first tokens all texts of a context have in common."""
    columns = zip(*(text.row.ids for text in texts), strict=False)
    common = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    shared = min([common, *(text.row.lookup for text in texts)])
    return [text._replace(row=text.row._replace(shared=shared)) for text in texts]
