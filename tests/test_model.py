"""Structure by behaviour, weights written and restored, names and their errors."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pico import FAMILIES, pico, tokenizer
from retcon.algebra.delta import LowRankDelta
from retcon.errors import ModelNotFound, NotFinite, UnknownName, UnsupportedModel
from retcon.model import hooks
from retcon.model.handle import ModelHandle
from retcon.model.load import load, outline
from retcon.model.structure import discover

DOWN = {
    "gpt2": "mlp.c_proj", "gptj": "mlp.fc_out", "gpt_neox": "mlp.dense_4h_to_h", "opt": "fc2",
}  # fmt: skip
NOT_ADDITIVE = {"gemma2", "gemma3", "olmo2", "granite"}
TIED = {"llama-tied", "gpt2", "opt", "gemma2", "gemma3"}


def some_delta(model: ModelHandle, layer: int, n: int = 2, seed: int = 0) -> LowRankDelta:
    site, g = model.site(layer), torch.Generator().manual_seed(seed)
    return LowRankDelta(
        left=torch.randn(n, site.d_out, generator=g), right=torch.randn(n, site.d_in, generator=g)
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_structure_is_found(family):
    found = pico(family).architecture
    assert found.down_path == DOWN.get(family, "mlp.down_proj")
    assert sorted(found.sites) == [0, 1, 2] and not found.unavailable
    assert found.additive == (family not in NOT_ADDITIVE)
    assert found.tied == (family in TIED)
    assert found.sites[1].transposed == (family == "gpt2")
    assert found.block_returns_tuple == (family == "gptj")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_written_delta_moves_the_output_by_delta_times_input(family):
    """ΔW in the mathematical layout, whatever the stored one: y' − y = ΔW x at the site."""
    model = pico(family)
    site, delta = model.site(1), some_delta(model, 1)
    ids = torch.tensor([[5, 9, 13, 40]])
    seen: list[torch.Tensor] = []

    def outputs() -> tuple[torch.Tensor, torch.Tensor]:
        seen.clear()
        with (
            hooks.read_inputs({1: site.module}, 1, lambda _l, x: seen.append(x)),
            hooks.read_outputs({1: site.module}, 1, lambda _l, y: seen.append(y)),
            torch.no_grad(),
        ):
            model.model(input_ids=ids)
        return seen[0].clone(), seen[1].clone()

    x, before = outputs()
    with model.scratch():
        model.write({1: delta})
        again, after = outputs()
    assert torch.allclose(x, again, atol=1e-6)
    moved = x.double() @ delta.dense().mT
    assert torch.allclose((after - before).double(), moved, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_scratch_restores_every_bit(dtype):
    model = pico(dtype=dtype)
    original = model.weights_hash()
    with model.scratch():
        model.write({0: some_delta(model, 0), 2: some_delta(model, 2)})
        outer = model.weights_hash()
        with model.scratch():
            model.write({0: some_delta(model, 0, seed=1)})
            assert model.weights_hash() != outer
        assert model.weights_hash() == outer
    assert model.weights_hash() == original
    with pytest.raises(KeyboardInterrupt), model.scratch():
        model.write({1: some_delta(model, 1)})
        raise KeyboardInterrupt
    assert model.weights_hash() == original


def test_masters_keep_what_bfloat16_would_lose():
    """A thousand small steps in a bfloat16 model add up as in float32, and are rounded once."""
    model = pico(dtype=torch.bfloat16)
    start = model.site(1).weight.float().clone()
    step = some_delta(model, 1)
    tiny = LowRankDelta(left=step.left * 1e-5, right=step.right)
    with model.scratch():
        for _ in range(200):
            model.write({1: tiny})
        exact = (start.double() + 200 * tiny.dense()).float()
        assert torch.allclose(model.master(1), exact, atol=1e-6)
        assert torch.equal(model.site(1).weight, exact.to(torch.bfloat16))


def test_a_write_that_cannot_be_made_changes_nothing():
    model = pico()
    original = model.weights_hash()
    bad = some_delta(model, 1)
    bad.right[0, 0] = float("nan")
    with pytest.raises(NotFinite, match="layer 1"):
        model.write({0: some_delta(model, 0), 1: bad})
    wide = LowRankDelta(left=torch.ones(1, 3), right=torch.ones(1, 4))
    with pytest.raises(UnsupportedModel, match="3 x 4"):
        model.write({0: some_delta(model, 0), 1: wide})
    assert model.weights_hash() == original


def test_fingerprint_knows_weights_and_not_dtype():
    assert pico().fingerprint == pico().fingerprint
    assert pico().fingerprint != pico(seed=1).fingerprint
    half = pico()
    whole = half.fingerprint
    assert ModelHandle(half.model.bfloat16(), tokenizer(), name="half").fingerprint == whole
    edited = pico()
    edited.write({1: some_delta(edited, 1)})
    assert ModelHandle(edited.model, tokenizer(), name="edited").fingerprint != whole


def test_layers_that_do_not_exist():
    with pytest.raises(UnknownName, match="0 to 2"):
        pico().site(7)


def test_nan_in_weights_is_named():
    model = pico().model
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(NotFinite, match=r"layers\.1\.mlp\.up_proj"):
        ModelHandle(model, tokenizer(), name="broken")


def test_weights_without_values_are_refused():
    """A meta tensor that no hook of accelerate's fills."""
    inner = pico().model
    inner.model.layers[1].mlp.up_proj.to("meta")
    with pytest.raises(UnsupportedModel, match=r"layers\.1\.mlp\.up_proj.*no values"):
        ModelHandle(inner, tokenizer(), name="far away")


def test_experts_are_refused_with_the_reason():
    config = AutoConfig.for_model(
        "mixtral", hidden_size=32, intermediate_size=48, num_hidden_layers=2, vocab_size=400,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, pad_token_id=0,
    )  # fmt: skip
    with pytest.raises(UnsupportedModel, match="mixture of experts"):
        discover(AutoModelForCausalLM.from_config(config).eval())


class Packed(torch.nn.Module):
    """A stand-in for a 4-bit linear map: its matrix is there as packed integers only."""

    def __init__(self, linear: torch.nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.scale = linear.weight.abs().max() / 7
        steps = (linear.weight / self.scale).round().to(torch.int8)
        self.weight = torch.nn.Parameter(steps, requires_grad=False)

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight * self.scale)


@pytest.mark.parametrize("maps", [["down_proj"], ["gate_proj", "up_proj", "down_proj"]])
def test_quantised_down_projections_are_refused_with_the_remedy(maps):
    model = pico().model
    for block in model.model.layers:
        for name in maps:
            setattr(block.mlp, name, Packed(getattr(block.mlp, name)))
    with pytest.raises(UnsupportedModel, match=r"quantised \(Packed\).*checkpoint.*--to peft"):
        ModelHandle(model, tokenizer(), name="packed")


def test_a_layer_that_is_quantised_is_named():
    model = pico().model
    model.model.layers[1].mlp.down_proj = Packed(model.model.layers[1].mlp.down_proj)
    handle = ModelHandle(model, tokenizer(), name="partly packed")
    assert set(handle.architecture.sites) == {0, 2}
    with pytest.raises(UnsupportedModel, match=r"Layer 1 .*quantised there.*--to gguf"):
        handle.site(1)


def test_blocks_without_an_mlp_are_refused():
    config = AutoConfig.for_model(
        "mamba", hidden_size=32, num_hidden_layers=2, vocab_size=400, state_size=4, pad_token_id=0
    )
    with pytest.raises(UnsupportedModel):
        discover(AutoModelForCausalLM.from_config(config).eval())


def test_load_a_folder_and_its_outline(tmp_path):
    model = pico()
    model.model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    loaded = load(str(tmp_path))
    assert loaded.fingerprint == model.fingerprint
    assert loaded.weights_hash() == model.weights_hash()
    assert load(str(tmp_path), dtype="bfloat16").fingerprint == model.fingerprint
    assert outline(str(tmp_path)).site(1).d_in == 48


def test_models_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr("retcon.model.load._offline", lambda: True)
    with pytest.raises(ModelNotFound, match="offline"):
        load("nobody/nothing")
    with pytest.raises(ModelNotFound, match="no folder"):
        load("./nowhere")
    with pytest.raises(ModelNotFound, match="does not hold"):
        load(str(tmp_path))
    with pytest.raises(UnknownName, match="smollm2-135m"):
        load("smollm2")
    with pytest.raises(UnknownName, match="float32"):
        load(str(tmp_path), dtype="float23")
