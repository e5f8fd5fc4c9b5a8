"""Interference, predicted from keys alone, beside what writing a fact really does at other keys."""

import csv
import json

import pytest
import torch

import retcon
from pico import pico
from retcon.edits import Edit
from retcon.errors import InvalidEdit, InvalidSetting
from retcon.run.edit import edit as make
from retcon.run.interference import interference
from retcon.run.schedule import Schedule
from test_cli import SETTINGS, folder  # noqa: F401
from test_methods import EDITS, FAST, build, fast

NULL_SPACE = {"null_threshold": 1.0, "null_relative": True}
WAYS = [
    ("rome", {}),
    ("rome", {"consistent_keys": True}),
    ("emmet", {}),
    ("memit", {"ridge": 20.0}),
    ("memit", {"ridge": 20.0, "passes": 3}),
    ("memit", {"ridge": 40.0, "ridge_batch": 4}),
    ("encore", {"ridge": 20.0}),
    ("alphaedit", NULL_SPACE),
    ("lyaplock", {"ridge": 20.0, "budget": 1.5}),
]


def close(got, wanted, tolerance=1e-5):
    return bool((got - wanted).norm() <= tolerance * wanted.norm())


def predicted(model, name, layers=(1,), settings=None, edits=EDITS):
    chosen = {**fast(name), **(settings or {})}
    return interference(model, edits, method=name, layers=layers, settings=chosen)


@pytest.mark.parametrize(("name", "settings"), WAYS)
def test_a_share_is_what_a_write_alone_adds_at_another_key(name, settings, cache):
    model = pico(dtype=torch.float64)
    editor = build(name, (1,), settings)
    state = editor.setup.begin(model)
    features = editor.features(model, EDITS, state)
    original, weight = model.weights_hash(), model.master(1).double().clone()
    shares = predicted(model, name, settings=settings).shares[1]
    assert model.weights_hash() == original
    read = features.bare if editor.read_bare else features.keys
    residual = features.outputs + features.targets.delta.double() - read @ weight.mT
    for i in range(len(EDITS)):
        update = editor.solve(model, features.select(slice(i, i + 1)), state)
        with model.scratch():
            model.write(update.deltas)
            moved = read @ (model.master(1).double() - weight).mT
        assert close(moved, shares[i].unsqueeze(1) * residual[i])
    if name in ("rome", "emmet"):
        assert torch.allclose(shares.diagonal(), torch.ones(len(EDITS), dtype=torch.float64))
    else:
        assert (shares.diagonal() < 1).all() and (shares.diagonal() > 0).all()


def test_each_of_several_layers_has_its_shares(cache):
    """They are exact at the first, whose keys no earlier layer has moved."""
    model = pico(dtype=torch.float64)
    editor = build("memit", (0, 1), {"ridge": 20.0})
    state = editor.setup.begin(model)
    features = editor.features(model, EDITS, state)
    seen = predicted(model, "memit", (0, 1), {"ridge": 20.0})
    assert list(seen.shares) == [0, 1]
    for i in range(len(EDITS)):
        delta = editor.solve(model, features.select(slice(i, i + 1)), state).deltas[0]
        moved = features.keys @ delta.dense().mT
        assert close(moved, seen.shares[0][i].unsqueeze(1) * delta.left[0].double())
    only = predicted(model, "memit", (1,), {"ridge": 20.0}).shares[1]
    assert torch.allclose(seen.shares[1], only)


def test_carried_facts_whose_keys_are_forgotten_are_lost_as_predicted(cache):
    """Fact after fact moves the outputs at all keys by its share; where keys are kept, less."""
    model = pico(dtype=torch.float64)
    settings = {**FAST, "ridge": 5.0}
    plan = Schedule.parse("sequential", refresh="never")
    editor = build("memit", (1,), {"ridge": 5.0})
    features = editor.features(model, EDITS, editor.setup.begin(model))
    shares = predicted(model, "memit", settings={"ridge": 5.0}).shares[1]
    wanted = features.targets.delta.double()
    moved = torch.zeros_like(wanted)
    for i, row in enumerate(shares):
        moved += row.unsqueeze(1) * (wanted[i] - moved[i])

    def observed(accumulate):
        chosen = {**settings, "accumulate": accumulate}
        patch = make(
            model, EDITS, method="memit", layers=[1], settings=chosen, schedule=plan
        )  # fmt: skip
        return features.keys @ patch.deltas[1].dense().mT

    assert close(observed(False), moved, 1e-4)
    assert not close(observed(True), moved, 1e-2)
    losses = [(observed(one) - wanted).norm() for one in (True, False)]
    assert losses[0] < losses[1]


