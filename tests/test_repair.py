"""Repair: who is not said is tried again, harm is watched, and all of it can be taken back."""

import json
from dataclasses import replace

import pytest
import torch

from pico import pico
from retcon.edits import Case, Edit, Probe
from retcon.errors import InvalidPatch, InvalidSetting, RetconWarning
from retcon.patch.combine import check_apart, stack
from retcon.patch.ledger import Ledger
from retcon.run import repair
from retcon.run.asked import FactVerdict, Tally
from retcon.run.edit import edit
from retcon.run.harm import ChangedProbe, Harm, harm_of
from retcon.run.repair import edit_until_said
from retcon.run.undo import resolve
from retcon.scoring.observations import Observation
from test_cli import SETTINGS, folder  # noqa: F401
from test_colliding import BORN, DIED, OTHER
from test_methods import EDITS, FAST

EMMET = {"method": "emmet", "layers": [1], "settings": FAST}
CASES = [Case(edit=one) for one in EDITS[:4]]


@pytest.fixture
def said_after(monkeypatch):
    """Let each fact be said from some try on, by its id; None: never."""

    def patched(needed: dict[str, int | None]) -> None:
        def ask(_model, cases, *, patch, progress):
            tries = {record.id: record.tries for record in patch.about.edits}
            return [
                FactVerdict(one.edit.id, one.edit.text, one.edit.target, "", {
                    "prompt": Tally(int(
                        one.edit.id in tries and (need := needed[one.edit.id]) is not None
                        and tries[one.edit.id] >= need
                    ), 1),
                })
                for one in cases
            ]  # fmt: skip

        monkeypatch.setattr(repair, "ask", ask)

    return patched


def dense(patch) -> torch.Tensor:
    return patch.deltas[1].dense()


def test_who_is_not_said_is_tried_again_and_left_out_in_the_end(said_after):
    said_after({"a": 0, "b": 1, "c": 2, "d": None})
    model = pico()
    repaired = edit_until_said(model, CASES, rounds=2, **EMMET)
    assert [(one.tried, one.said, one.kept) for one in repaired.rounds] == [
        (("a", "b", "c", "d"), 1, True), (("b", "c", "d"), 2, True), (("c", "d"), 3, True),
    ]  # fmt: skip
    assert (
        repaired.left_out == ("d",) and "Left out" in repaired.told() and "'d'" in repaired.told()
    )
    records = repaired.patch.about.edits
    assert [(one.id, one.tries) for one in records] == [("a", 0), ("b", 1), ("c", 2)]
    again = edit(model, EDITS[:3], tries={"b": 1, "c": 2}, **EMMET)
    assert again.about == repaired.patch.about
    assert (dense(again) - dense(repaired.patch)).abs().max() < 1e-5  # groups of other sizes
    assert not torch.allclose(dense(edit(model, EDITS[:3], **EMMET)), dense(again), atol=1e-3)


def test_targets_of_the_others_stay_and_harder_ones_reach_further():
    from retcon.method.presets import resolve

    model = pico()
    method = resolve(model.outline, **EMMET).build()
    state = method.setup.begin(model)
    once = method.features(model, EDITS[:3], state)
    again = method.retried(model, once, ["b"], 1, state)
    assert torch.equal(once.targets.delta[[0, 2]], again.targets.delta[[0, 2]])
    assert torch.equal(once.keys[[0, 2]], again.keys[[0, 2]])
    assert int(again.targets.steps[1]) == 2 * FAST["steps"]
    assert again.targets.nll[1] < once.targets.nll[1]


def test_facts_about_one_subject_are_tried_again_with_one_target():
    from retcon.method.presets import resolve

    model = pico()
    behind = Edit(id="behind", prompt="Here is {}, who", subject=BORN.subject, target=DIED.target)
    edits = [BORN, behind, OTHER]
    method = resolve(model.outline, **EMMET).build()
    state = method.setup.begin(model)
    once = method.features(model, edits, state)
    again = method.retried(model, once, [BORN.id], 1, state)
    assert not torch.equal(once.targets.delta[0], once.targets.delta[1])
    assert torch.equal(again.targets.delta[0], again.targets.delta[1])
    assert torch.equal(again.targets.delta[2], once.targets.delta[2])
    # Not where a text ends in two subjects, as "a b" and "b" do: these would be two targets.
    shorter = Edit(id="shorter", prompt="Here is {}", subject=BORN.subject, target=OTHER.target)
    longer = Edit(id="longer", prompt="Here {}", subject=f"is {BORN.subject}", target=BORN.target)
    edits = [shorter, longer, behind]
    once = method.features(model, edits, state)
    apart = method.retried(model, once, ["shorter", "longer"], 1, state)
    assert not torch.equal(apart.targets.delta[0], apart.targets.delta[2])


def test_a_round_that_changes_more_than_it_brings_is_taken_back(said_after, monkeypatch):
    said_after({"a": 0, "b": 1, "c": 0, "d": 0})
    probe = ChangedProbe("a", "Rome is in", "Italy", same_subject=False)
    counts = iter([0, 1, 0])
    monkeypatch.setattr(repair, "harm_of", lambda *_: Harm((probe,) * next(counts), 9))
    model = pico()
    repaired = edit_until_said(model, CASES, rounds=1, **EMMET)
    assert [one.kept for one in repaired.rounds] == [True, False] and repaired.left_out == ("b",)
    assert all(record.tries == 0 for record in repaired.patch.about.edits)


