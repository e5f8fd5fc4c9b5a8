"""Exports: the same edit in other programs' forms, and back; nothing hostile gets in."""

import json
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from pico import FAMILIES, pico, tokenizer
from retcon.algebra.delta import LowRankDelta
from retcon.edits import Edit
from retcon.errors import (
    InvalidAdapter,
    InvalidSetting,
    ModelNotFound,
    NotExportable,
    PatchMismatch,
    StorageError,
)
from retcon.files import whole_folder
from retcon.model.checkpoint import CheckpointFiles
from retcon.model.load import load
from retcon.patch.export.gguf import write_gguf
from retcon.patch.export.lora import lora_of
from retcon.patch.export.peft import read_peft, write_peft
from retcon.patch.export.rank import balanced, capped, padded
from retcon.patch.export.whole import write_delta, write_merged
from retcon.patch.patch import EditRecord, Patch, Provenance, load_patch
from test_methods import EDITS

# PEFT asks transformers for a name that transformers is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

F32, BF16 = torch.float32, torch.bfloat16
# Decoders with every layout and name that an export must get right.
SHIPPED = ["llama-tied", "gpt2", "gemma2", "qwen3", "gpt_neox", "opt", "phi3"]


def saved(family, folder, dtype=F32, shard="5GB"):
    """A model's folder, as save_pretrained leaves it."""
    model = pico(family, dtype=dtype)
    model.model.save_pretrained(folder, max_shard_size=shard)
    tokenizer().save_pretrained(folder)
    return load(str(folder), dtype=str(dtype).removeprefix("torch."))


def some_patch(model, layers=(0, 1), n=3, size=0.2):
    """A patch that shows, without the price of making one."""
    made = torch.Generator().manual_seed(1)
    site = model.site(0)
    deltas = {
        layer: LowRankDelta(
            left=size * torch.randn(n, site.d_out, generator=made),
            right=size * torch.randn(n, site.d_in, generator=made),
        )
        for layer in layers
    }
    records = (
        EditRecord(id=e.id, prompt=e.prompt, subject=e.subject, target=e.target) for e in EDITS[:n]
    )
    about = Provenance(
        model=model.name, base=model.fingerprint, method="emmet", layers=layers,
        schedule="sequential-batch:3", settings={"ridge": 0.0}, edits=tuple(records),
    )  # fmt: skip
    return Patch(deltas=deltas, about=about)


def logits(model):
    torch_model = getattr(model, "model", model) if hasattr(model, "tokens") else model
    ids = torch.arange(2, 40).reshape(2, 19)
    with torch.no_grad():
        return torch_model(input_ids=ids, use_cache=False).logits.float()


def fresh(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=F32)


@pytest.mark.parametrize("family", SHIPPED)
def test_forms_agree_with_the_native_patch(family, tmp_path):
    peft = pytest.importorskip("peft", reason="needs peft")
    model = saved(family, tmp_path / "base")
    patch = some_patch(model)
    base = logits(model)
    with patch.applied(model):
        native = logits(model)
    assert (native - base).abs().max() > 0.05
    (tmp_path / "peft").mkdir()
    lora = lora_of(patch, model.outline, dtype=F32)
    write_peft(tmp_path / "peft", patch, lora, model.outline, F32)
    adapted = peft.PeftModel.from_pretrained(fresh(tmp_path / "base"), tmp_path / "peft")
    assert torch.allclose(logits(adapted), native, atol=1e-4)
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted), base)
    assert torch.allclose(logits(adapted.merge_and_unload()), native, atol=1e-4)
    served = fresh(tmp_path / "base")
    served.load_adapter(str(tmp_path / "peft"))
    assert torch.allclose(logits(served), native, atol=1e-4)
    # Merged in float32: the very weights of the native patch.
    (tmp_path / "merged").mkdir()
    checkpoint = CheckpointFiles.open(str(tmp_path / "base"))
    assert checkpoint.fingerprint == model.fingerprint
    write_merged(tmp_path / "merged", patch, checkpoint)
    assert torch.equal(logits(fresh(tmp_path / "merged")), native)
    # And ΔW itself.
    (tmp_path / "delta").mkdir()
    write_delta(tmp_path / "delta", patch, model.outline)
    summed = fresh(tmp_path / "base")
    for name, change in load_file(tmp_path / "delta" / "delta.safetensors").items():
        summed.get_parameter(name).data += change
    assert torch.allclose(logits(summed), native, atol=1e-4)


