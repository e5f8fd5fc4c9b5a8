"""Studies of methods that are no values of the one equation, and orders by keys."""

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from retcon.errors import InvalidStudy
from retcon.method.entries import differing, find_method, identity
from retcon.run.cost import costs
from retcon.run.order import arranged, clusters
from retcon.study.cells import Cell
from retcon.study.estimates import estimate
from retcon.study.planning import canonical, outline_of, plan
from retcon.study.runner import run_cells
from retcon.study.spec import parse_spec
from retcon.study.store import CellFolder
from retcon.study.study import read_study
from retcon.study.worker import Worker
from test_study_spec import HEAD, ROOT, folder  # noqa: F401
from tiny_study import task

OWN = {
    "ultraedit": {"lr": 1e-3}, "finetune": {"steps": 2}, "finetune_lora": {"steps": 2, "kl": 0.0},
    "in_context": {"threshold": 0.4},
}  # fmt: skip


def study(*blocks: str, more: str = ""):
    lines = "".join(f"  - {{name: b{i}, layer: 1, {block}}}\n" for i, block in enumerate(blocks))
    return parse_spec(f"{HEAD}{more}blocks:\n{lines}", Path("study.yaml"))


def block(method: str, rest: str, **more) -> str:
    return f"method: {method}, {rest}, settings: {json.dumps({**OWN.get(method, {}), **more})}"


def test_each_method_has_cells_of_its_own(folder):  # noqa: F811
    """Also where all settings are alike, and at whatever layer nothing is written."""
    places = [block(m, "schedule: sequential-batch, batch_size: [2, 6], n: 6") for m in OWN]
    made = plan(study(*places))
    assert [p.method for p in made.points[:8:2]] == list(OWN)
    assert all(p.refused is None and p.capacity == 48 for p in made.points)
    assert [p.ridge for p in made.points[:8]] == [1.0, 1.0, *[None] * 6]
    assert len({cell.id for cell in made.cells}) == 8
    kinds = {cell.method: cell.editor["kind"] for cell in made.cells}
    assert kinds == {
        "ultraedit": "UltraEdit", "finetune": "FineTune", "finetune_lora": "LoraTraining",
        "in_context": "InContext",
    }  # fmt: skip
    assert {p.layers for p in made.points} == {(1,)}
    for cell in made.cells:
        assert find_method(cell.method).build(cell.layers, cell.settings)


def test_cells_of_the_equation_keep_their_names():
    editor = find_method("memit").build((1,), {})
    assert identity(editor) == differing(editor)


@pytest.mark.parametrize("study", ["smollm2", "smollm2-lifelong", "toy-lifelong"])
def test_cells_that_were_published_are_found_again(study):
    known = read_study(ROOT / "results" / study)
    found = known.finished_cells()
    for name in found:
        cell = Cell.model_validate(known.finished_cell(name).resolved())
        assert cell.id == canonical(cell).id == name
        alone = not cell.plan.adapts and (not cell.plan.carry or cell.plan.batch_size == cell.n)
        if alone and "accumulate" in cell.settings:
            # The same as it is said with the other value, the default.
            said = {k: v for k, v in cell.editor.items() if k != "accumulate"}
            changes = {"editor": said, "settings": {**cell.settings, "accumulate": True}}
            assert canonical(cell.model_copy(update=changes)).id == cell.id
    assert found


def test_a_cell_whose_settings_are_none_is_refused_and_no_traceback():
    for settings in ([], None, "descent"):
        with pytest.raises(ValidationError, match="settings"):
            Cell.model_validate({"settings": settings})


def test_a_ridge_that_there_is_not_cannot_be_tuned(folder):  # noqa: F811
    more = "tuning: {ridges: [1.0, 10.0], n: 2}\n"
    asked = block("finetune", "schedule: batch, batch_size: 2, n: 2", ridge="tuned")
    with pytest.raises(InvalidStudy, match="finetune has none"):
        plan(study(asked, more=more))
    asked = block("ultraedit", "schedule: batch, batch_size: 2, n: 2", ridge="tuned")
    assert len(plan(study(asked, more=more)).tunings[0].cells) == 2


def test_a_rule_that_a_method_gives_nothing_to_go_by_is_refused(folder):  # noqa: F811
    asked = block("ultraedit", "schedule: adaptive-energy, batch_size: 2, n: 2", ridge=1.0)
    with pytest.raises(InvalidStudy, match="gradients and a budget have none"):
        plan(study(asked))


def test_estimates_are_there_for_every_method(folder):  # noqa: F811
    places = [block(m, "schedule: sequential-batch, batch_size: 2, n: 6") for m in OWN]
    made = plan(study(*places))
    found = {c.method: estimate(made, 1e9)[c.id] for c in made.cells}
    assert all(cost.moments == 0 and cost.scoring > 0 for cost in found.values())
    assert found["finetune"].targets == 2 * found["ultraedit"].targets > 0
    assert found["in_context"].targets == found["in_context"].made == 0
    assert found["in_context"].scoring > found["ultraedit"].scoring
    assert found["finetune"].scratch > 2 * found["ultraedit"].scratch
    context = costs(outline_of("./model"), (), find_method("in_context").resolve({"shown": 3}))
    assert context.context == 42 and context.target == 0


