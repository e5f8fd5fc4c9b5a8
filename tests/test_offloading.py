"""Models that accelerate keeps partly on disk: the same patches, the same weights afterwards."""

from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, dispatch_model

from pico import pico, tokenizer
from retcon.edits import Case, Edit
from retcon.errors import UnsupportedModel
from retcon.model.handle import ModelHandle
from retcon.model.load import load
from retcon.model.offload import Away, read_again
from retcon.run.edit import edit
from retcon.scoring.score import score_cases

FACTS = {
    "darrieux": ("The mother tongue of {} is", "Danielle Darrieux", "English", "French"),
    "curie": ("{} was born in the city of", "Marie Curie", "London", "Warsaw"),
}
EDITS = [
    Edit(id=name, prompt=prompt, subject=subject, target=target, target_old=old)
    for name, (prompt, subject, target, old) in FACTS.items()
]
SETTINGS = {"steps": 3, "corpus_tokens": 400, "document_tokens": 32, "jitter": 1e-3}
FAMILIES = ["llama", "llama-tied", "gpt2", "gemma2"]


def blocks(model: ModelHandle) -> str:
    return model.architecture.block_path


def offloaded(family: str, folder: Path, *, everything: bool = False, **options) -> ModelHandle:
    """A pico model with its blocks 1 and 2 on disk, or all of it."""
    near = pico(family, **options)
    path, inner = blocks(near), near.model
    base = path.rpartition(".")[0]
    places = {
        name: "disk" if everything else "cpu"
        for name, module in inner.named_modules()
        if name.rpartition(".")[0] == base and name != path
    }
    places |= {f"{path}.{layer}": "disk" if layer or everything else "cpu" for layer in range(3)}
    if not everything:
        places |= {name: "cpu" for name, _ in inner.named_children() if name != base}
    else:
        places |= {name: "disk" for name, _ in inner.named_children() if name != base}
    made = dispatch_model(inner, places, offload_dir=str(folder))
    return ModelHandle(made, tokenizer(), name=f"pico-{family}")


