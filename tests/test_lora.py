"""LoRA, against peft and plain loops; what its text is for; where it stops."""

import dataclasses
import json
import math
import warnings
from itertools import islice

import jaxtyping
import pytest
import torch

import retcon
from oracles import lora_by_peft
from pico import FAMILIES, pico, run
from pretend_device import DEVICE, pretend
from retcon.edits import Edit
from retcon.errors import InvalidPatch, InvalidSetting, NotFinite, RetconWarning
from retcon.features.contexts import sample_prefixes
from retcon.features.contrast import contrasts, in_turn
from retcon.method import lora_training, presets
from retcon.method.entries import find_method
from retcon.method.lora_training import Words
from retcon.method.presets import Family, Preset, families, method_for, resolve, shape_of
from retcon.model.forward import run_batch
from retcon.patch.ledger import Ledger
from retcon.patch.patch import load_patch
from retcon.run.cost import costs
from retcon.run.record import StepRecord
from retcon.run.schedule import Schedule
from retcon.run.undo import resolve as resolve_again
from test_cli import folder  # noqa: F401
from test_methods import EDITS
from test_methods import FAST as METHOD_SETTINGS

SETTINGS = {
    "rank": 3, "steps": 7, "lr": 1e-2, "corpus_tokens": 300, "prefixes": 1, "micro_batch": 512,
}  # fmt: skip

# Of these the last two name an edited subject and a target.
OTHERS = (
    "The capital of Spain is Paris.",
    "They live in a city in Germany.",
    "They said that he was born in Vienna.",
    "Marie Curie was born in Paris.",
    "Kepler was born in Madrid.",
)
ALIKE = "The capital city of Poland is Paris."


def step_of(model, edits=EDITS, layers=(0, 1), **settings):
    """The one step of a batch, and the state that it began with."""
    method = find_method("finetune_lora").build(layers, {**SETTINGS, **settings})
    state = method.setup.begin(model)
    (step,) = run(model, method, state, edits, Schedule.parse(f"batch:{len(edits)}"))
    return step, state


def said_next(model, ids):
    """Log probabilities of what follows."""
    return run_batch(model, model.tokens.pad([ids])).logits[0, -1].float().log_softmax(-1)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt"])
def test_lora_is_what_peft_trains(family, cache):
    model = pico(family)
    before = model.weights_hash()
    step, state = step_of(model, micro_batch=24, passages=3)
    assert state.contexts == sample_prefixes(model, find_method("finetune_lora").build(
        (0, 1), SETTINGS).contexts)  # fmt: skip
    assert len(state.contexts) == 2 and model.weights_hash() == before
    wanted = lora_by_peft(
        model, EDITS, (0, 1), state.contexts, state.passages, rank=3, steps=7, lr=1e-2, kl=1.0,
        passages=3,
    )  # fmt: skip
    assert model.weights_hash() == before
    for layer in (0, 1):
        got = step.update.deltas[layer]
        assert got.rank == 3 and got.shared and wanted[layer].norm() > 1e-3
        assert (got.dense() - wanted[layer]).norm() < 1e-3 * wanted[layer].norm()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_other_words_and_contrasts_are_trained_as_peft_would(family, cache):
    model = pico(family)
    texts = {"rewordings": 2, "contrast": 0.7, "together": 2}
    method = find_method("finetune_lora").build((0, 1), {**SETTINGS, **texts, "micro_batch": 24})
    state = method.setup.begin(model)._replace(others=OTHERS)
    prompts = tuple((f"They said of {edit.subject} that it is",) for edit in EDITS[:-1])
    words = Words(tuple(EDITS), (*prompts, ()), ((ALIKE,), *[()] * (len(EDITS) - 1)))
    got = method.solve(model, words, state).deltas
    kept = list(islice(in_turn(contrasts(OTHERS, EDITS), [ALIKE], seed=0), 40))
    wanted = lora_by_peft(
        model, EDITS, (0, 1), state.contexts, state.passages, rank=3, steps=7, lr=1e-2, kl=1.0,
        passages=2, rewordings=words.prompts, others=kept, contrast=0.7, together=2,
    )  # fmt: skip
    for layer in (0, 1):
        far = (got[layer].dense() - wanted[layer]).norm()
        assert far < 1e-3 * wanted[layer].norm() and wanted[layer].norm() > 1e-3
    assert words.select(slice(1, 3)) == Words(*(own[1:3] for own in words))


