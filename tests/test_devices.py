"""All that is computed on a model's device: on one that is none, where nothing may be forgotten."""

import jaxtyping
import pytest
import torch

import retcon
from golden.record import COMMITTED, difference, read, record_of
from golden.runs import Workshop
from golden.scenarios import pico_scenarios
from pico import pico
from pretend_device import DEVICE, pretend
from retcon.edits import Case, Edit
from retcon.features.second_moments import collect_moments
from retcon.patch.ledger import Ledger
from retcon.scoring.exact_match import continuations, top_answers
from retcon.scoring.score import score_cases

RECORD = read(COMMITTED)
EDITS = [
    Edit.parse(
        "The mother tongue of {Danielle Darrieux} is", "English", target_old="French", id="a"
    ),
    Edit.parse("The capital city of {France} is", "Rome", target_old="Paris", id="b"),
]
OTHER = Edit.parse("{Marie Curie} was born in the city of", "London", id="c")
SETTINGS = {"steps": 2, "prefixes": 1, "corpus_tokens": 300, "jitter": 1e-3, "ridge": 5.0}


@pytest.fixture(autouse=True)
def shapes_are_looked_at_elsewhere(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def elsewhere():
    with pretend():
        yield pico(device=str(DEVICE))


def test_tensors_of_two_places_do_not_mix():
    with pretend():
        here, there = torch.ones(3), torch.ones(3, device=DEVICE)
        assert (here.device.type, there.device) == ("cpu", DEVICE)
        assert (2 * there)[1:].device == DEVICE and there.cpu().device.type == "cpu"
        for mixed in (lambda: here + there, lambda: torch.cat([there, here]),
                      lambda: torch.stack([here, there]), lambda: here[there.long()]):  # fmt: skip
            with pytest.raises(RuntimeError, match="to be on the same device"):
                mixed()
        assert torch.equal((there * torch.tensor(2.0)).cpu(), 2 * here)
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()


def test_a_backward_pass_is_looked_at_too():
    with pretend():
        delta = torch.zeros(3, device=DEVICE, requires_grad=True)
        (delta * torch.ones(3, device=DEVICE)).sum().backward()
        assert delta.grad is not None and delta.grad.device == DEVICE


# One of each method, and all ways of refreshing, carrying and spreading.
CHOSEN = [
    scenario
    for scenario in pico_scenarios()
    if scenario.name
    in (
        "memit single", "memit adaptive-aimd:1",
        "memit adaptive-energy:3", "memit sequential-batch:2 guard=rollback",
        "memit sequential-batch:2 again", "emmet sequential-batch:2", "rome sequential",
        "memit accumulate=True sequential-batch:2 stale:0.25",
        "memit spread=each sequential-batch:2 layers=0,1",
        "memit spread=forward sequential-batch:2 layers=0,1",
        "memit anchor_norm=equal sequential-batch:2 layers=0,1",
        "memit process=prune ridge=0.5 clamp=4.0 steps=6 feedback=True sequential-batch:2",
        "alphaedit null_threshold=1.0 null_relative=True sequential-batch:2",
        "encore sequential-batch:2", "lyaplock budget=0.5 sequential-batch:2",
        "ultraedit lr=0.001 sequential-batch:2", "finetune sequential-batch:2",
        "in_context sequential-batch:2", "memit corpus=self sequential-batch:2",
        "memit sequential-batch:2 gpt2", "memit sequential-batch:2 gemma2",
    )
]  # fmt: skip


@pytest.mark.parametrize("scenario", CHOSEN, ids=lambda scenario: scenario.name)
def test_a_run_elsewhere_gives_what_it_gives_here(scenario, tmp_path, monkeypatch):
    """Passes are larger there, so it rounds."""
    here = RECORD[scenario.name]
    monkeypatch.setenv("RETCON_CACHE", str(tmp_path / "cache"))
    with pretend():
        there = record_of(Workshop(tmp_path, str(DEVICE)).run(scenario))
    apart = difference(here, there)
    assert not apart.other and apart.said <= 1
    assert apart.patch <= 5e-2 and apart.nats <= 1e-3 and apart.numbers <= 1e-3


def test_what_was_kept_elsewhere_is_found_there_again(elsewhere, monkeypatch):
    monkeypatch.delenv("RETCON_CACHE_LIMIT")
    first, again = (
        retcon.edit(elsewhere, EDITS, method="memit", layers=[1], settings=SETTINGS)
        for _ in range(2)
    )
    more = retcon.edit(elsewhere, [*EDITS, OTHER], method="memit", layers=[1], settings=SETTINGS)
    assert torch.equal(first.deltas[1].left, again.deltas[1].left)
    assert more.deltas[1].rank == 3


def test_a_patch_goes_from_place_to_place(elsewhere, tmp_path):
    patch = retcon.edit(elsewhere, EDITS, method="memit", layers=[1], settings=SETTINGS)
    patch.save(tmp_path / "p.safetensors")
    loaded = retcon.load_patch(tmp_path / "p.safetensors")
    before = elsewhere.weights_hash()
    with loaded.applied(elsewhere):
        assert elsewhere.weights_hash() != before
        there = score_cases(elsewhere, [Case(edit=edit) for edit in EDITS], when="final")
    assert elsewhere.weights_hash() == before
    here = pico()
    with loaded.applied(here):
        assert score_cases(here, [Case(edit=edit) for edit in EDITS], when="final") == there


def test_a_ledger_is_kept_and_applied_elsewhere(elsewhere, tmp_path):
    ledger = Ledger(tmp_path / "ledger")
    for edit in EDITS:
        patch = retcon.edit(elsewhere, [edit], method="memit", layers=[1], settings=SETTINGS)
        ledger.add(patch, who="me")
    before = elsewhere.weights_hash()
    with ledger.applied(elsewhere):
        assert elsewhere.weights_hash() != before
    assert elsewhere.weights_hash() == before


def test_second_moments_and_texts_are_the_same_elsewhere(elsewhere):
    texts = ["The city of Warsaw is in Poland, and Marie Curie was born there."] * 8
    here = pico()
    for model in (here, elsewhere):
        moments = collect_moments(model, iter(texts), [1], tokens=100, document_tokens=32)
        if model is here:
            wanted = moments
    assert torch.equal(moments[1].total.cpu(), wanted[1].total)
    assert continuations(elsewhere, ["The city"]) == continuations(here, ["The city"])
    assert top_answers(elsewhere, "The city") == top_answers(here, "The city")
