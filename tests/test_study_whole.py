"""Whole studies: killed, interrupted, on a full disk, damaged, and run by two at once."""

import errno
import json
import os
import random
import shutil
import signal
from pathlib import Path

import pytest
import safetensors.torch

from retcon.errors import InvalidStudy
from retcon.sealed import load_record
from retcon.study.runner import run_cells
from retcon.study.spec import parse_spec
from retcon.study.store import CellFolder
from retcon.study.study import read_study
from tiny_study import FAST, process, write_model_and_facts

TEXT = f"""retcon_study: 1
name: tiny
threads: 1
model: ./model
data: {{cases: facts.jsonl, unique_subjects: true}}
tuning: {{ridges: [3, 30], n: 2}}
defaults: {{method: memit, layer: 1, n: 4, settings: {json.dumps(FAST | {"ridge": 5})}}}
blocks:
  - {{name: batch, schedule: batch, batch_size: 2, settings: {{ridge: tuned}}}}
  - name: carried
    schedule: sequential
    when: [pre, immediate, final, retention]
    refresh: [each-batch, never]
    settings: {{ridge: tuned, accumulate: true}}
  - {{name: portions, schedule: sequential-batch, batch_size: 2, settings: {{accumulate: false}}}}
"""
# A whole run changes files and folders some 600 times.
KILLS, BETWEEN = 20, 200


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Model, facts, the file of the study, the finished study, and the cache that it filled."""
    folder = write_model_and_facts(tmp_path_factory.mktemp("made"), paraphrased=True)
    (folder / "s.yaml").write_text(TEXT, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setenv("RETCON_CACHE", str(folder / "cache"))
        start()
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch, entries, made):
    """All but the study, in the working folder."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("study"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path


@pytest.fixture
def finished(folder, made):
    """Put the finished study into a folder here."""
    return lambda into="study": shutil.copytree(made / "study", into)


def start(text: str = TEXT, into: str = "study"):
    return run_cells(parse_spec(text, Path("s.yaml")), Path(into))


def kept(into: str = "study") -> dict[str, object]:
    """What a study comes to: of each cell the rows and weights, and the ridges."""
    cells = {}
    for path in sorted(Path(into).glob("cells/*/done.json")):
        if ".damaged-" in path.parent.name:
            continue
        done = json.loads(path.read_text(encoding="utf-8"))
        examples = done["files"].get("examples.json")
        cells[path.parent.name] = (done["weights"], done["files"]["rows.parquet"], examples)
    names = ("tuned.json", "study.json", "study.yaml")
    return cells | {name: (Path(into) / name).read_text(encoding="utf-8") for name in names}


@pytest.mark.long
def test_killed_again_and_again_a_study_ends_as_if_it_had_not_been(folder):
    start(into="first")  # fills the cache, as every later run finds it
    assert start(into="whole").done == 10
    draw, kills = random.Random(0), 0
    while kills < KILLS:
        child = process(folder, TEXT, "cut", changes=draw.randint(1, BETWEEN))
        child.join()
        kills += child.exitcode == -signal.SIGKILL
        if len(list(Path("cut").glob("cells/*/done.json"))) == 10:
            start(into="cut")
            assert kept("cut") == kept("whole")
            shutil.rmtree("cut")
    start(into="cut")
    assert kept("cut") == kept("whole") and not list(Path("cut").rglob("step-*"))


def test_two_processes_on_one_folder_complete_it_together(folder, finished):
    finished("whole")
    children = [process(folder, TEXT, "both") for _ in range(2)]
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0] and kept("both") == kept("whole")


def test_busy_is_what_another_process_is_still_at(folder):
    made = start(into="whole")
    some = sorted(kept("whole"))[0]
    Path("study/cells").mkdir(parents=True)
    with CellFolder(Path("study/cells") / some).claimed():
        ended = start()
        assert list(ended.busy) == [some] and f"process {os.getpid()} on" in ended.busy[some]
    assert (ended.done, made.busy) == (ended.cells - 1, {})