def made(model: ModelHandle, file: Path, method: str, layers: list[int], **settings) -> bytes:
    edit(
        model, EDITS, method=method, layers=layers, settings={**SETTINGS, **settings},
        schedule="sequential" if method == "emmet" else None,
    ).save(file)  # fmt: skip
    return file.read_bytes()


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_offloaded_model_is_known_as_itself(tmp_path, family, everything):
    near, far = pico(family), offloaded(family, tmp_path, everything=everything)
    assert any(parameter.is_meta for parameter in far.model.parameters())
    assert far.fingerprint == near.fingerprint and far.weights_hash() == near.weights_hash()
    for field in ("additive", "down_path", "tied", "block_returns_tuple"):
        assert getattr(far.architecture, field) == getattr(near.architecture, field)
    assert far.device == near.device and far.dtype == near.dtype


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("llama", torch.float32), ("llama-tied", torch.bfloat16), ("gpt2", torch.bfloat16),
     ("gemma2", torch.float32)],
)  # fmt: skip
def test_patches_are_the_same_to_the_byte(tmp_path, monkeypatch, family, dtype):
    near, far = pico(family, dtype=dtype), offloaded(family, tmp_path / "away", dtype=dtype)
    files = {file: file.read_bytes() for file in (tmp_path / "away").iterdir()}
    before = near.weights_hash()
    runs = [("emmet", [1]), ("rome", [0])]
    runs += [("memit", [1, 2])] if near.architecture.additive else []
    for method, layers in runs:
        found: list[bytes] = []
        for name, model in (("near", near), ("far", far)):
            # Neither may take second moments or sampled text from the other.
            monkeypatch.setenv("RETCON_CACHE", str(tmp_path / f"cache-{name}"))
            found.append(made(model, tmp_path / "p.safetensors", method, layers))
        assert found[0] == found[1], method
    assert far.weights_hash() == before
    assert files == {file: file.read_bytes() for file in (tmp_path / "away").iterdir()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_writing_and_restoring(tmp_path, family, dtype):
    near, far = pico(family, dtype=dtype), offloaded(family, tmp_path, dtype=dtype)
    before = near.weights_hash()
    patch = edit(near, EDITS, method="emmet", layers=[1], settings=SETTINGS)
    cases = [Case(edit=one) for one in EDITS]
    after = []
    for model in (near, far):
        with patch.applied(model):
            rows = score_cases(model, cases, when="final")
            with model.scratch():
                model.write(patch.deltas)
                twice = model.weights_hash()
            once = model.weights_hash()
            moved, norm = model.moved(1), model.original_norm(1)
            assert model.live_fingerprint != model.fingerprint
        assert model.weights_hash() == before and model.as_loaded
        after.append((once, twice, moved, norm, [row.nll_new for row in rows]))
    assert after[0] == after[1]
    # Nothing that was edited stays in memory in front of the disk.
    assert not far.site(1).away.changed
    patch.apply(far)
    patch.apply(near)
    assert far.weights_hash() == near.weights_hash() != before


def test_weights_in_main_memory_beside_the_model():
    """As with an accelerator: the values are in a dictionary of the hooks."""
    near, far = pico(), pico()
    cpu_offload(far.model)
    far = ModelHandle(far.model, tokenizer(), name="pico-llama")
    assert all(parameter.is_meta for parameter in far.model.parameters())
    patch = edit(near, EDITS, method="emmet", layers=[1], settings=SETTINGS)
    with patch.applied(far), patch.applied(near):
        assert far.weights_hash() == near.weights_hash()
    assert far.weights_hash() == near.weights_hash()
    theirs = edit(far, EDITS, method="emmet", layers=[1], settings=SETTINGS)
    assert torch.equal(theirs.deltas[1].left, patch.deltas[1].left)


def test_a_pass_that_was_cut_off_leaves_nothing_behind(tmp_path):
    """Its last module's values are still in; the edit must not be written to them."""
    far, near = offloaded("llama", tmp_path), pico()
    down = far.site(1).module
    down._hf_hook.pre_forward(down)
    assert not down.weight.is_meta
    patch = edit(near, EDITS, method="emmet", layers=[1], settings=SETTINGS)
    patch.apply(near)
    patch.apply(far)
    ids = torch.tensor([near.tokens.encode("Marie Curie")])
    assert torch.equal(near.model(input_ids=ids).logits, far.model(input_ids=ids).logits)


def test_the_checkpoint_itself_is_not_written_to(tmp_path):
    """transformers offloads by reference: what is on disk is the user's model."""
    near = pico()
    near.model.save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    files = {file: file.read_bytes() for file in (tmp_path / "model").iterdir()}
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu",
              "lm_head": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk",
              "model.layers.2": "disk"}  # fmt: skip
    far = load(str(tmp_path / "model"), device_map=places)
    assert far.fingerprint == near.fingerprint
    patch = edit(near, EDITS, method="emmet", layers=[1], settings=SETTINGS)
    patch.apply(near)
    patch.apply(far)
    assert far.weights_hash() == near.weights_hash()
    assert files == {file: file.read_bytes() for file in (tmp_path / "model").iterdir()}


def test_hooks_of_other_modules_are_refused():
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    model = pico().model
    hook = AlignDevicesHook("cpu", offload=True, place_submodules=True)
    add_hook_to_module(model.model.layers[1].mlp, hook)
    with pytest.raises(UnsupportedModel, match="own module"):
        ModelHandle(model, tokenizer(), name="far away")


def test_a_pass_holds_no_offloaded_weight_for_its_gradient(tmp_path, monkeypatch):
    """It reads them again, one after the other; a patch that is made so is the same (above)."""
    far = offloaded("llama", tmp_path)
    reads: list[str] = []
    read = Away.read
    monkeypatch.setattr(Away, "read", lambda self: reads.append(self.key) or read(self))
    ids = torch.tensor([far.tokens.encode("Marie Curie")])
    stream = far.model.model.embed_tokens(ids).requires_grad_()
    with read_again(far.model):
        loss = far.model(inputs_embeds=stream).logits.sum()
    assert not reads  # what accelerate itself brings in comes from its own map
    loss.backward()
    matrices = [key for key in reads if "proj" in key]
    assert len(matrices) == len(set(matrices)) == 14  # seven in each of two blocks