def test_what_a_card_tells_to_run_runs_in_its_folder(tmp_path, monkeypatch):
    """Wherever the adapter was made from: its base is named by its whole path."""
    pytest.importorskip("peft", reason="needs peft")
    monkeypatch.chdir(tmp_path)
    saved("llama", tmp_path / "base")
    model = load("./base")
    patch = some_patch(model)
    with patch.applied(model):
        native = logits(model)
    for form in ("peft", "merged"):
        patch.export(form, tmp_path / form)
        monkeypatch.chdir(tmp_path / form)
        card = (tmp_path / form / "README.md").read_text(encoding="utf-8")
        names = {}
        exec(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], names)
        assert torch.allclose(logits(names["model"]), native, atol=1e-4)
        monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_checkpoint_s_fingerprint_is_the_loaded_model_s(family, tmp_path):
    model = saved(family, tmp_path, shard="20KB")
    assert CheckpointFiles.open(str(tmp_path)).fingerprint == model.fingerprint


def test_two_adapters_stack_in_peft(tmp_path):
    peft = pytest.importorskip("peft", reason="needs peft")
    model = saved("llama", tmp_path / "base")
    first, second = some_patch(model), some_patch(model, layers=(1,), n=2, size=0.1)
    for name, patch in (("a", first), ("b", second)):
        (tmp_path / name).mkdir()
        lora = lora_of(patch, model.outline, dtype=F32)
        write_peft(tmp_path / name, patch, lora, model.outline, F32)
    both = peft.PeftModel.from_pretrained(fresh(tmp_path / "base"), tmp_path / "a", "a")
    both.load_adapter(str(tmp_path / "b"), "b")
    both.add_weighted_adapter(["a", "b"], [1.0, 1.0], "ab", combination_type="cat")
    both.set_adapter("ab")
    with first.applied(model), second.applied(model):
        assert torch.allclose(logits(both), logits(model), atol=1e-4)
    both.set_adapter("a")
    with first.applied(model):
        assert torch.allclose(logits(both), logits(model), atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_adapter_of_ours_comes_back_as_the_patch(family, tmp_path):
    model = saved(family, tmp_path / "base")
    patch = some_patch(model)
    lora = lora_of(patch, model.outline, dtype=F32)
    write_peft(tmp_path, patch, lora, model.outline, F32)
    back = read_peft(tmp_path, model.outline, base=model.fingerprint)
    assert back.about == patch.about
    for layer, delta in patch.deltas.items():
        assert torch.equal(back.deltas[layer].left, delta.left)
        assert torch.equal(back.deltas[layer].right, delta.right)
    with pytest.raises(InvalidAdapter, match="fingerprint"):
        read_peft(tmp_path, model.outline, base="0" * 64)
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["r"] == config["lora_alpha"] == 3 and config["rank_pattern"] == {}
    assert config["fan_in_fan_out"] == (family == "gpt2")


def test_an_adapter_that_peft_trained_becomes_a_patch(tmp_path):
    peft = pytest.importorskip("peft", reason="needs peft")
    model = saved("llama", tmp_path / "base")
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["down_proj"], use_rslora=True, task_type="CAUSAL_LM",
        layers_to_transform=[0, 2], layers_pattern="layers",
        rank_pattern={"layers.2.mlp.down_proj": 2},
    )  # fmt: skip
    trained = peft.get_peft_model(fresh(tmp_path / "base"), config)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for name, parameter in trained.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    trained.save_pretrained(tmp_path / "adapter")
    patch = read_peft(tmp_path / "adapter", model.outline, base=model.fingerprint)
    assert patch.about.edits == () and patch.about.layers == (0, 2)
    patch.save(tmp_path / "p.safetensors")
    with load_patch(tmp_path / "p.safetensors").applied(model):
        assert torch.allclose(logits(model), logits(trained), atol=1e-4)


