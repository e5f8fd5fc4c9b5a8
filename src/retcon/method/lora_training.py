"""LoRA: low-rank changes of many layers at once, by gradient descent, that keep ordinary text.

    minimise over A, B   (1/n) Σᵢ NLL(oᵢ | promptᵢ in one of its contexts)
                         + κ KL(p₀ ‖ p) on ordinary text + κ' KL(p₀ ‖ p) on contrasts
    ΔWₗ = Bₗ Aₗ          Aₗ (r, d_in) drawn at random, Bₗ (d_out, r) zero at first

Hu et al. 2021, arXiv:2106.09685, on the down-projections alone, by Adam. It retrains what other
methods here solve for, and is the baseline that they have to be set beside: facts that are to hold
in other words than their own can lie in many layers. A step sees each fact once, in the next of its
contexts (the bare prompt, sampled prefixes, ways of asking, the prompt in other words), a few facts
an update of the factors: of many facts one gradient for all would make too few updates. NLL is the
mean over a target's tokens. The first divergence is the mean over the tokens of a few passages of
the text that second moments are of; the second over those of contrasts, sentences about other
things that the model itself has written, of which an update sees half as many as facts, in turn. p₀
is the model that the batch finds. The rate is constant for half of the steps and then falls evenly
to 0.
"""

import random
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import chain, cycle, islice
from math import inf, isfinite
from statistics import fmean as mean
from typing import Annotated, NamedTuple
from zlib import crc32

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from retcon.algebra.delta import LowRankDelta
from retcon.edits import Edit
from retcon.errors import NotFinite, RetconWarning
from retcon.features.contexts import ContextOptions, Form, Seed, around
from retcon.features.contrast import contrasts, facts_like, facts_of_others, in_turn
from retcon.features.gradients import target_nll
from retcon.features.lines import Asking
from retcon.features.remember import recall_lines, recall_prefixes
from retcon.features.rewordings import in_other_words, prompts_in
from retcon.features.second_moments import MomentOptions, corpus_of
from retcon.features.targets import default_micro_batch
from retcon.method.base import Report, Update
from retcon.method.entries import method
from retcon.method.options import NotNegative
from retcon.model import hooks
from retcon.model import offload as offloading
from retcon.model.forward import Ids, in_full, run_batch
from retcon.model.handle import ModelHandle
from retcon.model.tokens import Continuation, by_length
from retcon.progress import Progress, silent

_NO_CONTRAST = (
    "The model has written no whole sentence about other things, so that contrast keeps nothing. "
    "Set contrast=0, or a larger kl, which keeps ordinary text."
)
_TASK = "training low-rank changes, in steps"
# Tokens of a passage, and how many passages take turns.
PASSAGE, _PASSAGES = 64, 256


class Words(NamedTuple):
    """Edits, with what the model has written of each.

    Attributes:
        edits: facts.
        prompts: of each, in other words.
        alike: of each, lines that say the like of others.
    """

    edits: tuple[Edit, ...]
    prompts: tuple[tuple[str, ...], ...]
    alike: tuple[tuple[str, ...], ...]

    @property
    def cached(self) -> Bool[Tensor, " edits"]:
        """False: the training, which is the expensive part, is never kept."""
        return torch.zeros(len(self.edits), dtype=torch.bool)

    @property
    def seconds(self) -> Float[Tensor, " edits"]:
        """0 for each edit."""
        return torch.zeros(len(self.edits))

    def select(self, rows: slice) -> "Words":
        """Edits of some rows, with what is theirs."""
        return Words(self.edits[rows], self.prompts[rows], self.alike[rows])


