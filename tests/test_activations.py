"""Keys, targets and second moments against their naive twins."""

import copy
import dataclasses
import importlib.util
import math

import pytest
import torch
from tokenizers import normalizers

from oracles import average_key, optimise_one_target, second_moment
from pico import FAMILIES, INNER_FLOAT32, pico, tokenizer
from retcon.algebra.delta import LowRankDelta
from retcon.edits import Edit
from retcon.errors import (
    InvalidData,
    InvalidSetting,
    NotFinite,
    RetconWarning,
    SingularCovariance,
)
from retcon.features.contexts import ContextOptions, sample_prefixes
from retcon.features.descent import OnSphere
from retcon.features.keys import read_keys
from retcon.features.own_text import SelfCorpus
from retcon.features.second_moments import (
    MomentOptions,
    SecondMoment,
    collect_moments,
    load_moments,
)
from retcon.features.sensitivity import whitening
from retcon.features.target_options import TargetOptions
from retcon.features.targets import STOPS, default_micro_batch, optimise_targets
from retcon.method.entries import find_method
from retcon.model.tokens import Tokens

EDITS = [
    Edit.parse("The mother tongue of {Danielle Darrieux} is", "English", id="a"),
    Edit.parse("{Marie Curie} was born in the city of", "London", id="b"),
    Edit.parse("{France}", "Rome is big", id="c"),
    Edit.parse("In the city of Paris, {the Eiffel Tower} is in", "Rome", id="d"),
]
PREFIXES = ("", "I think that. ", "Because you know the capital. ")
TEXTS = [
    "The capital city of France is Paris.",
    "Marie Curie was born in Warsaw; she worked as a physicist.",
    "Therefore I think that you know because the Eiffel Tower is in the city.",
    "English German",
]


def load_moment(model, layer, options) -> SecondMoment:
    return dict(load_moments(model, [layer], options))[layer]


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_equal_whole_forward_passes(family):
    model = pico(family)
    weights = ContextOptions().weights(len(PREFIXES))
    keys = read_keys(model, EDITS, PREFIXES, [0, 2], weights)
    for layer in (0, 2):
        wanted = [average_key(model, edit, PREFIXES, layer, weights) for edit in EDITS]
        assert torch.allclose(keys[layer], torch.stack(wanted), rtol=1e-4, atol=1e-5)


def test_equal_texts_have_equal_keys_to_the_last_bit():
    model = pico()
    twin = dataclasses.replace(EDITS[0], id="z", prompt=EDITS[0].prompt + " not", target="Polish")
    keys = read_keys(model, [*EDITS, twin], PREFIXES, [1], ContextOptions().weights(3))[1]
    assert torch.equal(keys[0], keys[-1])


def test_several_averages_are_read_in_one_pass():
    model, halves = pico(), ContextOptions().weights(3)
    both = torch.stack([halves, torch.eye(3, dtype=torch.float64)[0]])
    keys, bare = read_keys(model, EDITS, PREFIXES, [1], both)[1]
    assert torch.equal(keys, read_keys(model, EDITS, PREFIXES, [1], halves)[1])
    alone = read_keys(model, EDITS, ("",), [1], torch.ones(1, dtype=torch.float64))[1]
    assert torch.allclose(bare, alone, rtol=1e-4, atol=1e-5)


def test_context_weights():
    assert ContextOptions().weights(6).tolist() == pytest.approx([0.5, *[0.1] * 5])
    assert ContextOptions(averaging="uniform").weights(4).tolist() == pytest.approx([0.25] * 4)
    assert ContextOptions().weights(1).tolist() == [1.0]


def test_prefixes_are_seeded_and_leave_the_callers_random_state_alone():
    model = pico()
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    first = sample_prefixes(model, ContextOptions(seed=1))
    assert torch.equal(torch.rand(1), wanted)
    assert first == sample_prefixes(model, ContextOptions(seed=1))
    assert first != sample_prefixes(model, ContextOptions(seed=2))
    assert first[0] == "" and len(first) == 6 and all("{" not in text for text in first)


