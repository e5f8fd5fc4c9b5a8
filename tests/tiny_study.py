"""A model of three blocks, six facts, and cells about them: the smallest study there is."""

import json
import multiprocessing
import os
import signal
import sys
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

from pico import pico, tokenizer
from retcon.data.cases import load_cases
from retcon.method.entries import differing, find_method
from retcon.study.cells import Cell
from retcon.study.runner import run_cells
from retcon.study.spec import parse_spec
from retcon.study.worker import CellTask, Worker

WORDS = ["English", "German", "Spanish", "Russian", "Polish", "Rome", "Paris", "Madrid"]
# What Python tells of itself before it changes a file or a folder, beside `open`.
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink")
FAST = {"steps": 3, "corpus_tokens": 300, "document_tokens": 32, "jitter": 1e-3, "prefixes": 1}


def write_model_and_facts(folder: Path, *, paraphrased: bool = False) -> Path:
    """The folder, with `model` and `facts.jsonl` in it."""
    model = pico()
    model.model.save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")
    facts = [
        {"prompt": f"The mother tongue of {{{a} {b}}} is", "target": WORDS[i], "id": f"{a}{b}",
         "target_old": WORDS[j], "neighbours": [f"{a} is"], "relation": a,
         "paraphrases": [f"{a} {b} was born in"] * paraphrased}
        for i, a in enumerate(("Marie", "Danielle", "Rome"))
        for j, b in enumerate(("Curie", "Paris"))
    ]  # fmt: skip
    lines = "\n".join(json.dumps(fact) for fact in facts)
    (folder / "facts.jsonl").write_text(lines, encoding="utf-8")
    return folder


def task(folder: Path, name: str = "cell", **changes) -> CellTask:
    cases = tuple(load_cases(folder / "facts.jsonl"))
    method = changes.pop("method", "memit")
    settings = find_method(method).resolve({**FAST, **changes.pop("settings", {})})
    values = {
        "name": str(folder / "model"), "method": method, "settings": settings, "layers": (1,),
        "fingerprint": Worker(1).model(str(folder / "model"), "float32").fingerprint,
        "dtype": "float32", "data": "abc", "unique_subjects": True, "n": len(cases), "seed": 0,
        "order": 0, "schedule": "sequential", "refresh": "each-batch", "score": 0,
        "when": ("pre", "immediate", "final", "retention"), "generation": False, **changes,
    }  # fmt: skip
    editor = json.loads(json.dumps(differing(find_method(method).build((1,), settings))))
    cell = Cell(**{"editor": editor, **values})
    return CellTask(cell, cases, tuple(c.edit.id for c in cases), folder / name)


def process(folder: Path, text: str, into: str, changes: int | None = None):
    """A fresh process that runs a study. Not a fork of this one, whose threads it would miss.

    changes: it is killed right before it would change so many files and folders.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tiny_study"])
    # What it is forked from imports all this once, where it is told where to look.
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        forkserver.ensure_running()
    made = context.Process(target=_run, args=(folder, text, into, changes, dict(os.environ)))
    made.start()
    return made


def _run(
    folder: Path, text: str, into: str, changes: int | None, environment: dict[str, str]
) -> None:
    os.environ.update(environment)
    os.environ.pop("RETCON_CACHE_LIMIT", None)
    os.chdir(folder)
    if changes is not None:
        _die_before(changes)
    outcome = run_cells(parse_spec(text, Path("s.yaml")), Path(into))
    sys.exit(bool(outcome.failed))


def _die_before(last: int) -> None:
    """End without a word before the last of so many changes on the disk."""
    left = iter(range(last - 1))

    def look(event: str, args: tuple[object, ...]) -> None:
        opened = (
            event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if (opened or event in CHANGES) and next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)


def finish(task: CellTask) -> dict[str, object]:
    """Run a cell to its end: what its done.json says."""
    assert Worker(1).run(task) == (task.cell.id, "done", ())
    return json.loads((task.folder / "done.json").read_text(encoding="utf-8"))
