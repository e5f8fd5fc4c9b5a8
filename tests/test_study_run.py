"""Cells: what is kept of a run, and that a run which dies loses nothing."""

import errno
import json
import os
import random
import signal
import time
from dataclasses import replace

import polars as pl
import pytest
import safetensors.torch
import torch

from retcon.data.held_out import held_out
from retcon.data.tasks import Item, Option, Task
from retcon.errors import StorageError
from retcon.scoring.metrics import change
from retcon.scoring.observations import Moment, Observation
from retcon.scoring.suites import General
from retcon.study.planning import canonical
from retcon.study.store import CellFolder
from retcon.study.worker import Worker
from tiny_study import finish, task, write_model_and_facts


@pytest.fixture
def folder(tmp_path, entries):
    """A model and facts on disk."""
    return write_model_and_facts(tmp_path)


@pytest.fixture
def pico_tasks():
    """A task of two items."""
    options = (Option("The mother tongue of Marie is", "German"), Option("Paris is", "Rome"))
    return (Task("arc_easy", "per character", (Item(1, options, 0), Item(2, options, 1))),)


def test_a_cell_keeps_rows_steps_and_examples(folder):
    done = finish(task(folder))
    rows = pl.read_parquet(folder / "cell" / "rows.parquet")
    assert dict(rows.group_by("when").len().iter_rows()) == {
        "pre": 12, "immediate": 12, "final": 12, "retention": 2 + 6,
    }  # fmt: skip
    steps = [json.loads(s) for s in (folder / "cell" / "steps.jsonl").read_text().splitlines()]
    assert [step["at"] for step in steps] == [1, 2, 3, 4, 5, 6]
    assert all(0 < step["reached"] < 1 and step["ridge"] == 15000 for step in steps)
    assert steps[-1]["total_norm"]["1"] > steps[0]["total_norm"]["1"] > 0
    assert len(done["weights"]) == 64
    assert {"prompt", "before", "after"} <= set(
        json.loads((folder / "cell" / "examples.json").read_text())[0]
    )
    assert not list((folder / "cell").glob("step-*"))


@pytest.mark.parametrize("schedule", ["single", "batch:4", "sequential-batch:6"])
def test_other_regimes(folder, schedule):
    finish(task(folder, schedule=schedule))
    rows = pl.read_parquet(folder / "cell" / "rows.parquet")
    when = {"pre", "immediate"} | ({"final"} if schedule.startswith("seq") else set())
    assert set(rows["when"]) == when


KILLS = 24