def test_ways_of_asking_stand_beside_the_prefixes():
    model, asked = pico(), ContextOptions(prefixes=1, forms=("question",))
    plain = sample_prefixes(model, ContextOptions(prefixes=1))
    assert sample_prefixes(model, asked) == (*plain, "Question: {}?\nAnswer:")
    chat = ContextOptions(prefixes=0, forms=("chat",))
    with pytest.raises(InvalidSetting, match="no chat template"):
        sample_prefixes(model, chat)
    tokens = copy.deepcopy(tokenizer())
    tokens.chat_template = (
        "{% for m in messages %}[{{ m.content }}]{% endfor %}"
        "{% if add_generation_prompt %}: {% endif %}"
    )
    contexts = sample_prefixes(pico(tokens=tokens), chat)
    assert contexts == ("", "[{}?]: ", "[Tell me something.]: {}")
    assert asked.weights(3).tolist() == [0.5, 0.25, 0.25]
    assert (asked.count, chat.count, ContextOptions().count) == (3, 3, 6)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_is_asked_behind_a_prompt_changes_its_target_and_not_its_key(family):
    contexts = ("", "Question: {}?\nAnswer:", "You know because {}, that is")
    model, weights = pico(family, dtype=torch.float64), ContextOptions().weights(3)
    keys = read_keys(model, EDITS, contexts, [1], weights)[1]
    assert torch.equal(keys, read_keys(model, EDITS, ("", "Question: ", "You know because "), [1],
                                       weights)[1])  # fmt: skip
    options = TargetOptions(steps=4)
    got = optimise_targets(model, EDITS, contexts, 1, options)
    for i, edit in enumerate(EDITS):
        wanted = average_key(model, edit, contexts, 1, weights)
        assert (keys[i] - wanted).norm() <= 1e-9 * wanted.norm()
        delta, _, loss = optimise_one_target(model, edit, contexts, 1, options)
        assert (got.delta[i] - delta).norm() <= 1e-9 * delta.norm()
        assert got.loss[i] == pytest.approx(loss, rel=1e-9)


def check_targets(family, dtype, tolerance, *, bos=False, options=None, whitened=None):
    model = pico(family, dtype=dtype, bos=bos)
    insertion = "block" if model.architecture.additive else "down"
    options = options or TargetOptions(steps=6, insertion=insertion, clamp=0.3)
    got = optimise_targets(model, EDITS, PREFIXES, 1, options, whitening=whitened)
    for i, edit in enumerate(EDITS):
        delta, steps, loss = optimise_one_target(model, edit, PREFIXES, 1, options, whitened)
        assert got.steps[i] == steps
        assert (got.delta[i] - delta).norm() <= tolerance * delta.norm()
        assert abs(got.loss[i].item() - loss) <= tolerance * max(1.0, abs(loss))
    return got


@pytest.mark.parametrize("family", FAMILIES)
def test_batched_suffix_targets_are_the_naive_ones_in_float64(family):
    assert check_targets(family, torch.float64, INNER_FLOAT32.get(family, 1e-10)).short


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_batched_suffix_targets_are_the_naive_ones_in_float32(family):
    assert check_targets(family, torch.float32, 1e-5).short


def test_targets_with_bos_and_other_insertion_and_small_batches():
    options = TargetOptions(steps=5, insertion="down", micro_batch=8, together=3)
    check_targets("llama", torch.float64, 1e-10, bos=True, options=options)