def test_nothing_is_repaired_where_all_is_said(said_after):
    said_after(dict.fromkeys("abcd", 0))
    model = pico()
    repaired = edit_until_said(model, CASES, rounds=3, **EMMET)
    plain = edit(model, EDITS[:4], **EMMET)
    assert len(repaired.rounds) == 1 and repaired.patch.about == plain.about
    assert torch.allclose(dense(repaired.patch), dense(plain), atol=1e-6)


def test_facts_with_one_target_are_tried_again_together_and_stay_together(said_after):
    said_after({"born": 0, "died": None, "other": 0})
    with pytest.warns(RetconWarning, match="One target"):
        repaired = edit_until_said(
            pico(), [Case(edit=one) for one in (BORN, DIED, OTHER)], rounds=1, **EMMET
        )
    assert repaired.left_out == () and len(repaired.patch.edits) == 3


def test_methods_without_targets_are_refused():
    with pytest.raises(InvalidSetting, match="does not try again"):
        edit_until_said(pico(), CASES, rounds=1, method="finetune", layers=[1])


def test_undo_solves_again_for_what_was_tried_again(said_after, tmp_path):
    said_after({"a": 0, "b": 1, "c": 0, "d": 0})
    model = pico()
    edit_until_said(model, CASES, rounds=1, **EMMET).patch.save(tmp_path / "p.safetensors")
    ledger = Ledger(tmp_path / "ledger")
    ledger.add(tmp_path / "p.safetensors", who="me")
    solved = resolve(model, ledger, ledger.choose(["a"]))
    without = edit(model, EDITS[1:4], tries={"b": 1}, **EMMET)
    (again,) = solved.values()
    assert again.about.edits == without.about.edits
    assert torch.allclose(dense(again), dense(without), atol=1e-6)


def test_one_of_several_facts_with_one_target_is_not_taken_out_by_itself(tmp_path):
    with pytest.warns(RetconWarning, match="One target"):
        patch = edit(pico(), [BORN, DIED, OTHER], **EMMET)
    check_apart(patch, ["born", "died"])
    check_apart(patch, ["other"])
    with pytest.raises(InvalidPatch, match=r"'born' and 'died' .*--resolve"):
        check_apart(patch, ["born"])
    # Likewise of a part of a stack, and of none of the others.
    plain = edit(pico(), [replace(EDITS[0], id="plain"), EDITS[1]], **EMMET)
    together = stack({"x": plain, "y": patch}, base=patch.about.base, model="m")
    check_apart(together, ["plain", "born", "died"])
    with pytest.raises(InvalidPatch, match="'died' and 'born'"):
        check_apart(together, ["plain", "died"])
    patch.save(tmp_path / "p.safetensors")
    ledger = Ledger(tmp_path / "ledger")
    ledger.add(tmp_path / "p.safetensors", who="me")
    with pytest.raises(InvalidPatch, match="one target"):
        ledger.undo(ledger.choose(["born"]), who="me")
    ledger.undo(ledger.choose(["other"]), who="me")
    assert [one.id for one in ledger.stack().edits] == ["born", "died"]


def row(kind: str, index: int, hits: int, *, when: str = "pre") -> Observation:
    new = {"n_new": 2, "hits_new": hits} if kind == "locality" else {"n_new": 2, "hits_new": 0}
    return Observation(
        case="a", relation=None, kind=kind, index=index, when=when, step=0,
        n_old=2, hits_old=hits, **new,
    )  # fmt: skip


def test_harm_is_of_probes_that_were_right_before():
    case = Case(
        edit=Edit.parse("{Paris} is in", "Italy", id="a", target_old="France"),
        neighbours=("Lyon is in", "Nice is in"),
        locality=(Probe(prompt="In paris they speak", answer="French"),),
    )
    before = [row("neighbour", 0, 2), row("neighbour", 1, 1), row("locality", 0, 2)]
    after = [row("neighbour", 0, 1), row("neighbour", 1, 1), row("locality", 0, 1)]
    harm = harm_of(before, after, [case])
    assert harm.right_before == 2 and harm_of(before, before, [case]).changed == ()
    assert harm.changed == (
        ChangedProbe("a", "Lyon is in", "France", same_subject=False),
        ChangedProbe("a", "In paris they speak", "French", same_subject=True),
    )
    assert "2 of 2 probes" in harm.told() and "'Lyon is in' (France)" in harm.told()
    assert Harm((), 3).told() == "" and harm.record()["right_before"] == 2


def test_the_command_line_repairs(folder, retcon):  # noqa: F811
    words = ["edit", "./model", "--facts", "facts.jsonl", "--method", "emmet", "--layer", "1"]
    code, _, err = retcon(*words, *SETTINGS, "--until-said", "1", "--json", "e.json")
    assert code == 0 and "0 at first" in err
    result = json.loads((folder / "e.json").read_text(encoding="utf-8"))
    assert [one["said"] for one in result["repair"]["rounds"]] == [0, 0]
    assert result["probes"]["right_before"] == 0 and result["probes"]["changed"] == []
    code, _, err = retcon(*words, "--until-said", "1", "--schedule", "sequential")
    assert code == 2 and "one batch" in err