def test_a_study_of_all_of_them_is_run_and_read(folder, entries):  # noqa: F811
    places = [block(m, "schedule: [sequential-batch, batch], batch_size: 2, n: 4") for m in OWN]
    outcome = run_cells(study(*places), folder / "done")
    assert not outcome.failed and outcome.done == outcome.cells == 8
    found = read_study(folder / "done")
    for point in found.points:
        assert len(found.scored(point.cell, "immediate"))
    from retcon.report.results import Results

    arms = Results(found).arms
    assert {arm.condition.ridge for arm in arms} == {"1", "none"}
    told = next(p for p in found.points if p.method == "in_context" and p.schedule != "batch")
    examples = folder / "done" / "cells" / told.cell / "examples.json"
    shown = json.loads(examples.read_text(encoding="utf-8"))
    assert len(shown) == 4 and all(one["before"] != one["after"] for one in shown)


@pytest.mark.parametrize("method", sorted(OWN))
def test_a_run_goes_on_from_its_parts(method, tmp_path, monkeypatch, entries):
    """What a batch leaves to the next is on the disk: statistics, and facts that are kept."""
    from tiny_study import write_model_and_facts

    monkeypatch.chdir(write_model_and_facts(tmp_path))
    settings = find_method(method).resolve(OWN[method])
    editor = find_method(method).build((1,), settings)
    own = {"editor": json.loads(json.dumps(identity(editor))), "schedule": "sequential-batch:2"}
    monkeypatch.setattr("tiny_study.FAST", {})

    def cell(name):
        return task(tmp_path, name, method=method, settings=OWN[method], **own)

    whole, cut = cell("whole"), cell("cut")
    worker = Worker(1)
    assert worker.run(whole).state == "done"
    commit, seen = CellFolder.commit, []

    def twice(self, *args, **named):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(1)
        return commit(self, *args, **named)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(CellFolder, "commit", twice)
        Worker(1).run(cut)
    assert Worker(1).run(cut).state == "done"
    for name in ("rows.parquet", "examples.json"):
        assert (whole.folder / name).read_bytes() == (cut.folder / name).read_bytes()


def test_a_state_is_shared_by_cells_that_begin_alike_and_no_others(tmp_path, monkeypatch, entries):
    """Not by MEMIT and AlphaEdit, whose metrics are others at equal second moments."""
    from tiny_study import write_model_and_facts

    monkeypatch.chdir(write_model_and_facts(tmp_path))

    def setup(method="memit", **settings):
        cell = task(tmp_path, method=method, settings=settings).cell
        return find_method(method).build(cell.layers, cell.settings).setup

    null = {"null_threshold": 1.0, "null_relative": True}
    memit, alpha = setup(), setup("alphaedit", **null)
    encore = [setup("encore", ridge=ridge) for ridge in (1.0, 9.0)]
    assert setup(ridge=1.0) == setup(ridge=9.0) != alpha
    assert encore[0] != encore[1] != memit
    for step in ({"process": "prune"}, {"budget": 2.0}, {"budget": 2.0, "process": "prune"}):
        assert setup(**step) != memit
    assert setup(process="rect") == memit
    lock = canonical(task(tmp_path, method="lyaplock", schedule="single").cell)
    assert find_method("lyaplock").build(lock.layers, lock.settings).accumulate
    worker = Worker(1)
    model = worker.model(str(tmp_path / "model"), "float32")
    for cell in (task(tmp_path).cell, task(tmp_path, method="alphaedit", settings=null).cell):
        method = find_method(cell.method).build(cell.layers, cell.settings)
        state = worker._begin(model, method, lambda *_: None)
        fresh = method.setup.begin(model).memory.preservations[1].whitening
        assert type(state.memory.preservations[1].whitening) is type(fresh)


def bunches(seed: int, groups: int = 4, each: int = 5):
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(groups, 20, generator=g, dtype=torch.float64)
    labels = torch.arange(groups * each) % groups
    keys = centres[labels] + 0.05 * torch.randn(len(labels), 20, generator=g, dtype=torch.float64)
    scale = torch.rand(len(labels), 1, generator=g, dtype=torch.float64) + 0.5
    return keys * scale, labels


@pytest.mark.parametrize("seed", range(5))
def test_clusters_are_those_of_the_directions(seed):
    keys, labels = bunches(seed)
    found = clusters(keys, 4)
    assert len({(int(a), int(b)) for a, b in zip(labels, found, strict=True)}) == 4
    assert torch.equal(found, clusters(keys, 4))


@pytest.mark.parametrize("seed", range(5))
def test_clustered_brings_together_and_dispersed_takes_apart(seed):
    keys, labels = bunches(seed)

    def neighbours(order):
        placed = labels[arranged(keys, order)]
        return int((placed[1:] == placed[:-1]).sum())

    for order in ("clustered", "dispersed"):
        assert sorted(arranged(keys, order)) == list(range(20))
    assert neighbours("clustered") == 16 and neighbours("dispersed") <= 3
    assert arranged(keys[:1], "clustered") == [0]
