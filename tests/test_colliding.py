"""Facts with one key: who gets into whose way, and what is said before any work is done."""

import dataclasses
import json

import pytest
import torch

from pico import pico, tokenizer
from retcon.edits import Case, Edit
from retcon.errors import CollidingEdits, RetconWarning
from retcon.method.entries import find_method
from retcon.run.edit import edit
from retcon.run.evaluate import evaluate
from retcon.run.schedule import Schedule
from retcon.run.shared_keys import clashes, grouped, warned_of

FAST = {"steps": 2, "corpus_tokens": 300, "document_tokens": 32, "jitter": 1e-3, "prefixes": 1}
BORN = Edit.parse("{Marie Curie} was born in", "Rome", id="born")
DIED = Edit.parse("{Marie Curie} is of", "Paris", id="died")
OTHER = Edit.parse("The capital city of {France} is", "Rome", id="other")
APART = Edit.parse("The mother tongue of {Marie Curie} is", "Polish", id="apart")
AGAIN = dataclasses.replace(BORN, id="again", target="Madrid")

GROUPS = [
    # method and settings, schedule, refresh, edits, ids of each group, whether it is refused
    ("memit", {}, "batch:4", "each-batch", (BORN, OTHER, DIED, APART), [("born", "died")], False),
    ("memit", {}, "batch:2", "each-batch", (BORN, OTHER, DIED, APART), [], False),
    ("memit", {}, "single", "each-batch", (BORN, DIED), [], False),
    ("memit", {}, "sequential", "never", (BORN, OTHER, DIED), [("born", "died")], False),
    ("memit", {"accumulate": False}, "sequential", "never", (BORN, DIED),
     [("born", "died")], False),
    ("memit", {}, "sequential", "each-batch", (BORN, AGAIN), [], False),
    ("memit", {}, "batch:9", "each-batch", (BORN, AGAIN, APART), [], False),
    ("memit", {}, "batch:9", "each-batch", (BORN, AGAIN, DIED), [("born", "again", "died")], False),
    ("memit", {"merge_subjects": True}, "batch:2", "each-batch", (BORN, DIED), [], False),
    ("memit", {"merge_subjects": True}, "sequential", "each-batch", (BORN, DIED),
     [("born", "died")], False),
    ("memit", {"merge_subjects": True}, "sequential", "never", (BORN, DIED), [], False),
    ("memit", {}, "adaptive-aimd:1", "each-batch", (BORN, DIED), [("born", "died")], False),
    ("alphaedit", {}, "batch:2", "each-batch", (BORN, DIED), [("born", "died")], False),
    ("encore", {}, "batch:2", "each-batch", (BORN, DIED), [("born", "died")], False),
    ("lyaplock", {}, "sequential", "each-batch", (BORN, DIED), [("born", "died")], False),
    ("rome", {}, "sequential", "each-batch", (BORN, DIED), [("born", "died")], False),
    ("rome", {}, "sequential", "each-batch", (BORN, AGAIN), [], False),
    ("emmet", {}, "batch:2", "each-batch", (BORN, DIED), [("born", "died")], True),
    ("emmet", {}, "batch:2", "each-batch", (BORN, AGAIN), [("born", "again")], True),
    ("emmet", {}, "sequential", "each-batch", (BORN, AGAIN), [("born", "again")], True),
    ("emmet", {"accumulate": False}, "sequential", "each-batch", (BORN, AGAIN), [], False),
    ("emmet", {"accumulate": False}, "sequential", "each-batch", (BORN, DIED),
     [("born", "died")], False),
    ("emmet", {"ridge": 9.0}, "batch:2", "each-batch", (BORN, DIED), [("born", "died")], False),
    ("emmet", {"lookup": "prompt"}, "batch:2", "each-batch", (BORN, DIED), [], False),
    ("emmet", {"lookup": "prompt"}, "batch:3", "each-batch", (BORN, DIED, AGAIN),
     [("born", "again")], True),
    ("memit", {"lookup": "prompt"}, "batch:9", "each-batch", (BORN, AGAIN, DIED), [], False),
    ("ultraedit", {}, "batch:2", "each-batch", (BORN, DIED), [], False),
    ("finetune", {}, "batch:2", "each-batch", (BORN, DIED), [], False),
    ("in_context", {}, "batch:2", "each-batch", (BORN, DIED), [], False),
]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "settings", "schedule", "refresh", "edits", "ids", "hard"), GROUPS
)
def test_who_gets_into_whose_way(method, settings, schedule, refresh, edits, ids, hard):
    editor = find_method(method).build((1,), settings)
    found = clashes(
        editor, edits, Schedule.parse(schedule, refresh), grouped(edits, lambda e: e.head)
    )
    assert [tuple(e.id for e in clash.edits) for clash in found] == ids
    assert all(clash.refused == hard for clash in found)


