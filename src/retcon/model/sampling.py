"""Text sampled from a model, under a seed and without touching the caller's random state."""

from collections.abc import Callable, Sequence

import torch
from transformers import GenerationConfig

from retcon.errors import NotFinite
from retcon.model.handle import ModelHandle


def sample(
    handle: ModelHandle,
    prompt: Sequence[int],
    *,
    count: int,
    new_tokens: int,
    seed: int,
    top_k: int = 0,
) -> list[str]:
    """`count` continuations of one prompt, prompt included, without special tokens.

    top_k: draw from the k most probable tokens; 0 draws from the whole distribution.
    """
    ids = torch.tensor([list(prompt)], device=handle.device)
    devices = [handle.device] if handle.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        torch.manual_seed(seed)
        try:
            sequences = _generate(handle)(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                top_k=top_k,
                top_p=1.0,
                temperature=1.0,
                max_new_tokens=new_tokens,
                num_return_sequences=count,
                pad_token_id=_padding(handle),
            )
        except RuntimeError as error:
            if "probability tensor contains" in str(error):
                raise NotFinite(
                    f"{handle.name} gives no finite probabilities to sample from; its weights or "
                    f"activations overflow in {handle.dtype}. Try --dtype float32."
                ) from error
            raise
    return [handle.tokens.decode(row.tolist()) for row in sequences]


def greedy(
    handle: ModelHandle, prompts: Sequence[Sequence[int]], new_tokens: Sequence[int]
) -> list[tuple[int, ...]]:
    """The most probable continuation of each prompt, freely generated, as many tokens as asked.

    Prompts of one length run together, so nothing is padded.
    """
    found: list[tuple[int, ...]] = [()] * len(prompts)
    for length in sorted({len(prompt) for prompt in prompts}):
        rows = [i for i, prompt in enumerate(prompts) if len(prompt) == length]
        ids = torch.tensor([list(prompts[i]) for i in rows], device=handle.device)
        with torch.no_grad():
            out = _generate(handle)(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                top_k=None,
                top_p=None,
                temperature=None,
                max_new_tokens=max(new_tokens[i] for i in rows),
                pad_token_id=_padding(handle),
            )
        for i, row in zip(rows, out.tolist(), strict=True):
            found[i] = tuple(row[length : length + new_tokens[i]])
    return found


def _padding(handle: ModelHandle) -> int:
    """What stands after a finished sequence; `decode` drops it where it is special."""
    tokenizer = handle.tokens.tokenizer
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(candidate, int):
            return candidate
    return 0


def _generate(handle: ModelHandle) -> Callable[..., torch.Tensor]:
    """The model's own generation loop, which `nn.Module` hides from the type checker."""
    method = handle.model.generate
    assert callable(method)

    def plain(**options: object) -> torch.Tensor:
        """Generate without what a checkpoint's own generation settings would add."""
        own = handle.model.generation_config
        handle.model.generation_config = GenerationConfig(eos_token_id=own.eos_token_id)
        try:
            return method(**options)
        finally:
            handle.model.generation_config = own

    return plain
