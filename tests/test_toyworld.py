"""The invented world, whole and small, the models that are trained on them, and the quick study."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from oracles import answers_weigh_more
from retcon.data.cases import load_cases
from retcon.errors import UnknownName
from retcon.model.load import load, outline
from retcon.report.results import Results
from retcon.study.runner import run_cells
from retcon.study.spec import load_spec
from retcon.study.study import read_study
from retcon.toyworld import train as training
from retcon.toyworld.train import RECIPES, configuration, recall, tokenizer, train
from retcon.toyworld.world import FACTS, NAME, OPENINGS, RELATIONS, SMALL, world

QUICK = Path(__file__).parents[1] / "examples" / "studies" / "toy-quick.yaml"
HASTY = RECIPES[SMALL]._replace(hidden=16, d_in=32, steps=3, batch=4, threads=1)
WORLDS = pytest.mark.parametrize("name", FACTS)


@WORLDS
def test_the_world_gives_nothing_away(name):
    facts = world(name).facts
    assert len({fact.subject for fact in facts}) == len(facts) == FACTS[name]
    counts = Counter((fact.relation, fact.answer) for fact in facts)
    assert len(counts) == len(RELATIONS) * 16 and len(set(counts.values())) == 1


def test_the_small_world_is_a_part_of_the_whole():
    small, whole = world(SMALL), world(NAME)
    assert len(whole.facts) >= 5_000 and small.facts == whole.facts[: len(small.facts)]
    assert small.answers == whole.answers and set(small.words()) < set(whole.words())


@WORLDS
def test_cases_ask_what_the_world_answers(name):
    cases = load_cases(name)
    told = dict(world(name).sentences())
    answers = world(name).answers
    for case in cases[:200]:
        assert told[case.edit.text] == case.edit.target_old != case.edit.target
        assert any({case.edit.target, case.edit.target_old} <= set(some) for some in answers)
        assert {told[text] for text in case.paraphrases} == {case.edit.target_old}
        assert {told[text] for text in case.neighbours} == {case.edit.target_old}
        assert len({*case.neighbours, case.edit.text}) == 11
    assert len({case.edit.id for case in cases}) == len(cases)


@WORLDS
def test_every_word_is_one_token_and_text_comes_back(name):
    tokens = tokenizer(name)
    text, answer = next(world(name).sentences())
    for said in (f"{text} {answer}. {text} {answer}.", *OPENINGS):
        ids = tokens(said)["input_ids"]
        assert tokens.decode(ids) == said and tokens.unk_token_id not in ids
        assert len(ids) == len(said.replace(".", " .").split())
    assert len(tokens) == configuration(name).vocab_size


def test_training_is_the_same_twice_and_leaves_the_first_attention_alone():
    with torch.random.fork_rng():
        torch.manual_seed(7)
        before = torch.get_rng_state(), torch.get_num_threads()
        one, two = train(world(SMALL), HASTY), train(world(SMALL), HASTY)
        assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    with torch.random.fork_rng():
        torch.manual_seed(HASTY.seed)
        none = LlamaForCausalLM(configuration(SMALL, HASTY))
    same = {n for n, p in one.named_parameters() if torch.equal(p, none.get_parameter(n))}
    assert same == {f"model.layers.0.self_attn.{x}_proj.weight" for x in "qkvo"}


def test_the_loss_is_what_a_loop_over_tokens_gives():
    model, tokens = train(world(SMALL), HASTY), tokenizer(SMALL)
    told = [f"{text} {answer}." for text, answer in list(world(SMALL).sentences())[:6]]
    texts = [f"{told[0]} {told[1]} {told[2]}", told[3], f"The {told[5]}"]
    ids = training._padded(texts, tokens)
    found = training._loss(model, ids, 16.0)
    wanted = answers_weigh_more(model, [tokens(text)["input_ids"] for text in texts], 16.0)
    assert found.item() == pytest.approx(wanted, rel=1e-5)


def test_recall_counts_the_most_probable_word():
    known, tokens = world(SMALL), tokenizer(SMALL)
    model = train(known, HASTY)
    found = recall(model, known)
    assert found.shape == (len(known.facts), 3)
    for row, (text, answer) in list(enumerate(known.sentences()))[:30]:
        with torch.no_grad():
            said = model(torch.tensor([tokens(text)["input_ids"]])).logits[0, -1].argmax()
        assert bool(found.flatten()[row]) == (tokens.decode(said) == answer)


@pytest.mark.parametrize(("name", "d_in"), [("toyworld", 6_144), ("toyworld-small", 1_536)])
def test_its_structure_is_known_without_training(monkeypatch, name, d_in):
    def no(*_args, **_kwargs):
        raise AssertionError("it was trained")

    monkeypatch.setattr(training, "train", no)
    found = outline(name)
    assert found.layers == 2 and found.site(0).d_in == d_in
    with pytest.raises(UnknownName, match=f"Did you mean '{name}'"):
        outline(name.replace("world", "wrld"))


def test_it_is_trained_once_and_kept(monkeypatch):
    first = training.folder(SMALL, recipe=HASTY)
    monkeypatch.setattr(training, "train", None)
    assert training.folder(SMALL, recipe=HASTY) == first
    assert load(str(first)).site(0).d_in == HASTY.d_in


@pytest.mark.long
@pytest.mark.real
def test_the_whole_world_is_known_by_heart(monkeypatch):
    def untrained(*_args, **_kwargs):
        pytest.skip(f"{NAME} has not been trained here: retcon probe {NAME} does it, in minutes")

    monkeypatch.undo()  # where it was trained, it is in the user's cache
    monkeypatch.setattr(training, "train", untrained)
    known = recall(load(NAME).model, world(NAME))
    assert known.all(1).sum() >= 5_000


@pytest.fixture
def threads():
    """As many as before, whatever a study asks for."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.long
def test_the_quick_study_runs_to_its_report(entries, threads, retcon, tmp_path):
    known = recall(load(SMALL).model, world(SMALL))
    assert known.all(1).sum() >= 0.9 * FACTS[SMALL]
    folder = tmp_path / "study"
    ended = run_cells(load_spec(QUICK), folder)
    assert (ended.done, ended.failed) == (ended.cells, {})
    results = Results(read_study(folder))

    def score(metric, when, **wanted):
        (arm,) = [
            a for a in results.arms
            if all(getattr(a.condition, k) == v for k, v in wanted.items())
        ]  # fmt: skip
        return results.estimate(arm, when, metric).mean

    batch = {"method": "memit", "carried": False, "n": 256, "ridge": "300"}
    assert score("ES", "pre", batch_size=64, **batch) <= 1
    assert score("ES", "immediate", batch_size=1, **batch) >= 95
    assert score("PS", "immediate", batch_size=1, **batch) >= 95
    # More facts in the weights at once cost their neighbours.
    kept = [score("NS", "immediate", batch_size=size, **batch) for size in (1, 64, 256)]
    assert kept[0] > kept[1] > kept[2]
    code, _, err = retcon("study", "report", str(folder))
    assert code == 0, err
    assert "What batch size is" in (folder / "report.html").read_text(encoding="utf-8")
    assert json.loads((folder / "study.json").read_text())["name"] == "toy-quick"
