"""What others add: a plain file each, through the library, the command line and a resumed study."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from oracles import answer_rows
from pico import pico
from retcon import registry
from retcon.data.cases import load_cases
from retcon.data.sets import DATASETS
from retcon.errors import InvalidData, InvalidPlugin, InvalidSetting, InvalidStudy, UnknownName
from retcon.method.entries import METHODS, find_method
from retcon.patch.export import EXPORT_FORMS
from retcon.registry import load_plugin
from retcon.report.findings import FINDINGS
from retcon.report.page import make_report
from retcon.run.edit import edit
from retcon.run.evaluate import evaluate
from retcon.run.rules import RULES
from retcon.run.schedule import Schedule
from retcon.scoring.metrics import METRICS, change, estimate
from retcon.study.runner import run_cells
from retcon.study.spec import load_spec
from retcon.study.store import CellFolder
from retcon.study.study import read_study
from test_methods import EDITS
from tiny_study import write_model_and_facts

OWN = ("momentum", "doubling", "triples", "npz", "adapting", "mrr")
REGISTRIES = (METHODS, RULES, DATASETS, EXPORT_FORMS, FINDINGS, METRICS)
TRIPLES = [
    {"s": f"{a} {b}", "r": "town", "o": "Rome", "was": "Paris"}
    for a in ("Marie", "Danielle", "Rome") for b in ("Curie", "Paris")
]  # fmt: skip
PLUGINS = Path(__file__).parent / "plugins"
STUDY = """
retcon_study: 1
name: plugged
model: ./model
threads: 1
plugins: [momentum.py, doubling.py, triples.py, adapting.py, mrr.py]
findings: [adapting]
data: {cases: triples.jsonl, unique_subjects: true, options: {style: question}}
defaults: {method: momentum, layer: 1, n: 6, settings: {lr: 0.01}, metrics: [mrr]}
blocks:
  - {name: doubled, schedule: adaptive-doubling, batch_size: 1}
  - {name: pairs, schedule: sequential-batch, batch_size: 2}
