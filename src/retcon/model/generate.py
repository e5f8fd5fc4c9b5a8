"""Generate text under a seed, without touching the caller's random state."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

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
from retcon.model.forward import equal_length
from retcon.model.handle import ModelHandle
from retcon.model.overlay import Overlay
from retcon.model.tokens import by_length
from retcon.progress import Progress, silent

_WRITING = "letting the model write"
Advance = Callable[[int], None]
# Prompt tokens that are generated behind at a time: by sampling, where a seed's draws depend on it,
# and greedily.
_TOKENS, _GREEDY_TOKENS = 512, 2048
_GREEDILY = {"do_sample": False, "top_k": None, "top_p": None, "temperature": None}
# Two prompts, as divisors of the vocabulary's size: the first tokens, and all; and the tokens that
# are generated behind both to see whether padding changes anything.
_DIVISORS, _TRIED = (3, 5, 7, 13, 11, 17, 19), 2
# By model, whether it may be padded on the left.
_PADS_LEFT: WeakKeyDictionary[torch.nn.Module, bool] = WeakKeyDictionary()


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

    Prompts of unlike length run together, padded on the left, where that changes nothing.

    Args:
        owners: under which of the overlay's updates each is generated.
    """
    continuations: list[tuple[int, ...]] = [()] * len(prompts)
    done = 0
    for rows in _groups(overlay.model, prompts, new_tokens):
        progress(_WRITING, done, len(prompts))
        done += len(rows)
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


def _groups(
    model: ModelHandle, prompts: Sequence[Sequence[int]], new_tokens: Sequence[int]
) -> Iterator[list[int]]:
    """Indices of prompts that run together: of any length if all find their room, else of one."""
    lengths = [len(prompt) for prompt in prompts]
    if len(set(lengths)) > 1:
        most = max(new_tokens)
        if model.tokens.positions.room(max(lengths), most) == most and pads_left(model):
            return by_length(lengths, _GREEDY_TOKENS)
    return equal_length(prompts, _GREEDY_TOKENS)


def _greedy(
    overlay: Overlay, prompts: Sequence[Sequence[int]], owners: Sequence[int], new_tokens: int
) -> list[list[int]]:
    """Generate greedily behind prompts in one batch."""
    model = overlay.model
    longest = max(len(prompt) for prompt in prompts)
    new_tokens = model.tokens.positions.room(longest, new_tokens)
    if not new_tokens:
        return [[] for _ in prompts]
    with torch.no_grad(), overlay.over(owners):
        out = _generate(model)(
            **_padded_left(model, prompts),
            **_GREEDILY,
            max_new_tokens=new_tokens,
            pad_token_id=_padding(model),
        )
    return [[int(i) for i in row] for row in out[:, longest:].tolist()]


def pads_left(model: ModelHandle) -> bool:
    """True if a prompt is continued behind padding as it is alone.

    Not where padding reaches what is read: in a recurrent network without masks, or where positions
    are counted from the first token. Each model is tried once, by generating two tokens twice; one
    with too few positions for that is taken not to.
    """
    known = _PADS_LEFT.get(model.model)
    if known is None:
        room = model.tokens.positions.room(len(_DIVISORS), _TRIED) == _TRIED
        known = _PADS_LEFT[model.model] = room and _continues_alike(model)
    return known


def _continues_alike(model: ModelHandle) -> bool:
    """Compare the logits of tokens behind a prompt, alone and beside a longer one."""
    embedding = model.model.get_input_embeddings()
    assert isinstance(embedding.weight, Tensor)
    count = len(embedding.weight)
    short, long = ([count // t for t in divisors] for divisors in (_DIVISORS[:3], _DIVISORS))
    alone, beside = (
        _generate(model)(
            **_padded_left(model, prompts),
            **_GREEDILY,
            max_new_tokens=_TRIED,
            min_new_tokens=_TRIED,
            pad_token_id=_padding(model),
            output_logits=True,
            return_dict_in_generate=True,
        ).logits
        for prompts in ([short], [short, long])
    )
    slack = 1e-4 if model.dtype in (torch.float32, torch.float64) else 5e-2
    return all(
        bool((x[0] - y[0]).norm() <= slack * x[0].norm())
        for x, y in zip(alone, beside, strict=True)
    )


def _padded_left(model: ModelHandle, prompts: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Token ids that end in one column, and the mask of those that are no filling."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), longest), _padding(model), device=model.device)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return {"input_ids": ids, "attention_mask": mask}


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


def ends_of(model: ModelHandle) -> object:
    """The tokens at which the model stops writing: its one generation setting that is heeded."""
    return model.model.generation_config.eos_token_id


def _generate(model: ModelHandle) -> Callable[..., Any]:
    """The model's own generation loop, which `nn.Module` hides from the type checker."""
    method = model.model.generate
    assert callable(method)

    def plain(**options: object) -> Any:
        """Generate without what a checkpoint's own generation settings would add."""
        own = model.model.generation_config
        model.model.generation_config = GenerationConfig(eos_token_id=ends_of(model))
        try:
            return method(**options)
        finally:
            model.model.generation_config = own

    return plain
