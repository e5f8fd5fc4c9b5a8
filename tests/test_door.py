"""The one door through which models come: nothing runs, nothing is made up, nothing is mistaken."""

import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

from pico import UNUSUAL, pico, tokenizer, unusual
from retcon.algebra.delta import LowRankDelta
from retcon.cli.main import app
from retcon.edits import Edit
from retcon.errors import ModelNotFound, PatchMismatch, RetconError, RetconWarning, UnsupportedModel
from retcon.model.checkpoint import CheckpointFiles
from retcon.model.fingerprints import Known
from retcon.model.handle import ModelHandle
from retcon.model.load import checkpoint_folder, load, outline
from retcon.patch.export.whole import write_merged
from retcon.patch.patch import Patch, Provenance, load_patch
from retcon.run.edit import edit

FACT = Edit.parse("The capital of {France} is", "Rome")
FAST = {"corpus_tokens": 300, "document_tokens": 32, "jitter": 1e-3, "prefixes": 1, "steps": 2}


def saved(folder, family="llama", **more):
    model = pico(family, **more)
    model.model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return model


def rewrite(file, change):
    found = json.loads(file.read_text(encoding="utf-8"))
    change(found)
    file.write_text(json.dumps(found), encoding="utf-8")


def drop(folder, *names):
    file = folder / "model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if k not in names}, file, {"format": "pt"})


# What a folder may hold, and that must not run: each writes a file where it does.


def code(folder):
    return f"open({str(folder / 'RAN')!r}, 'w').write('x')\n"


def own_model(folder):
    rewrite(folder / "config.json", lambda c: c.update(
        model_type="evil", auto_map={"AutoConfig": "evil.Conf", "AutoModelForCausalLM": "evil.Mod"}
    ))  # fmt: skip
    (folder / "evil.py").write_text(
        code(folder) + "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class Conf(LlamaConfig): model_type = 'evil'\n"
        "class Mod(LlamaForCausalLM): config_class = Conf\n",
        encoding="utf-8",
    )


def known_model(folder):
    own_model(folder)
    rewrite(folder / "config.json", lambda c: c.update(model_type="llama"))


def nested_model(folder):
    own_model(folder)
    rewrite(folder / "config.json", lambda c: c.update(
        model_type="llama", text_config={"auto_map": c.pop("auto_map")}
    ))  # fmt: skip


def own_tokenizer(folder):
    rewrite(folder / "tokenizer_config.json", lambda c: c.update(
        tokenizer_class="Mine", auto_map={"AutoTokenizer": ["evil.Mine", "evil.Mine"]}
    ))  # fmt: skip
    (folder / "evil.py").write_text(
        code(folder) + "from transformers import PreTrainedTokenizerFast as Mine\n",
        encoding="utf-8",
    )


def listed_tokenizer(folder):
    own_tokenizer(folder)
    rewrite(folder / "tokenizer_config.json", lambda c: c.update(auto_map=["evil.Mine", None]))


def kernels(folder):
    rewrite(folder / "config.json", lambda c: c.update(attn_implementation="evil/kernel"))


HOSTILE = {
    own_model: "auto_map",
    known_model: "auto_map",
    nested_model: "auto_map",
    own_tokenizer: "auto_map",
    listed_tokenizer: "auto_map",
    kernels: "evil/kernel",
}


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda h: h.__name__)
def test_code_of_a_folder_never_runs(hostile, tmp_path, monkeypatch):
    base = saved(tmp_path)
    patch = some_patch(base)
    patch.save(tmp_path.parent / "p.safetensors")
    hostile(tmp_path)
    monkeypatch.chdir(tmp_path.parent)
    monkeypatch.setattr("builtins.input", lambda _question="": "y")
    name, said = str(tmp_path), HOSTILE[hostile]
    for way in (load, outline, checkpoint_folder, CheckpointFiles.open):
        with pytest.raises(UnsupportedModel, match=said):
            way(name)
    fact = ["--fact", "The capital of {France} is", "Rome", "--method", "emmet", "--layer", "1"]
    for command in (
        ["probe", name],
        ["edit", name, *fact, "-o", "q.safetensors"],
        ["edit", name, *fact, "--plan"],
        ["patch", "import", name, name, "-o", "q.safetensors"],
        ["patch", "export", "p.safetensors", "--model", name, "--to", "merged", "-o", "out"],
        ["patch", "export", "p.safetensors", "--model", name, "--to", "peft", "-o", "out"],
        ["compare", name, "--patch", "p.safetensors", "--prompt", "The"],
        ["eval", name, "--n", "1", *fact[3:]],
        ["sweep", name, "--n", "1", "--out", "sweep"],
    ):
        done = CliRunner().invoke(app, command, input="y\n" * 50)
        assert isinstance(done.exception, RetconError | SystemExit), (command, done.exception)
        assert done.exit_code != 0
    assert not (tmp_path / "RAN").exists() and not (tmp_path.parent / "RAN").exists()


