"""Treatments: what becomes of a model after it is edited, on its way into use.

    bf16              every weight rounded to bfloat16
    int8, int4        matrices of the blocks rounded to 8 or 4 bits, 64 numbers a scale
    finetune:STEPS    a LoRA trained on ordinary text and merged (also finetune:STEPS:FILE)
    with:PATCH        another patch, or a ledger, in the same weights

Rounding is simulated: weights stay in the dtype of the model, with the values that the rounded ones
have. Each group of a row, along the input, is rounded to w ≈ s·q, s = max|w| / (2^(bits−1) − 1), as
the simplest quantisers do; embeddings, norms and output head are left. A LoRA is peft's, of rank 8
on every linear map of the blocks, trained for STEPS batches of 8 passages of 128 tokens by AdamW at
2e-4. Its text is the one that comes with the package if no other is given: then perplexity of that
text says nothing afterwards.
"""

import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor

from retcon.errors import InvalidSetting, MissingExtra
from retcon.model.handle import ModelHandle
from retcon.patch.ledger import read_source
from retcon.progress import Progress, silent

GROUP = 64
_RANK, _RATE, _BATCH, _LENGTH, _SEED = 8, 2e-4, 8, 128, 0
_FORMS = "bf16, int8, int4, finetune:STEPS, finetune:STEPS:FILE or with:PATCH"
# Does something to the weights of a model, which the caller keeps.
Change = Callable[[ModelHandle, Progress], None]


@dataclass(frozen=True)
class Treatment:
    """A treatment, by the name under which it was asked for.

    Attributes:
        check: raises where it could not be applied to a model, before any work is done.
        change: does it to a model's weights.
    """

    name: str
    change: Change
    check: Callable[[ModelHandle], None] = lambda _model: None

    @classmethod
    def of(cls, text: str) -> "Treatment":
        """Read the name of a treatment.

        Raises:
            InvalidSetting: there is none of this name.
            InvalidPatch, InvalidLedger, InvalidData: its file is missing or damaged.
            MissingExtra: peft is not installed.
        """
        kind, _, rest = text.partition(":")
        if text == "bf16":
            return cls(text, lambda model, _progress: model.overwrite(_bfloat16))
        if text in ("int8", "int4"):
            bits = int(text.removeprefix("int"))
            return cls(text, lambda model, _progress: _quantise(model, bits))
        if kind == "with" and rest:
            patch = read_source(rest)
            return cls(text, lambda model, _progress: model.write(patch.deltas), patch.check)
        if kind == "finetune":
            return cls(text, _finetuning(text, rest))
        raise InvalidSetting(f"There is no treatment {text!r}. Take {_FORMS}.")


@contextmanager
def treated(
    model: ModelHandle, treatment: Treatment | None, progress: Progress = silent
) -> Generator[ModelHandle, None, None]:
    """The model after a treatment; afterwards its own weights, bit for bit.

    Raises:
        UnsupportedModel: some weights are offloaded.
        PatchMismatch: another patch is for another model.
    """
    if treatment is None:
        yield model
        return
    with model.lent(), model.scratch():
        treatment.change(model, progress)
        yield model


def _bfloat16(name: str, weight: Tensor) -> Tensor:
    del name
    return weight.to(torch.bfloat16) if weight.is_floating_point() else weight


def _quantise(model: ModelHandle, bits: int) -> None:
    """Round the matrices of the blocks."""
    matrices = {f"{name}.weight": transposed for name, transposed in model.outline.linear_maps()}

    def change(name: str, weight: Tensor) -> Tensor:
        if name not in matrices:
            return weight
        return rounded(weight.mT, bits).mT if matrices[name] else rounded(weight, bits)

    model.overwrite(change)


def rounded(weight: Tensor, bits: int) -> Tensor:
    """Values of a matrix after rounding, in groups along the input.

    Args:
        weight: (d_out, d_in).
        bits: of each number, its sign among them.
    """
    most = 2 ** (bits - 1) - 1
    groups: Sequence[Tensor] = weight.float().split(GROUP, dim=-1)
    return torch.cat([_rounded_group(group, most) for group in groups], -1).to(weight.dtype)


def _rounded_group(group: Tensor, most: int) -> Tensor:
    scale = group.abs().amax(-1, keepdim=True) / most
    return torch.where(scale > 0, (group / scale.clamp_min(1e-38)).round() * scale, group)


def _finetuning(text: str, rest: str) -> Change:
    """Train a LoRA on ordinary text.

    Args:
        text: the name of the treatment.
        rest: steps, and a file.
    """
    from retcon.data.held_out import BUILT_IN, held_out

    if find_spec("peft") is None:
        raise MissingExtra("A fine-tune needs the package `peft`: pip install 'retcon-llm[peft]'.")
    number, _, file = rest.partition(":")
    if not number.isdecimal() or int(number) == 0:
        raise InvalidSetting(f"{text!r} names no number of steps. Write finetune:100.")
    steps = int(number)
    passages = held_out(file or BUILT_IN, passages=steps * _BATCH, seed=_SEED).texts
    return lambda model, progress: _finetune(model, steps, passages, progress)


def _finetune(
    model: ModelHandle, steps: int, passages: Sequence[str], progress: Progress = silent
) -> None:
    """Train a LoRA for some steps, and merge it."""
    from peft import LoraConfig, get_peft_model

    names = [name for name, _ in model.outline.linear_maps()]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft asks for a property by the name that it had in older versions of transformers.
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(_SEED)
        config = LoraConfig(r=_RANK, lora_alpha=2 * _RANK, target_modules=names)
        tuned: Any = get_peft_model(model.model, config)
    try:
        trained = [weight for weight in tuned.parameters() if weight.requires_grad]
        optimiser = torch.optim.AdamW(trained, lr=_RATE)
        for step, batch in enumerate(_batches(model, steps, passages)):
            progress("fine-tuning", step, steps)
            with torch.enable_grad():
                tuned(**batch).loss.backward()
            optimiser.step()
            optimiser.zero_grad()
        progress("fine-tuning", steps, steps)
    finally:
        tuned.merge_and_unload()
        model.model.requires_grad_(False).eval()
        # peft leaves its settings on what it was wrapped around.
        vars(model.model).pop("peft_config", None)


def _batches(
    model: ModelHandle, steps: int, passages: Sequence[str]
) -> Iterator[dict[str, Tensor]]:
    """As many batches of passages as steps, from the beginning again where they do not reach."""
    ids = [model.tokens.document(text, _LENGTH) for text in passages]
    rows = cycle([row for row in ids if len(row) > 1])
    for _ in range(steps):
        batch = model.tokens.pad(list(islice(rows, _BATCH)))
        seen = batch.attention_mask.to(model.device)
        given = batch.input_ids.to(model.device)
        yield {
            "input_ids": given,
            "attention_mask": seen,
            "labels": given.masked_fill(seen == 0, -100),
        }