def test_a_full_disk_stops_the_study_and_it_goes_on_from_there(
    folder, finished, retcon, monkeypatch
):
    finished("whole")
    writes, write = iter(range(100)), safetensors.torch.save_file

    def full(tensors, path, about):
        if next(writes) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(tensors, path, about)

    monkeypatch.setattr("safetensors.torch.save_file", full)
    code, _, err = retcon("study", "run", "s.yaml", "--out", "study")
    assert code == 2 and "No space left on device" in err and "Traceback" not in err
    monkeypatch.setattr("safetensors.torch.save_file", write)
    done = {c: v for c, v in kept_cells("study").items() if kept("whole")[c] == v}
    assert done and done == kept_cells("study")
    code, out, _ = retcon("study", "resume", "study", "--data", ".")
    assert code == 0 and "10 of 10 cells are done" in out
    assert kept() == kept("whole")


def kept_cells(into: str) -> dict[str, object]:
    (Path(into) / "tuned.json").touch()
    return {k: v for k, v in kept(into).items() if "." not in k}


def test_interrupted_it_says_how_to_go_on_and_nothing_else(folder, retcon, monkeypatch):
    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("retcon.run.looks.score_cases", interrupt)
    code, _, err = retcon("study", "run", "s.yaml", "--out", "study")
    assert code == 130 and "retcon study resume study" in err and "as before" not in err


def test_damaged_cells_are_run_again_also_those_that_tune_and_are_tuned(folder, finished, retcon):
    finished()
    before, study = kept(), read_study("study")
    place = next(p.cell for p in study.points if p.tuned)
    with (study.cell(str(place)) / "rows.parquet").open("ab") as stream:
        stream.write(b"x")
    tuning = study.tuned[0].cells[0]
    (study.cell(tuning) / "done.json").write_text("{", encoding="utf-8")
    code, _, err = retcon("study", "export", "study", "-o", "all.parquet")
    assert code == 2 and "is not the file that was written" in err
    code, out, _ = retcon("study", "run", "s.yaml", "--out", "study")
    assert code == 0 and f"{place}.damaged-1" in out and f"{tuning}.damaged-1" in out
    assert kept() == before


def test_rows_of_a_study_with_a_cell_that_is_gone_are_said_to_be_some(folder, finished, retcon):
    finished()
    code, _, err = retcon("study", "export", "study", "-o", "all.parquet")
    assert code == 0 and "are not done" not in err
    study = read_study("study")
    shutil.rmtree(study.cell(str(study.points[0].cell)))
    code, _, err = retcon("study", "export", "study", "-o", "some.parquet")
    assert code == 0 and f"1 of {len(study.points)} places of the grid are not done" in err
    assert "retcon study resume study" in err


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("copied", [True, False])
def test_cells_in_others_folders_are_told_and_run_again(folder, finished, retcon, sealed, copied):
    finished()
    before, study = kept(), read_study("study")
    one, two = (study.cell(str(p.cell)) for p in study.points[:2])
    if not sealed:  # as they were written before there were digests of whose they are
        for done in Path("study").glob("cells/*/done.json"):
            done.write_text(json.dumps(load_record(done, {}).value), encoding="utf-8")
    spare = one.rename(one.with_name("spare"))
    if copied:
        shutil.copytree(two, one)
        shutil.rmtree(spare)
    else:
        two.rename(one)
        spare.rename(two)
    code, _, err = retcon("study", "export", "study", "-o", "all.parquet")
    assert code == 2 and "another" in err
    code, out, err = retcon("study", "verify", "study")
    assert code == 2 and one.name in out and "damaged" in out, err
    code, out, _ = retcon("study", "run", "s.yaml", "--out", "study")
    assert code == 0 and f"{one.name}.damaged-1" in out
    assert (f"{two.name}.damaged-1" in out) is not copied
    if sealed:
        assert kept() == before
    code, out, _ = retcon("study", "verify", "study")
    assert code == 0, out


def test_a_study_file_that_was_changed_is_not_resumed_by(folder, finished, retcon):
    finished()
    before, file = kept(), Path("study/study.yaml")
    file.write_bytes(file.read_bytes().replace(b"batch_size: 2", b"batch_size: 3"))
    code, _, err = retcon("study", "resume", "study")
    assert code == 2 and "study.yaml" in err and "retcon study run" in err
    assert {k: v for k, v in kept().items() if k != "study.yaml"} == {
        k: v for k, v in before.items() if k != "study.yaml"
    }
    # On purpose it can be run as it is, and is then the file that it was last run with.
    code, _, err = retcon("study", "run", str(file), "--out", "other", "--data", ".")
    assert code == 0, err
    assert retcon("study", "resume", "other", "--data", ".")[0] == 0


