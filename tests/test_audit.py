"""The audit of a patch: what its rows give away, beside an oracle, and the card."""

import json
from dataclasses import asdict, replace

import pytest
import torch

from pico import pico
from retcon.data.cases import starter_cases
from retcon.edits import Case
from retcon.errors import InvalidPatch, InvalidSetting, PatchMismatch
from retcon.features.keys import read_keys
from retcon.patch.audit import audit
from retcon.patch.combine import stack
from retcon.patch.patch import EditRecord
from retcon.run.edit import edit as make
from retcon.run.scorecard import scorecard
from test_cli import SETTINGS, folder  # noqa: F401
from test_methods import EDITS, build, fast

WAYS = [
    ("rome", (1,), {}, "sequential"),
    ("emmet", (1,), {}, None),
    ("memit", (1,), {"ridge": 20.0}, None),
    ("memit", (1,), {"ridge": 20.0}, "sequential-batch:2"),
    ("memit", (0, 1), {"ridge": 20.0}, None),
    ("alphaedit", (1,), {"null_threshold": 1.0, "null_relative": True}, None),
]


def patch_of(model, name="memit", layers=(1,), settings=None, schedule=None, edits=EDITS):
    chosen = {**fast(name), **(settings or {})}
    return make(model, edits, method=name, layers=layers, settings=chosen, schedule=schedule)


@pytest.mark.parametrize(("name", "layers", "settings", "schedule"), WAYS)
def test_facts_are_found_again_by_rows_alone(name, layers, settings, schedule, cache):
    model = pico()
    patch = patch_of(model, name, layers, settings, schedule)
    original = model.weights_hash()
    seen = audit(model, patch)
    assert model.weights_hash() == original
    assert seen.in_clear == 5 and seen.ranks == dict.fromkeys(layers, (5, 48))
    assert all(one.listed and one.span > 0.99 for one in seen.candidates)
    assert seen.auc["span"] == 1 and seen.auc["moved"] > 0.6
    assert {one.chance for one in seen.candidates} == {1 / (1 + seen.decoys)}