@pytest.mark.parametrize("contexts", [0, 2])
@pytest.mark.parametrize(
    "rule", [{"stop_by": "fit", "stop_below": 6.2}, {"stop_margin": -5.0, "stop_below": 0.0}]
)
def test_other_stops_are_the_naive_ones(rule, contexts):
    options = TargetOptions(
        steps=20, clamp=50.0, decay=0.5, lr=1.0, contexts_per_step=contexts, **rule
    )
    got = check_targets("llama", torch.float64, 1e-9, options=options)
    assert len(set(got.steps.tolist())) > 1 and got.steps.min() < 20
    rule_met = STOPS.index("loss" if "stop_by" in rule else "margin")
    assert set(got.stopped.tolist()) <= {0, rule_met}
    assert (got.stopped[got.steps < 20] == rule_met).all()
    whole = dataclasses.replace(options, stop_by="whole", stop_margin=None)
    longer = optimise_targets(pico(dtype=torch.float64), EDITS, PREFIXES, 1, whole)
    assert (longer.steps > got.steps).any() and (longer.steps >= got.steps).all()


def test_an_ending_is_a_part_of_what_is_trained():
    options, model = TargetOptions(steps=4, clamp=50.0), pico(dtype=torch.float64)
    ended = dataclasses.replace(options, ending=".")
    got = optimise_targets(model, EDITS, PREFIXES, 1, ended)
    spelt = [dataclasses.replace(edit, target=f"{edit.target}.") for edit in EDITS]
    assert torch.equal(got.delta, optimise_targets(model, spelt, PREFIXES, 1, options).delta)
    assert torch.equal(got.delta, optimise_targets(model, spelt, PREFIXES, 1, ended).delta)
    assert not torch.equal(got.delta, optimise_targets(model, EDITS, PREFIXES, 1, options).delta)


@pytest.mark.parametrize(("contexts", "power"), [(0, 1.0), (1, 1.0), (1, 0.5), (1, 0.0)])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_turns_on_the_sphere_are_the_naive_ones(family, contexts, power):
    options = TargetOptions(
        steps=9, clamp=0.4, descent="sphere", contexts_per_step=contexts, momentum=0.6, power=power
    )
    got = check_targets(family, torch.float64, 1e-9, options=options)
    on_sphere = got.delta.norm(dim=-1) / got.anchor.norm(dim=-1)
    assert on_sphere.tolist() == pytest.approx([0.4] * len(EDITS))


@pytest.mark.parametrize("contexts", [0, 1])
def test_whitened_turns_are_the_naive_ones(contexts):
    model, made = pico(), torch.Generator().manual_seed(0)
    rows = torch.randn(200, model.hidden, generator=made, dtype=torch.float64)
    minded = whitening(rows.mT @ rows / 200, 0.5)
    options = TargetOptions(
        steps=9, clamp=0.4, descent="sphere", contexts_per_step=contexts, whiten=0.5
    )
    got = check_targets("llama", torch.float64, 1e-9, options=options, whitened=minded)
    plain = optimise_targets(pico(dtype=torch.float64), EDITS, PREFIXES, 1, options)
    assert not torch.allclose(got.delta, plain.delta, atol=1e-3)


def test_the_first_move_on_the_sphere_is_the_best_of_a_linear_loss_and_turns_are_polyaks():
    delta = torch.zeros(2, 3, requires_grad=True)
    walk = OnSphere(delta, torch.tensor([[2.0], [1.0]]), reach=0.5, largest=60.0, momentum=0.0)
    slope = torch.tensor([[0.0, 3.0, 4.0], [0.0, 0.0, 0.0]])
    delta.grad = slope
    walk.move(torch.ones(2))
    assert torch.allclose(delta[0].detach(), torch.tensor([0.0, -1.2, -1.6]))
    for loss, most in ((99.0, 60), (0.2, 60), (99.0, 45), (99.0, 33.75)):
        before = delta.detach().clone()
        delta.grad = slope.roll(1, 1)
        along = delta.grad[0] - (delta.grad[0] @ before[0]) * before[0] / 4
        expected = min(most, math.degrees(0.5 * loss / (2 * float(along.norm()))))
        walk.move(torch.tensor([loss, loss]))
        assert delta[0].norm().item() == pytest.approx(2.0) and not delta[1].any()
        turned = torch.rad2deg(torch.arccos((delta[0].detach() @ before[0] / 4).clamp(-1, 1)))
        assert turned.item() == pytest.approx(expected, abs=0.05)