@pytest.mark.parametrize("refresh", ["each-batch", "never", "stale:0.0001"])
def test_killed_at_any_moment_the_end_is_the_same(folder, refresh):
    """SIGKILL in a child, again and again, until a run gets through: same rows, same weights."""
    whole = finish(task(folder, "whole", refresh=refresh, schedule="sequential-batch:2"))
    cut = task(folder, "cut", refresh=refresh, schedule="sequential-batch:2")
    worker = Worker(1)
    worker.model(cut.cell.name, "float32")
    draw = random.Random(0)
    started = time.perf_counter()
    finish(task(folder, "timed", refresh=refresh, schedule="sequential-batch:2"))
    longest = time.perf_counter() - started
    kills = 0
    while kills < KILLS // 3:
        child = os.fork()
        if child == 0:
            worker.run(cut)
            os._exit(0)
        time.sleep(draw.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        kills += os.WIFSIGNALED(status)
        if (cut.folder / "done.json").exists():
            # It got through: the next round begins a new cell.
            assert_same(folder, whole, json.loads((cut.folder / "done.json").read_text()))
            for path in cut.folder.iterdir():
                path.unlink()
            cut.folder.rmdir()
    assert_same(folder, whole, finish(cut))


def assert_same(folder, whole, done):
    assert done["weights"] == whole["weights"]
    assert done["files"]["rows.parquet"] == whole["files"]["rows.parquet"]
    assert done["files"]["examples.json"] == whole["files"]["examples.json"]


def test_a_damaged_part_is_told_and_only_what_follows_is_run_again(folder, monkeypatch):
    whole = finish(task(folder, "whole"))
    cut = task(folder, "cut")
    interrupt_after(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        Worker(1).run(cut)
    monkeypatch.undo()
    parts = sorted(cut.folder.glob("step-*"))
    assert len(parts) == 4
    raw = bytearray(parts[2].read_bytes())
    raw[-1] ^= 1
    parts[2].write_bytes(raw)
    ended = Worker(1).run(cut)
    assert ended.state == "done" and "step-000002" in ended.notes[0]
    assert_same(folder, whole, json.loads((cut.folder / "done.json").read_text()))


def test_a_step_of_another_cell_is_not_taken(folder, monkeypatch):
    """Both are whole, and both are the third of their cells."""
    whole = finish(task(folder, "whole"))
    cut, other = task(folder, "cut"), task(folder, "other", settings={"ridge": 9.0})
    for one in (cut, other):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            interrupt_after(patched, 4)
            Worker(1).run(one)
    name = "step-000002.safetensors"
    (cut.folder / name).write_bytes((other.folder / name).read_bytes())
    ended = Worker(1).run(cut)
    assert ended.state == "done" and "another's" in ended.notes[0]
    assert_same(folder, whole, json.loads((cut.folder / "done.json").read_text()))


def interrupt_after(monkeypatch, parts: int) -> None:
    """Ctrl-C right after so many batches were kept."""
    kept = CellFolder.commit
    counter = iter(range(parts))

    def commit(self, *args, **kwargs):
        made = kept(self, *args, **kwargs)
        if next(counter) == parts - 1:
            raise KeyboardInterrupt
        return made

    monkeypatch.setattr(CellFolder, "commit", commit)


def test_a_full_disk_is_told_and_nothing_else_is_lost(folder, monkeypatch):
    whole = finish(task(folder, "whole"))
    cut = task(folder, "cut")
    writes = iter(range(100))
    write = safetensors.torch.save_file

    def full(tensors, path, about):
        if next(writes) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(tensors, path, about)

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(StorageError, match="No space left"):
        Worker(1).run(cut)
    monkeypatch.undo()
    assert len(list(cut.folder.glob("step-*"))) == 3
    assert_same(folder, whole, finish(cut))


def test_a_cell_that_fails_keeps_what_it_has_seen(folder):
    twice = task(folder, method="emmet")
    again = replace(twice.cases[2], edit=replace(twice.cases[2].edit, id="again", target="Rome"))
    ended = Worker(1).run(twice._replace(cases=(*twice.cases, again)))
    assert ended.state == "failed" and "'again'" in ended.notes[-1]
    assert "same key" in json.loads((twice.folder / "failed.json").read_text())["error"]
    assert len(list(twice.folder.glob("step-*"))) == 6


def test_another_model_of_the_same_name_is_refused(folder):
    ended = Worker(1).run(task(folder, fingerprint="0" * 64))
    assert ended.state == "failed" and "fingerprint" in ended.notes[0]


def test_two_processes_never_run_one_cell(folder):
    with CellFolder(folder / "cell").claimed() as mine:
        assert mine
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(write, Worker(1).run(task(folder)).state.encode())
            os._exit(0)
        os.waitpid(child, 0)
        assert os.read(read, 100) == b"busy"


def test_names_for_the_same_weights_are_one_cell(folder):
    soft = task(folder, method="emmet", settings={"ridge": 300.0}).cell
    assert canonical(soft).id == canonical(task(folder, settings={"ridge": 300.0}).cell).id
    one = canonical(task(folder, schedule="batch:6", refresh="never").cell)
    assert one.id == canonical(task(folder, schedule="sequential-batch:9").cell).id
    assert one.id != canonical(task(folder, schedule="sequential-batch:3").cell).id


@pytest.mark.parametrize("schedule", ["single", "batch:4", "batch:6"])
def test_a_budget_is_run_in_batches_that_do_not_meet_too(folder, schedule):
    """It needs `accumulate`, which says nothing else there."""
    made = task(folder, settings={"budget": 60.0}, schedule=schedule)
    finish(made._replace(cell=canonical(made.cell)))


def test_texts_are_kept_where_they_are_asked_for(folder):
    finish(task(folder, generation=True, schedule="sequential-batch:3"))
    texts = pl.read_parquet(folder / "cell" / "rows.parquet").filter(pl.col("kind") == "text")
    assert dict(texts.group_by("when").len().iter_rows()) == {"pre": 6, "final": 6}
    assert texts["text"].str.contains("mother").all() and (texts["value"] >= 0).all()


def test_the_model_as_a_whole_is_read_where_it_is_asked_for(folder, pico_tasks):
    general = General(text=held_out(passages=3), tasks=pico_tasks, length=24)
    whole = read_task(folder, "whole", general)
    assert Worker(1).run(whole).state == "done"
    rows = readings(whole.folder)
    # Before, after 2 and 4 of six batches, and after the last: of the same passages and items.
    assert list(dict.fromkeys((row.when, row.step) for row in rows)) == [
        ("pre", 0), ("retention", 2), ("retention", 4), ("final", 6)
    ]  # fmt: skip
    before, after = ([row for row in rows if row.when == when] for when in ("pre", "final"))
    model = Worker(1).model(whole.cell.name, "float32")
    assert before == general.observe(model, (), Moment("pre"))
    moved = change(before, after, "perplexity")
    assert moved.mean != 1 and moved.cases == 3
    assert change(before, after, "tasks").cases == sum(len(task.items) for task in pico_tasks)
    assert whole.cell.id != task(folder).cell.id


def test_what_was_read_before_a_run_died_is_kept(folder, pico_tasks, monkeypatch):
    general = General(text=held_out(passages=2), tasks=pico_tasks, length=24)
    finished = read_task(folder, "finished", general)
    Worker(1).run(finished)
    cut = read_task(folder, "cut", general)
    commit = CellFolder.commit

    def die(self, first, seen, **more):
        if first == 5:
            raise KeyboardInterrupt
        return commit(self, first, seen, **more)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(CellFolder, "commit", die)
        Worker(1).run(cut)
    assert Worker(1).run(cut).state == "done"
    assert readings(cut.folder) == readings(finished.folder)


def read_task(folder, name, general):
    return task(folder, name, general=general.identity)._replace(general=general)


def readings(cell):
    """What was read of the model as a whole."""
    rows = pl.read_parquet(cell / "rows.parquet").iter_rows()
    return [row for row in map(Observation._make, rows) if row.kind.startswith(("passage", "item"))]


def test_a_worker_leaves_the_model_as_it_was(folder):
    worker = Worker(1)
    model = worker.model(str(folder / "model"), "float32")
    before = model.weights_hash()
    worker.run(task(folder))
    assert model.weights_hash() == before and torch.get_num_threads() == 1