def test_scores_are_those_of_an_oracle(cache):
    """The span by the quadratic form of the rows, what moves by the dense change."""
    model = pico(dtype=torch.float64)
    patch = patch_of(model, settings={"ridge": 20.0}, edits=EDITS[:3])
    seen = audit(model, patch, EDITS)
    editor = build("memit", (1,), {"ridge": 20.0})
    state = editor.setup.begin(model)
    factor = state.memory.preservations[1].base.factor
    metric, rows = factor @ factor.mT, patch.deltas[1].right.double()
    subjects = {edit.subject for edit in EDITS}
    decoys = [c.edit for c in starter_cases() if c.edit.subject not in subjects]
    weights = editor.contexts.weights(len(state.prefixes))
    everyone = [*EDITS, *decoys]
    keys = read_keys(model, everyone, state.prefixes, [1], weights)[1]
    inner, spans, moved = rows @ metric @ rows.mT, {}, {}
    for edit, key in zip(everyone, keys, strict=True):
        seen_by = rows @ key
        whole = key @ torch.linalg.solve(metric, key)
        spans[edit.id] = float(seen_by @ torch.linalg.solve(inner, seen_by) / whole)
        moved[edit.id] = float((patch.deltas[1].dense() @ key).norm() / key.norm())
    usual = sorted(moved[edit.id] for edit in decoys)[(len(decoys) - 1) // 2]
    for one in seen.candidates:
        assert one.span == pytest.approx(spans[one.edit.id], rel=1e-3)
        assert one.moved == pytest.approx(moved[one.edit.id] / usual, rel=1e-3)
        above = sum(spans[edit.id] >= spans[one.edit.id] for edit in decoys)
        assert one.chance == (1 + above) / (1 + len(decoys))
    assert [one.listed for one in seen.candidates] == [True] * 3 + [False] * 2
    found = [one.span for one in seen.candidates]
    assert found == sorted(found, reverse=True) and seen.decoys == len(decoys)
    listed = {edit.id for edit in EDITS[:3]}
    pairs = [(spans[a], spans[b.id]) for a in listed for b in everyone if b.id not in listed]
    assert seen.auc["span"] == sum(a > b for a, b in pairs) / len(pairs)


def test_a_header_without_facts_hides_little(cache):
    model = pico()
    patch = patch_of(model, settings={"ridge": 20.0}, edits=EDITS[:3])
    bare = replace(patch, about=patch.about.model_copy(update={"edits": ()}))
    with pytest.raises(InvalidSetting, match="--candidates"):
        audit(model, bare)
    seen, stripped = (audit(model, one, EDITS) for one in (patch, bare))
    assert [one.span for one in seen.candidates] == [one.span for one in stripped.candidates]
    assert stripped.in_clear == 0 and stripped.auc == {"span": None, "moved": None}
    assert "lists no facts" in stripped.sentences()[0]
    assert "in clear" in seen.sentences()[0] and "100.0 %" in seen.sentences()[2]


def test_stacks_and_patches_of_other_methods_are_audited(cache):
    model = pico()
    first = patch_of(model, settings={"ridge": 20.0}, edits=EDITS[:2])
    second = patch_of(model, "rome", (0,), edits=EDITS[2:3])
    base = {"base": first.about.base, "model": "pico"}
    seen = audit(model, stack({"1": first, "2": second}, **base))
    assert seen.ranks == {0: (1, 48), 1: (2, 48)}
    tuned = audit(model, patch_of(model, "finetune", edits=EDITS))
    assert tuned.ranks[1][0] > 5 and tuned.auc["span"] is not None


def test_what_cannot_be_audited_is_refused(cache):
    model = pico()
    patch = patch_of(model, settings={"ridge": 20.0}, edits=EDITS[:1])
    with pytest.raises(PatchMismatch):
        audit(pico(seed=1), patch)
    starter = [EditRecord(**asdict(case.edit)) for case in starter_cases()]
    full = replace(patch, about=patch.about.model_copy(update={"edits": tuple(starter)}))
    with pytest.raises(InvalidSetting, match="holds all facts of the starter set"):
        audit(model, full)
    others = {edit.subject for edit in EDITS} - {one.subject for one in starter}
    assert audit(model, full, [*full.edits, *EDITS]).decoys == len(others) > 0
    empty = replace(patch, deltas={}, about=patch.about.model_copy(update={"layers": ()}))
    with pytest.raises(InvalidPatch, match="changes nothing"):
        audit(model, empty)


def test_the_card_has_the_scores_of_the_patch(cache):
    import retcon

    model = pico()
    patch = patch_of(model, settings={"ridge": 20.0}, edits=EDITS[:2])
    cases = [
        Case(
            edit=replace(edit, target_old="French"),
            paraphrases=("Paris is",),
            neighbours=("Rome is",),
        )
        for edit in EDITS[:2]
    ]
    card = scorecard(model, patch, audit(model, patch), cases)
    again = retcon.score(model, cases, patch=patch, metrics=["said", "leaks", "perplexity"])
    for name in ("said", "stays", "said_truth", "ES", "PS", "NS", "perplexity"):
        for when in ("pre", "final"):
            assert card.scores.scores(when)[name] == again.scores(when)[name]
    page = card.markdown()
    assert page.startswith("# A patch of 2 facts in pico") and "| ES, % |" in page
    assert "Danielle Darrieux" in page and "in clear" in page
    assert page.index("Says it freely") < page.index("| ES, % |")


def test_the_command_prints_and_writes_a_card(folder, retcon):  # noqa: F811
    code, _, err = retcon(
        "edit", "./model", "--facts", "facts.jsonl", "--method", "memit", "--layer", "1",
        "-o", "p.safetensors", *SETTINGS,
    )  # fmt: skip
    assert code == 0, err
    names = "Danielle Darrieux\nThe capital city of {France} is\n\nSomebody Else\n"
    (folder / "names.txt").write_text(names, encoding="utf-8")
    audited = ("patch", "audit", "p.safetensors", "--model", "./model")
    code, out, err = retcon(
        *audited, "--candidates", "names.txt", "--card", "card.md", "--cases", "facts.jsonl",
        "--json", "a.json",
    )  # fmt: skip
    assert code == 0, err
    assert "in clear" in out and "Somebody Else" in out and "Says it freely" in out
    record = json.loads((folder / "a.json").read_text(encoding="utf-8"))
    heads = {one["head"]: one for one in record["candidates"]}
    assert heads["The capital city of France"]["span"] > 0.99
    assert not heads["Somebody Else"]["listed"] and heads["Danielle Darrieux"]["listed"]
    assert record["scores"]["final"]["ES"][0] is not None
    assert "## What the file gives away" in (folder / "card.md").read_text(encoding="utf-8")
    code, out, err = retcon(*audited)
    assert code == 0 and "3 candidates" in out and "Says it freely" not in out, err
    code, _, err = retcon(*audited, "--cases", "facts.jsonl")
    assert code == 2 and "--card" in err
    (folder / "none.txt").write_text("\n", encoding="utf-8")
    code, _, err = retcon(*audited, "--candidates", "none.txt")
    assert code == 2 and "no names" in err
