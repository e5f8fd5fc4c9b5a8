"""Generate text under a seed, without touching the caller's random state."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TopKLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer

from retcon.errors import NotFinite
from retcon.model.handle import ModelHandle
from retcon.model.overlay import Overlay
from retcon.model.tokens import by_length
from retcon.progress import Progress, silent

_WRITING = "letting the model write"
Advance = Callable[[int], None]
# Prompt tokens that are generated behind at a time.
_TOKENS = 512


def ignore(_steps: int) -> None:
    """Ignore progress."""


class _Steps(BaseStreamer):
    """Streamer that counts generated tokens and tells their number."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._steps = -1  # the prompt comes first

    def put(self, value: torch.Tensor) -> None:
        del value
        self._steps += 1
        self._advance(self._steps)

    def end(self) -> None:
        """Do nothing: the count is known."""


def draws_alike(device: torch.device) -> bool:
    """True if a seed gives the same random numbers on every device of this type."""
    return device.type == "cpu"


class DrawOnCpu(LogitsProcessor):
    """Draws each token by the random numbers of the CPU, and leaves no other to be drawn.

    A GPU has random numbers of its own, so that a seed would give other texts there. top_k: as in
    `sample`.
    """

    def __init__(self, top_k: int) -> None:
        self._top_k = TopKLogitsWarper(top_k) if top_k else None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> Tensor:
        """Scores of which one in each row is finite."""
        kept = scores if self._top_k is None else self._top_k(input_ids, scores)
        probabilities = torch.nn.functional.softmax(kept, dim=-1).cpu()
        token = torch.multinomial(probabilities, num_samples=1).to(scores.device)
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)


def sample(
    model: ModelHandle,
    prompt: Sequence[int],
    *,
    count: int,
    new_tokens: int,
    seed: int,
    top_k: int = 0,
    advance: Advance = ignore,
) -> list[str]:
    """`count` continuations of one prompt, prompt included, without special tokens.

    Shorter where the model has no positions for more.

    Args:
        top_k: draw from the k most probable tokens; 0 draws from the whole distribution.
        advance: is told how many tokens of each there are.
    """
    rows = _sampled(model, [prompt] * count, new_tokens, seed, top_k, advance)
    return [model.tokens.decode(row) for row in rows]


def sample_behind(
    model: ModelHandle,
    prompts: Sequence[Sequence[int]],
    *,
    total_tokens: int,
    seed: int,
    top_k: int = 0,
    progress: Progress = silent,
) -> list[str]:
    """One continuation of each prompt, prompt included, of so many tokens in all.

    Prompts of one length run together, so nothing is padded.
    """
    texts = [""] * len(prompts)
    lengths = [len(prompt) for prompt in prompts]
    done = 0
    for length in sorted(set(lengths)):
        equal = [i for i in range(len(prompts)) if lengths[i] == length]
        for part in by_length([length] * len(equal), _TOKENS):
            progress(_WRITING, done, len(prompts))
            done += len(part)
            rows = [equal[i] for i in part]
            new = max(1, total_tokens - length)
            out = _sampled(model, [prompts[i] for i in rows], new, seed + rows[0], top_k)
            for i, ids in zip(rows, out, strict=True):
                texts[i] = model.tokens.decode(ids)
    progress(_WRITING, done, len(prompts))
    return texts


def _sampled(
    model: ModelHandle,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    seed: int,
    top_k: int,
    advance: Advance = ignore,
) -> list[list[int]]:
    """Sampled continuations of prompts of one length, in one batch; prompts included."""
    new_tokens = model.tokens.positions.room(len(prompts[0]), new_tokens)
    if not new_tokens:
        return [list(prompt) for prompt in prompts]
    ids = torch.tensor([list(prompt) for prompt in prompts], device=model.device)
    drawing = [] if draws_alike(model.device) else [DrawOnCpu(top_k)]
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        torch.manual_seed(seed)
        try:
            out = _generate(model)(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                logits_processor=LogitsProcessorList(drawing),
                top_k=top_k,
                top_p=1.0,
                temperature=1.0,
                max_new_tokens=new_tokens,
                pad_token_id=_padding(model),
                streamer=_Steps(advance),
            )
        except RuntimeError as error:
            if "probability tensor contains" in str(error):
                raise NotFinite(
                    f"{model.name} gives no finite probabilities to sample from; its weights or "
                    f"activations overflow in {model.dtype}. Try --dtype float32."
                ) from error
            raise
    return [[int(i) for i in row] for row in out.tolist()]


def greedy(
    overlay: Overlay,
    prompts: Sequence[Sequence[int]],
    new_tokens: Sequence[int],
    owners: Sequence[int],
    progress: Progress = silent,
) -> list[tuple[int, ...]]:
    """The most probable continuation of each prompt, freely generated, as many tokens as asked.

    Prompts of one length run together, so nothing is padded.

    Args:
        owners: under which of the overlay's updates each is generated.
    """
    continuations: list[tuple[int, ...]] = [()] * len(prompts)
    lengths = [len(prompt) for prompt in prompts]
    done = 0
    for length in sorted(set(lengths)):
        equal = [i for i in range(len(prompts)) if lengths[i] == length]
        for part in by_length([length] * len(equal), _TOKENS):
            progress(_WRITING, done, len(prompts))
            done += len(part)
            rows = [equal[i] for i in part]
            out = _greedy(
                overlay,
                [prompts[i] for i in rows],
                [owners[i] for i in rows],
                max(new_tokens[i] for i in rows),
            )
            for i, row in zip(rows, out, strict=True):
                continuations[i] = tuple(row[: new_tokens[i]])
    progress(_WRITING, done, len(prompts))
    return continuations


def _greedy(
    overlay: Overlay, prompts: Sequence[Sequence[int]], owners: Sequence[int], new_tokens: int
) -> list[list[int]]:
    """Generate greedily behind prompts of one length, in one batch."""
    model = overlay.model
    new_tokens = model.tokens.positions.room(len(prompts[0]), new_tokens)
    if not new_tokens:
        return [[] for _ in prompts]
    ids = torch.tensor([list(prompt) for prompt in prompts], device=model.device)
    with torch.no_grad(), overlay.over(owners):
        out = _generate(model)(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            top_k=None,
            top_p=None,
            temperature=None,
            max_new_tokens=new_tokens,
            pad_token_id=_padding(model),
        )
    return [[int(i) for i in row] for row in out[:, ids.shape[1] :].tolist()]


def _padding(model: ModelHandle) -> int:
    """Token that fills up a finished sequence; `decode` drops it where it is special.

    The model reads it there, so a padding token that was added without an embedding is none.
    """
    tokenizer = model.tokens.tokenizer
    embedding = model.model.get_input_embeddings()
    assert isinstance(embedding.weight, Tensor)
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(candidate, int) and candidate < len(embedding.weight):
            return candidate
    return 0


def _generate(model: ModelHandle) -> Callable[..., torch.Tensor]:
    """The model's own generation loop, which `nn.Module` hides from the type checker."""
    method = model.model.generate
    assert callable(method)

    def plain(**options: object) -> torch.Tensor:
        """Generate without what a checkpoint's own generation settings would add."""
        own = model.model.generation_config
        model.model.generation_config = GenerationConfig(eos_token_id=own.eos_token_id)
        try:
            return method(**options)
        finally:
            model.model.generation_config = own

    return plain