def test_each_edit_stops_by_itself():
    options = TargetOptions(steps=25, clamp=50.0, decay=0.0, lr=1.0, stop_below=6.2)
    got = check_targets("llama", torch.float64, 1e-10, options=options)
    assert len(set(got.steps.tolist())) > 1 and got.steps.min() < 25


def test_few_contexts_a_step_taken_in_turn():
    options = TargetOptions(
        steps=25, clamp=50.0, decay=0.0, lr=1.0, stop_below=6.1, contexts_per_step=2, micro_batch=9
    )
    got = check_targets("llama", torch.float64, 1e-10, options=options)
    assert len(set(got.steps.tolist())) > 1 and 2 <= got.steps.min() < 25


@pytest.mark.parametrize("hits", [1, 2, 3])
@pytest.mark.parametrize("texts", [1, 2, 3])
def test_a_said_target_is_done_where_that_is_asked_for(texts, hits):
    model, prefixes = pico(dtype=torch.float64), PREFIXES[:texts]
    # Random models hardly say anything: one target is made easy.
    target = model.tokens.continuation(EDITS[0].text, EDITS[0].target).target
    model.model.lm_head.weight.data[list(target)] *= 10
    options = TargetOptions(steps=20, clamp=1e3, decay=0.0, kl=0.0, lr=1.0, stop_below=0.0)
    asked = dataclasses.replace(options, stop_when_said=hits)
    got = optimise_targets(model, EDITS, prefixes, 1, asked)
    for i, edit in enumerate(EDITS):
        delta, steps, _ = optimise_one_target(model, edit, prefixes, 1, asked)
        assert got.steps[i] == steps
        assert (got.delta[i] - delta).norm() <= 1e-9 * delta.norm()
    assert got.steps.min() < 20
    assert (optimise_targets(model, EDITS, prefixes, 1, options).steps == 20).all()


def test_encore_stops_the_second_time_its_target_leads_behind_every_prefix():
    assert find_method("encore").resolve({})["stop_when_said"] == 2
    assert find_method("memit").resolve({})["stop_when_said"] == 0


def test_a_warm_start_goes_on_where_it_begins():
    model = pico(dtype=torch.float64)
    options = TargetOptions(steps=6, clamp=5.0, lr=0.01)
    cold = optimise_targets(model, EDITS, PREFIXES, 1, options)
    warm = optimise_targets(model, EDITS, PREFIXES, 1, options, start=cold.delta)
    assert (warm.nll < cold.nll).all()
    still = dataclasses.replace(options, steps=1)
    again = optimise_targets(model, EDITS, PREFIXES, 1, still, start=cold.delta)
    assert torch.equal(again.delta, cold.delta)
    assert torch.allclose(again.nll, cold.nll, rtol=1e-9)


def test_the_default_micro_batch_comes_from_dimensions_alone():
    model = pico()
    size = default_micro_batch(model.outline)
    assert size >= 1
    auto = optimise_targets(model, EDITS, PREFIXES, 1, TargetOptions(steps=3))
    named = optimise_targets(model, EDITS, PREFIXES, 1, TargetOptions(steps=3, micro_batch=size))
    assert torch.equal(auto.delta, named.delta)


def test_clamp_and_number_of_updates():
    model = pico()
    got = optimise_targets(model, EDITS, PREFIXES, 1, TargetOptions(steps=9, clamp=0.2))
    ratio = got.delta.norm(dim=-1) / got.anchor.norm(dim=-1)
    assert (ratio <= 0.2 + 1e-6).all() and (got.steps == 9).all()
    one = optimise_targets(model, EDITS, PREFIXES, 1, TargetOptions(steps=1))
    assert torch.equal(one.delta, torch.zeros_like(one.delta))


