"""Very small random models of many families, and tokenizers for them: made, never fetched."""

from functools import cache

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from retcon.edits import Edit
from retcon.model.handle import ModelHandle
from retcon.model.overlay import Overlay
from retcon.run.driver import fold
from retcon.scoring.exact_match import draft, exact_matches
from retcon.scoring.teacher_forced import predict

_TEXT = [
    "The mother tongue of Danielle Darrieux is French.",
    "The capital city of France is Paris, and that of Italy is Rome.",
    "Marie Curie was born in Warsaw; she worked as a physicist.",
    "Therefore I think that you know because the Eiffel Tower is in the city of Paris.",
    "English German Spanish Russian Polish Madrid London Berlin is a an was the of in",
] * 4

# Widths are chosen so that attention's output map and the MLP's can only be told apart by what
# they do: d_in of one equals d_in of the other in some families.
_COMMON = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
_LLAMA_LIKE = {
    **_COMMON,
    "intermediate_size": 48,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}

FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("llama", {**_LLAMA_LIKE, "tie_word_embeddings": False}),
    "llama-tied": ("llama", {**_LLAMA_LIKE, "tie_word_embeddings": True}),
    "llama-square": ("llama", {**_LLAMA_LIKE, "intermediate_size": 32}),
    "mistral": ("mistral", {**_LLAMA_LIKE, "sliding_window": 64}),
    "qwen2": ("qwen2", _LLAMA_LIKE),
    "qwen3": ("qwen3", {**_LLAMA_LIKE, "head_dim": 8}),
    "gemma2": ("gemma2", {**_LLAMA_LIKE, "head_dim": 8, "query_pre_attn_scalar": 8}),
    "gemma3": ("gemma3_text", {**_LLAMA_LIKE, "head_dim": 8, "query_pre_attn_scalar": 8}),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_inner": 48, "n_positions": 128}),
    "gptj": (
        "gptj",
        {
            "n_embd": 32,
            "n_layer": 3,
            "n_head": 4,
            "n_inner": 48,
            "rotary_dim": 4,
            "n_positions": 128,
        },
    ),
    "gpt_neox": (
        "gpt_neox",
        {**_COMMON, "intermediate_size": 48, "max_position_embeddings": 128},
    ),
    "opt": (
        "opt",
        {**_COMMON, "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 128},
    ),
    "phi3": ("phi3", {**_LLAMA_LIKE, "pad_token_id": 0, "original_max_position_embeddings": 128}),
    "olmo2": ("olmo2", _LLAMA_LIKE),
    "granite": ("granite", {**_LLAMA_LIKE, "residual_multiplier": 0.3}),
}

# These compute attention in float32 whatever the dtype of the model: how far they may be off.
INNER_FLOAT32 = {"gemma2": 1e-5, "gptj": 1e-5}


@cache
def tokenizer(*, bos: bool = False, padding_side: str = "right") -> PreTrainedTokenizerFast:
    """A byte-level BPE of 400 tokens, with or without a BOS token in front."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(_TEXT, trainer)
    if bos:
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        padding_side=padding_side,
    )


# Lists of hidden states, states for a cache, experts beside an MLP, convolutions.
UNUSUAL: dict[str, dict[str, object]] = {
    "openai-gpt": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "recurrent_gemma": {"hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 3,
                        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
                        "lru_width": 32, "attention_window_size": 16},
    "qwen2_moe": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                  "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 4,
                  "num_experts_per_tok": 2, "moe_intermediate_size": 16,
                  "shared_expert_intermediate_size": 16},
    "lfm2": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2,
             "block_auto_adjust_ff_dim": False, "layer_types": ["conv", "full_attention"]},
}  # fmt: skip


def unusual(kind: str) -> PreTrainedModel:
    """A random model of an unusual architecture."""
    config = AutoConfig.for_model(
        kind, vocab_size=400, bos_token_id=0, eos_token_id=1, pad_token_id=1, **UNUSUAL[kind]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config)


def pico(
    family: str = "llama",
    *,
    seed: int = 0,
    bos: bool = False,
    dtype: torch.dtype = torch.float32,
    padding_side: str = "right",
    tokens: PreTrainedTokenizerFast | None = None,
    device: str = "cpu",
) -> ModelHandle:
    """A handle on a random model of a family; large enough weights that an edit shows."""
    kind, dimensions = FAMILIES[family]
    tokens = tokens or tokenizer(bos=bos, padding_side=padding_side)
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = AutoConfig.for_model(kind, vocab_size=len(tokens), **{**special, **dimensions})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 2:
                    parameter.normal_(std=0.25)
                elif "norm" not in name and "ln" not in name:
                    parameter.normal_(std=0.1)
    return ModelHandle(model.to(device, dtype), tokens, name=f"pico-{family}")


def says_target(model: ModelHandle, edits: list[Edit]) -> list[bool]:
    """True where the greedy continuation of a bare prompt begins with the target as whole words."""
    overlay = Overlay(model=model)
    drafts = [draft(model.tokens, edit.text, edit.target) for edit in edits]
    wanted = [(edit.target,) for edit in edits]
    return exact_matches(overlay, wanted, drafts, predict(overlay, drafts))


def solve(model, method, state, edits, plan):
    """Every step of a run as it is solved; carried ones are in the weights, others are not."""
    for steps in fold(model, method, state, edits, plan):
        yield from steps


def run(model, method, state, edits, plan, *, past=()):
    """Every step of a run, in the weights while it is looked at."""
    for steps in fold(model, method, state, edits, plan, past=past):
        for step in steps:
            if plan.carry:
                yield step
                continue
            with model.scratch():
                model.write(step.update.deltas)
                yield step