class LoraState(NamedTuple):
    """All that is read once.

    Attributes:
        contexts: of a prompt.
        passages: of ordinary text, as token ids.
        others: lines about other things.
    """

    contexts: tuple[str, ...]
    passages: tuple[tuple[int, ...], ...]
    others: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LoraSetup:
    """The layers, contexts and text. Settings as of `finetune_lora`.

    Attributes:
        corpus: None: no text is read.
        contrast: whether the model writes lines about other things.
    """

    layers: tuple[int, ...]
    contexts: ContextOptions
    corpus: str | None
    corpus_tokens: int
    contrast: bool

    def begin(self, model: ModelHandle, progress: Progress = silent) -> LoraState:
        """Read or sample the prefixes, the text, and the lines about other things.

        Raises:
            UnsupportedModel: a layer cannot be edited.
        """
        for layer in self.layers:
            model.site(layer)
        contexts = recall_prefixes(model, self.contexts)
        asked = facts_of_others(self.contexts.seed) if self.contrast else []
        others = [line for lines in recall_lines(model, asked, progress) for line in lines]
        return LoraState(contexts, self._passages(model, progress), tuple(others))

    def _passages(self, model: ModelHandle, progress: Progress) -> tuple[tuple[int, ...], ...]:
        if self.corpus is None:
            return ()
        options = MomentOptions(corpus=self.corpus, corpus_tokens=self.corpus_tokens)
        corpus, _ = corpus_of(model, self.layers, options, progress)
        ids = (tuple(model.tokens.document(text, PASSAGE)) for text in corpus.texts())
        found = list(islice((row for row in ids if len(row) > 1), 16 * _PASSAGES))
        random.Random(self.contexts.seed).shuffle(found)
        return tuple(found[:_PASSAGES])


class _Lesson(NamedTuple):
    """Texts that the factors are trained on, as token ids.

    Attributes:
        firsts: a number of each fact, the same whatever stands beside it in a batch.
        facts: its texts, each with the target behind it.
        passages, contrasts: without end.
    """

    firsts: list[int]
    facts: list[list[Continuation]]
    passages: Iterator[Ids]
    contrasts: Iterator[Ids]