def test_ranks_are_capped_by_singular_values_and_padded_by_zeros():
    made = torch.Generator().manual_seed(0)
    delta = LowRankDelta(
        left=torch.randn(9, 6, generator=made), right=torch.randn(9, 20, generator=made)
    )
    whole = delta.dense()
    u, s, v = torch.linalg.svd(whole, full_matrices=False)
    for rank in (1, 3, 6, 8):
        found = capped(delta, rank)
        best = (u[:, :rank] * s[:rank]) @ v[:rank]
        assert found.delta.rank == min(rank, 6)
        assert torch.allclose(found.delta.dense(), best, atol=1e-5)
        error = float((whole - best).norm() / whole.norm())
        assert found.error == pytest.approx(error, abs=1e-6)
    assert capped(delta, 9) == (delta, 0.0)
    assert torch.equal(padded(delta, 12).dense(), whole) and padded(delta, 12).rank == 12
    even = balanced(LowRankDelta(left=1000 * delta.left, right=delta.right / 1000))
    assert torch.equal(
        even.dense(), LowRankDelta(left=1000 * delta.left, right=delta.right / 1000).dense()
    )
    assert 0.1 < float(even.left.norm() / even.right.norm()) < 10
    zero = balanced(LowRankDelta(left=torch.zeros(2, 3), right=torch.ones(2, 4)))
    assert torch.equal(zero.right, torch.ones(2, 4))


