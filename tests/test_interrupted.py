"""Work that is cut off: what was finished is kept, and the end is the same to the last byte."""

import errno
import json
import os
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest
import torch

from pico import pico
from retcon.cache import Unfinished, usage
from retcon.errors import StorageError
from retcon.features.own_text import SelfCorpus
from retcon.features.target_options import TargetOptions
from retcon.study.worker import Worker
from tiny_study import task, write_model_and_facts

KEPT = ("rows.parquet", "examples.json", "cell.json")
# Files of a cell of two batches, on its way and at its end.
WRITES = 8
STUDY = """
retcon_study: 1
name: s
model: ./model
threads: 1
data: {cases: facts.jsonl, unique_subjects: true}
defaults: {method: memit, layer: 1, n: 6, settings:
  {steps: 3, corpus_tokens: 300, document_tokens: 32, jitter: 1.0e-3, prefixes: 1, ridge: 1}}
blocks:
  - {name: x, schedule: sequential-batch, batch_size: 3, settings: {accumulate: [true, false]}}
"""


@pytest.fixture
def folder(tmp_path, entries, monkeypatch):
    """A model and facts on disk, in the working folder."""
    monkeypatch.chdir(tmp_path)
    return write_model_and_facts(tmp_path)


def cell(folder, name):
    return task(folder, name, schedule="sequential-batch:3")


def results(path):
    """What decides every table: the rows, and the weights."""
    done = json.loads((path / "done.json").read_text(encoding="utf-8"))
    return done["weights"], {name: done["files"].get(name) for name in KEPT}


def moving(monkeypatch, happens):
    """Call `happens` with a number whenever a finished file is about to be moved into place."""
    replace, calls = Path.replace, []

    def move(self, target):
        calls.append(Path(target).name)
        happens(len(calls) - 1)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", move)
    return calls


class Killed(BaseException):
    """What no code expects."""


def test_killed_at_any_write_of_a_cell_the_end_is_the_same(folder, monkeypatch):
    """Right before its first, second, … last file is there."""
    worker = Worker(1)
    worker.run(cell(folder, "first"))  # fills the cache, as every later run finds it
    with monkeypatch.context() as patched:
        writes = moving(patched, lambda _: None)
        assert worker.run(cell(folder, "whole")).state == "done"
    whole = results(folder / "whole")
    assert writes[0] == "cell.json" and writes[-1] == "done.json" and len(writes) == WRITES

    def kill(number, last):
        if number == last:
            raise Killed

    for last, name in enumerate(writes):
        with monkeypatch.context() as patched, pytest.raises(Killed):
            moving(patched, partial(kill, last=last))
            worker.run(cell(folder, "cut"))
        assert worker.run(cell(folder, "cut")).state == "done", name
        assert results(folder / "cut") == whole, name
        shutil.rmtree("cut")


def test_a_full_disk_at_any_write_is_named_and_the_end_is_the_same(folder, monkeypatch):
    worker = Worker(1)
    worker.run(cell(folder, "whole"))
    whole = results(folder / "whole")

    def refuse(number, last):
        if number == last:
            raise OSError(errno.ENOSPC, "No space left on device")

    for last in range(WRITES):
        with monkeypatch.context() as patched:
            writes = moving(patched, partial(refuse, last=last))
            with pytest.raises(StorageError) as error:
                worker.run(cell(folder, "cut"))
        assert writes[-1] in str(error.value) and "No space left" in str(error.value)
        assert worker.run(cell(folder, "cut")).state == "done"
        assert results(folder / "cut") == whole
        shutil.rmtree("cut")


