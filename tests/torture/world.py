"""A small world in which everything exists that Retcon writes: patches, a ledger, studies, a cache.

`build` makes it once; each try works on a copy at the same place, so that paths never differ.
"""

import json
import shutil
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from torture.running import Disturbance, Ending, command, forked

_WORDS = ["English", "German", "Spanish", "Russian", "Polish", "Rome", "Paris", "Madrid"]
SETTINGS = [
    f"--set={name}={value}"
    for name, value in {
        "steps": 3, "corpus_tokens": 300, "document_tokens": 32, "jitter": 1e-3, "prefixes": 1,
        "ridge": 1,
    }.items()
]  # fmt: skip
EDIT = ["edit", "model", "--method", "memit", "--layer", "1", *SETTINGS]
_STUDY = """retcon_study: 1
name: small
model: ./model
threads: 1
data: {cases: facts.jsonl, unique_subjects: true}
tuning: {ridges: [1, 10], n: 2, score: 2}
defaults:
  method: memit
  layer: 1
  n: 6
  settings:
    {steps: 3, corpus_tokens: 300, document_tokens: 32, jitter: 1.0e-3, prefixes: 1, ridge: 1}
blocks:
  - name: portions
    schedule: sequential-batch
    batch_size: 2
    settings: {accumulate: [true, false]}
    when: [pre, immediate, final, retention]
  - {name: alone, method: emmet, schedule: single, settings: {ridge: 0}}
  - {name: tuned, schedule: batch, batch_size: 3, settings: {ridge: tuned}}
"""


def build(folder: Path) -> None:
    """Fill an empty folder with the world."""
    _must(forked(lambda: _write_model(folder), folder))
    _write_facts(folder)
    (folder / "s.yaml").write_text(_STUDY, encoding="utf-8")
    for words in (
        [*EDIT, "--facts", "facts.jsonl", "-o", "p.safetensors"],
        [*EDIT, "--facts", "more.jsonl", "-o", "q.safetensors"],
        ["eval", "model", "--cases", "facts.jsonl", "--method", "memit", "--layer", "1",
         "--schedule", "batch:8", *SETTINGS],
        ["patch", "add", "ledger", "p.safetensors"],
        ["patch", "undo", "ledger", "f1"],
        ["patch", "add", "ledger", "q.safetensors"],
        ["patch", "export", "p.safetensors", "--to", "peft", "-o", "adapter", "--model", "model"],
        ["study", "run", "s.yaml", "--out", "done"],
        ["study", "report", "done"],
    ):  # fmt: skip
        _must(command(words, folder))
    _leave_half(folder)


def restore(good: Path, work: Path) -> None:
    """The world as it was built, in place of what a try has made of it."""
    if work.exists():
        for path in work.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    shutil.copytree(good, work, dirs_exist_ok=True, symlinks=True)


def _write_model(folder: Path) -> int:
    from pico import pico, tokenizer

    pico().model.save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")
    return 0


def _write_facts(folder: Path) -> None:
    names = [
        f"{a} {b}" for a in ("Marie", "Danielle", "Rome", "Madrid") for b in ("Curie", "Paris")
    ]
    facts = [
        {
            "id": f"f{i}", "prompt": f"The mother tongue of {{{name}}} is", "target": _WORDS[i],
            "target_old": _WORDS[(i + 3) % 8], "neighbours": [f"{name.split()[0]} is"],
            "relation": name.split()[0], "paraphrases": [f"{name} was born in"],
        }
        for i, name in enumerate(names)
    ]  # fmt: skip
    lines = [json.dumps(fact) for fact in facts]
    (folder / "facts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    more = [{**fact, "id": f"g{fact['id']}", "prompt": "I think {Paris} is"} for fact in facts[:1]]
    more += [
        {**fact, "id": f"g{fact['id']}", "prompt": "It is {Warsaw} was"} for fact in facts[1:2]
    ]
    text = "\n".join(json.dumps(fact) for fact in more)
    (folder / "more.jsonl").write_text(text, encoding="utf-8")


def _leave_half(folder: Path) -> None:
    """A study that was killed in the middle of a carried cell."""
    for tenth in range(1, 100):
        shutil.rmtree(folder / "half", ignore_errors=True)
        words = ["study", "run", "s.yaml", "--out", "half"]
        ended = command(words, folder, Disturbance(signal.SIGKILL, tenth / 10))
        if any((folder / "half").glob("cells/*/step-*.safetensors")):
            return
        if ended.code == 0:
            break
    raise RuntimeError("No kill hit the middle of a cell: run again, on a quieter machine.")


def _must(ended: Ending) -> None:
    if ended.code != 0:
        raise RuntimeError(f"The world could not be built: {ended.out}\n{ended.err}")