def test_a_capped_adapter_says_what_it_lost_and_comes_back_without_facts(tmp_path):
    model = saved("llama", tmp_path / "base")
    lora = lora_of(some_patch(model), model.outline, dtype=F32, max_rank=2)
    assert lora.rank == 2 and all(0 < error < 1 for error in lora.errors.values())
    write_peft(tmp_path, some_patch(model), lora, model.outline, F32)
    assert read_peft(tmp_path, model.outline, base=model.fingerprint).about.method == "lora"
    with pytest.raises(InvalidSetting):
        lora_of(some_patch(model), model.outline, dtype=F32, max_rank=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_factors_keep_the_edit(dtype, tmp_path):
    model = saved("llama", tmp_path / "base")
    patch = some_patch(model)
    write_peft(tmp_path, patch, lora_of(patch, model.outline, dtype=dtype), model.outline, dtype)
    back = read_peft(tmp_path, model.outline, base=model.fingerprint)
    for layer, delta in patch.deltas.items():
        change = (back.deltas[layer].dense() - delta.dense()).norm() / delta.dense().norm()
        assert change < 5e-3


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma2", "phi3"])
def test_a_gguf_adapter_says_what_llama_cpp_asks_for(family, tmp_path):
    gguf = pytest.importorskip("gguf", reason="needs gguf")
    model = pico(family)
    patch = some_patch(model)
    write_gguf(tmp_path, patch, lora_of(patch, model.outline, dtype=F32), model.outline, F32)
    read = gguf.GGUFReader(tmp_path / "adapter.gguf")
    assert read.get_field("general.type").contents() == "adapter"
    assert read.get_field("adapter.type").contents() == "lora"
    assert read.get_field("adapter.lora.alpha").contents() == 3.0
    tensors = {tensor.name: tensor for tensor in read.tensors}
    assert set(tensors) == {f"blk.{k}.ffn_down.weight.lora_{half}" for k in (0, 1) for half in "ab"}
    for layer, delta in patch.deltas.items():
        a, b = (tensors[f"blk.{layer}.ffn_down.weight.lora_{half}"] for half in "ab")
        # ne of llama.cpp, whose first axis is the fastest: A is [d_in, r], B [r, d_out].
        assert list(a.shape) == [48, 3] and list(b.shape) == [3, 32]
        change = torch.tensor(b.data.copy()).double() @ torch.tensor(a.data.copy()).double()
        assert torch.allclose(change, delta.dense())
    with pytest.raises(InvalidSetting, match="float32 or float16"):
        write_gguf(tmp_path, patch, lora_of(patch, model.outline, dtype=F32), model.outline, BF16)


def test_merging_rewrites_the_edited_shards_alone(tmp_path):
    saved("llama", tmp_path / "base", shard="20KB")
    model = load(str(tmp_path / "base"))
    patch = some_patch(model, layers=(1,))
    (tmp_path / "merged").mkdir()
    lost = write_merged(tmp_path / "merged", patch, CheckpointFiles.open(str(tmp_path / "base")))
    assert lost[1].lost < 1e-5 and lost[1].dtype == "float32"
    shards = sorted(file.name for file in (tmp_path / "base").glob("*.safetensors"))
    changed = [
        name
        for name in shards
        if (tmp_path / "base" / name).read_bytes() != (tmp_path / "merged" / name).read_bytes()
    ]
    assert len(shards) > 3 and len(changed) == 1
    before, after = (load_file(tmp_path / where / changed[0]) for where in ("base", "merged"))
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert moved == ["model.layers.1.mlp.down_proj.weight"]
    with safe_open(tmp_path / "merged" / changed[0], "pt") as stream:
        assert stream.metadata() == {"format": "pt"}
    assert (tmp_path / "merged" / "tokenizer.json").exists()
    card = (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")
    assert "Danielle Darrieux" in card and "base_model_relation: finetune" in card
    with pytest.raises(PatchMismatch, match="not for"):
        write_merged(tmp_path / "merged", patch, CheckpointFiles.open(str(tmp_path / "merged")))


@pytest.mark.parametrize("size", [0.2, 0.004])
def test_merging_in_half_precision_is_what_loading_and_editing_gives(size, tmp_path):
    """Bit for bit; and of a small edit it is told that rounding loses much."""
    saved("llama", tmp_path / "base", dtype=BF16)
    model = load(str(tmp_path / "base"), dtype="bfloat16")
    patch = some_patch(model, size=size)
    (tmp_path / "merged").mkdir()
    lost = write_merged(tmp_path / "merged", patch, CheckpointFiles.open(str(tmp_path / "base")))
    merged = load(str(tmp_path / "merged"), dtype="bfloat16")
    with patch.applied(model):
        assert merged.weights_hash() == model.weights_hash()
    assert (lost[0].lost > 0.5) == (size < 0.1) == (lost[0].unmoved > 0.5)
    # In float32 nothing is lost.
    (tmp_path / "wide").mkdir()
    lost = write_merged(tmp_path / "wide", patch, CheckpointFiles.open(str(tmp_path / "base")), F32)
    assert lost[0].lost < 1e-2
    wide = json.loads((tmp_path / "wide" / "config.json").read_text(encoding="utf-8"))
    assert wide["dtype"] == "float32"
    full = load(str(tmp_path / "base"))
    with patch.applied(full):
        assert load(str(tmp_path / "wide")).weights_hash() == full.weights_hash()


def test_a_cast_of_shards_has_an_index_that_fits(tmp_path):
    saved("llama", tmp_path / "base", shard="20KB")
    patch = some_patch(load(str(tmp_path / "base")))
    (tmp_path / "half").mkdir()
    write_merged(tmp_path / "half", patch, CheckpointFiles.open(str(tmp_path / "base")), BF16)
    assert load(str(tmp_path / "half"), dtype="bfloat16").dtype == BF16


def test_checkpoints_that_cannot_be_merged_into(tmp_path):
    saved("llama", tmp_path, shard="20KB")
    index = tmp_path / "model.safetensors.index.json"
    names = json.loads(index.read_text(encoding="utf-8"))
    escaped = {**names, "weight_map": dict.fromkeys(names["weight_map"], "../secret.safetensors")}
    index.write_text(json.dumps(escaped), encoding="utf-8")
    with pytest.raises(ModelNotFound, match=r"no file of this folder"):
        _ = CheckpointFiles.open(str(tmp_path)).shards
    index.write_text("[1, 2", encoding="utf-8")
    with pytest.raises(ModelNotFound, match="cannot be read"):
        _ = CheckpointFiles.open(str(tmp_path)).shards
    index.unlink()
    with pytest.raises(NotExportable, match="save_pretrained"):
        _ = CheckpointFiles.open(str(tmp_path)).shards
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(NotExportable, match="quantised"):
        CheckpointFiles.open(str(tmp_path))


def test_what_fits_no_model_is_refused(tmp_path):
    model = pico()
    patch = some_patch(model)
    empty = Patch(deltas={}, about=patch.about.model_copy(update={"layers": (), "edits": ()}))
    with pytest.raises(NotExportable, match="changes nothing"):
        lora_of(empty, model.outline, dtype=F32)
    with pytest.raises(PatchMismatch, match="32 x 48"):
        lora_of(patch, pico("llama-square").outline, dtype=F32)


BAD_CONFIGS = [
    ({"peft_type": "IA3"}, "LORA adapter"),
    ({"use_dora": True}, "use_dora"),
    ({"bias": "all"}, "bias"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"alpha_pattern": {"(a+)+$": 3}}, "alpha_pattern"),
    ({"r": 0}, "r: "),
    ({"lora_alpha": float("inf")}, "adapter_config.json"),
    ({"init_lora_weights": "pissa"}, "path_initial_model_for_weight_conversion"),
    ({"init_lora_weights": "pissa_niter_4"}, "began as 'pissa_niter_4'"),
    ({"init_lora_weights": "olora"}, "began as 'olora'"),
    ({"init_lora_weights": "corda"}, "began as 'corda'"),
    ({"init_lora_weights": "loftq"}, "quantised base"),
    ({"init_lora_weights": "lora_ga"}, "began as 'lora_ga'"),
    ({"init_lora_weights": "not known yet"}, "began as 'not known yet'"),
    ({"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens"),
    ({"lora_bias": True}, "lora_bias"),
    ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
    ({"target_parameters": ["mlp.down_proj.weight"]}, "target_parameters"),
    ({"use_qalora": True}, "use_qalora"),
    ({"use_bdlora": {"nblocks": 2}}, "use_bdlora"),
    ({"kasa_config": {"beta": 1e-4}}, "kasa_config"),
    ({"monteclora_config": {"samples": 2}}, "monteclora_config"),
    ({"arrow_config": {"top_k": 2}}, "arrow_config"),
    ({"megatron_config": {"x": 1}}, "megatron_config"),
    ({"of_a_later_version": 0.5}, "of_a_later_version = 0.5"),
]
HARMLESS = [
    {"init_lora_weights": False},
    {"init_lora_weights": "gaussian"},
    {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}},
    {"init_lora_weights": "orthogonal"},
    {"lora_dropout": 0.1, "auto_mapping": {"parent_library": "evil"}, "peft_version": "9.9"},
    {"of_a_later_version": None, "another_one": False, "third": []},
]


@pytest.mark.parametrize(("change", "said"), BAD_CONFIGS)
def test_adapters_that_are_no_sum_of_factors(change, said, tmp_path):
    model = pico()
    lora = lora_of(some_patch(model), model.outline, dtype=F32)
    write_peft(tmp_path, some_patch(model), lora, model.outline, F32)
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**config, **change}), encoding="utf-8")
    with pytest.raises(InvalidAdapter, match=said):
        read_peft(tmp_path, model.outline, base=model.fingerprint)


