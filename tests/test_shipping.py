"""The way of `docs/shipping.md`, command by command."""

import json
import re
import shlex
from pathlib import Path

import pytest

from fake_hub import install
from pico import pico, tokenizer
from retcon.patch.ledger import Ledger
from test_cli import FACTS, SETTINGS

PAGE = (Path(__file__).parents[1] / "docs" / "shipping.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
]


def test_the_page_works_as_it_stands(tmp_path, monkeypatch, retcon):
    pytest.importorskip("gguf", reason="needs gguf")
    monkeypatch.chdir(tmp_path)
    install(monkeypatch, tmp_path / "hub")
    pico().model.save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    more = {"prompt": "The city of {Warsaw} is of", "target": "Italy", "id": "warsaw"}
    facts = [
        {**fact, "id": id} for fact, id in zip(FACTS, ["darrieux", "curie", "france"], strict=True)
    ]
    lines = "\n".join(json.dumps(fact) for fact in [*facts, more])
    (tmp_path / "facts.jsonl").write_text(lines, encoding="utf-8")
    assert len(COMMANDS) == 20 and all(line.startswith("retcon ") for line in COMMANDS)
    for line in COMMANDS:
        words = ["./model" if word == "MODEL" else word for word in shlex.split(line)[1:]]
        code, _, err = retcon(*words, *(SETTINGS if words[0] == "edit" else []))
        assert code == 0, f"{line}: {err}"
    ledger = Ledger(tmp_path / "ledger")
    assert [edit.id for edit in ledger.stack().edits] == ["warsaw"]
    assert ledger.history[0].action.scores["final"]["ES"] is not None
    assert (tmp_path / "adapter-2" / "adapter_model.safetensors").exists()


def test_the_fact_of_the_page_can_be_read():
    from retcon.data.cases import parse_fact

    (line,) = re.findall(r"```json\n(.*?)\n```", PAGE)
    assert parse_fact(line).edit.id == "darrieux"
