"""Ledgers: stacked, undone in part and as a whole, by many at once, and never by a hostile file."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache

import pytest
import torch
from safetensors.torch import save_file

from pico import pico, tokenizer
from retcon.errors import (
    InvalidLedger,
    InvalidPatch,
    InvalidSetting,
    PatchMismatch,
    StorageError,
    UnknownName,
)
from retcon.patch.combine import difference, stack, without
from retcon.patch.events import told
from retcon.patch.export.card import write_card
from retcon.patch.ledger import Ledger, read_source
from retcon.patch.patch import load_patch
from retcon.patch.verify import verify
from retcon.run.edit import edit as make
from retcon.run.schedule import Schedule
from retcon.run.undo import check_undo, resolve
from retcon.sealed import load_record, save_record
from test_methods import EDITS, FAST

SOFT = {**FAST, "ridge": 9.0}


@pytest.fixture
def model():
    return pico()


@cache
def patches():
    """Three facts in two layers, and two in one: made once, since nothing changes a patch."""
    model = pico()
    first = make(model, EDITS[:3], method="memit", layers=(0, 1), settings=SOFT)
    return first, make(model, EDITS[3:], method="emmet", layers=(1,), settings=FAST)


@pytest.fixture
def ledger(tmp_path):
    """Two patches on one model."""
    made = Ledger(tmp_path / "ledger")
    first, second = patches()
    made.add(first, who="ann", note="a to c", scores={"final": {"ES": 100.0, "NS": None}})
    second.save(tmp_path / "second.safetensors")
    made.add(tmp_path / "second.safetensors", who="bob")
    return made


def weights(model, patch):
    with patch.applied(model):
        return {k: model.site(k).weight.clone() for k in (0, 1)}


def ids(patch):
    return [edit.id for edit in patch.edits]


def test_a_stack_is_the_sum_of_its_entries(ledger, model):
    first, second = ledger.entries()
    assert (first.number, first.who, first.note, len(first.brought)) == (1, "ann", "a to c", 3)
    assert first.scores == {"final": {"ES": 100.0, "NS": None}} and first.when.tzinfo is not None
    assert second.about.method == "emmet" and second.about.settings["steps"] == FAST["steps"]
    together = ledger.stack()
    assert ids(together) == list("abcde") and together.about.base == model.fingerprint
    for layer in (0, 1):
        parts = [ledger.patch(n).deltas.get(layer) for n in (1, 2)]
        total = sum(part.dense() for part in parts if part is not None)
        assert torch.allclose(together.deltas[layer].dense(), total, atol=1e-12)
    assert ledger.stack(at=1).about == ledger.patch(1).about
    # The bytes of a file that was added are kept as they were.
    added = ledger.history[1].action.patch
    assert (ledger.folder / "patches" / f"{added}.safetensors").read_bytes() == (
        ledger.folder.parent / "second.safetensors"
    ).read_bytes()


def test_a_stack_is_saved_and_loaded_as_one_patch(ledger, tmp_path):
    together = ledger.stack()
    together.save(tmp_path / "one.safetensors")
    assert load_patch(tmp_path / "one.safetensors").about == together.about
    again = Ledger(tmp_path / "again")
    again.add(tmp_path / "one.safetensors", who="ann")
    assert ids(again.stack()) == list("abcde")
    again.undo(again.choose(["d"]), who="ann")
    assert ids(again.stack()) == list("abce")


def test_undoing_takes_exactly_those_rows_out(ledger, model):
    before = {k: ledger.stack().deltas[k].dense() for k in (0, 1)}
    b = without(ledger.patch(1), {"a", "c"})
    event = ledger.undo(ledger.choose(["b"]), who="ann", note="wrong after all")
    after = ledger.stack()
    assert ids(after) == list("acde") and event.number == 3
    for layer in (0, 1):
        gone = before[layer] - after.deltas[layer].dense()
        assert torch.allclose(gone, b.deltas[layer].dense(), atol=1e-12)
    # What is left are the same rows, to the bit.
    assert torch.equal(after.deltas[1].left[:2], ledger.stack(at=2).deltas[1].left[[0, 2]])
    (first, _) = ledger.entries()
    assert len(first.brought) == 3 and len(first.about.edits) == 2


def test_undoing_an_entry_is_the_stack_without_it_bit_for_bit(ledger, model):
    expected = weights(model, ledger.stack(at=1))
    ledger.undo(ledger.choose(entries=[2]), who="ann")
    assert all(torch.equal(expected[k], w) for k, w in weights(model, ledger.stack()).items())
    # Facts named one by one are an entry too.
    ledger.undo(ledger.choose(["a", "b", "c"]), who="ann")
    assert ledger.entries() == () and ledger.history[-1].action.entries == (1,)


def test_undoing_everything_is_the_original_model(ledger, model):
    original = model.weights_hash()
    with ledger.applied(model):
        assert model.weights_hash() != original
    assert model.weights_hash() == original
    ledger.undo(ledger.choose(list("abcde")), who="ann")
    with ledger.applied(model):
        assert model.weights_hash() == original and model.as_loaded
    with pytest.raises(PatchMismatch), ledger.applied(pico(seed=1)):
        pass


def test_history_is_kept_and_any_point_can_be_had_again(ledger, model):
    states = {2: weights(model, ledger.stack())}
    ledger.undo(ledger.choose(["a"], [2]), who="ann")
    states[3] = weights(model, ledger.stack())
    ledger.back_to(2, who="bob", note="no, keep them")
    ledger.back_to(0, who="bob")
    assert ledger.stack().edits == ()
    ledger.back_to(4, who="bob")
    for at, same in ((2, 2), (3, 3), (4, 2), (6, 2)):
        now = weights(model, ledger.stack(at))
        assert all(torch.equal(states[same][k], now[k]) for k in (0, 1))
    assert [event.action.kind for event in ledger.history] == (
        ["add", "add", "undo", "return", "return", "return"]
    )
    assert read_source(f"{ledger.folder}@3").about == ledger.stack(3).about
    with pytest.raises(UnknownName, match="0 to 6"):
        ledger.back_to(7, who="bob")


def test_re_solving_is_editing_without_the_fact(ledger, model):
    undoing = ledger.choose(["b"])
    solved = resolve(model, ledger, undoing)
    assert set(solved) == {1}
    expected = make(model, [EDITS[0], EDITS[2]], method="memit", layers=(0, 1), settings=SOFT)
    # One batch of three is recorded as such, and holds two as well.
    assert all(torch.equal(expected.deltas[k].left, solved[1].deltas[k].left) for k in (0, 1))
    assert not torch.equal(solved[1].deltas[1].left, ledger.patch(1).deltas[1].left[[0, 2]])
    ledger.undo(undoing, who="ann", solved=solved)
    assert ids(ledger.stack()) == list("acde")
    first, second = ledger.entries()
    assert (first.solved, len(first.brought), second.solved) == (3, 3, 0)
    ledger.undo(ledger.choose(["c"]), who="ann")
    assert ids(ledger.stack()) == list("ade")
    assert all(finding.problem is None for finding in verify(ledger, model))


def test_re_solving_keeps_the_refresh_rule(model, tmp_path):
    """Else targets that were made on the untouched model would be made on edited ones."""

    def made(edits, refresh):
        plan = Schedule.parse("sequential-batch:2", refresh)
        return make(model, edits, method="memit", layers=(1,), settings=SOFT, schedule=plan)

    ledger = Ledger(tmp_path / "frozen")
    made(EDITS, "never").save(tmp_path / "p.safetensors")
    ledger.add(tmp_path / "p.safetensors", who="ann")
    solved = resolve(model, ledger, ledger.choose(["b"]))[1]
    left = [edit for edit in EDITS if edit.id != "b"]
    expected, other = made(left, "never"), made(left, "each-batch")
    assert torch.equal(solved.deltas[1].left, expected.deltas[1].left)
    assert not torch.equal(expected.deltas[1].left, other.deltas[1].left)
    assert solved.about.refresh == "never"


def test_the_refresh_rule_is_shown(model, tmp_path, retcon, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    plan = Schedule.parse("sequential-batch:2", "never")
    frozen = make(model, EDITS, method="memit", layers=(1,), settings=SOFT, schedule=plan)
    usual = make(
        model, EDITS, method="memit", layers=(1,), settings=SOFT, schedule="sequential-batch:2"
    )
    assert difference(usual, frozen).settings == {"refresh": ("each-batch", "never")}
    parts = {"x": frozen, "y": usual}
    both = stack(parts, base=model.fingerprint, model="m")
    twice = stack({"x": frozen, "y": frozen}, base=model.fingerprint, model="m")
    assert difference(both, twice).settings == {"y: refresh": (None, "never")}
    for name, patch in (("frozen", frozen), ("both", both)):
        patch.save(tmp_path / name)
        code, out, err = retcon("patch", "show", str(tmp_path / name))
        assert code == 0 and out.count("sequential-batch:2, refresh never") == 1, err
    ledger = Ledger(tmp_path / "ledger")
    ledger.add(frozen, who="ann")
    assert "sequential-batch:2, refresh never" in retcon("patch", "list", str(ledger.folder))[1]
    write_card(tmp_path, frozen, relation="adapter", library="peft", use=[])
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "memit (sequential-batch:2, refresh never)" in card


def test_what_was_made_on_top_is_solved_again_too(ledger, model):
    with ledger.applied(model):
        top = make(
            model, [EDITS[0]], method="emmet", layers=(1,), settings={**FAST, "corpus": "self"}
        )
    with pytest.raises(PatchMismatch, match="base model too"):
        ledger.add(top, who="ann")
    entry = ledger.add(top, who="ann", model=model)
    assert entry.on == 2
    undoing = ledger.choose(["1:b"])
    assert set(resolve(model, ledger, undoing)) == {1, 3}
    assert set(resolve(model, ledger, ledger.choose(["e"]))) == {2, 3}
    assert set(resolve(model, ledger, ledger.choose(entries=[3]))) == set()
    with pytest.raises(PatchMismatch, match="so is its stack"):
        Ledger(ledger.folder).add(top, who="ann", model=model)


def test_the_check_shows_both_ways_and_changes_nothing(ledger, model):
    from retcon.edits import Case

    case = Case(edit=EDITS[1], paraphrases=("Marie Curie is from",))
    check = check_undo(model, ledger, ledger.choose(["b"]), [case])
    assert list(check.staying) == list(check.taken) == ["base", "now", "removed", "re-solved"]
    taken = {form: scores["target_probability"] for form, scores in check.taken.items()}
    assert taken["now"] > max(taken["base"], taken["removed"], taken["re-solved"])
    assert check.taken["now"]["paraphrase_token_accuracy"] is not None
    assert check.staying["now"]["paraphrase_token_accuracy"] is None
    assert len(ledger.history) == 2


def test_facts_are_found_or_the_error_says_what_there_is(ledger, model):
    twin = make(model, [EDITS[0]], method="emmet", layers=(1,), settings=FAST)
    ledger.add(twin, who="ann")
    assert ids(ledger.stack()) == ["1:a", "b", "c", "d", "e", "3:a"]
    with pytest.raises(InvalidSetting, match=r"entries 1, 3.*1:a"):
        ledger.choose(["a"])
    assert ledger.choose(["3:a"]).entries == (3,)
    with pytest.raises(UnknownName, match="no fact 'aa'"):
        ledger.choose(["aa"])
    with pytest.raises(UnknownName, match="entry '9'"):
        ledger.choose(entries=[9])
    with pytest.raises(InvalidSetting, match="what to take back"):
        ledger.choose()


def test_an_undo_made_out_before_somebody_else_s_is_refused(ledger):
    undoing = ledger.choose(["b"])
    ledger.undo(ledger.choose(["a"]), who="bob")
    with pytest.raises(InvalidLedger, match="by bob"):
        ledger.undo(undoing, who="ann")
    assert len(ledger.history) == 3


def test_writers_wait_for_each_other(ledger, tmp_path):
    """Eight processes and threads at once: every entry is there once, and none is lost."""
    code = (
        "import sys; from retcon.patch.ledger import Ledger\n"
        "for _ in range(3): Ledger(sys.argv[1] and __import__('pathlib').Path(sys.argv[1]))"
        ".add(sys.argv[2], who='process')"
    )
    words = [sys.executable, "-c", code, str(ledger.folder), str(tmp_path / "second.safetensors")]
    running = [subprocess.Popen(words) for _ in range(2)]
    with ThreadPoolExecutor(4) as pool:
        list(
            pool.map(lambda _: ledger.add(tmp_path / "second.safetensors", who="thread"), range(8))
        )
    assert [process.wait() for process in running] == [0, 0]
    assert [entry.number for entry in ledger.entries()] == list(range(1, 17))
    assert sum(entry.who == "process" for entry in ledger.entries()) == 6


@pytest.mark.parametrize("after", [0, 1])
def test_an_interrupted_write_loses_nothing(ledger, tmp_path, monkeypatch, after):
    """Killed while the patch is written, or between the patch and its event."""
    from retcon.patch import events as journal

    before, calls = ledger.entries(), []
    write = journal.write_whole

    def dying(*args, **kwargs):
        calls.append(args)
        if len(calls) > after:
            raise KeyboardInterrupt
        return write(*args, **kwargs)

    monkeypatch.setattr(journal, "write_whole", dying)
    with pytest.raises(KeyboardInterrupt):
        ledger.add(tmp_path / "second.safetensors", who="ann")
    monkeypatch.setattr(journal, "write_whole", write)
    assert ledger.entries() == before
    assert ledger.add(tmp_path / "second.safetensors", who="ann").number == 3
    assert not list(ledger.folder.rglob(".*-*"))


@pytest.mark.parametrize("what", ["event", "ledger"])
def test_a_full_disk_is_said_and_changes_nothing(ledger, tmp_path, monkeypatch, what):
    from retcon.patch import events as journal

    save = journal.save_record

    def full(file, value, owner, **more):
        if owner["kind"] == what:
            raise StorageError("full")
        save(file, value, owner, **more)

    monkeypatch.setattr(journal, "save_record", full)
    with pytest.raises(StorageError):
        ledger.add(tmp_path / "second.safetensors", who="ann")
    assert len(ledger.history) == 2


def test_other_models_and_other_folders_are_refused(ledger, tmp_path):
    other = make(pico(seed=1), EDITS[:1], method="emmet", layers=(1,), settings=FAST)
    with pytest.raises(PatchMismatch, match="this ledger"):
        ledger.add(other, who="ann")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x", encoding="utf-8")
    with pytest.raises(InvalidLedger, match=r"thesis\.tex"):
        Ledger(tmp_path / "mine").add(other, who="ann")
    with pytest.raises(InvalidLedger, match="is no ledger"):
        Ledger(tmp_path / "nowhere").entries()
    with pytest.raises(InvalidLedger, match="is no ledger"):
        Ledger(tmp_path / "nowhere").back_to(0, who="ann")
    assert not (tmp_path / "nowhere").exists()


def strip_seals(ledger):
    """Make it a ledger of format 1, as it was written before there were digests."""
    for file in [ledger.folder / "ledger.json", *(ledger.folder / "events").iterdir()]:
        record = json.loads(file.read_text(encoding="utf-8"))
        for name in ("seal", "previous", "head"):
            record.pop(name, None)
        record = record if "number" in record else {**record, "format": 1}
        file.write_text(json.dumps(record), encoding="utf-8")


def changed(ledger, event, **changes):
    file = ledger.folder / "events" / f"{event:06d}.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    for path, value in changes.items():
        place = record
        *parents, last = path.split("__")
        for parent in parents:
            place = place[parent]
        place[last] = value
    file.write_text(json.dumps(record), encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"number": 7}, "calls itself event 7"),
        ({"action__patch": "../../../../etc/passwd"}, "damaged.*pattern"),
        ({"action__patch": "0" * 64}, "no patch file"),
        ({"action__on": 2}, "earlier ones"),
        ({"action": {"kind": "return", "to": 5}}, "earlier ones"),
        ({"action": {"kind": "undo", "entries": [1, 1]}}, None),
        ({"action": {"kind": "undo", "facts": {"2": ["a"]}}}, "earlier ones"),
        ({"action": {"kind": "exec", "code": "import os"}}, "damaged"),
        ({"when": "yesterday"}, "damaged"),
        ({"when": "0001-01-01T00:00:00+23:59"}, "no such time"),
        ({"action": {"kind": "undo", "facts": {"1": ["A"]}}}, "'A', which entry 1 never had"),
        ({"extra": 1}, "damaged"),
    ],
)
def test_hostile_events_are_one_clear_error(ledger, changes, said):
    strip_seals(ledger)
    changed(ledger, 2, **changes)
    if said is None:
        assert ledger.stack().edits == ()
        return
    with pytest.raises((InvalidLedger, InvalidPatch), match=said):
        ledger.stack()


def test_damage_is_found(ledger, model):
    sha = ledger.history[0].action.patch
    file = ledger.folder / "patches" / f"{sha}.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-4] + b"\0\0\0\0")
    problems = [finding for finding in verify(ledger) if finding.problem]
    assert [finding.what for finding in problems] == ["patch of event 1", "the stack"]
    with pytest.raises(InvalidLedger, match="another hash"):
        ledger.stack()
    file.write_bytes(whole)
    assert not [finding for finding in verify(ledger, model) if finding.problem]
    problems = [finding for finding in verify(ledger, pico(seed=1)) if finding.problem]
    assert [finding.what for finding in problems] == ["apply and undo"]
    (ledger.folder / "events" / "000001.json").unlink()
    with pytest.raises(InvalidLedger, match="event 1 is missing"):
        ledger.entries()
    (ledger.folder / "ledger.json").write_text('{"format": 4}', encoding="utf-8")
    with pytest.raises(InvalidLedger, match="format 4"):
        ledger.entries()


def damage_event(folder):
    file = folder / "events" / "000003.json"
    file.write_bytes(file.read_bytes().replace(b'"b"', b'"B"'))


def forge_event(folder):
    """Change an event and seal it again; the last one is what the head knows."""
    file = folder / "events" / "000003.json"
    found = load_record(file, {})
    found.value["action"]["facts"]["1"] = ["c"]
    save_record(file, found.value, {"kind": "event", "number": 3})


def swap_events(folder):
    one, two = (folder / "events" / f"00000{n}.json" for n in (1, 2))
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)


def take_another_s(folder, what):
    other = Ledger(folder.parent / "other")
    other.add(make(pico(seed=1), EDITS[:1], method="emmet", layers=(1,), settings=FAST), who="x")
    (folder / what).write_bytes((other.folder / what).read_bytes())


ACCIDENTS = {
    "a letter of an undo": (damage_event, "does not match"),
    "another undo": (forge_event, "another history"),
    "the newest event is gone": (
        lambda folder: (folder / "events" / "000003.json").unlink(), "from event 3 on are missing"
    ),
    "all events are gone": (
        lambda folder: shutil.rmtree(folder / "events"), "from event 1 on are missing"
    ),
    "events change places": (swap_events, "number 2, and number 1 was asked for"),
    "another ledger's event": (lambda f: take_another_s(f, "events/000001.json"), "another ledger"),
    "another ledger's head": (lambda f: take_another_s(f, "ledger.json"), "does not follow"),
}  # fmt: skip
COMMANDS = [
    ["list"], ["verify"], ["show"], ["undo", "a"], ["undo", "--to", "1"],
    ["add", "second.safetensors"], ["diff", "second.safetensors"],
]  # fmt: skip


@pytest.mark.parametrize("accident", ACCIDENTS)
def test_accidents_to_a_history_are_found_by_every_command(ledger, accident, retcon, monkeypatch):
    ledger.undo(ledger.choose(["b"]), who="ann")
    monkeypatch.chdir(ledger.folder.parent)
    harm, said = ACCIDENTS[accident]
    harm(ledger.folder)
    before = sorted((path, path.stat().st_mtime_ns) for path in ledger.folder.rglob("*.json"))
    for name, *more in COMMANDS:
        code, _, err = retcon("patch", name, "ledger", *more)
        assert code == 2 and said in err, (name, err)
    assert before == sorted((p, p.stat().st_mtime_ns) for p in ledger.folder.rglob("*.json"))


def test_a_ledger_without_digests_is_read_and_its_next_event_begins_the_chain(ledger, model):
    ledger.undo(ledger.choose(["b"]), who="ann")
    expected = weights(model, ledger.stack())
    strip_seals(ledger)
    old = (ledger.folder / "events" / "000002.json").read_bytes()
    assert ids(ledger.stack()) == list("acde")
    assert all(torch.equal(expected[k], w) for k, w in weights(model, ledger.stack()).items())
    (first, *_) = verify(ledger, model)
    assert first.problem is None and "cannot be checked" in first.note
    ledger.undo(ledger.choose(["d"]), who="bob")
    assert ids(ledger.stack()) == list("ace") and len(ledger.history) == 4
    # All that was there before is in the chain.
    file = ledger.folder / "events" / "000002.json"
    assert file.read_bytes() == old
    file.write_bytes(old.replace(b"bob", b"eve"))
    with pytest.raises(InvalidLedger, match="does not follow"):
        ledger.entries()


def test_without_a_chain_another_model_s_ledger_json_is_still_told(ledger):
    strip_seals(ledger)
    file = ledger.folder / "ledger.json"
    record = {**json.loads(file.read_text(encoding="utf-8")), "base": "0" * 64}
    file.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(InvalidLedger, match="another ledger's"):
        ledger.entries()


def test_an_event_that_the_head_does_not_know_of_yet_counts(ledger, tmp_path, monkeypatch):
    """Killed between the event and the head."""
    from retcon.patch import events as journal

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(journal, "_write_head", die)
        ledger.undo(ledger.choose(["b"]), who="ann")
    assert ids(ledger.stack()) == list("acde")
    assert not [finding for finding in verify(ledger) if finding.problem or finding.note]
    ledger.undo(ledger.choose(["d"]), who="ann")
    (ledger.folder / "events" / "000004.json").unlink()
    with pytest.raises(InvalidLedger, match="from event 4 on are missing"):
        ledger.entries()


def test_a_patch_made_on_another_stack_than_its_event_says_is_found(ledger, model):
    with ledger.applied(model):
        top = make(
            model, [EDITS[0]], method="emmet", layers=(1,), settings={**FAST, "corpus": "self"}
        )
    ledger.add(top, who="ann", model=model)
    assert not [finding for finding in verify(ledger, model) if finding.problem]
    strip_seals(ledger)
    changed(ledger, 3, action__on=1)
    problems = [finding for finding in verify(ledger, model) if finding.problem]
    assert [finding.what for finding in problems] == ["base of event 3"]


def test_a_patch_of_the_ledger_in_another_s_place_is_found(ledger):
    one, two = sorted((ledger.folder / "patches").iterdir())
    one.write_bytes(two.read_bytes())
    for read in (ledger.entries, ledger.stack):
        with pytest.raises(InvalidLedger, match="another hash"):
            read()


def test_what_two_patches_do_differently(ledger, model):
    first, together = ledger.patch(1), ledger.stack()
    same = difference(first, first)
    assert same.layers[0].difference == 0 and not same.only_first and not same.settings
    found = difference(first, together)
    assert [edit.id for edit in found.only_second] == ["d", "e"] and not found.only_first
    assert found.layers[0].difference < 1e-6 * found.layers[0].first
    added = (together.deltas[1].dense() - first.deltas[1].dense()).norm()
    assert found.layers[1].difference == pytest.approx(float(added))
    assert found.settings["method"] == ("memit", "stack")
    other = make(pico(seed=1), EDITS[:1], method="emmet", layers=(1,), settings=FAST)
    with pytest.raises(PatchMismatch):
        difference(first, other)


def test_patches_without_facts_stack_and_leave_whole(ledger, model):
    about = ledger.patch(1).about.model_copy(update={"edits": (), "method": "lora"})
    bare = type(ledger.stack())(deltas=ledger.patch(1).deltas, about=about)
    with pytest.raises(InvalidPatch, match="do not belong to single facts"):
        without(bare, {"a"})
    with pytest.raises(InvalidPatch, match="do not belong"):
        stack({"1": bare, "2": ledger.patch(2)}, base=about.base, model="m")
    summed = stack({"1": bare, "2": bare}, base=about.base, model="m")
    assert torch.allclose(summed.deltas[1].dense(), 2 * bare.deltas[1].dense())


# On the command line.


@pytest.fixture
def folder(ledger, tmp_path, monkeypatch):
    pico().model.save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def test_a_ledger_on_the_command_line(folder, retcon):
    code, out, err = retcon("patch", "add", "new", "second.safetensors", "--who", "ann")
    assert code == 0 and "entry 1 (2 facts)" in out, err
    code, out, err = retcon("patch", "add", "new", "second.safetensors")
    assert code == 0 and "is also in entry 1" in err, err
    code, out, err = retcon("patch", "list", "ledger", "--json", "l.json")
    assert code == 0 and "a to c" in out and "3 facts" in out, err
    listed = json.loads((folder / "l.json").read_text(encoding="utf-8"))
    assert listed["entries"][0]["settings"]["ridge"] == 9.0 and listed["entries"][0]["who"] == "ann"
    code, out, err = retcon(
        "patch", "undo", "ledger", "b", "--check", "--model", "./model", "--json", "c.json"
    )
    assert code == 0 and "re-solved" in out and "Nothing was undone" in out, err
    assert "target_probability" in json.loads((folder / "c.json").read_text())["taken"]["removed"]
    code, out, err = retcon("patch", "undo", "ledger", "b", "--resolve", "--model", "./model")
    assert code == 0 and "1 fact removed; what stays was solved again" in out, err
    code, out, err = retcon("patch", "undo", "ledger", "--entry", "2", "--note", "why not")
    assert code == 0 and "2 facts removed" in out, err
    code, out, err = retcon("patch", "list", "ledger", "--history")
    assert code == 0 and "took back entry 2" in out and "the rest solved again" in out, err
    code, out, err = retcon("patch", "redo", "ledger", "--entry", "2")
    assert code == 0 and "put back entry 2" in out, err
    code, out, err = retcon("patch", "undo", "ledger", "--to", "2")
    assert code == 0, err
    code, out, err = retcon("patch", "show", "ledger")
    assert code == 0 and "Danielle Darrieux" in out and "Warsaw" in out, err
    code, out, err = retcon("patch", "show", "ledger", "2")
    assert code == 0 and "Danielle Darrieux" not in out and "Warsaw" in out, err
    code, out, err = retcon("patch", "stack", "ledger", "-o", "one.safetensors")
    assert code == 0 and "5 facts in layers 0, 1" in out, err
    code, out, err = retcon("patch", "diff", "ledger@1", "one.safetensors")
    assert code == 0 and "second only" in out, err
    code, out, err = retcon("patch", "verify", "ledger", "--model", "./model")
    assert code == 0 and "apply and undo" in out, err


def test_verify_finds_damage_and_looks_at_single_files_too(folder, retcon):
    code, out, err = retcon("patch", "verify", "second.safetensors", "--model", "./model")
    assert code == 0 and out.count("as it should be") == 2, err
    patch = read_source("second.safetensors")
    header = {"retcon": patch.about.model_dump_json()}
    tensors = {f"layer.1.{n}": getattr(patch.deltas[1], n) for n in ("left", "right")}
    save_file(tensors, "old.safetensors", header)
    code, out, err = retcon("patch", "verify", "old.safetensors", "--json", "v.json")
    assert code == 0 and "cannot be checked" in out, err
    assert json.loads((folder / "v.json").read_text())["findings"][0]["problem"] is None
    (folder / "second.safetensors").write_bytes(b"no")
    code, out, err = retcon("patch", "verify", "second.safetensors")
    assert code == 2 and "damaged one" in out and "1 of the 1" in err


BAD = [
    (["patch", "undo", "ledger"], "what to take back"),
    (["patch", "undo", "ledger", "zzz"], "no fact 'zzz'"),
    (["patch", "undo", "ledger", "a", "--to", "1"], "nothing beside"),
    (["patch", "undo", "ledger", "a", "--cases", "starter"], "--check should score"),
    (["patch", "undo", "ledger", "--to", "9"], "0 to 2"),
    (["patch", "list", "model"], "is no ledger"),
    (["patch", "add", "model", "second.safetensors"], "is no ledger"),
    (["patch", "show", "ledger", "7"], "Available: 1, 2"),
    (["patch", "show", "ledger@7"], "no event 7"),
    (["patch", "add", "ledger", "nowhere"], "no patch file"),
    (
        ["patch", "add", "ledger", "second.safetensors", "--scores", "model/config.json"],
        "no scores",
    ),
]


@pytest.mark.parametrize(("words", "said"), BAD, ids=[" ".join(w[:4]) for w, _ in BAD])
def test_mistakes_say_what_to_do(folder, retcon, words, said):
    code, _, err = retcon(*words)
    assert code == 2 and said in err


def test_control_characters_of_a_file_are_shown_and_not_obeyed(folder, retcon, model):
    patch = read_source("second.safetensors")
    about = patch.about.model_copy(update={"model": "\x1b[2Jgone\x07"})
    type(patch)(deltas=patch.deltas, about=about).save("bad.safetensors")
    code, out, _ = retcon("patch", "show", "bad.safetensors")
    assert code == 0 and "\x1b[2J" not in out and "\\x1b[2Jgone\\x07" in out


def test_what_was_taken_back_comes_back_to_its_place(ledger, model):
    before = weights(model, ledger.stack())
    ledger.undo(ledger.choose(["b", "d"], [1]), who="ann")
    assert [(e.number, [r.id for r in e.about.edits]) for e in ledger.outside()] == [
        (1, ["a", "b", "c"]),
        (2, ["d"]),
    ]
    ledger.put_back(["1:b"], who="bob")
    assert ids(ledger.stack()) == ["b", "e"]
    with pytest.raises(UnknownName, match="no fact 'e'"):
        ledger.put_back(["e"], who="bob")
    event = ledger.put_back(["d"], [1], who="bob", note="were right")
    assert (event.number, event.note, ledger.outside()) == (5, "were right", ())
    after = weights(model, ledger.stack())
    assert ids(ledger.stack()) == list("abcde")
    assert all(torch.equal(before[layer], after[layer]) for layer in before)
    assert not [finding for finding in verify(ledger, model) if finding.problem]


def test_an_entry_can_get_another_note(ledger):
    ledger.annotate(1, "as printed", who="bob")
    assert [entry.note for entry in ledger.entries()] == ["as printed", ""]
    assert ledger.history[0].note == "a to c" and len(ledger.entries(at=2)) == 2
    with pytest.raises(UnknownName, match="entry '7'"):
        ledger.annotate(7, "", who="bob")


def test_undone_put_back_and_undone_again_is_the_stack_each_time(ledger):
    """Also of an entry in the middle, and after a note: places do not depend on the way there."""
    stacks = [ledger.stack()]
    for _ in range(2):
        ledger.undo(ledger.choose(["b"]), who="ann")
        stacks.append(ledger.stack())
        ledger.annotate(1, "again", who="ann")
        ledger.undo(ledger.choose(["a", "c"]), who="ann")
        ledger.put_back(["a", "c"], who="ann")
        stacks.append(ledger.stack())
        ledger.put_back(["b"], who="ann")
        stacks.append(ledger.stack())
    for one, other in ((0, 3), (0, 6), (1, 2), (1, 4), (1, 5)):
        assert stacks[one].about == stacks[other].about
        for layer, delta in stacks[one].deltas.items():
            assert torch.equal(delta.dense(), stacks[other].deltas[layer].dense())
    assert told(ledger.history[5].action) == "put back entry 1 without b"
    assert told(ledger.history[6].action) == "put back entry 1"
    assert not [finding for finding in verify(ledger) if finding.problem]


def test_what_cannot_be_put_back_is_told_and_why(ledger, model):
    with pytest.raises(UnknownName, match="Entry 1 is in the stack"):
        ledger.put_back(entries=[1], who="ann")
    with pytest.raises(UnknownName, match="no fact 'a' among the 0 that can be put back"):
        ledger.put_back(["a"], who="ann")
    undoing = ledger.choose(["b"])
    ledger.undo(undoing, who="ann", solved=resolve(model, ledger, undoing))
    with pytest.raises(UnknownName, match=r"solved again in its place.*--to EVENT"):
        ledger.put_back(["b"], who="ann")
    with pytest.raises(UnknownName, match="Unknown entry '9'"):
        ledger.put_back(entries=[9], who="ann")


def test_a_put_back_that_leaves_out_what_never_was_is_found(ledger):
    ledger.undo(ledger.choose(["b"]), who="ann")
    ledger.put_back(["b"], who="ann")
    strip_seals(ledger)
    changed(ledger, 4, action__entries={"1": ["z"]})
    with pytest.raises(InvalidLedger, match="leaves out the fact 'z', which entry 1 never had"):
        ledger.stack()
    changed(ledger, 4, action__entries={"3": []})
    with pytest.raises(InvalidLedger, match="puts back entry 3, which there never was"):
        ledger.stack()


def test_redo_says_what_stays_as_it_was_solved_and_what_is_there_twice(folder, retcon, model):
    ledger = Ledger(folder / "ledger")
    with ledger.applied(model):
        top = make(
            model, [EDITS[0]], method="emmet", layers=(1,), settings={**FAST, "corpus": "self"}
        )
    ledger.add(top, who="ann", model=model)
    undoing = ledger.choose(["1:a"])
    ledger.undo(undoing, who="ann")
    code, out, err = retcon("patch", "redo", "ledger", "1:a")
    assert code == 0 and "undo ledger --to 4" in out and "solved again" not in err
    assert "is also in entry 1" in err
    undoing = ledger.choose(entries=[2])
    ledger.undo(undoing, who="ann", solved=resolve(model, ledger, undoing))
    code, out, err = retcon("patch", "redo", "ledger", "--entry", "2")
    assert code == 0 and "Entry 3 was solved again by event 6" in err and "--to 5" in err


def test_patches_of_earlier_versions_are_solved_again(tmp_path, model):
    """Their settings have turns on a sphere that the descent of the time did not make."""
    first, _ = patches()
    turns = {"first_angle": 50.0, "last_angle": 8.0, "momentum": 0.7}
    about = first.about.model_copy(update={"settings": {**first.about.settings, **turns}})
    ledger = Ledger(tmp_path / "ledger")
    ledger.add(replace(first, about=about), who="ann")
    (solved,) = resolve(model, ledger, ledger.choose(["b"])).values()
    assert ids(solved) == ["a", "c"] and "first_angle" not in solved.about.settings