def test_pairs_and_disturbances_are_those_of_the_table(cache):
    seen = predicted(pico(), "memit", (0, 1), {"ridge": 20.0})
    every = [
        (layer, a.id, b.id, float(seen.shares[layer][i, j]))
        for layer in (0, 1)
        for i, a in enumerate(EDITS)
        for j, b in enumerate(EDITS)
        if i != j
    ]
    every.sort(key=lambda one: -abs(one[3]))
    told = [(p.layer, p.writing.id, p.at.id, p.share) for p in seen.pairs()]
    assert told == every and seen.pairs(3) == seen.pairs()[:3]
    size = {
        at: max(
            sum(s**2 for k, _, b, s in every if (k, b) == (layer, at)) ** 0.5 for layer in (0, 1)
        )
        for at in "abcde"
    }
    found = {edit.id: value for edit, value in seen.disturbed()}
    assert found == pytest.approx(size)
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_facts_with_one_key_disturb_one_another_whole(cache):
    twin = Edit.parse("The mother tongue of {Danielle Darrieux} was", "Rome", id="twin")
    seen = predicted(pico(dtype=torch.float64), "emmet", edits=[*EDITS, twin])
    assert [{p.writing.id, p.at.id} for p in seen.pairs(2)] == [{"a", "twin"}] * 2
    assert [p.share for p in seen.pairs(2)] == pytest.approx([1, 1])


def test_no_target_is_optimised(cache, monkeypatch):
    def never(*arguments, **options):
        raise AssertionError

    monkeypatch.setattr("retcon.features.remember.optimise_targets", never)
    assert retcon.interference(pico(), EDITS, method="memit", layers=[1], settings=FAST).pairs(1)


@pytest.mark.parametrize(
    ("edits", "name", "settings", "error", "word"),
    [
        (EDITS[:1], "memit", {}, InvalidEdit, "at least two"),
        (EDITS, "finetune", {}, InvalidSetting, "solves for no keys"),
        (EDITS, "in_context", {}, InvalidSetting, "solves for no keys"),
        (EDITS, "memit", {"process": "rect"}, InvalidSetting, "Leave process out"),
    ],
)
def test_what_has_no_interference_is_refused(edits, name, settings, error, word, cache):
    with pytest.raises(error, match=word):
        predicted(pico(), name, settings=settings, edits=edits)


def ask(retcon, *words):
    return retcon(
        "edit", "./model", "--facts", "facts.jsonl", "--method", "memit", "--layer", "1",
        "--interference", *words, *SETTINGS,
    )  # fmt: skip


def test_the_command_prints_a_table_and_writes_nothing(folder, retcon):  # noqa: F811
    before = set(folder.iterdir())
    code, out, err = ask(retcon, "-", "--json", "i.json")
    assert code == 0, err
    assert "adds at the key of" in out and "Marie Curie" in out and "Disturbed most" in out
    record = json.loads((folder / "i.json").read_text(encoding="utf-8"))
    assert record["method"] == "memit" and len(record["shares"]["1"]) == 3
    assert set(folder.iterdir()) - before <= {folder / "i.json", folder / "cache"}


def test_the_command_writes_every_pair_and_a_heat_map(folder, retcon):  # noqa: F811
    pytest.importorskip("vl_convert")
    code, out, err = ask(retcon, "pairs.csv")
    assert code == 0 and "pairs.png" in out, err
    with (folder / "pairs.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 6
    sizes = [abs(float(row["share"])) for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    drawn = (folder / "pairs.svg").read_text(encoding="utf-8")
    assert "Danielle Darrieux" in drawn and "layer 1" in drawn
    assert (folder / "pairs.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_refuses_other_files_and_two_ends(folder, retcon):  # noqa: F811
    code, _, err = ask(retcon, "pairs.txt")
    assert code == 2 and "ends in .csv" in err
    code, _, err = ask(retcon, "-", "--plan")
    assert code == 2 and "give one" in err
