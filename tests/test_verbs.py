"""What the command line does is one call of the library: scores, studies, tables."""

import re
from pathlib import Path

import pytest

import retcon
from pico import pico
from retcon.data.cases import load_cases
from retcon.errors import InvalidStudy, PatchMismatch, RetconWarning, UnknownName
from retcon.scoring.metrics import summarise
from retcon.scoring.score import score_cases
from tiny_study import write_model_and_facts

ROOT = Path(__file__).parents[1]
SETTINGS = {"steps": 3, "prefixes": 1, "corpus_tokens": 300, "jitter": 1e-3, "ridge": 5.0}
STUDY = """
retcon_study: 1
name: tiny
model: ./model
threads: 1
data: {cases: facts.jsonl, unique_subjects: true}
defaults: {method: memit, layer: 1, n: 4, settings: SETTINGS}
blocks:
  - {name: batches, schedule: batch, batch_size: [2, 4]}
""".replace("SETTINGS", str({**SETTINGS, "document_tokens": 32}))


@pytest.fixture
def cases(tmp_path):
    return load_cases(write_model_and_facts(tmp_path, paraphrased=True) / "facts.jsonl")


def test_a_patch_is_scored_beside_the_model_as_it_is(cases):
    model = pico()
    edits = [case.edit for case in cases]
    patch = retcon.edit(model, edits, method="memit", layers=[1], settings=SETTINGS)
    before = model.weights_hash()
    seen = retcon.score(model, cases, patch=patch)
    assert model.weights_hash() == before and seen.times == ("pre", "final")
    assert seen.at("pre") == score_cases(model, cases, when="pre")
    found = seen.scores("final")
    assert {name: one.mean for name, one in found.items()} == {
        name: mean for name, mean in summarise(seen.at("final")).items() if mean is not None
    }
    moved = seen.change("target_probability")
    assert moved.mean == pytest.approx(
        found["target_probability"].mean - seen.scores("pre")["target_probability"].mean
    )
    with pytest.raises(UnknownName, match="SE"):
        seen.change("SE")
    with pytest.raises(PatchMismatch):
        retcon.score(pico(seed=1), cases, patch=patch)
    assert retcon.score(model, cases).times == ("pre",)


def test_a_table_shows_each_metric_at_each_time(cases):
    table = retcon.score(pico(), cases).table().splitlines()
    assert table[0].split() == ["pre"]
    shown = {line.split("  ")[0]: line for line in table[1:]}
    assert re.search(r"\d\.\d \[\d+\.\d, \d+\.\d\]$", shown["ES"])
    assert len({len(line) for line in table[1:]}) == 1


def test_a_run_has_scores(cases):
    run = retcon.evaluate(pico(), cases, method="memit", layers=[1], settings=SETTINGS)
    assert isinstance(run, retcon.Measured) and set(run.times) == {"pre", "immediate"}
    best = run.scores("immediate")["ES"]
    assert best.low <= best.mean <= best.high and best.cases == len(cases)


def test_a_study_is_one_call_and_is_read_as_tables(cases, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(STUDY, encoding="utf-8")
    study = retcon.run_study("s.yaml", "out")
    rows, scores = study.all_rows(), study.scores()
    assert set(rows["batch_size"]) == {2, 4} and set(rows["when"]) == {"pre", "immediate"}
    assert len(rows) == sum(len(study.rows(cell)) for cell in study.finished_cells())
    one = scores.filter(metric="ES", when="immediate", batch_size=4).row(0, named=True)
    (point,) = [p for p in study.points if p.batch_size == 4]
    assert one["mean"] == summarise(study.scored(point.cell, "immediate"))["ES"]
    assert one["low"] <= one["mean"] <= one["high"] and one["cases"] == 4
    assert retcon.read_study("out").scores().equals(scores)


def test_cells_that_fail_are_an_error_that_says_which(cases, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    facts = (
        Path("facts.jsonl").read_text(encoding="utf-8").replace("{Marie Paris}", "{Marie Curie}")
    )
    Path("facts.jsonl").write_text(facts, encoding="utf-8")
    text = STUDY.replace("memit", "emmet").replace("'ridge': 5.0", "'ridge': 0")
    text = text.replace("unique_subjects: true", "unique_subjects: false").replace("n: 4", "n: 6")
    Path("s.yaml").write_text(text.replace("[2, 4]", "6"), encoding="utf-8")
    why = r"could not be run, the first .* has the same key"
    with pytest.warns(RetconWarning), pytest.raises(InvalidStudy, match=why):
        retcon.run_study("s.yaml", "out")


def test_methods_and_metrics_are_listed():
    assert "ridge" in retcon.methods()["memit"].settings()
    assert {"ES", "PS", "NS", "S"} <= {metric.name for metric in retcon.metrics()}


def test_readmes_python_names_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = re.findall(r"retcon\.(\w+)", code)
    assert names and all(getattr(retcon, name) for name in names)


class FakeTracker:
    """The three functions of trackio, each call of which is kept."""

    def __init__(self):
        self.calls = []

    def init(self, **named):
        self.calls.append(("init", named))

    def log(self, metrics):
        self.calls.append(("log", metrics))

    def finish(self):
        self.calls.append(("finish", None))


def test_a_tracker_is_told_of_every_cell_once(cases, tmp_path, monkeypatch):
    from retcon.study.tracking import Tracked

    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(STUDY, encoding="utf-8")
    tracker = FakeTracker()
    study = retcon.run_study("s.yaml", "out", progress=Tracked("out", tracker))
    begun = [named for kind, named in tracker.calls if kind == "init"]
    assert sorted(run["name"] for run in begun) == sorted(study.finished_cells())
    assert len(begun) == 2 == [kind for kind, _ in tracker.calls].count("finish")
    assert begun[0]["project"] == study.record.name and begun[0]["config"]["batch_size"] in (2, 4)
    logged = {name for kind, numbers in tracker.calls if kind == "log" for name in numbers}
    assert {"pre/ES", "immediate/ES", "batch/seconds", "batch/edits"} <= logged
    again = FakeTracker()
    retcon.run_study("s.yaml", "out", progress=Tracked("out", again))
    assert again.calls == []