"""


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """No plugin is there before a test, and none after it."""
    for each in REGISTRIES:
        monkeypatch.setattr(each, "_entries", each.all())
    monkeypatch.setattr(registry, "_LOADED", {})
    yield
    for name in [name for name in sys.modules if name.startswith("retcon_plugin_")]:
        del sys.modules[name]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model, facts, a study and its plugins, in the working folder."""
    write_model_and_facts(tmp_path)
    for name in OWN:
        shutil.copy(PLUGINS / f"{name}.py", tmp_path)
    lines = "\n".join(json.dumps(one) for one in TRIPLES)
    (tmp_path / "triples.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "study.yaml").write_text(STUDY, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def own():
    """The plugins, as the command line takes them."""
    return [word for name in OWN for word in ("--plugin", f"{name}.py")]


def load_all():
    for path in sorted(PLUGINS.glob("*.py")):
        load_plugin(path)


def test_a_method_with_a_state_of_its_own(cache):
    """Two batches: the second step is the gradient there, and a share of the first step."""
    load_all()
    model = pico(dtype=torch.float64)
    method = find_method("momentum").build((1,), {"lr": 0.01, "beta": 0.5})
    state, wanted = method.setup.begin(model), 0.0
    with model.scratch():
        for batch in (EDITS[:2], EDITS[2:]):
            read = [answer_rows(model, one, 1)[:2] for one in batch]
            wanted = 0.5 * wanted - 0.01 * sum(g.mT @ h for h, g in read)
            update = method.solve(model, method.features(model, batch, state), state)
            state = method.carry(state, update.increment)
            got = update.deltas[1].dense()
            assert (got - wanted).norm() < 1e-5 * wanted.norm()
            model.write(update.deltas)
    patch = edit(pico(), EDITS, method="momentum", layers=(1,), settings={"lr": 0.01})
    assert not patch.divisible and patch.deltas[1].norm() > 0


def test_a_batch_rule(cache):
    load_all()
    assert str(Schedule.parse("adaptive-doubling:2")) == "adaptive-doubling:2"
    run = evaluate(
        pico(), load_cases("starter")[:7], method="momentum", layers=(1,),
        schedule="adaptive-doubling:1",
    )  # fmt: skip
    assert [step.edits for step in run.steps] == [1, 2, 4]
    assert {row.when for row in run.rows} == {"pre", "immediate", "final"}
    assert all(step["velocity"][1] > 0 for step in run.describe()["steps"])


def test_a_data_set_with_an_option(folder):
    with pytest.raises(InvalidData, match="Read are"):
        load_cases("triples.jsonl")
    load_all()
    (first, *_), (asked, *_) = (
        load_cases("triples.jsonl", options={"style": style}) for style in ("statement", "question")
    )
    assert first == load_cases("triples.jsonl")[0]
    assert first.paraphrases == (asked.edit.text,) and asked.paraphrases == (first.edit.text,)
    assert first.edit.text == "The town of Marie Curie is" and first.relation == "town"
    with pytest.raises(UnknownName, match=r"data set triples 'styl'.*Did you mean 'style'"):
        load_cases("triples.jsonl", options={"styl": "question"})
    with pytest.raises(InvalidSetting, match="statement"):
        load_cases("triples.jsonl", options={"style": "song"})


def test_a_metric_on_what_scores_do_not_hold(cache):
    load_all()
    model, cases = pico(), load_cases("starter")[:4]
    options = {"method": "momentum", "layers": (1,), "settings": {"lr": 0.05}}
    for schedule, last in (("sequential-batch:2", "final"), ("batch:2", "immediate")):
        run = evaluate(model, cases, schedule=schedule, metrics=["mrr"], **options)
        ranks = {(row.case, row.when): row.value for row in run.rows if row.kind == "target rank"}
        assert len(ranks) == (12 if last == "final" else 8)
        for case in cases:
            ids, start = model.tokens.continuation(case.edit.text, case.edit.target)
            logits = model.model(input_ids=torch.tensor([ids[:start]])).logits[0, -1]
            order = logits.argsort(descending=True).tolist()
            assert ranks[case.edit.id, "pre"] == 1 + order.index(ids[start])
        shares = [1 / ranks[case.edit.id, last] for case in cases]
        assert estimate(run.at(last), "mrr").mean == pytest.approx(25 * sum(shares))
        # Edits made for them are seen.
        assert change(run.at("pre"), run.at(last), "mrr").mean > 0
    assert not [row for row in evaluate(model, cases, **options).rows if row.value is not None]
    with pytest.raises(UnknownName, match=r"metric 'mrrr'.*Did you mean 'mrr'"):
        evaluate(model, cases, metrics=["mrrr"], **options)
    with pytest.raises(InvalidSetting, match="--ability"):
        evaluate(model, cases, metrics=["tasks"], **options)


def test_an_export_form(folder, retcon):
    load_all()
    patch = edit(pico(), EDITS, method="momentum", layers=(1,), settings={"lr": 0.01})
    patch.export("npz", "arrays", dense=True)
    with np.load(folder / "arrays" / "patch.npz") as arrays:
        assert np.array_equal(arrays["1"], patch.deltas[1].dense().numpy())
    patch.save("p.safetensors")
    code, out, err = retcon(
        *own(), "patch", "export", "p.safetensors", "--to", "npz", "-o", "factors",
        "--option", "dense=false", "--json", "e.json",
    )  # fmt: skip
    assert code == 0 and "1.left" in out, err
    assert json.loads((folder / "e.json").read_text())["arrays"] == ["1.left", "1.right"]
    with np.load(folder / "factors" / "patch.npz") as arrays:
        assert np.array_equal(arrays["1.right"], patch.deltas[1].right.numpy())
    with pytest.raises(UnknownName, match="export form npz 'dens'"):
        patch.export("npz", "third", dens=True)
    assert not (folder / "third").exists()


def test_on_the_command_line(folder, retcon):
    code, out, err = retcon(
        *own(), "eval", "./model", "--cases", "triples.jsonl", "--option", "style=question",
        "--method", "momentum", "--layer", "1", "--metric", "mrr",
        "--set", "beta=0.5", "--schedule", "adaptive-doubling:2", "--json", "run.json",
    )  # fmt: skip
    assert code == 0, err
    said = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert said["settings"] == {"lr": 1e-3, "beta": 0.5}
    assert [step["edits"] for step in said["steps"]] == [2, 4]
    assert "MRR" in out and 0 < said["final"]["mrr"] <= 100
    assert said["pre"]["mrr"] is not None and "change" in out
    code, out, err = retcon(*own(), "methods", "momentum")
    assert code == 0 and "Vₜ = β Vₜ₋₁" in out, err


def test_a_study_goes_on_from_where_it_was_cut_off(folder, retcon, monkeypatch):
    whole = run_cells(load_spec("study.yaml"), folder / "whole")
    assert (whole.done, whole.failed) == (whole.cells, {}) and whole.cells == 2
    commit, committed = CellFolder.commit, []

    def cut(self, *args, **named):
        if len(committed) == 2:
            raise KeyboardInterrupt
        committed.append(1)
        return commit(self, *args, **named)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(CellFolder, "commit", cut)
        run_cells(load_spec("study.yaml"), folder / "cut")
    code, _, err = retcon(*own(), "study", "resume", "cut", "--data", ".")
    assert code == 0, err
    rows = [
        {path.parent.name: path.read_bytes() for path in (folder / one).rglob("rows.parquet")}
        for one in ("whole", "cut")
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 2
    code, out, err = retcon(*own(), "study", "report", "cut")
    assert code == 0 and "(adapting)" in out and "MRR, %" in out, err
    page = (folder / "cut" / "report.html").read_text(encoding="utf-8")
    assert 'id="finding-adapting"' in page and 'id="chart-adapting"' in page
    report = make_report(read_study(folder / "whole"))
    ((effect,),) = (finding.effects for finding in report.findings)
    kept = (folder / "cut" / "report" / "finding-adapting.csv").read_text(encoding="utf-8")
    assert f"{effect.estimate.mean:.4f}" in kept and effect.text.startswith("batches by doubling")
    table = (folder / "cut" / "report" / "mrr.csv").read_text(encoding="utf-8").splitlines()
    assert table[0].endswith("after the last batch,change") and len(table) == 3
    assert "Mean reciprocal rank" in page
    schedules = {point.schedule for point in read_study(folder / "cut").points}
    assert schedules == {"adaptive-doubling", "sequential-batch"}


def test_a_report_without_a_plugin_says_which_metric_it_does_not_show(folder, retcon, monkeypatch):
    run_cells(load_spec("study.yaml"), folder / "done")
    METRICS._entries.pop("mrr")
    monkeypatch.setattr(registry, "_LOADED", {})
    code, out, err = retcon("study", "report", "done")
    assert code == 0 and "Metrics that are not shown" in out and "mrr.py" in out, err
    rows = (folder / "done" / "report" / "rows.parquet").read_bytes()
    assert b"target rank" in rows


def test_a_folder_of_results_runs_no_file_by_itself(folder, monkeypatch):
    run_cells(load_spec("study.yaml"), folder / "done")
    monkeypatch.setattr(registry, "_LOADED", {})
    (folder / "done" / "momentum.py").write_text("raise SystemExit('it ran')", encoding="utf-8")
    with pytest.raises(InvalidStudy, match=r"retcon --plugin momentum.py study"):
        load_spec(folder / "done" / "study.yaml")


def test_a_plugin_that_was_changed_is_not_gone_on_with(folder, monkeypatch):
    run_cells(load_spec("study.yaml"), folder / "done")
    for each in REGISTRIES:
        for name in OWN:
            each._entries.pop(name, None)
    monkeypatch.setattr(registry, "_LOADED", {})
    with (folder / "momentum.py").open("a", encoding="utf-8") as file:
        file.write("\n# another\n")
    with pytest.raises(InvalidStudy, match=r"plugin momentum.py is not the file"):
        run_cells(load_spec("study.yaml"), folder / "done")


def test_a_report_without_its_plugin_says_what_to_do(folder, retcon, monkeypatch):
    run_cells(load_spec("study.yaml"), folder / "done")
    FINDINGS._entries.pop("adapting")
    code, _, err = retcon("study", "report", "done")
    said = " ".join(err.split())
    assert code == 2 and "Unknown set of findings or finding 'adapting'" in said
    assert "retcon --plugin FILE.py study report DIR" in said and "--findings none" in said
    code, out, err = retcon("study", "report", "done", "--findings", "none")
    assert code == 0 and "(adapting)" not in out, err
    (folder / "study.yaml").write_text(STUDY.replace("[adapting]", "[adaptin]"), encoding="utf-8")
    code, _, err = retcon(*own(), "study", "validate", "study.yaml")
    assert code == 2 and "study.yaml, line 7: Unknown" in " ".join(err.split()), err


@pytest.mark.parametrize(("text", "why"), [
    ("1 / 0", "fails: ZeroDivisionError"),
    ("from retcon.run.rules import batch_rule\nbatch_rule('aimd')(lambda size: None)", "already"),
    ("def (", "fails: SyntaxError"),
])  # fmt: skip
def test_what_is_wrong_with_a_plugin_is_said(text, why, folder, retcon):
    (folder / "bad.py").write_text(text, encoding="utf-8")
    code, _, err = retcon("--plugin", "bad.py", "methods")
    assert code == 2 and why in " ".join(err.split()) and "Traceback" not in err


def test_a_plugin_that_is_not_there(tmp_path):
    with pytest.raises(InvalidPlugin, match="cannot be read"):
        load_plugin(tmp_path / "none.py")


def test_the_pages_show_the_plugins_that_are_run():
    pages = PLUGINS.parents[1] / "docs" / "extend"
    told = "".join(page.read_text(encoding="utf-8") for page in pages.glob("*.md"))
    for path in PLUGINS.glob("*.py"):
        assert f"```python\n{path.read_text(encoding='utf-8')}```" in told
