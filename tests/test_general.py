"""`retcon eval --drift --ability`: what is measured of the whole model, and when."""

import json
import math

import pytest

from pico import pico, tokenizer
from retcon.cli.general import finite
from retcon.data.held_out import held_out
from retcon.edits import Case, Edit
from retcon.run.edit import edit as make
from retcon.run.evaluate import evaluate
from retcon.scoring.metrics import Observer, estimate
from retcon.scoring.observations import Observation, alike
from retcon.scoring.perplexity import read_passages
from test_cli import FACTS, FAST, SETTINGS

EMMET = ["--method", "memit", "--layer", "1", "--set", "ridge=0.1", *SETTINGS]
ITEMS = [
    {"question": f"What is {i}?", "choices": ["Rome", "Paris"], "answer": i % 2} for i in range(6)
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a model, facts and a task; also the working directory."""
    pico().model.save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    for name, lines in (("facts.jsonl", FACTS), ("arc_easy_test_6.jsonl", ITEMS)):
        text = "\n".join(json.dumps(line) for line in lines)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("RETCON_DATA", raising=False)
    return tmp_path


def evaluated(folder, retcon, *words: str) -> tuple[dict, str]:
    code, out, err = retcon(
        "eval", "./model", "--cases", "facts.jsonl", "--drift", "--ability", "4", "--data", ".",
        "--json", "v.json", *words,
    )  # fmt: skip
    assert code == 0, err
    return json.loads((folder / "v.json").read_text(encoding="utf-8")), out


def measured(result: dict) -> list[str]:
    """The times of both measures, which are the same."""
    times = [w for w in ("pre", "immediate", "final") if result["drift"][w] is not None]
    for task in result["ability"].values():
        assert [w for w in ("pre", "immediate", "final") if task[w] is not None] == times
    return times


@pytest.mark.parametrize(
    ("schedule", "times"),
    [
        ("single", ["pre"]),
        ("batch:2", ["pre"]),
        ("batch:3", ["pre", "immediate"]),
        ("sequential-batch:2", ["pre", "final"]),
    ],
)
def test_the_whole_is_measured_where_one_model_holds_all_edits(schedule, times, folder, retcon):
    result, out = evaluated(folder, retcon, *EMMET, "--schedule", schedule)
    assert measured(result) == times
    assert ("no model holds them all" in " ".join(out.split())) is (len(times) == 1)
    drift, task = result["drift"], result["ability"]["arc_easy"]
    assert (drift["ratio"] is None) is (len(times) == 1) is (task["change"] is None)
    assert ("change" in out) is (len(times) == 2) and "Perplexity of held-out text" in out
    assert (drift["corpus"], drift["apart_from_corpus"]) == ("self", True)
    if len(times) == 2:
        after = drift[times[1]]
        assert drift["ratio"][0] == pytest.approx(after["perplexity"] / drift["pre"]["perplexity"])
        assert drift["ratio"][0] != 1 and len(task[times[1]]["right"]) == 4


def test_an_unedited_model_and_a_patch(folder, retcon):
    result, out = evaluated(folder, retcon)
    assert measured(result) == ["pre"] and result["drift"]["corpus"] is None
    assert "no model holds them all" not in out
    text, model = held_out(), pico()
    assert result["drift"]["passages"] == list(text.texts)
    assert result["drift"]["pre"]["perplexity"] == pytest.approx(
        estimate(read_passages(model, text.texts), "perplexity").mean, rel=1e-4
    )
    facts = [Edit.parse(fact["prompt"], fact["target"], id=str(i)) for i, fact in enumerate(FACTS)]
    settings = dict(pair.split("=") for pair in FAST)
    patch = make(model, facts, method="memit", layers=[1], settings={**settings, "ridge": 0.1})
    patch.save("p.safetensors")
    result, _ = evaluated(folder, retcon, "--patch", "p.safetensors")
    assert measured(result) == ["pre", "final"]


def test_without_being_asked_nothing_is_measured(folder, retcon):
    code, out, err = retcon("eval", "./model", "--cases", "facts.jsonl", "--json", "v.json")
    assert code == 0, err
    result = json.loads((folder / "v.json").read_text(encoding="utf-8"))
    assert result["drift"] is None and result["ability"] is None and "beside" not in out


def test_mistakes_are_named(folder, retcon):
    base = ["eval", "./model", "--cases", "facts.jsonl"]
    code, _, err = retcon(*base, "--ability", "3")
    assert code == 2 and "RETCON_DATA" in err
    code, _, err = retcon(*base, "--ability", "0", "--data", ".")
    assert code == 2 and "at least 1" in " ".join(err.split())
    code, _, err = retcon(*base, "--drift-text", "nowhere.txt")
    assert code == 2 and "nowhere.txt" in err
    code, _, err = retcon(*base, "--option", "target=alt")
    assert code == 2 and "option of the data set plain 'target'" in " ".join(err.split())
    paragraph = "The capital city of France is Paris, and that of Italy is Rome. " * 4
    (folder / "text.txt").write_text("\n".join([paragraph] * 40), encoding="utf-8")
    words = [*EMMET, "--set", "corpus=text.txt", "--drift-text", "text.txt"]
    code, _, err = retcon(*base, *words)
    assert code == 2 and "second moments" in " ".join(err.split())


def test_a_measured_trial_is_the_trial():
    cases = [
        Case(edit=Edit.parse(fact["prompt"], fact["target"], id=str(i)))
        for i, fact in enumerate(FACTS)
    ]
    options = {
        "method": "memit", "layers": [1], "schedule": "sequential-batch:2",
        "settings": dict(pair.split("=") for pair in FAST),
    }  # fmt: skip
    model = pico()
    before = model.weights_hash()

    def observe(model, cases, moment, progress):
        return [Observation("the model", None, "hash", 0, *moment, text=model.weights_hash())]

    hashes = Observer(observe=observe, at=("pre", "final"), whole=True)
    rows = evaluate(model, cases, metrics=[hashes], **options).rows
    assert [row for row in rows if row.kind != "hash"] == evaluate(model, cases, **options).rows
    seen = {row.when: row.text for row in rows if row.kind == "hash"}
    assert seen["pre"] == before == model.weights_hash()
    assert seen["final"] != before and set(seen) == {"pre", "final"}


def test_rows_of_before_are_only_those_that_are_scored_after():
    def row(when: str, kind: str, index: int = 0) -> Observation:
        return Observation("1", None, kind, index, when, 0, 1.0, 1, 1, None, None, None, None)

    pre = [row("pre", "rewrite"), row("pre", "portability"), row("pre", "portability", 1)]
    after = [row("immediate", "rewrite"), row("immediate", "portability", 1)]
    assert alike(pre) == pre
    assert alike([*pre, *after]) == [pre[0], pre[2], *after]


def test_infinity_is_no_json():
    assert finite(math.inf) is None and finite(2.0) == 2.0