def test_what_is_not_read_does_not_run_either(tmp_path):
    """Files beside the model that other programs would run: they are left alone."""
    model = saved(tmp_path)
    (tmp_path / "custom_generate").mkdir()
    (tmp_path / "custom_generate" / "generate.py").write_text(code(tmp_path), encoding="utf-8")
    for name in ("modeling_llama.py", "tokenization.py", "setup.py", "sitecustomize.py"):
        (tmp_path / name).write_text(code(tmp_path), encoding="utf-8")
    rewrite(tmp_path / "generation_config.json", lambda c: c.update(
        auto_map={"AutoModelForCausalLM": "modeling_llama.Mod"}, custom_generate=str(tmp_path)
    ))  # fmt: skip
    (tmp_path / "processor_config.json").write_text(
        '{"auto_map": {"AutoProcessor": "tokenization.Mine"}}', encoding="utf-8"
    )
    (tmp_path / "chat_template.jinja").write_text(
        "{% for c in ''.__class__.__mro__[1].__subclasses__() %}{{ c }}{% endfor %}"
        "{{ cycler.__init__.__globals__.os.system('touch " + str(tmp_path / "RAN") + "') }}",
        encoding="utf-8",
    )
    loaded = load(str(tmp_path))
    assert loaded.weights == model.weights
    edit(loaded, [FACT], method="emmet", layers=[1], settings=FAST)
    with pytest.raises(Exception, match=r"unsafe|undefined"):
        loaded.tokens.tokenizer.apply_chat_template([{"role": "user", "content": "x"}])
    assert not (tmp_path / "RAN").exists()


class _Bomb:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (open, (str(self.file), "w"))