def test_full_passes_are_used_where_suffixes_are_not_exact(monkeypatch):
    """The fall-back gives the same targets, and says that it was used."""
    model = pico(dtype=torch.float64)
    options = TargetOptions(steps=4)
    short = optimise_targets(model, EDITS, PREFIXES, 1, options)
    monkeypatch.setattr(
        "retcon.features.suffix_passes._SuffixPasses.reproduces_whole_texts", lambda *_: False
    )
    full = optimise_targets(model, EDITS, PREFIXES, 1, options)
    assert short.short and not full.short
    assert torch.allclose(short.delta, full.delta, rtol=1e-9, atol=1e-12)


def test_alibi_models_take_the_full_passes():
    """BLOOM's positions come from the mask, which a suffix pass cannot reproduce."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from pico import tokenizer
    from retcon.model.handle import ModelHandle

    config = AutoConfig.for_model("bloom", hidden_size=32, n_layer=3, n_head=4, vocab_size=400)
    torch.manual_seed(0)
    model = ModelHandle(AutoModelForCausalLM.from_config(config).double(), tokenizer(), name="b")
    options = TargetOptions(steps=4)
    got = optimise_targets(model, EDITS[:2], PREFIXES, 1, options)
    for i, edit in enumerate(EDITS[:2]):
        delta, _, _ = optimise_one_target(model, edit, PREFIXES, 1, options)
        assert (got.delta[i] - delta).norm() <= 1e-6 * delta.norm()


def test_targets_are_not_finite():
    model = pico()
    model.model.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(NotFinite, match="target loss of a"):
        optimise_targets(model, EDITS, PREFIXES, 1, TargetOptions(steps=2))


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_second_moments_are_the_naive_sums(family):
    model = pico(family)
    got = collect_moments(model, iter(TEXTS), [0, 2], tokens=10_000, document_tokens=512)
    for layer in (0, 2):
        total, tokens = second_moment(model, TEXTS, layer)
        assert got[layer].tokens == tokens
        assert torch.allclose(got[layer].total, total, rtol=1e-4, atol=1e-4)
        assert torch.equal(got[layer].total, got[layer].total.mT)


def test_second_moments_that_overflow_are_not_finite():
    model = pico()
    model.model.model.layers[1].mlp.up_proj.weight.data.fill_(3e38)
    with pytest.raises(NotFinite, match="keys of layer 1"):
        collect_moments(model, iter(TEXTS), [0, 1], tokens=100, document_tokens=512)


def test_second_moments_resume(cache, monkeypatch):
    model = pico()
    monkeypatch.setattr("retcon.features.second_moments._PASS_TOKENS", 16)
    monkeypatch.setattr("retcon.features.second_moments._PER_SAVE", 0.0)
    monkeypatch.setattr("retcon.features.second_moments._SAVING", float("inf"))
    limits = {"tokens": 10_000, "document_tokens": 512}
    whole = collect_moments(model, iter(TEXTS), [1], **limits)[1]
    calls = 0

    def interrupt(task: str, done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt

    resume = cache / "partial.safetensors"
    with pytest.raises(KeyboardInterrupt):
        collect_moments(model, iter(TEXTS), [1], **limits, progress=interrupt, resume=resume)
    assert resume.exists()
    again = collect_moments(model, iter(TEXTS), [1], **limits, resume=resume)[1]
    assert torch.equal(again.total, whole.total) and again.tokens == whole.tokens


def test_moments_are_cached_under_everything_that_changes_them(cache, tmp_path):
    model = pico()
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(TEXTS * 3), encoding="utf-8")
    options = MomentOptions(corpus=str(corpus), corpus_tokens=60)
    first = dict(load_moments(model, [0, 1], options))
    files = sorted((cache / "moments").rglob("layer-*"))
    assert len(files) == 2
    assert torch.equal(load_moment(model, 1, options).total, first[1].total)
    assert sorted((cache / "moments").rglob("layer-*")) == files
    for other in (
        dataclasses.replace(options, corpus_tokens=90),
        dataclasses.replace(options, document_tokens=8),
    ):
        load_moments(model, [1], other)
    corpus.write_text("\n".join(TEXTS * 4), encoding="utf-8")
    load_moments(model, [1], options)
    load_moments(pico(seed=1), [1], options)
    load_moments(pico(dtype=torch.float64), [1], options)
    other = pico()
    made = copy.deepcopy(tokenizer())
    made.backend_tokenizer.normalizer = normalizers.Lowercase()
    other.tokens = Tokens(made)
    of_other = load_moment(other, 1, options).total
    assert not torch.equal(of_other, load_moment(model, 1, options).total)
    own = collect_moments(other, iter(TEXTS * 4), [1], tokens=60, document_tokens=128)[1]
    assert torch.equal(of_other, own.total)
    assert SelfCorpus(model=other, tokens=60).identity != (
        SelfCorpus(model=model, tokens=60).identity
    )
    assert len(list((cache / "moments").iterdir())) == 7
    used_up = load_moment(model, 1, options)
    assert torch.equal(used_up.into_mean(), first[1].mean)
    assert torch.equal(load_moment(model, 1, options).total, first[1].total)
    corpus.write_text("\n".join(TEXTS * 3), encoding="utf-8")
    files[0].write_bytes(b"damaged")
    with pytest.warns(RetconWarning, match="layer-0.safetensors is damaged.*made anew"):
        assert torch.equal(load_moment(model, 0, options).total, first[0].total)
    assert torch.equal(load_moment(model, 0, options).total, first[0].total)


def test_second_moments_of_half_precision_models_are_summed_in_single(cache):
    """bfloat16 sums would not be positive definite."""
    from retcon.algebra.preservation import Preservation

    model = pico(dtype=torch.bfloat16)
    got = collect_moments(model, iter(TEXTS * 4), [1], tokens=10_000, document_tokens=512)[1]
    Preservation.of(got.mean, jitter=1e-6)


def test_moments_of_an_edited_model_are_its_own(cache, tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(TEXTS * 3), encoding="utf-8")
    options = MomentOptions(corpus=str(corpus), corpus_tokens=60)
    model = pico()
    site = model.site(0)
    change = LowRankDelta(left=torch.ones(1, site.d_out), right=torch.ones(1, site.d_in))
    with model.scratch():
        model.write({0: change})
        edited = load_moment(model, 1, options)
        assert model.live_fingerprint != model.fingerprint
    assert model.live_fingerprint == model.fingerprint
    clean = load_moment(model, 1, options)
    assert not torch.equal(edited.total, clean.total)
    assert torch.equal(clean.total, load_moment(pico(), 1, options).total)


def test_self_corpus_is_seeded_and_sampled_once(cache):
    options = MomentOptions(corpus_tokens=200, document_tokens=16)
    first = load_moment(pico(), 1, options)
    assert first.tokens >= 200 and len(list((cache / "corpora").glob("*.jsonl"))) == 1
    other = load_moment(pico(), 1, dataclasses.replace(options, corpus_seed=1))
    assert not torch.equal(first.total, other.total)
    for path in (cache / "moments").rglob("layer-*"):
        path.unlink()
    assert torch.equal(load_moment(pico(), 1, options).total, first.total)


def test_a_corpus_that_is_too_small_or_not_there(cache, tmp_path):
    corpus = tmp_path / "small.txt"
    corpus.write_text("The city.", encoding="utf-8")
    with pytest.raises(SingularCovariance, match="at least d_in = 48"):
        load_moments(pico(), [1], MomentOptions(corpus=str(corpus)))
    if importlib.util.find_spec("datasets") is None:
        with pytest.raises(InvalidSetting, match=r"retcon-llm\[datasets\]"):
            load_moments(pico(), [1], MomentOptions(corpus="hub:nobody/nothing"))
    with pytest.raises(InvalidData, match="no corpus"):
        load_moments(pico(), [1], MomentOptions(corpus="nowhere.txt"))
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\n{"txt": 1}\n', encoding="utf-8")
    with pytest.raises(InvalidData, match="line 2"):
        load_moments(pico(), [1], MomentOptions(corpus=str(bad)))
