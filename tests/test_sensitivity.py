"""How much ordinary text minds each direction, and gradients that are whitened by it."""

import pytest
import torch

import retcon
from pico import FAMILIES, pico
from retcon.errors import InvalidSetting, UnsupportedModel
from retcon.features.remember import recall_targets
from retcon.features.second_moments import MomentOptions
from retcon.features.sensitivity import (
    Whitening,
    collect_sensitivity,
    recall_whitening,
    whitening,
)
from retcon.features.target_options import TargetOptions
from retcon.method.presets import resolve
from test_methods import EDITS, FAST

TEXTS = ["The capital of France is Paris and", "Marie Curie was born in Warsaw", "Rome"]
SPHERE = {**FAST, "descent": "sphere"}


def naive(model, texts, layer):
    """F by the definition: δ added at one token at a time, and the gradient of the loss there."""
    rows = []
    for text in texts:
        ids = torch.tensor([model.tokens.document(text, 64)])
        for place in range(1, ids.shape[1]):
            delta = torch.zeros(model.hidden, dtype=model.dtype, requires_grad=True)

            def add(_module, _args, output, place=place, delta=delta):
                shape = output.shape
                hidden = output.reshape(1, -1, shape[-1]).clone()
                hidden[0, place] = hidden[0, place] + delta
                return hidden.view(shape)

            handle = model.site(layer).module.register_forward_hook(add)
            logp = model.model(input_ids=ids).logits[0].log_softmax(-1)
            handle.remove()
            loss = -sum(logp[t - 1, ids[0, t]] for t in range(1, ids.shape[1]))
            rows.append(torch.autograd.grad(loss, delta)[0])
    stacked = torch.stack(rows).double()
    length = stacked.norm(dim=1, keepdim=True)
    stacked = stacked * (length.quantile(0.9) / length.clamp_min(1e-300)).clamp_max(1)
    return stacked.mT @ stacked / len(stacked)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt"])
def test_it_is_the_naive_one(family):
    assert family in FAMILIES
    model = pico(family, dtype=torch.float64)
    got = collect_sensitivity(model, TEXTS, 1, tokens=10_000, document_tokens=64)
    assert torch.allclose(got, naive(model, TEXTS, 1), rtol=1e-7, atol=1e-14)
    assert all(parameter.grad is None for parameter in model.model.parameters())


def test_no_more_is_read_than_is_asked_for():
    model = pico()
    some = collect_sensitivity(model, TEXTS, 1, tokens=3, document_tokens=64)
    assert torch.equal(
        some, collect_sensitivity(model, TEXTS[:1], 1, tokens=99, document_tokens=64)
    )
    with pytest.raises(UnsupportedModel, match="two tokens"):
        collect_sensitivity(model, [], 1, tokens=9, document_tokens=64)


def test_whitening_is_a_power_of_it_and_has_a_floor():
    made = torch.Generator().manual_seed(0)
    rows = torch.randn(64, 6, generator=made, dtype=torch.float64)
    moment = rows.mT @ rows / 64
    half = whitening(moment, 0.5).double()
    share = moment / (moment.trace() / 6) + 0.01 * torch.eye(6, dtype=torch.float64)
    assert torch.allclose(half @ share @ half, torch.eye(6, dtype=torch.float64), atol=1e-5)
    assert torch.allclose(whitening(moment, 1.0).double(), half @ half, atol=1e-5)
    assert torch.allclose(whitening(moment, 0.0), torch.eye(6), atol=1e-6)
    lonely = whitening(torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64)), 0.5)
    assert lonely[1, 1] == pytest.approx(10) and lonely[0, 1] == 0
    assert torch.equal(whitening(torch.zeros(2, 2, dtype=torch.float64), 0.5), torch.eye(2))


def test_it_is_kept_and_read_again(monkeypatch, tmp_path):
    monkeypatch.setenv("RETCON_CACHE", str(tmp_path))
    monkeypatch.delenv("RETCON_CACHE_LIMIT", raising=False)
    options = MomentOptions(corpus_tokens=400, document_tokens=32)
    model = pico()
    once = recall_whitening(model, 1, [1], options, 0.5)
    monkeypatch.setattr("retcon.features.sensitivity.collect_sensitivity", None)
    again = recall_whitening(model, 1, [1], options, 0.5)
    assert torch.equal(again.matrix, once.matrix) and again.name == once.name


def test_targets_are_found_whatever_its_last_digits_are(monkeypatch, tmp_path):
    monkeypatch.setenv("RETCON_CACHE", str(tmp_path))
    monkeypatch.delenv("RETCON_CACHE_LIMIT", raising=False)
    model = pico()
    options = TargetOptions(steps=3, descent="sphere", whiten=0.5)
    one = Whitening(torch.eye(model.hidden), {"corpus": "a"})
    digits = one._replace(matrix=one.matrix * (1 + 1e-7))
    first = recall_targets(model, EDITS[:2], ("",), 1, options, whitening=one)
    assert recall_targets(model, EDITS[:2], ("",), 1, options, whitening=digits).cached.all()
    other = one._replace(name={"corpus": "b"})
    assert not recall_targets(model, EDITS[:2], ("",), 1, options, whitening=other).cached.any()
    assert not first.cached.any()


def test_an_edit_is_whitened_and_goes_on_from_the_same():
    model = pico()
    patches = {
        power: retcon.edit(
            model, EDITS[:3], method="emmet", layers=[1], settings={**SPHERE, "whiten": power}
        ).deltas[1].dense()
        for power in (0.0, 0.5)
    }  # fmt: skip
    assert not torch.allclose(patches[0.0], patches[0.5], atol=1e-3)
    method = resolve(
        model.outline, method="emmet", layers=[1], settings={**SPHERE, "whiten": 0.5}
    ).build()
    state = method.setup.begin(model)
    assert [*state.whitening] == [1]
    again = method.solve(model, method.features(model, EDITS[:3], state), state)
    assert torch.allclose(again.deltas[1].dense(), patches[0.5], atol=1e-6)


def test_it_is_of_turns_on_the_sphere():
    with pytest.raises(InvalidSetting, match=r"whiten=0\.5 does nothing with descent=adam"):
        TargetOptions(whiten=0.5)
