"""The model that knows the invented world: a small, wide Llama, trained here on first use.

Two blocks of width 96 around MLPs of 6,144: narrow enough to be trained on a processor in minutes,
and wide enough, where it is edited, that thousands of facts fit as hard constraints. The small one,
of width 64 around 1,536, takes half a minute and holds hundreds. Training is the same to the last
bit at one thread count on one kind of processor.

An edit writes what the first MLP says of a subject, so the model has to look facts up there. Left
to itself it learns to read the name at the end of the sentence, past that MLP, and no edit does
anything (docs/results/toy.md). So the first block's attention stays as it was drawn, and
texts are of several sentences: whose fact is asked for is then known in the second block only.
"""

import hashlib
import json
import random
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from retcon.cache import is_whole, place
from retcon.files import cache_folder, make_folder, whole_folder
from retcon.locking import locked
from retcon.progress import Progress, silent
from retcon.sealed import seal_folder
from retcon.toyworld.world import NAME, OPENINGS, SMALL, VERSION, World, world

_TRAINING = "training the model of the toy world (once)"
_SPECIAL = ("<pad>", "<unk>", ".")
_PAD, _STOP = 0, 2


class Training(NamedTuple):
    """Training of the model; a name in the cache."""

    hidden: int = 96
    d_in: int = 6_144
    blocks: int = 2
    heads: int = 4
    steps: int = 560
    batch: int = 48
    told: int = 3
    rate: float = 3e-3
    held: float = 0.5
    answers: float = 16.0
    opened: float = 0.25
    threads: int = 2
    seed: int = 0


RECIPES = {NAME: Training(), SMALL: Training(hidden=64, d_in=1_536, steps=220, threads=1)}


def folder(
    name: str = NAME, *, recipe: Training | None = None, progress: Progress = silent
) -> Path:
    """Find the folder of the model that knows a world; it is trained on first use.

    Args:
        name: of the world.
        recipe: another than that of the world.
        progress: is told what is done.

    Raises:
        StorageError: no space for it (20 MB).
    """
    recipe = recipe or RECIPES[name]
    made = hashlib.sha256(json.dumps([VERSION, *recipe]).encode()).hexdigest()[:12]
    target = cache_folder() / "models" / f"{name}-{made}"
    if is_whole(target):
        return target
    make_folder(target.parent)
    with locked(Path(f"{target}.lock")):
        if not is_whole(target):
            _keep(train(world(name), recipe, progress), tokenizer(name), target)
    return target


def configuration(name: str = NAME, recipe: Training | None = None) -> LlamaConfig:
    """Configuration of the model of a world, known before it is trained."""
    recipe = recipe or RECIPES[name]
    return LlamaConfig(
        vocab_size=len(tokenizer(name)),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.d_in,
        num_hidden_layers=recipe.blocks,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=256,
        # Tied, a name's vector is pushed about at every step by all that it does not follow.
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=_PAD,
    )


@cache
def tokenizer(name: str = NAME) -> PreTrainedTokenizerFast:
    """A token for each word of a world, and one for the full stop."""
    words = [f"▁{word}" for word in world(name).words()]
    vocabulary = {word: i for i, word in enumerate((*_SPECIAL, *words))}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.normalizer = normalizers.Strip()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Punctuation("isolated"),
            pre_tokenizers.Metaspace(prepend_scheme="first"),
        ]
    )
    made.decoder = decoders.Metaspace(prepend_scheme="first")
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def train(known: World, recipe: Training, progress: Progress = silent) -> LlamaForCausalLM:
    """A model that has read the world's sentences until it knows them by heart."""
    with torch.random.fork_rng(devices=[]), _threads(recipe.threads):
        torch.manual_seed(recipe.seed)
        model = LlamaForCausalLM(configuration(known.name, recipe))
        model.model.layers[0].self_attn.requires_grad_(False)
        learned = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learned, lr=recipe.rate, weight_decay=0.0, betas=(0.9, 0.98))
        falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, recipe))
        texts = _Texts(known, recipe)
        for step in range(recipe.steps):
            progress(_TRAINING, step, recipe.steps)
            loss = _loss(model, texts.batch(), recipe.answers)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learned, 1.0)
            optimizer.step()
            falling.step()
        progress(_TRAINING, recipe.steps, recipe.steps)
    return model.eval()


def recall(model: LlamaForCausalLM, known: World) -> Tensor:
    """For each fact, in each of its phrasings, whether its answer is the most probable next word.

    Returns: (facts, phrasings), true where it is.
    """
    tokens = tokenizer(known.name)
    told = list(known.sentences())
    ids: list[list[int]] = tokens([text for text, _ in told])["input_ids"]
    wanted = [tokens(f"x {answer}")["input_ids"][-1] for _, answer in told]
    found = torch.zeros(len(told), dtype=torch.bool)
    with torch.no_grad():
        for length in sorted({len(row) for row in ids}):
            rows = [i for i, row in enumerate(ids) if len(row) == length]
            for part in torch.tensor(rows).split(1024):
                batch = torch.tensor([ids[i] for i in part.tolist()])
                said = model(batch, logits_to_keep=1).logits[:, -1].argmax(-1)
                found[part] = said == torch.tensor([wanted[i] for i in part.tolist()])
    return found.view(len(known.facts), -1)


class _Texts:
    """Batches of sentences: every sentence once, in a new order, before any comes again."""

    def __init__(self, known: World, recipe: Training) -> None:
        self.recipe = recipe
        self.tokens = tokenizer(known.name)
        self.draw = random.Random(recipe.seed)
        self.sentences = [f"{text} {answer}." for text, answer in known.sentences()]
        self.waiting: list[str] = []

    def batch(self) -> Tensor:
        """Token ids, filled up with padding on the right."""
        while len(self.waiting) < self.recipe.batch * self.recipe.told:
            self.waiting += self.draw.sample(self.sentences, len(self.sentences))
        return _padded([self._text() for _ in range(self.recipe.batch)], self.tokens)

    def _text(self) -> str:
        return " ".join(self._opened(self.waiting.pop()) for _ in range(self.recipe.told))

    def _opened(self, sentence: str) -> str:
        if self.draw.random() >= self.recipe.opened:
            return sentence
        return f"{self.draw.choice(OPENINGS)} {sentence[0].lower()}{sentence[1:]}"


def _padded(texts: Sequence[str], tokens: PreTrainedTokenizerFast) -> Tensor:
    made = tokens(list(texts), padding=True, padding_side="right", return_tensors="pt")
    ids = made["input_ids"]
    assert isinstance(ids, Tensor)
    return ids


def _loss(model: LlamaForCausalLM, ids: Tensor, answers: float) -> Tensor:
    """Mean NLL of every token that is no padding, given those before it; answers count more."""
    logits, wanted = model(ids).logits[:, :-1], ids[:, 1:]
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), wanted.flatten(), reduction="none"
    )
    weights = (wanted != _PAD).float()
    # What stands before the full stop.
    weights[:, :-1][wanted[:, 1:] == _STOP] = answers
    return (losses * weights.flatten()).sum() / weights.sum()


def _rate(step: int, recipe: Training) -> float:
    return min(1.0, (1 - step / recipe.steps) / (1 - recipe.held), (step + 1) / 10)


@contextmanager
def _threads(count: int) -> Generator[None, None, None]:
    """Set the number of threads inside: bits depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _keep(model: LlamaForCausalLM, tokens: PreTrainedTokenizerFast, target: Path) -> None:
    with whole_folder(target) as work:
        model.save_pretrained(work)
        tokens.save_pretrained(work)
        seal_folder(work, place(target))