@pytest.mark.parametrize("change", HARMLESS)
def test_entries_that_change_nothing_are_taken(change, tmp_path):
    model = pico()
    patch = some_patch(model)
    write_peft(tmp_path, patch, lora_of(patch, model.outline, dtype=F32), model.outline, F32)
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**config, **change}), encoding="utf-8")
    back = read_peft(tmp_path, model.outline, base=model.fingerprint)
    assert all(torch.equal(back.deltas[k].left, patch.deltas[k].left) for k in patch.deltas)


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize("begun", ["pissa", "olora"])
def test_an_adapter_that_peft_converted_is_a_change_of_the_base(begun, tmp_path):
    """What the error tells to do: then the patch's logits are those of the trained model."""
    peft = pytest.importorskip("peft", reason="needs peft")
    model = saved("llama", tmp_path / "base")
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["down_proj"], task_type="CAUSAL_LM",
        init_lora_weights=begun,
    )  # fmt: skip
    trained = peft.get_peft_model(fresh(tmp_path / "base"), config)
    trained.save_pretrained(tmp_path / "initial")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for name, parameter in trained.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    trained.save_pretrained(tmp_path / "raw")
    with pytest.raises(InvalidAdapter, match="path_initial_model_for_weight_conversion"):
        read_peft(tmp_path / "raw", model.outline, base=model.fingerprint)
    trained.save_pretrained(
        tmp_path / "converted",
        path_initial_model_for_weight_conversion=str(tmp_path / "initial"),
    )
    patch = read_peft(tmp_path / "converted", model.outline, base=model.fingerprint)
    with patch.applied(model):
        assert torch.allclose(logits(model), logits(trained), atol=1e-4)


