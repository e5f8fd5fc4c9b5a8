"""How files are written: whole, open as any file is, and nothing is left of who was killed."""

import errno
import os
import stat
import subprocess
import sys
import time
import traceback
from contextlib import contextmanager

import polars as pl
import pytest
import torch

from hostile import make_good
from pico import pico
from retcon import files as storage
from retcon import locking
from retcon.cache import recall
from retcon.edits import Edit
from retcon.errors import RetconWarning, StorageError
from retcon.files import sweep, whole_folder, write_whole
from retcon.locking import claimed, locked
from retcon.patch.ledger import Ledger
from retcon.run.edit import edit
from test_export import some_patch
from tiny_study import FAST, finish, task, write_model_and_facts

FACT = Edit.parse("The capital city of {France} is", "Rome", id="c")
GONE = 2**22 + 1  # no process has this number


def killed(work) -> int:
    """The number of a child that has died in the middle of some work."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    os.waitpid(child, 0)
    return child


def hidden(folder):
    return list(folder.rglob(".retcon-*"))


def modes(folder):
    """Modes of files and of folders, with one of each that has it."""
    found = {}
    for path in folder.rglob("*"):
        found.setdefault((path.is_dir(), stat.S_IMODE(path.stat().st_mode)), path)
    return found


@pytest.mark.parametrize("umask", [0o002, 0o027])
def test_whatever_is_written_has_the_mode_that_the_umask_says(umask, tmp_path, entries):
    outer = tmp_path / "outer"
    before = os.umask(umask)
    try:
        outer.mkdir()
        make_good(outer)
        edit(pico(), [FACT], method="memit", layers=[1], settings={**FAST, "ridge": 1})
        finish(task(write_model_and_facts(outer), schedule="sequential-batch:3", generation=True))
        with whole_folder(outer / "made") as work:
            pico().model.save_pretrained(work)
    finally:
        os.umask(before)
    # What transformers writes by itself is not ours; what it writes into a new folder is.
    for foreign in ("checkpoint", "model"):
        for path in (outer / foreign).iterdir():
            path.unlink()
    assert {*modes(outer)} | {*modes(entries)} == {(False, 0o666 & ~umask), (True, 0o777 & ~umask)}
    assert (outer / "adapter").stat().st_mode & 0o777 == 0o777 & ~umask


def test_a_writer_s_own_errors_are_errors_of_storage(tmp_path):
    frame = pl.DataFrame({"x": [1]})

    def full(work):
        work.unlink()
        work.mkdir()
        frame.write_parquet(work)

    with pytest.raises(StorageError, match=r"rows\.parquet could not be written"):
        write_whole(tmp_path / "rows.parquet", full)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_a_killed_process_has_left_is_swept(what, tmp_path):
    def die(work):
        work.with_name("library.tmp").write_text("x", encoding="utf-8")
        os._exit(9)

    def die_in_a_folder():
        with whole_folder(tmp_path / "there") as work:
            die(work)

    killed({"file": lambda: write_whole(tmp_path / "there", die), "folder": die_in_a_folder}[what])
    (left,) = tmp_path.iterdir()
    assert storage.is_temporary(left)
    write_whole(tmp_path / "other", lambda work: work.write_text("y", encoding="utf-8"))
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_what_is_being_written_is_left_alone(tmp_path):
    here, there = storage._here(), "0123abcd"
    dead = tmp_path / f".retcon-{here}-{GONE}-00000000"
    alive = tmp_path / f".retcon-{here}-{os.getpid()}-00000000"
    foreign = tmp_path / f".retcon-{there}-{GONE}-00000000"
    old = tmp_path / f".retcon-{there}-{GONE}-11111111"
    mine = tmp_path / ".retcon-notes"
    for path in (dead, alive, foreign, old, mine):
        path.mkdir()
        (path / "file").write_text("x", encoding="utf-8")
    long_ago = time.time() - 2 * storage._FORSAKEN
    for path in (old / "file", old, mine):
        os.utime(path, (long_ago, long_ago))
    sweep(tmp_path)
    assert {*tmp_path.iterdir()} == {alive, foreign, mine}


def test_a_ledger_whose_beginning_was_killed_is_begun_again(tmp_path, monkeypatch):
    patch, ledger = some_patch(pico()), Ledger(tmp_path / "ledger")
    with monkeypatch.context() as patched:
        patched.setattr(storage, "_sync", lambda _path: os._exit(9))
        killed(lambda: ledger.add(patch, who="ann"))
    assert hidden(tmp_path) and not (tmp_path / "ledger" / "ledger.json").exists()
    assert ledger.add(patch, who="ann").number == 1
    assert not hidden(tmp_path)


def test_a_ledger_s_foreign_files_are_still_foreign(tmp_path):
    from retcon.errors import InvalidLedger

    (tmp_path / ".hidden").write_text("x", encoding="utf-8")
    with pytest.raises(InvalidLedger, match=r"other files \(\.hidden\)"):
        Ledger(tmp_path).add(some_patch(pico()), who="ann")


def test_entries_of_a_killed_process_are_swept_from_the_cache(entries, monkeypatch):
    def make(group):
        return [{"x": torch.zeros(3)} for _ in group]

    with monkeypatch.context() as patched:
        patched.setattr(storage, "_open_up", lambda *_: os._exit(9))
        killed(lambda: recall("keys", [{"a": 1}], make))
    assert len(hidden(entries)) == 1
    recall("keys", [{"b": 1}], make)
    assert hidden(entries) == []


@contextmanager
def held(lock):
    """A lock that another process holds until the block ends."""
    code = (
        "import pathlib, sys; from retcon.locking import locked\n"
        "with locked(pathlib.Path(sys.argv[1])):\n"
        "    print('mine', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(lock), "some words"]
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert child.stdout.readline() == "mine\n"
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def test_who_waits_for_a_lock_is_told_whose_it_is(tmp_path, monkeypatch):
    lock, told = tmp_path / "lock", []
    monkeypatch.setattr(locking, "_SILENT", 0.1)
    with held(lock) as child:
        with claimed(lock) as mine:
            assert not mine
        assert f"process {child.pid} on" in locking.holder(lock)
        # It is let go of when the message has come, and not before.
        monkeypatch.setattr("warnings.warn", lambda *said, **_: (told.append(said), child.kill()))
        with locked(lock):
            pass
    ((said, kind),) = told
    assert kind is RetconWarning
    assert f"Waiting for {lock}, which is held by process {child.pid} on" in said
    assert "since 20" in said and "'some words'" in said


def test_the_lock_of_a_dead_process_is_no_obstacle(tmp_path):
    lock = tmp_path / "lock"
    with held(lock) as child:
        child.kill()
        child.wait()
        assert locking._note(lock).exists()
        with locked(lock):
            assert f"process {os.getpid()} on" in locking.holder(lock)
    assert not locking._note(lock).exists() and locking.holder(lock) == "another process"


def test_no_lock_makes_a_folder_that_has_gone(tmp_path):
    lock = tmp_path / "gone" / "lock"
    for take in (locked, claimed):
        with pytest.raises(StorageError, match="No such file"), take(lock):
            pass
    assert not lock.parent.exists()


def as_nobody(work) -> int:
    """The exit code of a child that may read what all may read, and write nothing of ours."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_cache_that_may_only_be_read_serves_all_it_has(tmp_path, entries, monkeypatch):
    # By its relative name: the folders above are closed to others.
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RETCON_CACHE", "cache")
    model = pico()
    settings = {**FAST, "ridge": 1}
    made = edit(model, [FACT], method="memit", layers=[1], settings=settings)
    for path in [entries, *entries.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)

    def again():
        monkeypatch.setattr("retcon.features.remember.optimise_targets", pytest.fail)
        found = edit(model, [FACT], method="memit", layers=[1], settings=settings)
        assert found.deltas[1].left.equal(made.deltas[1].left)
        assert found.deltas[1].right.equal(made.deltas[1].right)

    def another():
        other = edit(model, [FACT], method="memit", layers=[1], settings={**settings, "steps": 2})
        assert not other.deltas[1].left.equal(made.deltas[1].left)

    def of_another_corpus():
        with pytest.raises(StorageError, match=r"cache/.* could not be written: Permission"):
            edit(model, [FACT], method="memit", layers=[1], settings=settings | {"corpus_seed": 1})

    try:
        assert [as_nobody(work) for work in (again, another, of_another_corpus)] == [0, 0, 0]
    finally:
        for path in [entries, *entries.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)


def test_a_disk_that_is_full_is_named(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.touch", full)
    for write in (
        lambda: write_whole(tmp_path / "one", lambda _work: None),
        lambda: some_patch(pico()).save(tmp_path / "one"),
    ):
        with pytest.raises(StorageError, match="one could not be written: No space left"):
            write()
    assert list(tmp_path.iterdir()) == []