@pytest.fixture
def no_work(monkeypatch):
    """Whatever comes after the checks fails."""

    def begin(*_args, **_kwargs):
        raise AssertionError("work was begun")

    monkeypatch.setattr("retcon.method.locate_then_edit.LocateThenEdit.features", begin)
    monkeypatch.setattr("retcon.run.looks.score_cases", begin)


def test_it_is_said_before_the_work_in_python(no_work):
    model = pico()
    with (
        pytest.warns(RetconWarning, match="'born' .Marie Curie., 'died' .Marie Curie.") as said,
        pytest.raises(AssertionError, match="work was begun"),
    ):
        edit(model, [BORN, OTHER, DIED], method="memit", layers=[1])
    (warning,) = said
    assert "2 facts have the same key" in str(warning.message)
    assert "merge_subjects=true" in str(warning.message)
    cases = [Case(edit=one) for one in (BORN, DIED)]
    with pytest.warns(RetconWarning), pytest.raises(AssertionError):
        evaluate(model, cases, method="memit", layers=[1], schedule="batch:2")


def test_a_hard_constraint_refuses_before_the_work(no_work):
    with pytest.raises(CollidingEdits, match=r"'born' .*'died' .*Drop one of them"):
        edit(pico(), [BORN, DIED], method="emmet", layers=[1], settings={"merge_subjects": False})
    with pytest.raises(CollidingEdits, match=r"'born' .*'again' "):
        edit(pico(), [BORN, AGAIN], method="emmet", layers=[1])


@pytest.mark.parametrize("method", ["emmet", "memit"])
def test_facts_with_one_key_get_one_target_by_themselves(method):
    """As if it had been asked for; the settings of the patch have it, so that undo has it too."""
    model, facts = pico(), [BORN, OTHER, DIED]
    with pytest.warns(RetconWarning, match="One target is made for all facts of a key"):
        patch = edit(model, facts, method=method, layers=[1], settings=FAST)
    asked = edit(model, facts, method=method, layers=[1], settings={**FAST, "merge_subjects": True})
    assert patch.about == asked.about and patch.about.settings["merge_subjects"] is True
    assert torch.equal(patch.deltas[1].dense(), asked.deltas[1].dense())
    apart = edit(model, [BORN, OTHER], method=method, layers=[1], settings=FAST)
    assert apart.about.settings["merge_subjects"] is False


def test_one_target_is_no_help_where_facts_are_in_several_batches():
    with pytest.warns(RetconWarning, match="as a rule none of them|The last of them"):
        patch = edit(
            pico(), [BORN, DIED], method="memit", layers=[1], settings=FAST, schedule="sequential"
        )
    assert patch.about.settings["merge_subjects"] is False


def test_tokens_decide_and_not_the_text():
    """A token that reaches over the subject's end parts two facts; equal tokens join them."""
    model = pico()
    inside = Edit.parse("{Mar}ie is", "Rome", id="a")
    short = Edit.parse("{Mar} is", "Paris", id="b")
    assert inside.head == short.head
    ids = [model.tokens.locate(e.text, e.subject_start, e.subject_end) for e in (inside, short)]
    assert ids[0].ids[: ids[0].lookup + 1] != ids[1].ids[: ids[1].lookup + 1]
    edit(model, [inside, short], method="emmet", layers=[1], settings=FAST)


def test_many_groups_are_counted():
    edits = [Edit.parse(f"{{N{i}}} is {k}", "x", id=f"{i}-{k}") for i in range(5) for k in range(6)]
    editor = find_method("memit").build((1,), {})
    found = clashes(editor, edits, Schedule.parse("batch:30"), grouped(edits, lambda e: e.head))
    with pytest.warns(RetconWarning) as said:
        warned_of(editor, found)
    text = str(said[0].message)
    assert "30 facts have the same" in text and "'0-3' (N0) and 2 others" in text
    assert "'3-0'" not in text and "and 2 more such groups" in text


def test_the_command_line_warns_and_records_it(tmp_path, monkeypatch, retcon):
    pico().model.save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    facts = [{"id": e.id, "prompt": e.fact, "target": e.target} for e in (BORN, OTHER, DIED)]
    (tmp_path / "f.jsonl").write_text("\n".join(map(json.dumps, facts)))
    words = ["--method", "memit", "--layer", "1", "--json", "r.json",
             *(x for k, v in FAST.items() for x in ("--set", f"{k}={v}"))]  # fmt: skip
    code, _, err = retcon("edit", "./model", "--facts", "f.jsonl", *words)
    assert code == 0 and err.count("warning: 2 facts have the same key") == 1, err
    assert "have the same key" in json.loads((tmp_path / "r.json").read_text())["warnings"][0]
    code, _, err = retcon("eval", "./model", "--cases", "f.jsonl", "--schedule", "batch:3", *words)
    record = json.loads((tmp_path / "r.json").read_text())
    assert code == 0 and sorted(*record["shared_keys"]) == ["born", "died"], err
    code, _, err = retcon(
        "edit", "./model", "--facts", "f.jsonl", *words, "--set", "merge_subjects=true"
    )
    assert code == 0 and "have the same key" not in err