def test_contrasts_hold_what_is_said_of_others(cache, monkeypatch):
    """What else is said stays as it was, the more so by a larger weight."""
    model, apart = pico(), []
    texts = [model.tokens.encode(text.rpartition(" ")[0]) for text in OTHERS[:3]]
    monkeypatch.setattr(lora_training, "recall_lines", lambda *given: [list(OTHERS)])
    for contrast in (0.0, 1.0, 30.0):
        step, _ = step_of(model, kl=0.0, steps=30, lr=3e-2, contrast=contrast)
        before = [said_next(model, ids) for ids in texts]
        with model.scratch():
            model.write(step.update.deltas)
            after = [said_next(model, ids) for ids in texts]
        pairs = zip(before, after, strict=True)
        apart.append(sum(float((a.exp() * (a - b)).sum()) for a, b in pairs))
    assert apart[0] > apart[1] > apart[2]


def test_a_model_that_writes_nothing_of_others_is_named(cache, monkeypatch):
    monkeypatch.setattr(lora_training, "recall_lines", lambda *given: [["no sentence", ""]])
    with pytest.warns(RetconWarning, match="no whole sentence about other things"):
        step_of(pico(), contrast=1.0)


def test_features_are_what_the_model_has_written(cache, monkeypatch):
    def written(model, askings, progress):
        each = [[f"It is {e.subject} that says {e.target}."] * 2 + ["No."] for e in EDITS]
        return [lines for lines in each for _ in range(len(askings) // len(EDITS))]

    monkeypatch.setattr(lora_training, "recall_lines", written)
    model = pico()
    method = find_method("finetune_lora").build((0,), {**SETTINGS, "rewordings": 1})
    words = method.features(model, EDITS, method.setup.begin(model))
    assert words.prompts == tuple((f"It is {edit.subject} that says",) for edit in EDITS)
    assert method.solve(model, words, method.setup.begin(model)).deltas[0].norm() > 0
    plain = find_method("finetune_lora").build((0,), SETTINGS)
    words = plain.features(model, EDITS, plain.setup.begin(model))
    assert words.prompts == ((),) * len(EDITS) == words.alike


def test_what_is_like_each_fact_is_written_for_it(cache, monkeypatch):
    def written(model, askings, progress=None):
        return [[asking.text.split("Sentence: ")[-1]] for asking in askings]

    monkeypatch.setattr(lora_training, "recall_lines", written)
    model = pico()
    method = find_method("finetune_lora").build((0,), {**SETTINGS, "contrast": 1.0})
    words = method.features(model, EDITS, method.setup.begin(model))
    assert words.prompts == ((),) * len(EDITS)
    for edit, (line,) in zip(EDITS, words.alike, strict=True):
        assert line.startswith(f"{edit.text} {edit.target}.") and line.endswith("of another:")


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_facts_are_brought_about_in_every_family(family, cache, tmp_path):
    model = pico(family)
    settings = {**SETTINGS, "steps": 30, "lr": 4e-2, "kl": 0.0}
    first, _ = step_of(model, steps=1, prefixes=0, kl=0.0)
    patch = retcon.edit(model, EDITS, method="finetune_lora", layers=[0, 1], settings=settings)
    assert not patch.divisible
    patch.save(tmp_path / "p.safetensors")
    again = retcon.load_patch(tmp_path / "p.safetensors")
    with again.applied(model):
        step, _ = step_of(model, steps=1, prefixes=0, kl=0.0)
    loss = first.update.report.batch["loss"]
    assert step.update.report.batch["loss"] < 0.6 * loss


def test_ordinary_text_is_kept_as_much_as_it_is_asked_for(cache):
    apart = []
    for kl in (0.1, 1.0, 10.0):
        step, _ = step_of(pico(), kl=kl, steps=25)
        apart.append(step.update.report.batch["kl"])
        assert step.update.report.batch["loss"] < 5.5
    assert apart[0] > apart[1] > apart[2] > 0
    step, state = step_of(pico(), kl=0.0, corpus="nowhere.txt")
    assert state.passages == () and step.update.report.batch["kl"] == 0


def test_it_stops_where_all_contexts_have_been_seen_to_be_good(cache):
    step, state = step_of(pico(), stop_below=1e9, kl=0.0)
    told = step.update.report.batch
    assert told["target_steps"] == len(state.contexts) == 2
    assert step.update.deltas[0].norm() > 0
    step, _ = step_of(pico(), steps=60, stop_below=3.0, kl=0.0, lr=4e-2)
    told = step.update.report.batch
    assert 2 < told["target_steps"] < 60 and told["loss"] < 3
    record = StepRecord.of(pico(), step).as_json()
    assert {name: record[name] for name in told} == told
    assert len(step.update.report.edit["nll"]) == len(EDITS)
    step, _ = step_of(pico(), steps=1, kl=0.0)
    assert math.isfinite(step.update.report.batch["loss"])


def test_an_ending_and_ways_of_asking_are_trained_too(cache):
    plain, _ = step_of(pico(), kl=0.0)
    ended, _ = step_of(pico(), kl=0.0, ending=".")
    asked, state = step_of(pico(), kl=0.0, forms=("question",))
    assert state.contexts[-1].startswith("Question: ")
    spelt = [dataclasses.replace(edit, target=f"{edit.target}.") for edit in EDITS]
    once, _ = step_of(pico(), edits=spelt, kl=0.0, ending=".")
    assert torch.equal(once.update.deltas[1].left, ended.update.deltas[1].left)
    norms = {step.update.deltas[1].norm() for step in (plain, ended, asked)}
    assert len(norms) == 3


def test_what_overflows_is_named_and_nothing_is_written(cache):
    model = pico()
    method = find_method("finetune_lora").build((1,), {**SETTINGS, "kl": 0.0})
    state = method.setup.begin(model)
    model.site(1).module.weight.data[0, 0] = torch.nan
    before = model.weights_hash()
    with pytest.raises(NotFinite, match="smaller lr"):
        method.solve(model, method.features(model, EDITS, state), state)
    assert model.weights_hash() == before
    with pytest.raises(InvalidSetting, match="lr"):
        find_method("finetune_lora").build((1,), {"lr": 2.0})


def test_half_precision_and_a_rank_above_the_width(cache):
    model = pico(dtype=torch.bfloat16)
    patch = retcon.edit(
        model, EDITS, method="finetune_lora", layers=[1], settings={**SETTINGS, "rank": 99}
    )
    site = model.site(1)
    assert patch.deltas[1].rank == min(site.d_in, site.d_out)
    assert patch.deltas[1].left.dtype == torch.float32


def test_elsewhere_it_comes_to_the_same(cache, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    here, _ = step_of(pico())
    with pretend():
        there, _ = step_of(pico(device=str(DEVICE)))
        found = there.update.deltas[1].dense().cpu()
    wanted = here.update.deltas[1].dense()
    assert (found - wanted).norm() < 1e-2 * wanted.norm()


def test_a_file_of_facts_is_edited_and_exported(folder, retcon):  # noqa: F811
    words = ["edit", "./model", "--facts", "facts.jsonl", "--method", "finetune_lora"]
    own = ["--set", "steps=2", "--set", "corpus_tokens=300"]
    code, out, err = retcon(*words, *own, "-o", "p.safetensors", "--json", "e.json")
    assert code == 0 and "Saved" in out and "at most 2 (--set steps=…)" in " ".join(err.split())
    assert "clamp" not in err
    # Nobody has named a layer, and there is no preset: all of them.
    assert load_patch("p.safetensors").about.layers == (0, 1, 2)
    code, _, _ = retcon("patch", "export", "p.safetensors", "--to", "peft", "-o", "adapter")
    assert code == 0
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["r"] == config["lora_alpha"] == 16


def test_a_fact_is_taken_out_by_training_for_the_others_again(cache, tmp_path):
    model, how = (
        pico(),
        {"method": "finetune_lora", "layers": [0, 1], "settings": {**SETTINGS, "steps": 3}},
    )
    ledger = Ledger(tmp_path / "ledger")
    ledger.add(retcon.edit(model, EDITS, **how), who="me")
    with pytest.raises(InvalidPatch, match="retcon patch undo --resolve"):
        ledger.choose([EDITS[0].id])
    undoing = ledger.choose([EDITS[0].id], again=True)
    with pytest.raises(InvalidPatch, match="Take back the whole patch"):
        ledger.undo(undoing, who="me")
    ledger.undo(undoing, who="me", solved=resolve_again(model, ledger, undoing))
    wanted = retcon.edit(model, EDITS[1:], **how)
    stack = ledger.stack()
    assert [edit.id for edit in stack.about.edits] == [edit.id for edit in EDITS[1:]]
    for layer in (0, 1):
        assert torch.allclose(stack.deltas[layer].dense(), wanted.deltas[layer].dense())
    with ledger.applied(model):
        pass


def test_its_cost_is_of_whole_texts_and_of_the_sampled_one():
    outline = pico().outline
    chosen = {**SETTINGS, "forms": (), "kl": 1.0}
    recipe = resolve(outline, method="finetune_lora", layers=(0, 1), settings=chosen)
    cost = costs(outline, recipe.layers, recipe.settings)
    assert cost.target > 0 and cost.moments == 0 == cost.corpus_tokens
    assert cost.sampling == 300 * 2 * cost.parameters / 0.5
    without = costs(outline, (0, 1), {**recipe.settings, "kl": 0.0})
    assert without.sampling == 0 and without.target == cost.target
    assert without.beside == 0 and cost.beside == 7 * 2 * 64 * 3 * 2 * cost.parameters
    assert [cost.batch(edits) / cost.beside for edits in (1, 8, 9, 64)] == [1, 1, 2, 8]
    more = costs(outline, (0, 1), {**recipe.settings, "contrast": 1.0, "rewordings": 2})
    # Seven steps of half a sentence of 14 tokens; lines of 26, 32 in other words and 16 of others,
    # at half of the rate.
    tokens = 7 * 3 * 7 + (32 + 16) * 26 * 2
    assert more.target - cost.target == tokens * 2 * cost.parameters
    assert more.sampling - cost.sampling == 8 * 64 * 20 * 2 * cost.parameters / 0.5


BORN, DIED, TAUGHT = (
    Edit.parse(text, "Rome", id=text[-4:])
    for text in (
        "{Marie Curie} was born in",
        "The city {Marie Curie} died in",
        "{Marie Curie} taught in",
    )
)
AGAIN = dataclasses.replace(BORN, id="again", target="London")


@pytest.fixture
def family_of_pico(monkeypatch):
    """A pico model whose family names a method for facts about one subject."""
    model = pico()
    rows = [("emmet", METHOD_SETTINGS), ("finetune_lora", SETTINGS)]
    row = Family(
        name="pico",
        shape=shape_of(model.outline),
        presets=tuple(
            Preset(method=name, layers=(1,), settings=settings, source="a test")
            for name, settings in rows
        ),
        of_one_subject="finetune_lora",
    )
    monkeypatch.setattr(presets, "family_of", lambda outline: row)
    return model


CHOOSING = [
    # facts, the method that they ask for
    ((BORN, DIED), "finetune_lora"),
    ((BORN, DIED, TAUGHT, *EDITS[2:4]), "finetune_lora"),
    ((BORN, DIED, *EDITS[2:4]), None),  # half of them are not most
    ((BORN, AGAIN), None),  # one fact, written again
    ((BORN,), None),
    ((), None),
]


@pytest.mark.parametrize(("facts", "method"), CHOOSING)
def test_facts_about_one_subject_ask_for_a_method(facts, method, family_of_pico):
    assert method_for(family_of_pico.outline, facts) == method


def test_families_name_methods_of_theirs():
    named = {row.name: row.of_one_subject for row in families() if row.of_one_subject}
    assert named == {"SmolLM2-135M": "finetune_lora"}
    for row in families():
        assert row.of_one_subject in (None, *(preset.method for preset in row.presets))


def test_the_facts_choose_what_was_left_open_and_nothing_else(family_of_pico):
    facts = [BORN, DIED]
    with pytest.warns(RetconWarning, match=r"share their subject.*by finetune_lora.*name a method"):
        assert retcon.edit(family_of_pico, facts).about.method == "finetune_lora"
    with pytest.warns(RetconWarning, match="finetune_lora"):
        whole = retcon.edit(family_of_pico, facts, schedule="sequential-batch:2")
    assert whole.about.method == "finetune_lora"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert retcon.edit(family_of_pico, facts, schedule="sequential").about.method == "emmet"
        assert retcon.edit(family_of_pico, facts, method="memit", layers=[1],
                           settings=METHOD_SETTINGS).about.method == "memit"  # fmt: skip
    for given in ({"method": "emmet"}, {"layers": [1]}, {"settings": {"steps": 3}}):
        with pytest.warns(RetconWarning, match=r"emmet writes each.*finetune_lora or memit"):
            assert retcon.edit(family_of_pico, facts, **given).about.method == "emmet", given


def test_a_plan_is_of_the_method_that_the_facts_ask_for(family_of_pico, folder, retcon):  # noqa: F811
    lines = [
        json.dumps({"id": edit.id, "prompt": edit.fact, "target": edit.target})
        for edit in (BORN, DIED)
    ]
    (folder / "same.jsonl").write_text("\n".join(lines), encoding="utf-8")
    planned = ("edit", "./model", "--facts", "same.jsonl", "--plan", "--gflops", "100")
    code, told, err = retcon(*planned)
    assert code == 0 and "2 facts by finetune_lora" in " ".join(told.split())
    assert "Most of these 2 facts share their subject" in " ".join(err.split())
    code, told, _ = retcon(*planned, "--schedule", "sequential")
    assert code == 0 and "2 facts by emmet" in " ".join(told.split())
    code, told, _ = retcon(*planned, "--method", "emmet")
    assert code == 0 and "2 facts by emmet" in " ".join(told.split())
