"""What becomes of an edit when the model is rounded, trained on, or edited by another patch."""

import pytest
import torch

import retcon
from pico import pico
from retcon.edits import Case, Edit
from retcon.errors import InvalidPatch, InvalidSetting, PatchMismatch, UnsupportedModel
from retcon.run.treatments import GROUP, Treatment, rounded, treated

CASES = [
    Case(edit=Edit.parse(f"The city of {{{name}}} is", new, id=name, target_old=old),
         paraphrases=(f"{name} was in the",), neighbours=("Paris is",), relation=name)
    for name, new, old in (("Warsaw", "English", "French"), ("France", "of", "in"))
]  # fmt: skip
FAST = {"steps": 3, "prefixes": 2, "corpus_tokens": 400, "document_tokens": 32, "jitter": 1e-3}


@pytest.fixture
def model():
    return pico(seed=3)


@pytest.fixture
def patch(model):
    return retcon.edit(
        model, [case.edit for case in CASES], method="emmet", layers=[1], settings=FAST
    )


def naive(row, bits):
    """One row of a matrix, number by number."""
    most, numbers = 2 ** (bits - 1) - 1, []
    for start in range(0, len(row), GROUP):
        group = row[start : start + GROUP]
        scale = max(abs(x) for x in group) / most
        numbers += [round(x / scale) * scale if scale else 0.0 for x in group]
    return numbers


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("width", [GROUP, 100, 17])
def test_rounding_is_that_of_each_group_number_by_number(bits, width):
    torch.manual_seed(0)
    weight = torch.randn(5, width)
    weight[2] = 0.0
    wanted = torch.tensor([naive(row.tolist(), bits) for row in weight])
    # A number half way between two steps may go to either.
    step = weight.abs().amax() / (2 ** (bits - 1) - 1)
    gap = (rounded(weight, bits) - wanted).abs()
    assert (gap < 1e-5).float().mean() > 0.99
    assert gap.max() <= step * 1.01
    assert torch.equal(rounded(rounded(weight, bits), bits).round(decimals=4),
                       rounded(weight, bits).round(decimals=4))  # fmt: skip


@pytest.mark.parametrize("name", ["bf16", "int8", "int4", "finetune:2"])
def test_every_weight_comes_back(model, patch, name):
    before = model.weights_hash()
    with patch.applied(model):
        inside = model.weights_hash()
        with treated(model, Treatment.of(name)):
            assert model.weights_hash() != inside
            assert not model.as_loaded
            assert model.live_fingerprint != model.fingerprint
        assert model.weights_hash() == inside
    assert model.weights_hash() == before
    assert model.as_loaded
    assert not any(weight.requires_grad for weight in model.model.parameters())
    assert not hasattr(model.model, "peft_config")


def test_whatever_fails_inside_every_weight_comes_back(model):
    before = model.weights_hash()
    with pytest.raises(RuntimeError, match="halt"), treated(model, Treatment.of("int4")):
        raise RuntimeError("halt")
    assert model.weights_hash() == before


def test_rounding_leaves_embeddings_and_norms(model):
    names = {name for name, _ in model.outline.linear_maps()}
    assert len(names) == model.layers * 7
    saved = {name: weight.clone() for name, weight in model.model.named_parameters()}
    with treated(model, Treatment.of("int4")):
        for name, weight in model.model.named_parameters():
            matrix = name.removesuffix(".weight") in names
            wanted = rounded(saved[name], 4) if matrix else saved[name]
            assert torch.equal(weight, wanted), name
            assert matrix is not torch.equal(weight, saved[name])


def test_scores_after_a_treatment_are_those_of_a_model_that_had_it(model, patch):
    seen = retcon.score(model, CASES, patch=patch, after="int4").rows
    with torch.no_grad():
        for when, deltas in (("pre", {}), ("final", patch.deltas)):
            other = pico(seed=3)
            other.write(deltas)
            for name, weight in other.model.named_parameters():
                if name.removesuffix(".weight") in {n for n, _ in other.outline.linear_maps()}:
                    weight.copy_(rounded(weight, 4))
            wanted = retcon.score(other, CASES).rows
            rows = [row for row in seen if row.when == when]
            assert [row.nll_new for row in rows] == pytest.approx([r.nll_new for r in wanted])


def test_another_patch_is_in_the_same_weights(model, patch, tmp_path):
    other = retcon.edit(model, [CASES[0].edit], method="rome", layers=[0], settings=FAST)
    other.save(tmp_path / "other.safetensors")
    seen = retcon.score(model, CASES, patch=patch, after=f"with:{tmp_path / 'other.safetensors'}")
    assert model.as_loaded
    with model.scratch():
        model.write(other.deltas)
        pre = retcon.score(model, CASES).rows
        model.write(patch.deltas)
        final = retcon.score(model, CASES).rows
    for when, wanted in (("pre", pre), ("final", final)):
        assert [r.nll_new for r in seen.at(when)] == pytest.approx([r.nll_new for r in wanted])


def test_a_fine_tune_learns_its_text_and_is_the_same_again(model, patch, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the city of Paris is in France and they speak French in Paris . " * 3 + "\n")
    once = retcon.score(model, CASES, patch=patch, after=f"finetune:8:{text}").rows
    assert [r.nll_new for r in retcon.score(
        model, CASES, patch=patch, after=f"finetune:8:{text}").rows] == pytest.approx(
        [r.nll_new for r in once])  # fmt: skip
    plain = retcon.score(model, CASES, patch=patch).rows
    assert [r.nll_new for r in once] != pytest.approx([r.nll_new for r in plain])


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("int3", InvalidSetting, "There is no treatment 'int3'. Take bf16, int8"),
        ("with:", InvalidSetting, "no treatment"),
        ("finetune", InvalidSetting, "finetune:100"),
        ("finetune:0", InvalidSetting, "finetune:100"),
        ("finetune:many", InvalidSetting, "finetune:100"),
        ("with:nothing.safetensors", InvalidPatch, "nothing.safetensors"),
    ],
)
def test_a_treatment_that_does_not_exist_is_said_before_any_work(model, name, error, said):
    with pytest.raises(error, match=said):
        retcon.score(model, CASES, after=name)


def test_a_patch_of_another_model_is_refused_before_any_work(model, tmp_path):
    other = pico(seed=4)
    retcon.edit(other, [CASES[0].edit], method="emmet", layers=[0], settings=FAST).save(
        tmp_path / "p.safetensors"
    )
    with pytest.raises(PatchMismatch):
        retcon.score(model, CASES, after=f"with:{tmp_path / 'p.safetensors'}")
    assert model.as_loaded


def test_offloaded_weights_are_refused(model):
    away = torch.nn.Parameter(torch.empty(4, device="meta"), requires_grad=False)
    model.model.register_parameter("away", away)
    with pytest.raises(UnsupportedModel, match="offloaded"), treated(model, Treatment.of("bf16")):
        pass