def test_a_disk_that_is_really_full(folder, retcon):
    """A small file system, which fills up wherever it does; then there is room again."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=60k", "tmpfs", "disk"]
    Path("disk").mkdir()
    Path("s.yaml").write_text(STUDY, encoding="utf-8")
    try:
        made = subprocess.run(mount, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if made.returncode:
        pytest.skip("mounting a file system takes an administrator")
    try:
        ended = []
        for room in (60, 68, 76, 84, 92, 100, 5000):
            again = ["mount", "-o", f"remount,size={room}k", "disk"]
            subprocess.run(again, check=True)
            ended.append(retcon("study", "run", "s.yaml", "--out", "disk/s"))
        assert ended[0][0] == 2 and "disk/s" in ended[0][2]
        assert all(code == 0 or "could not be written" in err for code, _, err in ended)
        assert ended[-1][0] == 0 and len(list(Path("disk").rglob("done.json"))) == 2
    finally:
        subprocess.run(["umount", "disk"], check=False)


def test_a_cell_that_nobody_foresaw_stops_no_other(folder, monkeypatch, retcon):
    Path("s.yaml").write_text(STUDY, encoding="utf-8")
    from retcon.study import worker

    original, calls = worker.run, []

    def fail_once(*args, **kwargs):
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("of a kind that nobody foresaw")
        return original(*args, **kwargs)

    monkeypatch.setattr(worker, "run", fail_once)
    code, out, err = retcon("study", "run", "s.yaml", "--out", "s")
    out = " ".join(out.split())
    assert code == 2 and "1 cell could not be run" in err and "Traceback" not in err
    assert "ValueError: of a kind that nobody foresaw" in out and "1 of 2 cells are done" in out
    (failed,) = Path("s").rglob("failed.json")
    said = json.loads(failed.read_text(encoding="utf-8"))
    assert "Traceback" in said["trace"] and str(failed) in out
    code, out, _ = retcon("study", "run", "s.yaml", "--out", "s")
    assert code == 0 and "2 of 2 cells are done, 1 of them were before" in out
    assert not failed.exists()


@pytest.mark.parametrize("way", ["renamed", "removed", "replaced"])
def test_a_study_that_is_moved_while_it_runs_is_not_made_again(folder, monkeypatch, retcon, way):
    Path("s.yaml").write_text(STUDY, encoding="utf-8")
    from retcon.study import store

    original = store.write_part

    def move(target, *args, **kwargs):
        made = original(target, *args, **kwargs)
        if Path("s").exists() and not Path("t").exists():
            Path("s").rename("t")
            if way == "replaced":
                Path("s").mkdir()
            if way == "removed":
                shutil.rmtree("t")
                Path("t").touch()
        return made

    monkeypatch.setattr(store, "write_part", move)
    code, _, err = retcon("study", "run", "s.yaml", "--out", "s")
    err = " ".join(err.split())
    assert code == 2 and "renamed or removed" in err and "Traceback" not in err, err
    assert ("s/cells is gone" if way == "replaced" else "error: s is gone") in err
    assert not Path("s").exists() or list(Path("s").iterdir()) == []
    if way == "renamed":
        monkeypatch.undo()
        monkeypatch.chdir(folder)
        code, out, _ = retcon("study", "resume", "t", "--data", ".")
        assert code == 0 and "2 of 2 cells are done" in out


def test_what_has_nothing_to_do_says_why(folder, retcon, monkeypatch):
    Path("s.yaml").write_text(STUDY, encoding="utf-8")

    def words(*more):
        code, out, _ = retcon("study", "run", "s.yaml", "--out", "s", *more)
        return code, " ".join(out.split())

    code, said = words("--limit", "0")
    assert code == 0 and "0 of 2 cells are done" in said and "2 are left" in said
    assert words()[0] == 0
    code, said = words()
    assert code == 0 and "2 of 2 cells are done, and were before: nothing was left to run." in said
    (some, _) = sorted(path for path in Path("s/cells").iterdir() if path.is_dir())
    shutil.rmtree(some)
    from retcon.study.store import CellFolder

    with CellFolder(some).claimed():
        code, said = words()
    assert code == 0 and f"{some.name} is being run by process {os.getpid()} on" in said
    assert "1 of 2 cells are done, and were before: this run has finished none." in said


@pytest.mark.parametrize("contexts", [0, 1])
@pytest.mark.parametrize("pass_", [2, 5, 9])
@pytest.mark.parametrize("descent", ["adam", "sphere"])
def test_targets_that_are_cut_off_go_on_to_the_same_last_bit(
    entries, monkeypatch, contexts, pass_, descent
):
    """Some are done then and others are not: all of it is kept."""
    from retcon.features import targets
    from retcon.features.remember import recall_targets
    from test_cache import EDITS, PREFIXES

    options = TargetOptions(
        steps=10, stop_below=5.4, contexts_per_step=contexts, clamp=4.0, decay=1e-3,
        descent=descent,
    )  # fmt: skip
    model = pico()

    def made():
        return recall_targets(model, EDITS, PREFIXES, 1, options)

    look, passes = targets._Descent.look, []

    def counted(self, *args):
        passes.append(1)
        if len(passes) == pass_:
            raise KeyboardInterrupt
        return look(self, *args)

    whole = targets.optimise_targets(model, EDITS, PREFIXES, 1, options)
    with monkeypatch.context() as patched:
        patched.setattr(targets._Descent, "look", counted)
        with pytest.raises(KeyboardInterrupt):
            made()
        found = made()
    assert len(passes) == 1 + int(whole.steps.max())
    assert len(set(whole.steps.tolist())) > 1
    for name in ("delta", "anchor", "loss", "nll", "steps", "stopped"):
        assert getattr(found, name).equal(getattr(whole, name)), name
    assert usage("targets")[0].files == len(EDITS)


def test_what_is_unfinished_is_written_now_and_then_and_not_after_an_error(entries, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])

    def standing(number):
        return {"x": torch.full((2,), float(number))}

    def begun():
        return Unfinished("targets", [{"a": 1}, {"a": 2}])

    def kept():
        found = begun().read()
        return None if found is None else float(found["x"][0])

    with pytest.raises(ZeroDivisionError), (one := begun()).until_done():
        for number in range(5):
            one.note(standing(number))
            clock[0] += 7
        assert kept() == 3.0
        raise ZeroDivisionError
    assert kept() is None
    with pytest.raises(KeyboardInterrupt), (one := begun()).until_done():
        one.note(standing(8))
        raise KeyboardInterrupt
    assert kept() == 8.0
    with begun().until_done():
        pass
    assert kept() is None


def test_a_corpus_that_is_cut_off_keeps_its_batches_and_ends_with_the_same_texts(
    cache, monkeypatch
):
    from retcon.features import own_text as self_corpus

    model = pico()

    def corpus():
        return SelfCorpus(model=model, tokens=200, document_tokens=16, batch=2)

    whole = list(corpus().texts())
    (file,) = (cache / "corpora").glob("*.jsonl")
    written = file.read_bytes()
    file.unlink()
    sample, seeds = self_corpus.sample, []

    def cut(*args, seed, **named):
        seeds.append(seed)
        if len(seeds) in (3, 5):
            raise KeyboardInterrupt
        return sample(*args, seed=seed, **named)

    monkeypatch.setattr(self_corpus, "sample", cut)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            list(corpus().texts())
    assert list(corpus().texts()) == whole and file.read_bytes() == written
    # The batch that was cut off is sampled again, and no other.
    assert seeds == [0, 1, 2, 2, 3, 3, *range(4, 1 + max(seeds))] and max(seeds) >= 3
    assert [path.name for path in file.parent.iterdir() if path.suffix == ".jsonl"] == [file.name]


def test_second_moments_are_kept_by_the_clock_and_not_too_often(cache, monkeypatch):
    from retcon.features import second_moments as covariance

    clock, saved = [0.0], []
    monkeypatch.setattr("time.monotonic", lambda: clock[0])

    def save(path, *_args):
        saved.append(clock[0])
        clock[0] += 3  # seconds

    monkeypatch.setattr(covariance, "save_tensors", save)
    monkeypatch.setattr(covariance, "_PASS_TOKENS", 16)
    texts = ["The capital city of France is Paris, and that of Italy is Rome."] * 60

    def tick(_task, done, total):
        clock[0] += 5 if done < total else 0

    covariance.collect_moments(
        pico(), iter(texts), [1], tokens=1000, document_tokens=16, progress=tick,
        resume=cache / "partial.safetensors",
    )  # fmt: skip
    # After twenty seconds; then, since it took three, not before sixty.
    assert saved[:3] == [25.0, 25.0 + 3 + 65, 25.0 + 2 * (3 + 65)]