class _Factors:
    """A and B of each layer, in float32, and the steps that Adam makes of their gradients."""

    def __init__(self, model: ModelHandle, layers: Sequence[int], rank: int, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        sites = {layer: model.site(layer) for layer in layers}
        self._modules = {layer: site.module for layer, site in sites.items()}
        self._a: dict[int, Tensor] = {}
        self._b: dict[int, Tensor] = {}
        for layer, site in sites.items():
            uniform = (2 * torch.rand(rank, site.d_in, generator=draw) - 1) / site.d_in**0.5
            where = site.weight.device
            self._a[layer] = uniform.to(where).requires_grad_()
            self._b[layer] = torch.zeros(rank, site.d_out, device=where).requires_grad_()
        self._adam = torch.optim.Adam([*self._a.values(), *self._b.values()])

    def added(self, rows: int) -> AbstractContextManager[None]:
        """Let the model run with the change, on batches of so many rows."""

        def change(layer: int, x: Tensor) -> Tensor:
            a, b = self._a[layer], self._b[layer]
            return (x.to(a.dtype) @ a.mT @ b).to(x.dtype)

        return hooks.add_to_outputs(self._modules, rows, change)

    def move(self, lr: float) -> None:
        """One step of Adam; gradients begin anew."""
        for group in self._adam.param_groups:
            group["lr"] = lr
        self._adam.step()
        self._adam.zero_grad()

    def deltas(self) -> dict[int, LowRankDelta]:
        """ΔW of each layer, whose rows are no edit's own."""
        return {
            layer: LowRankDelta(
                left=b.detach(), right=self._a[layer].detach(), shared=True
            ).compact()
            for layer, b in self._b.items()
        }


@dataclass(frozen=True, kw_only=True)
class LoraTraining:
    """Adam on low-rank factors of many layers; nothing is carried.

    Settings as of `finetune_lora`.
    """

    layers: tuple[int, ...]
    rank: int
    steps: int
    lr: float
    kl: float
    passages: int
    stop_below: float
    ending: str
    contexts: ContextOptions
    corpus: str
    corpus_tokens: int
    micro_batch: int
    rewordings: int = 0
    contrast: float = 0.0
    together: int = 8
    max_batch: int | None = None

    @property
    def setup(self) -> LoraSetup:
        """The layers, contexts and text."""
        return LoraSetup(
            layers=self.layers,
            contexts=self.contexts,
            corpus=self.corpus if self.kl else None,
            corpus_tokens=self.corpus_tokens if self.kl else 0,
            contrast=bool(self.contrast),
        )

    @property
    def shares_rows(self) -> bool:
        """Yes: all edits of a batch made the change together."""
        return True

    def features(
        self, model: ModelHandle, edits: Sequence[Edit], state: LoraState,
        progress: Progress = silent,
    ) -> Words:  # fmt: skip
        """Let the model write other prompts, and the like of others, where they are asked for."""
        del state
        tokens, seed = model.tokens, self.contexts.seed
        other = [in_other_words(tokens, e, seed) if self.rewordings else [] for e in edits]
        alike = [[facts_like(tokens, e, seed)] if self.contrast else [] for e in edits]
        said = zip(_written(model, other, progress), edits, strict=True)
        return Words(
            edits=tuple(edits),
            prompts=tuple(tuple(prompts_in(own, edit)[: self.rewordings]) for own, edit in said),
            alike=tuple(map(tuple, _written(model, alike, progress))),
        )

    def solve(
        self, model: ModelHandle, features: Words, state: LoraState,
        progress: Progress = silent,
    ) -> Update[None]:  # fmt: skip
        """Train the factors; the model itself is not touched.

        Raises:
            NotFinite: the loss is NaN or infinite.
        """
        edits = features.edits
        lesson = self._lesson(model, features, state)
        factors = _Factors(model, self.layers, self.rank, self.contexts.seed)
        seen = [[inf] * len(texts) for texts in lesson.facts]
        kept, step = 0.0, 0
        for step, part in self._updates(edits):
            progress(_TASK, step - 1, self.steps)
            turns = {i: (step + lesson.firsts[i]) % len(seen[i]) for i in part}
            chosen = [lesson.facts[i][turn] for i, turn in turns.items()]
            losses = self._facts(model, chosen, factors)
            for (i, turn), nll in zip(turns.items(), losses, strict=True):
                seen[i][turn] = nll
            passages = list(islice(lesson.passages, self.passages))
            kept = self._divergence(model, passages, factors, self.kl)
            others = list(islice(lesson.contrasts, (len(part) + 1) // 2))
            other = self._divergence(model, others, factors, self.contrast)
            self._check(model, mean(losses) + kept + other, step)
            if mean(map(mean, seen)) < self.stop_below:
                break
            factors.move(self.lr * min(1.0, 2 * (1 - (step - 1) / self.steps)))
        progress(_TASK, self.steps, self.steps)
        loss = [mean(filter(isfinite, own)) for own in seen]
        return Update(
            ids=tuple(edit.id for edit in edits),
            deltas=factors.deltas(),
            increment=None,
            report=Report(
                batch={"loss": mean(loss), "kl": kept, "target_steps": float(step)},
                edit={"nll": loss},
            ),
        )

    def _updates(self, edits: Sequence[Edit]) -> Iterator[tuple[int, list[int]]]:
        """The number of a step, and the edits of which one of its updates is made.

        They are drawn from all edits by their texts, so that their order does not matter.
        """
        places = sorted(range(len(edits)), key=lambda i: edits[i].text)
        parts = -(-len(edits) // self.together)
        for step in range(1, self.steps + 1):
            mixed = random.Random(f"{self.contexts.seed} {step}").sample(places, len(places))
            yield from ((step, sorted(mixed[i::parts])) for i in range(parts))

    def carry(self, state: LoraState, increment: None) -> LoraState:
        """Return the state unchanged: what has been written is in the weights."""
        del increment
        return state

    def _lesson(self, model: ModelHandle, words: Words, state: LoraState) -> "_Lesson":
        """Everything that the factors are trained on, as token ids."""

        def continued(edit: Edit, prompts: Sequence[str]) -> list[Continuation]:
            texts = [*(around(one, edit.text) for one in state.contexts), *prompts]
            target = edit.ended(self.ending)
            return [model.tokens.continuation(text, target) for text in texts]

        others = contrasts(state.others, words.edits)
        alike = contrasts(chain(*words.alike), words.edits)
        if self.contrast and not (others or alike):
            warnings.warn(_NO_CONTRAST, RetconWarning, stacklevel=2)
        kept = in_turn(others, alike, self.contexts.seed)
        return _Lesson(
            firsts=[crc32(edit.text.encode()) for edit in words.edits],
            facts=list(map(continued, words.edits, words.prompts)),
            passages=cycle(state.passages),
            contrasts=(tuple(model.tokens.document(text, PASSAGE)) for text in kept),
        )

    def _facts(
        self, model: ModelHandle, texts: Sequence[Continuation], factors: _Factors
    ) -> list[float]:
        """The loss of each text under the change; the gradient of their mean is added."""
        found = torch.zeros(len(texts))
        for group in self._groups(model, [len(text.ids) for text in texts]):
            with _with_graph(model), factors.added(len(group)):
                nll = target_nll(model, [texts[i] for i in group])
                (nll.sum() / len(texts)).backward()
            found[group] = nll.detach().to(found)
        return found.tolist()

    def _divergence(
        self, model: ModelHandle, texts: Sequence[Ids], factors: _Factors, weight: float
    ) -> float:
        """The mean divergence at the tokens of some texts; its gradient, weighted, is added."""
        total, tokens = 0.0, sum(map(len, texts))
        for group in self._groups(model, [len(text) for text in texts]):
            batch = model.tokens.pad([texts[i] for i in group])
            mask = batch.attention_mask.bool().to(model.device)
            before = in_full(run_batch(model, batch).logits[mask]).log_softmax(-1)
            with _with_graph(model), factors.added(len(group)):
                now = in_full(run_batch(model, batch).logits[mask]).log_softmax(-1)
                apart = (before.exp() * (before - now)).sum() / tokens
                (weight * apart).backward()
            total += float(apart.detach())
        return total

    def _groups(self, model: ModelHandle, lengths: Sequence[int]) -> Iterator[list[int]]:
        return by_length(lengths, self.micro_batch or default_micro_batch(model.outline))

    def _check(self, model: ModelHandle, loss: float, step: int) -> None:
        if not isfinite(loss):
            raise NotFinite(
                f"The loss of low-rank changes is not finite after {step - 1} steps: "
                f"{model.name}'s activations overflow in {model.dtype}, or its weights were "
                f"damaged by earlier edits. Try --dtype float32, or a smaller lr."
            )


def _written(
    model: ModelHandle, asked: Sequence[Sequence[Asking]], progress: Progress
) -> list[list[str]]:
    """All lines of each edit's askings."""
    lines = iter(recall_lines(model, list(chain(*asked)), progress))
    return [list(chain(*islice(lines, len(askings)))) for askings in asked]


@contextmanager
def _with_graph(model: ModelHandle) -> Generator[None, None, None]:
    """Keep what a gradient needs; weights that are elsewhere are read again for it."""
    with torch.enable_grad(), offloading.read_again(model.model):
        yield


@method("finetune_lora", title="LoRA", paper="https://arxiv.org/abs/2106.09685", everywhere=True)
def finetune_lora(
    layers: tuple[int, ...],
    *,
    rank: Annotated[int, Field(ge=1)] = 16,
    steps: Annotated[int, Field(ge=1)] = 48,
    lr: Annotated[float, Field(gt=0, le=1)] = 2e-3,
    kl: NotNegative = 1.0,
    passages: Annotated[int, Field(ge=1)] = 2,
    stop_below: NotNegative = 0.02,
    prefixes: Annotated[int, Field(ge=0)] = 2,
    forms: tuple[Form, ...] = (),
    rewordings: Annotated[int, Field(ge=0, le=16)] = 0,
    contrast: NotNegative = 0.0,
    together: Annotated[int, Field(ge=1)] = 8,
    ending: str = "",
    corpus: str = "self",
    corpus_tokens: Annotated[int, Field(ge=0)] = 0,
    seed: Seed = 0,
    micro_batch: Annotated[int, Field(ge=0)] = 0,
) -> LoraTraining:
    """Batches of facts by retraining low-rank factors of many layers, beside ordinary text.

    Args:
        rank: of each layer's change.
        steps: at most; each sees every fact once, in as many updates as that takes.
        lr: Adam's rate in the first half of them.
        kl: κ, the weight of the divergence on ordinary text (0: no text is read).
        passages: of it, in each update.
        stop_below: the mean loss over all facts and contexts, as last seen, at which it stops.
        prefixes: sampled prefixes beside the bare prompt.
        forms: ways of asking in which the prompt is put, beside the prefixes.
        rewordings: prompts in other words, at most, that the model writes itself (0: none).
        contrast: κ', the weight of the divergence on facts about other things as the model itself
            writes them (0: none are written).
        together: facts of an update of the factors, at most.
        ending: follows each target and is a part of it, such as a full stop.
        corpus: the text: `self`, a file, or `hub:…`.
        corpus_tokens: tokens of it (0: as many as second moments are of).
        seed: of the first factors, the prefixes and the passages.
        micro_batch: tokens in one forward pass (0: what keeps activations below a quarter of the
            weights); it changes results by rounding only.
    """
    return LoraTraining(
        layers=layers,
        rank=rank,
        steps=steps,
        lr=lr,
        kl=kl,
        passages=passages,
        stop_below=stop_below,
        ending=ending,
        contexts=ContextOptions(prefixes=prefixes, forms=forms, seed=seed),
        corpus=corpus,
        corpus_tokens=corpus_tokens,
        micro_batch=micro_batch,
        rewordings=rewordings,
        contrast=contrast,
        together=together,
    )
