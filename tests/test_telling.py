"""What a command says while it works, and how signals end it."""

import os
import signal
import subprocess
import sys
import time

import pytest
from pydantic import BaseModel, model_serializer
from rich.console import Console

from pico import pico, tokenizer
from retcon.cli import telling
from retcon.cli.endings import like_ctrl_c
from retcon.cli.telling import Lines, clock_time
from retcon.features.own_text import SelfCorpus

FACT = ("--fact", "The capital city of {France} is", "Rome")
EMMET = (
    "--method", "emmet", "--layer", "1", "--set", "steps=2", "--set", "corpus_tokens=400",
    "--set", "document_tokens=32", "--set", "jitter=1e-3",
)  # fmt: skip


class Clock:
    """A clock that goes when it is told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def lines():
    """What is said, and the clock by which it is."""
    clock, said = Clock(), []
    return Lines(said.append, clock), clock, said


def test_a_line_comes_every_twenty_seconds_also_while_the_work_does_not_call(lines):
    tell, clock, said = lines
    tell("sampling", 0, 200)
    clock.now += 19
    tell("sampling", 10, 200)
    assert said == []
    clock.now += 1
    tell("sampling", 20, 200)
    assert said == ["sampling: 20 of 200 (0:20, about 3:00 left)"]
    clock.now += 10
    tell.tick()
    assert len(said) == 1
    clock.now += 10
    tell.tick()
    assert said[1] == "sampling: 20 of 200 (0:40, about 6:00 left)"


def test_a_line_names_all_that_is_under_way_the_outermost_first(lines):
    tell, clock, said = lines
    tell("cells", 3, 40)
    clock.now += 5
    tell("loading the model", 0, 1)
    tell("loading the model", 1, 1)
    tell("optimising targets", 0, 8)
    clock.now += 3600
    tell("optimising targets", 2, 8)
    assert said == [
        "cells: 3 of 40 (1:00:05); optimising targets: 2 of 8 (1:00:00, about 3:00:00 left)"
    ]
    clock.now += 20
    tell("optimising targets", 8, 8)
    assert said[1] == "cells: 3 of 40 (1:00:25)"
    clock.now += 20
    tell("cells", 40, 40)
    assert len(said) == 2


def test_what_was_done_before_says_nothing_of_the_pace_and_what_begins_again_begins_anew(lines):
    tell, clock, said = lines
    tell("targets", 500, 600)
    clock.now += 20
    tell("targets", 510, 600)
    assert said == ["targets: 510 of 600 (0:20, about 3:00 left)"]
    tell("targets", 0, 600)
    clock.now += 20
    tell.tick()
    assert said[1] == "targets: 0 of 600 (0:20)"


def test_what_has_no_parts_is_named_with_its_time(lines):
    tell, clock, said = lines
    tell("loading the model", 0, 1)
    clock.now += 83
    tell.tick()
    assert said == ["loading the model (1:23)"] and clock_time(3 * 3600 + 62.0) == "3:01:02"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_has_bars_and_everything_else_lines(terminal, monkeypatch):
    from io import StringIO

    stream = StringIO()
    console = Console(file=stream, force_terminal=terminal, width=100)
    monkeypatch.setattr(telling, "_EVERY", 0.0)
    with telling.telling(console) as tell:
        for done in (0, 3, 7, 2, 10):
            tell("optimising targets", done, 10)
    text = stream.getvalue()
    assert "optimising targets" in text
    assert ("left" in text and "\x1b" in text) if terminal else ("7 of 10" in text)
    assert ("\x1b" in text) is terminal


@pytest.fixture
def folder(tmp_path, monkeypatch, entries):
    """A model in the working folder."""
    pico().model.save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


ENDINGS = {"SIGINT": (130, "Interrupted. "), "SIGTERM": (143, "Terminated. ")}
ENDINGS["SIGHUP"] = (129, "Terminated. ")


@pytest.fixture
def heeded():
    """Signals as at a terminal: what runs in the background may have been told to ignore some."""
    numbers = [getattr(signal, name) for name in ENDINGS]
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("name", ENDINGS)
def test_a_signal_ends_a_command_tidily(name, folder, retcon, monkeypatch, heeded):
    def end(work):
        (work.parent / "half").write_text("x", encoding="utf-8")
        signal.raise_signal(getattr(signal, name))

    before = signal.getsignal(getattr(signal, name))
    monkeypatch.setattr("retcon.patch.patch.Patch.save", lambda _patch, path: end_in(path, end))
    code, _, err = retcon("edit", "./model", *FACT, *EMMET, "-o", "p.safetensors")
    assert code == ENDINGS[name][0] and ENDINGS[name][1] in err and "as before" in err
    # What a pico model does not say is told before the patch is saved.
    told = [line for line in err.splitlines() if "not said when asked" not in line]
    assert len(told) == 1 and "Traceback" not in err
    assert [path.name for path in folder.iterdir() if path.name not in ("model", "cache")] == []
    assert signal.getsignal(getattr(signal, name)) == before


def end_in(path, end):
    from retcon.files import write_whole

    write_whole(path, end)


def test_a_second_signal_does_not_cut_off_what_the_first_has_begun():
    with like_ctrl_c() as received:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    assert received.code == 143


def test_ctrl_c_twice_ends_also_what_cleans_up(heeded):
    with like_ctrl_c() as received:
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    assert (received.code, received.name) == (130, "Interrupted")


def test_a_signal_waits_for_the_end_of_an_import(tmp_path, monkeypatch, heeded):
    """A module may turn the exception into one of its own, as those of records do."""
    (tmp_path / "turns_it.py").write_text(
        "import signal\ntry:\n    signal.raise_signal(signal.SIGTERM)\n"
        "except KeyboardInterrupt as error:\n    raise ValueError('wrong schema') from error\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with like_ctrl_c() as received, pytest.raises(KeyboardInterrupt):
        import turns_it  # pyright: ignore[reportMissingImports]  # noqa: F401

        time.sleep(10)
    assert received.code == 143


def test_a_signal_waits_until_a_record_is_written_down(heeded):
    """Pydantic turns the exception into one of its own, and a traceback was what one saw."""

    class Record(BaseModel):
        name: str = "a"

        @model_serializer(mode="wrap")
        def dumped(self, dump):
            signal.raise_signal(signal.SIGTERM)
            return dump(self)

    with like_ctrl_c() as received, pytest.raises(KeyboardInterrupt):
        Record().model_dump()
        time.sleep(10)
    assert received.code == 143


def test_a_signal_that_waits_when_all_is_done_is_forgotten(tmp_path, monkeypatch, heeded):
    """It would end the interpreter's own end, with a traceback and another exit code."""
    (tmp_path / "is_the_last.py").write_text(
        "import signal\nsignal.raise_signal(signal.SIGTERM)\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with like_ctrl_c() as received:
        import is_the_last  # pyright: ignore[reportMissingImports]  # noqa: F401
    time.sleep(0.1)
    assert received.number is None


def test_a_signal_where_no_exception_can_be_raised_comes_again(heeded, capsys):
    """Python prints a traceback of such an exception, and goes on."""

    class Last:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    with like_ctrl_c() as received, pytest.raises(KeyboardInterrupt):
        last = Last()
        del last
        time.sleep(10)
    assert received.code == 143 and capsys.readouterr().err == ""


def test_a_signal_that_was_to_be_ignored_is():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with like_ctrl_c() as received:
            signal.raise_signal(signal.SIGHUP)
        assert received.number is None and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_study_that_is_terminated_says_how_to_go_on(folder, retcon, monkeypatch):
    from tiny_study import write_model_and_facts

    write_model_and_facts(folder)
    text = (
        "retcon_study: 1\nname: s\nmodel: ./model\nthreads: 1\n"
        "data: {cases: facts.jsonl, unique_subjects: true}\n"
        "defaults: {method: memit, layer: 1, n: 6, settings: {steps: 2, corpus_tokens: 300}}\n"
        "blocks: [{name: x, schedule: sequential-batch, batch_size: 3}]\n"
    )
    (folder / "s.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(
        "retcon.run.looks.score_cases", lambda *_, **__: signal.raise_signal(signal.SIGTERM)
    )
    code, _, err = retcon("study", "run", "s.yaml", "--out", "s")
    err = " ".join(err.split())
    assert code == 143 and "Terminated. Batches that were finished are kept" in err
    assert "retcon study resume s" in err


def test_a_process_that_is_terminated_leaves_nothing_half_done(folder):
    """For once with a real process: it is asked to end as soon as it has begun to write."""
    command = [
        sys.executable, "-c", "from retcon.cli.main import run; run()", "edit", "./model", *FACT,
        *EMMET, "--set", "steps=100000", "--set", "stop_below=0", "-o", "p.safetensors",
    ]  # fmt: skip
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 100
    while not list(folder.rglob("moments/*/layer-1.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGTERM)
    _, err = child.communicate(timeout=100)
    assert child.returncode == 143 and "Terminated. " in err and "Traceback" not in err
    assert not (folder / "p.safetensors").exists() and not list(folder.rglob(".retcon-*"))


def test_an_edit_that_writes_nothing_is_said(folder, retcon):
    import json

    code, out, err = retcon(
        "edit", "./model", *FACT, *EMMET, "--set", "steps=1", "-o", "p.safetensors",
        "--json", "r.json",
    )  # fmt: skip
    err = " ".join(err.split())
    assert code == 0 and "warning: Nothing is written: ΔW is 0 in every layer" in err
    (note,) = json.loads((folder / "r.json").read_text(encoding="utf-8"))["notes"]
    assert note.startswith("Nothing is written") and "steps=1" in note and "Saved" in out
    code, _, err = retcon("edit", "./model", *FACT, *EMMET)
    assert code == 0 and "Nothing is written" not in err


# What each command tells on its way: a task for all that can take long.
TOLD = {
    "memit": {
        "collecting second moments", "factoring second moments", "optimising targets, in steps",
        "reading keys", "solving for the change", "editing", "scoring prompts",
        "sampling the corpus `self` (once), in tokens", "letting the model write",
    },
    "alphaedit": {"finding the null space of second moments"},
    "finetune": {"fine-tuning, in steps"},
    "finetune_lora": {"training low-rank changes, in steps"},
    "ultraedit": {"reading gradients"},
}  # fmt: skip


@pytest.mark.parametrize("method", TOLD)
def test_all_that_may_take_long_is_told_to_its_end(method, cache):
    from retcon.edits import Case, Edit
    from retcon.run.evaluate import evaluate
    from retcon.scoring.metrics.entropy import write_texts
    from retcon.scoring.observations import Moment

    said = {}

    def tell(task, done, total):
        assert 0 <= done <= total, task
        said.setdefault(task, []).append((done, total))

    cases = [Case(edit=Edit.parse(FACT[1], FACT[2], id="a", target_old="Paris"))]
    settings = {"corpus_tokens": 400, "document_tokens": 32, "steps": 3}
    settings = settings if method in ("memit", "alphaedit") else {}
    settings |= {"corpus_tokens": 400} if method == "finetune_lora" else {}
    settings |= {"null_threshold": 1e9} if method == "alphaedit" else {}
    model = pico()
    evaluate(
        model, cases, method=method, layers=[1], settings=settings, schedule="sequential",
        progress=tell,
    )  # fmt: skip
    write_texts(model, cases, Moment("pre"), tell)
    assert {*said} >= TOLD[method]
    for task, steps in said.items():
        assert steps[-1][0] == steps[-1][1], task
    if method == "memit":
        assert len(said["optimising targets, in steps"]) >= 4
        assert len(said["sampling the corpus `self` (once), in tokens"]) > 20


def test_the_last_batch_of_a_corpus_comes_to_its_end_as_it_is_sampled(cache):
    """More of its tokens are sampled than are asked for, and the bar does not wait for them."""
    told: list[int] = []
    corpus = SelfCorpus(
        model=pico(), tokens=60, document_tokens=32, batch=16,
        progress=lambda _, done, total: told.append(done),
    )  # fmt: skip
    assert [*corpus.texts()] and told[0] == 0 and told[-1] == 60
    assert told == sorted(told) and told.count(59) <= 3