def test_a_multimodal_checkpoint_is_merged_and_served(tmp_path):
    """transformers knows its weights by other names than its files."""
    gguf = pytest.importorskip("gguf", reason="needs gguf")
    text = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 400,
        "query_pre_attn_scalar": 8, "pad_token_id": 1,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 4, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    config = AutoConfig.for_model(
        "gemma3", text_config=text, vision_config=vision, image_token_index=399
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    model = load(str(tmp_path / "base"))
    patch = some_patch(model)
    checkpoint = CheckpointFiles.open(str(tmp_path / "base"))
    assert checkpoint.weights == model.weights
    assert all("language_model.model" in checkpoint.home(s.path)[1]
               for s in model.architecture.sites.values())  # fmt: skip
    (tmp_path / "merged").mkdir()
    write_merged(tmp_path / "merged", patch, checkpoint)
    with patch.applied(model):
        assert torch.equal(logits(load(str(tmp_path / "merged"))), logits(model))
    write_gguf(tmp_path, patch, lora_of(patch, model.outline, dtype=F32), model.outline, F32)
    names = {tensor.name for tensor in gguf.GGUFReader(tmp_path / "adapter.gguf").tensors}
    assert names == {f"blk.{k}.ffn_down.weight.lora_{half}" for k in (0, 1) for half in "ab"}


NAME = "base_model.model.model.layers.0.mlp.down_proj.lora_"


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({}, "no factors"),
        ({NAME + "A.weight": torch.ones(2, 48)}, "do not fit"),
        ({NAME + "A.weight": torch.ones(2, 48), NAME + "B.weight": torch.ones(32, 3)}, "do not"),
        ({NAME + "A.weight": torch.ones(2, 9), NAME + "B.weight": torch.ones(32, 2)}, "do not"),
        ({NAME + "A.weight": torch.ones(0, 48), NAME + "B.weight": torch.ones(32, 0)}, "do not"),
        ({NAME.replace("mlp.down", "self_attn.q") + "A.weight": torch.ones(2, 48)}, "q_proj"),
        ({"../../x": torch.ones(2)}, "changes '../../x'"),
        ({NAME + "A.weight": torch.ones(2, 48, dtype=torch.int32)}, "no floats"),
        (
            {NAME + "A.weight": torch.full((2, 48), float("nan")),
             NAME + "B.weight": torch.ones(32, 2)},
            "not finite",
        ),
    ],
)  # fmt: skip
def test_adapters_whose_tensors_do_not_fit(tensors, said, tmp_path):
    model = pico()
    lora = lora_of(some_patch(model), model.outline, dtype=F32)
    write_peft(tmp_path, some_patch(model), lora, model.outline, F32)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(InvalidAdapter, match=said):
        read_peft(tmp_path, model.outline, base=model.fingerprint)
    with pytest.raises(InvalidAdapter, match=r"no adapter_config\.json"):
        read_peft(tmp_path / "nowhere", model.outline, base=model.fingerprint)


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "out") as work:
        (work / "half").write_text("x", encoding="utf-8")
        raise RuntimeError
    assert list(tmp_path.glob("*out*")) == []
    (tmp_path / "out").mkdir()
    with whole_folder(tmp_path / "out") as work:
        (work / "all").write_text("x", encoding="utf-8")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["all"]
    with pytest.raises(StorageError, match="exists already"), whole_folder(tmp_path / "out"):
        pass


