"""Patches and second moments to and from a hub that is a folder; the network is never used."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from fake_hub import FakeApi, install
from pico import pico, tokenizer
from retcon.errors import HubRefused, InvalidMoments, InvalidPatch
from retcon.features.moments_on_hub import pull_moments, push_moments
from retcon.features.second_moments import MomentOptions, load_moments
from retcon.patch.patch import load_patch
from retcon.patch.patch_on_hub import FILE, pull_patch, push_patch
from retcon.run.edit import edit
from test_methods import EDITS, FAST


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The folder that is the hub; no client reaches further."""
    install(monkeypatch, tmp_path / "hub")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "hub"


@pytest.fixture
def file(tmp_path):
    made = edit(pico(), EDITS[:2], method="memit", layers=[1], settings=FAST)
    made.save(tmp_path / "p.safetensors")
    return tmp_path / "p.safetensors"


def test_a_patch_comes_back_as_it_went(hub, file):
    patch = load_patch(file)
    assert push_patch(patch, "anna/facts") == "https://hub.invalid/anna/facts"
    assert FakeApi.private == {"anna/facts": True}
    assert sorted(p.name for p in (hub / "anna/facts").iterdir()) == ["README.md", FILE]
    assert pull_patch("anna/facts", Path("back.safetensors")).about == patch.about
    assert Path("back.safetensors").read_bytes() == (hub / "anna/facts" / FILE).read_bytes()


def test_the_card_says_what_it_is_and_leaves_the_licence(hub, file):
    patch = load_patch(file)
    push_patch(patch, "anna/facts")
    card = (hub / "anna/facts/README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---")[1])
    assert "license" not in front and "# license:" in card
    assert front["base_model_relation"] == "adapter"
    facts = len(patch.about.edits)
    assert patch.about.base[:16] in card and patch.about.method in card and f"{facts} fact" in card
    assert json.dumps(patch.about.settings, indent=1) in card
    (hub / "anna/facts/README.md").write_text("---\nlicense: mit\n---\nmine")
    push_patch(patch, "anna/facts")
    assert (hub / "anna/facts/README.md").read_text().endswith("mine")


def test_nothing_goes_into_a_public_repository_unasked(hub, file):
    patch = load_patch(file)
    push_patch(patch, "anna/facts", public=True)
    assert FakeApi.private == {"anna/facts": False}
    (hub / "anna/facts" / FILE).unlink()
    with pytest.raises(HubRefused, match="is public"):
        push_patch(patch, "anna/facts")
    assert not (hub / "anna/facts" / FILE).exists()
    push_patch(patch, "anna/facts", public=True)
    assert (hub / "anna/facts" / FILE).exists()


def test_what_is_pulled_is_looked_at_before_it_is_kept(hub, file):
    push_patch(load_patch(file), "anna/facts")
    (hub / "anna/facts" / FILE).write_bytes(file.read_bytes()[:-40])
    with pytest.raises(InvalidPatch):
        pull_patch("anna/facts", Path("back.safetensors"))
    assert not Path("back.safetensors").exists()
    with pytest.raises(HubRefused, match=r"404.*logged in"):
        pull_patch("anna/nothing", Path("back.safetensors"))


def test_the_commands(hub, file, retcon):
    code, out, err = retcon("patch", "push", "p.safetensors", "anna/facts", "--dry-run")
    assert code == 0 and "Nothing was uploaded" in out and "private" in out, err
    assert f"{file.stat().st_size:,}" in out and "README.md" in out
    assert not hub.exists() and FakeApi.private == {}
    code, out, err = retcon("patch", "push", "p.safetensors", "anna/facts")
    assert code == 0 and "hub.invalid" in out, err
    code, out, err = retcon("patch", "pull", "anna/facts")
    assert code == 0 and load_patch("facts.safetensors").about == load_patch(file).about, err
    code, _, err = retcon("patch", "pull", "anna/facts")
    assert code == 2 and "exists already" in err
    assert retcon("patch", "pull", "anna/facts", "-o", "facts.safetensors")[0] == 0
    code, _, err = retcon("patch", "pull", "anna/none")
    assert code == 2 and "anna/none" in err


OPTIONS = MomentOptions(corpus_tokens=300, document_tokens=32)


def test_second_moments_come_back_as_they_went(hub, tmp_path, monkeypatch):
    model = pico()
    mine = {k: m.total for k, m in load_moments(model, (0, 2), OPTIONS)}
    push_moments(model, (0, 2), OPTIONS, "anna/moments")
    monkeypatch.setenv("RETCON_CACHE", str(tmp_path / "another"))
    # Of other settings, or another model, there is nothing.
    assert pull_moments(model, (0, 2), MomentOptions(corpus_tokens=299), "anna/moments") == ()
    assert pull_moments(pico(seed=1), (0, 2), OPTIONS, "anna/moments") == ()
    assert pull_moments(model, (0, 2), OPTIONS, "anna/moments") == (0, 2)
    assert pull_moments(model, (0, 2), OPTIONS, "anna/moments") == ()
    monkeypatch.setattr("retcon.features.second_moments.collect_moments", None)
    for layer, moment in load_moments(model, (0, 2), OPTIONS):
        assert torch.equal(moment.total, mine[layer])


@pytest.mark.parametrize("damage", ["cut", "width", "sign", "lopsided", "tokens", "dtype"])
def test_bad_second_moments_are_not_kept(hub, tmp_path, monkeypatch, damage):
    model = pico()
    list(load_moments(model, (1,), OPTIONS))
    push_moments(model, (1,), OPTIONS, "anna/moments")
    found = next((hub / "anna/moments").rglob("*.safetensors"))
    total, tokens = load_file(found)["total"], 300
    if damage == "width":
        total = total[:-1, :-1].contiguous()
    elif damage == "sign":
        total[0, 0] = -1
    elif damage == "lopsided":
        total[0, 1] += 1
    elif damage == "tokens":
        tokens = 3
    elif damage == "dtype":
        total = total.float()
    save_file({"total": total}, found, {"retcon": json.dumps({"tokens": tokens})})
    if damage == "cut":
        found.write_bytes(found.read_bytes()[:-8])
    monkeypatch.setenv("RETCON_CACHE", str(tmp_path / "another"))
    with pytest.raises(InvalidMoments, match=r"layer-1\.safetensors"):
        pull_moments(model, (1,), OPTIONS, "anna/moments")
    assert not list((tmp_path / "another").rglob("layer-1.safetensors"))


def test_stats_push_and_pull(hub, tmp_path, monkeypatch, retcon):
    pico().model.save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    words = ["stats", "./model", "--layer", "1", "--set", "corpus_tokens=300"]
    code, out, err = retcon(*words, "--push", "anna/moments", "--dry-run")
    assert code == 0 and "layer-1.safetensors" in out and "Nothing was uploaded" in out, err
    assert not hub.exists()
    assert retcon(*words, "--push", "anna/moments")[0] == 0
    monkeypatch.setenv("RETCON_CACHE", str(tmp_path / "another"))
    code, out, err = retcon(*words, "--pull", "anna/moments")
    assert code == 0 and "Layers taken from anna/moments: 1." in out, err
    code, _, err = retcon(*words, "--dry-run")
    assert code == 2 and "--push" in err