@pytest.mark.parametrize("name", ["study.json", "tuned.json"])
def test_a_damaged_record_is_told_and_can_be_made_again(folder, finished, retcon, name):
    finished()
    before = kept()
    (other,) = {"study.json", "tuned.json"} - {name}
    for content in (b"{", (Path("study") / other).read_bytes()):
        (Path("study") / name).write_bytes(content)
        code, _, err = retcon("study", "report", "study")
        assert code == 2 and f"{name} is damaged" in err and "Traceback" not in err
    (Path("study") / name).unlink()
    code, out, _ = retcon("study", "run", "s.yaml", "--out", "study")
    assert code == 0 and "10 of 10" in out and kept() == before


OTHERS = [
    ("threads: 1", "threads: 7", "begun with 1 threads"),
    ("name: tiny", "name: tiny\ndevice: cuda", "begun on cpu"),
]


@pytest.mark.parametrize(("old", "new", "said"), OTHERS, ids=[said for *_, said in OTHERS])
def test_what_changes_bits_is_as_the_folder_was_begun(folder, finished, old, new, said):
    finished()
    with pytest.raises(InvalidStudy, match=said):
        start(TEXT.replace(old, new))
    if "threads" in new:
        (Path("study") / "study.json").unlink()  # finished cells know it as well
        with pytest.raises(InvalidStudy, match=said):
            start(TEXT.replace(old, new))


def test_another_file_of_facts_of_the_same_name_is_refused(folder, finished):
    finished()
    before, lines = kept(), (folder / "facts.jsonl").read_text(encoding="utf-8")
    (folder / "facts.jsonl").write_text(lines + "\n", encoding="utf-8")
    with pytest.raises(InvalidStudy, match="not the file that this folder was begun with"):
        start()
    assert kept() == before


def test_another_corpus_of_the_same_name_is_refused(folder):
    (folder / "corpus.txt").write_text("The mother tongue of Marie Curie is Polish. " * 90)
    text = TEXT.replace('"corpus_tokens"', '"corpus": "corpus.txt", "corpus_tokens"')
    start(text)
    (folder / "corpus.txt").write_text("Rome is the capital of Danielle Paris. " * 90)
    with pytest.raises(InvalidStudy, match=r"corpus corpus\.txt is not the file"):
        start(text)


def test_other_weights_of_the_same_name_are_refused_and_done_cells_stay(folder, finished, retcon):
    from safetensors.torch import load_file, save_file

    finished()
    before = {k: v for k, v in kept().items() if "." not in k}
    path = folder / "model" / "model.safetensors"
    weights = load_file(path)
    weights = {k: v + 0.01 if "down" in k else v for k, v in weights.items()}
    save_file(weights, path, {"format": "pt"})
    (folder / "s.yaml").write_text(TEXT.replace("batch_size: 2", "batch_size: [1, 2]"))
    code, out, err = retcon("study", "run", "s.yaml", "--out", "study")
    assert code == 2 and "are not those that this study was begun with" in out + err
    assert {k: v for k, v in kept().items() if "." not in k} == before
    code, out, _ = retcon("study", "status", "study")
    assert code == 0 and "Bring the old ones back" in out and '"error"' not in out


def test_another_tokenizer_of_the_same_name_is_refused(folder, finished, retcon):
    finished()
    path = folder / "model" / "tokenizer.json"
    rules = json.loads(path.read_text())
    words = rules["model"]["vocab"]
    first, second = sorted(words, key=words.get)[-2:]
    words[first], words[second] = words[second], words[first]
    path.write_text(json.dumps(rules))
    (folder / "s.yaml").write_text(TEXT.replace("batch_size: 2", "batch_size: [1, 2]"))
    code, out, err = retcon("study", "run", "s.yaml", "--out", "study")
    assert code == 2 and "The tokenizer of" in out + err and "Bring the old one back" in out + err


def test_a_folder_that_is_a_file_and_numbers_out_of_range_are_refused(folder, retcon, monkeypatch):
    monkeypatch.setattr("retcon.study.worker.load", None)  # before any model is loaded
    (folder / "file").touch()
    code, _, err = retcon("study", "run", "s.yaml", "--out", "file")
    assert code == 2 and "is a file" in err
    for wrong in (("--workers", "-1"), ("--limit", "-2"), ("--executor", "slurm")):
        code, _, err = retcon("study", "run", "s.yaml", "--out", "study", *wrong)
        assert code == 2 and wrong[0][2:] in err