# On the command line.


@pytest.fixture
def folder(tmp_path, monkeypatch):
    model = saved("llama", tmp_path / "model", dtype=BF16)
    patch = some_patch(model, size=0.004)
    about = patch.about.model_copy(update={"model": "./model"})
    Patch(deltas=patch.deltas, about=about).save(tmp_path / "p.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def test_exports_on_the_command_line(folder, retcon):
    for form, file in (("peft", "adapter_model.safetensors"), ("delta", "delta.safetensors")):
        code, out, err = retcon("patch", "export", "p.safetensors", "--to", form, "-o", form)
        assert code == 0 and file in out and (folder / form / file).exists(), err
    assert "--max-lora-rank 8" in retcon(
        "patch", "export", "p.safetensors", "--to", "peft", "-o", "again"
    )[1]  # fmt: skip
    code, out, err = retcon(
        "patch", "export", "p.safetensors", "--to", "merged", "-o", "merged", "--json", "m.json"
    )
    assert code == 0 and "Scores after rounding" in out, err
    said = json.loads((folder / "m.json").read_text(encoding="utf-8"))
    assert said["rounding"]["0"]["lost"] > 0.5 and said["efficacy"]["lost"] == []
    code, out, err = retcon(
        "patch", "export", "p.safetensors", "--to", "merged", "-o", "wide", "--no-check",
        "--dtype", "float32",
    )  # fmt: skip
    assert code == 0 and "float32" in out, err
    code, out, err = retcon("patch", "import", "./model", "peft", "-o", "back.safetensors")
    assert code == 0 and "3 facts, layers 0, 1" in out, err
    assert load_patch("back.safetensors").about == load_patch("p.safetensors").about


def test_facts_that_rounding_loses_are_named(tmp_path):
    """An edit that the native patch makes and a merged bfloat16 matrix cannot hold."""
    from retcon.edits import Case
    from retcon.run.rounding import efficacy, native_rows

    saved("llama", tmp_path / "base", dtype=BF16)
    base = load(str(tmp_path / "base"))
    edit = Edit.parse("The capital city of {France} is", "Rome", id="rome")
    cases = [Case(edit=edit)]
    pre, native = native_rows(base, some_patch(base), cases)
    said = [row._replace(hits_new=row.n_new) for row in native]
    found = efficacy(pre, said, base, cases)
    assert found.lost == ("rome",) and set(found.scores) == {"base", "patch", "merged"}


BAD = [
    (["export", "p.safetensors", "--to", "peft", "-o", "model"], "not an empty folder"),
    (
        ["export", "p.safetensors", "--to", "merged", "-o", "x", "--max-rank", "2"],
        "form merged 'max_rank'",
    ),
    (["export", "p.safetensors", "--to", "peft", "-o", "x", "--cases", "starter"], "--cases says"),
    (["export", "p.safetensors", "--to", "gguf", "-o", "x", "--dtype", "bfloat16"], "float16"),
    (
        ["export", "p.safetensors", "--to", "delta", "-o", "x", "--dtype", "bfloat16"],
        "form delta 'dtype'",
    ),
    (["export", "p.safetensors", "--to", "peft", "-o", "x", "--model", "./no"], "no folder"),
    (["import", "./model", "model", "-o", "x.safetensors"], "adapter_config.json"),
]


@pytest.mark.parametrize(("words", "said"), BAD, ids=[" ".join(w[:6]) for w, _ in BAD])
def test_mistakes_say_what_to_do(folder, retcon, words, said):
    code, _, err = retcon("patch", *words)
    assert code == 2 and said in err, err
    assert not (folder / "x").exists()