@pytest.mark.parametrize("kind", ["weights", "damaged", "empty", "bomb", "zipped bomb"])
def test_pickles_are_weights_only(kind, tmp_path):
    model = saved(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    file = tmp_path / "pytorch_model.bin"
    if kind == "bomb":
        file.write_bytes(pickle.dumps({**state, "bomb": _Bomb(tmp_path / "RAN")}))
    elif kind in ("damaged", "empty"):
        file.write_bytes(b"no weights at all" if kind == "damaged" else b"")
    else:
        torch.save(state if kind == "weights" else {"bomb": _Bomb(tmp_path / "RAN")}, file)
    if kind == "weights":
        assert load(str(tmp_path)).weights == model.weights
    else:
        with pytest.raises(ModelNotFound, match="does not hold a causal language model"):
            load(str(tmp_path))
    assert not (tmp_path / "RAN").exists()


def widen(folder):
    file = folder / "model.safetensors"
    state = load_file(file)
    state["model.layers.1.mlp.up_proj.weight"] = torch.zeros(50, 32)
    save_file(state, file, {"format": "pt"})


def value_head(folder):
    file = folder / "model.safetensors"
    save_file({**load_file(file), "v_head.summary.weight": torch.zeros(1, 32)}, file)


@pytest.mark.parametrize(
    ("family", "change", "said"),
    [
        ("llama", lambda f: drop(f, "model.layers.1.mlp.down_proj.weight"),
         r"1 that it should hold are missing \(model.layers.1.mlp.down_proj.weight\)"),
        ("llama", lambda f: drop(f, "lm_head.weight"), r"missing \(lm_head.weight\)"),
        ("llama-tied", lambda f: drop(f, "model.embed_tokens.weight"), "embed_tokens"),
        ("llama", lambda f: rewrite(f / "config.json", lambda c: c.update(num_hidden_layers=4)),
         r"9 that it should hold are missing \(model.layers.3"),
        ("llama", lambda f: rewrite(f / "config.json", lambda c: c.update(num_hidden_layers=2)),
         r"9 have no place in it \(model.layers.2"),
        ("llama", widen, r"1 are of another shape than it says \(model.layers.1.mlp.up_proj"),
        ("llama", value_head, r"1 have no place in it \(v_head.summary.weight\)"),
        ("gpt2", lambda f: rewrite(f / "config.json", lambda c: c.update(
            tie_word_embeddings=False)), r"missing \(lm_head.weight\)"),
    ],
)  # fmt: skip
def test_a_checkpoint_with_gaps_is_refused_by_name(family, change, said, tmp_path):
    saved(tmp_path, family)
    load(str(tmp_path))
    change(tmp_path)
    with pytest.raises(UnsupportedModel, match=said):
        load(str(tmp_path))


def test_harmless_buffers_of_older_versions_are_no_gaps(tmp_path):
    model = saved(tmp_path)
    file = tmp_path / "model.safetensors"
    old = {f"model.layers.{k}.self_attn.rotary_emb.inv_freq": torch.ones(4) for k in range(3)}
    save_file({**load_file(file), **old}, file, {"format": "pt"})
    assert load(str(tmp_path)).weights == model.weights


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_adapters_are_no_models(tmp_path):
    peft = pytest.importorskip("peft", reason="needs peft")
    saved(tmp_path / "base")
    config = peft.LoraConfig(r=4, target_modules=["down_proj"], task_type="CAUSAL_LM")
    inner = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(inner, config)
    adapted.save_pretrained(tmp_path / "adapter")
    tokenizer().save_pretrained(tmp_path / "adapter")
    # Also where a whole model lies beside it, to which transformers would add it.
    shutil.copytree(tmp_path / "base", tmp_path / "both")
    for file in (tmp_path / "adapter").iterdir():
        shutil.copy(file, tmp_path / "both")
    for folder in ("adapter", "both"):
        for way in (load, outline, CheckpointFiles.open):
            with pytest.raises(UnsupportedModel, match=r"PEFT adapter.*base.*merge_and_unload"):
                way(str(tmp_path / folder))
    with pytest.raises(UnsupportedModel, match="is a PeftModelForCausalLM"):
        ModelHandle(adapted, tokenizer(), name="wrapped")
    with pytest.raises(UnsupportedModel, match="has adapters in it"):
        ModelHandle(adapted.base_model.model, tokenizer(), name="injected")
    merged = ModelHandle(adapted.merge_and_unload(), tokenizer(), name="merged")
    assert merged.architecture.down_path == "mlp.down_proj"


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra"])
@pytest.mark.parametrize("decoder", [False, True])
def test_encoders_are_refused_by_what_they_do(kind, decoder):
    config = AutoConfig.for_model(
        kind, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        vocab_size=400, max_position_embeddings=64, embedding_size=32, is_decoder=decoder,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    if decoder:
        assert ModelHandle(model, tokenizer(), name=kind).architecture.down_path == "output.dense"
    else:
        with pytest.raises(UnsupportedModel, match="a later token changes"):
            ModelHandle(model, tokenizer(), name=kind)


def test_tokens_without_an_embedding_are_refused(tmp_path):
    saved(tmp_path)
    more = tokenizer.__wrapped__()
    more.add_tokens(["<new>"])
    more.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match=r"1 tokens without.*'<new>' \(id 400\).*400 rows"):
        load(str(tmp_path))
    # Padding is never fed to a model here, and rows without a token do no harm.
    padded = tokenizer.__wrapped__()
    padded.add_special_tokens({"pad_token": "<pad>"})
    assert ModelHandle(pico().model, padded, name="padded").tokens.encode("a")
    inner = pico().model
    inner.resize_token_embeddings(512, mean_resizing=False)
    assert ModelHandle(inner, tokenizer(), name="more rows").layers == 3


class Packed(torch.nn.Module):
    """A stand-in for a 4-bit linear map."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.scale = linear.weight.abs().max() / 7
        steps = (linear.weight / self.scale).round().to(torch.int8)
        self.weight = torch.nn.Parameter(steps, requires_grad=False)

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight * self.scale)


class Fused(torch.nn.Module):
    """A linear map of which nothing tells that it is one."""

    def __init__(self, linear):
        super().__init__()
        self.matrix = torch.nn.Parameter(linear.weight.data)

    def forward(self, x):
        return x @ self.matrix.mT


ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


@pytest.mark.parametrize("kind", [Packed, Fused])
@pytest.mark.parametrize("plain", [*ATTENTION, "gate_proj", "up_proj", "down_proj"])
def test_only_the_down_projection_is_taken_for_it(kind, plain):
    """One map of each block is plain, the others quantised or fused; all of them are square."""
    config = AutoConfig.for_model(
        "llama", hidden_size=32, intermediate_size=32, num_hidden_layers=2, vocab_size=400,
        num_attention_heads=4, num_key_value_heads=4, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data = parameter.data * (10 if parameter.ndim == 2 else 1)
    for block in model.model.layers:
        for part in (block.self_attn, block.mlp):
            for name, module in list(part.named_children()):
                if isinstance(module, torch.nn.Linear) and name != plain:
                    setattr(part, name, kind(module))
    if plain == "down_proj" and kind is Packed:
        handle = ModelHandle(model, tokenizer(), name="mixed")
        assert handle.architecture.down_path == "mlp.down_proj" and handle.architecture.additive
    else:
        with pytest.raises(UnsupportedModel, match="quantised"):
            ModelHandle(model, tokenizer(), name="mixed")


@pytest.mark.parametrize(
    ("kind", "more", "said"),
    [
        ("jetmoe", {"num_local_experts": 2, "kv_channels": 8, "num_key_value_heads": 2}, "queries"),
        ("rwkv", {"attention_hidden_size": 32, "intermediate_size": 48}, "receptance"),
    ],
)
def test_maps_that_work_through_others_are_refused(kind, more, said):
    config = AutoConfig.for_model(
        kind, hidden_size=32, num_hidden_layers=2, vocab_size=400, pad_token_id=0, **more
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data = parameter.data + 0.1 * torch.ones_like(parameter).cumsum(-1).sin()
    with pytest.raises(UnsupportedModel, match=said):
        ModelHandle(model, tokenizer(), name=kind)


@pytest.mark.parametrize("kind", UNUSUAL)
def test_unusual_blocks_are_edited_planned_and_merged(kind, tmp_path):
    """Lists of hidden states, states for a cache, experts beside an MLP, convolutions."""
    unusual(kind).save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    model = load(str(tmp_path / "base"))
    assert outline(str(tmp_path / "base")).architecture.down_path == model.architecture.down_path
    patch = edit(model, [FACT], method="emmet", layers=[1], settings=FAST)
    ids = torch.tensor([[5, 9, 13, 40]])
    with patch.applied(model), torch.no_grad():
        edited = model.model(input_ids=ids, use_cache=False).logits
    (tmp_path / "merged").mkdir()
    checkpoint = CheckpointFiles.open(str(tmp_path / "base"))
    assert checkpoint.weights == model.weights
    write_merged(tmp_path / "merged", patch, checkpoint)
    with torch.no_grad():
        merged = load(str(tmp_path / "merged")).model(input_ids=ids, use_cache=False).logits
    assert torch.equal(merged, edited)


def some_patch(model, dtype=None):
    generator = torch.Generator().manual_seed(0)
    site = model.site(1)
    delta = LowRankDelta(
        left=torch.randn(1, site.d_out, generator=generator),
        right=torch.randn(1, site.d_in, generator=generator),
    )
    about = Provenance(
        model=model.name, base=model.fingerprint, digest=model.live_digest, method="emmet",
        layers=(1,), schedule="single", settings={}, edits=(), rows="shared",
    )  # fmt: skip
    return Patch(deltas={1: delta}, about=about)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_a_checkpoint_has_one_fingerprint_in_every_dtype(stored, tmp_path):
    saved(tmp_path / "base", dtype=stored)
    name = str(tmp_path / "base")
    models = [load(name, dtype=d) for d in ("float16", "float32", "bfloat16", "float64")]
    assert len({m.fingerprint for m in models}) == len({m.weights.digest for m in models}) == 1
    assert CheckpointFiles.open(name).weights.digest == models[0].weights.digest
    for model in models:
        for other in models:
            some_patch(model).check(other)
    (tmp_path / "merged").mkdir()
    write_merged(tmp_path / "merged", some_patch(models[0]), CheckpointFiles.open(name))


def test_patches_that_were_named_in_float16_are_known_again(tmp_path):
    """By a model that was cast, or by a version that named weights as float16 rounds them."""
    saved(tmp_path / "base")
    cast = ModelHandle(pico().model.half(), tokenizer(), name="cast")
    whole = load(str(tmp_path / "base"))
    assert cast.fingerprint != whole.fingerprint == pico().fingerprint
    patch = some_patch(cast)
    for dtype in ("float32", "float16"):
        patch.check(load(str(tmp_path / "base"), dtype=dtype))
    with pytest.raises(PatchMismatch, match=r"in float16 by retcon.load"):
        some_patch(whole).check(cast)


def test_one_number_anywhere_makes_other_weights(tmp_path):
    """The fingerprint is of a sample, the digest of everything: patches and caches go by both."""
    model, other = pico(), pico().model
    embeddings = other.model.embed_tokens.weight
    # More numbers than are sampled, so that most of them are in no sample.
    assert embeddings.numel() > 4096
    embeddings.data[400 // 2, 16] += 1
    other = ModelHandle(other, tokenizer(), name="other")
    assert other.fingerprint == model.fingerprint and other.weights.digest != model.weights.digest
    assert other.identity != model.identity
    patch = some_patch(model)
    patch.save(tmp_path / "p.safetensors")
    assert load_patch(tmp_path / "p.safetensors").about == patch.about
    with pytest.raises(PatchMismatch, match="much like"):
        patch.check(other)


def test_live_digests_are_of_the_weights_as_they_are():
    for family in ("llama", "gpt2"):
        model = pico(family)
        with model.scratch():
            model.write(some_patch(model).deltas)
            again = ModelHandle(model.model, tokenizer(), name="again")
            assert model.live_digest == again.weights.digest != model.weights.digest
        assert model.live_digest == model.weights.digest


def test_what_was_found_is_believed_while_the_files_stay(tmp_path, monkeypatch):
    first = saved(tmp_path)
    calls = []
    monkeypatch.setattr(
        "retcon.model.handle._check_finite", lambda model: calls.append(type(model).__name__)
    )
    assert load(str(tmp_path)).weights == load(str(tmp_path)).weights == first.weights
    assert len(calls) == 1
    # Another dtype may overflow, and is looked at for itself.
    load(str(tmp_path), dtype="bfloat16")
    assert len(calls) == 2
    # The same size, and the same time of the last change: still another file.
    file = tmp_path / "model.safetensors"
    before = file.stat()
    state = load_file(file)
    state["model.layers.0.mlp.up_proj.weight"][0, 0] += 1
    save_file(state, file, {"format": "pt"})
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    changed = load(str(tmp_path))
    assert changed.weights.digest != first.weights.digest and len(calls) == 3
    # A damaged note is none, and one that says too little neither.
    for text in ("{", '{"fingerprint": "x"}', "[]"):
        Known(tmp_path, torch.float32).path.write_text(text, encoding="utf-8")
        with pytest.warns(RetconWarning, match="made anew"):
            assert load(str(tmp_path)).weights == changed.weights


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", "[]", "cannot be read"),
        ("config.json", "{", "cannot be read"),
        ("config.json", "{}", "does not hold"),
        ("config.json", '{"model_type": 5}', "does not hold"),
        ("config.json", '{"model_type": "llama", "num_hidden_layers": "x"}', "does not hold"),
        ("config.json", '{"model_type": "llama", "hidden_size": -3}', "does not hold"),
        ("config.json", '{"model_type": "llama", "num_attention_heads": 0}', "does not hold"),
        ("config.json", '{"model_type": "llama", "num_hidden_layers": 1000000}', "No model has"),
        ("config.json", '{"model_type": "gpt2", "n_layer": 1000000}', "No model has"),
        ("config.json", '{"model_type": "llama", "text_config": {"num_layers": 99999}}', "text_c"),
        ("tokenizer.json", "{", "does not hold"),
        ("tokenizer.json", "[]", "does not hold"),
        ("tokenizer.json", '{"model": 3}', "does not hold"),
        ("tokenizer_config.json", "3", "cannot be read"),
        ("model.safetensors", "", "does not hold"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "../b.safetensors"}}', "no file"),
        ("shard-00001-model-00001-of-00001.safetensors", "", "distributed"),
    ],
)
def test_odd_files_are_one_clear_error(file, content, said, tmp_path):
    saved(tmp_path)
    (tmp_path / file).write_text(content, encoding="utf-8")
    with pytest.raises(RetconError, match=said):
        load(str(tmp_path))


def test_a_cache_in_the_home_folder(tmp_path, monkeypatch):
    from retcon.files import cache_folder

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RETCON_CACHE", "~/kept")
    assert cache_folder() == tmp_path / "kept"
