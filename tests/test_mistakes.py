"""Mistakes on the command line in facts, settings and studies: one line, exit code 2."""

import pytest

FACT = ["--fact", "The capital of {France} is", "Rome"]
MEMIT = ["--method", "memit", "--layer", "1"]
SETTINGS = [
    ("ridge=-1", "ridge='-1' is not valid: it takes 0 or more."),
    ("ridge=many", "it takes a number."),
    ("ridge=inf", "it takes a finite number."),
    ("keep=2", "it takes at most 1."),
    ("lr=0", "it takes more than 0."),
    ("steps=2.5", "it takes a whole number."),
    ("spread=forwards", "it takes 'divided', 'forward' or 'each'."),
    ("merge_subjects=maybe", "it takes true or false."),
    ("prefix_tokens=", "it takes at least 1 value."),
    ("seed=99999999999999999999", "it takes less than 2147483648."),
    ("corpus_seed=-99999999999", "it takes -2147483648 or more."),
    ("rigde=1", "Did you mean 'ridge'?"),
    ("ridge", "--set takes name=value"),
]


def refused(retcon, *words: str) -> str:
    """The one line that says why a command was refused."""
    code, _, err = retcon(*words)
    text = " ".join(err.split())
    assert code == 2 and text.startswith("error: ") and "Traceback" not in text, text
    return text


@pytest.mark.parametrize(("setting", "said"), SETTINGS)
def test_settings_say_what_they_take(folder, retcon, setting, said):
    assert said in refused(retcon, "edit", "./model", *FACT, *MEMIT, "--set", setting)


FACTS = [
    (["--fact", "The capital of France is", "Rome"], "put the subject of"),
    (["--fact", "The capital of {} is", "Rome"], "the subject is empty"),
    (["--fact", "The capital of {France} is", " "], "the target is empty"),
    (["--fact", "The capital of {France} is", "Rome \udcff"], "half of a character"),
    (["--facts", "."], "'.' is a folder. Name a file in it."),
    (["--facts", "nowhere.jsonl"], "There is no file 'nowhere.jsonl'"),
    (["--facts", "model/model.safetensors"], "not a text file"),
    ([], "Say what to edit"),
]


@pytest.mark.parametrize(("words", "said"), FACTS, ids=[said for _, said in FACTS])
def test_facts_that_are_none(folder, retcon, words, said):
    assert said in refused(retcon, "edit", "./model", *words, *MEMIT)


def test_brackets_in_names_are_no_markup(folder, retcon):
    fast = [x for s in ("steps=1", "corpus_tokens=300", "document_tokens=32", "jitter=1e-3")
            for x in ("--set", s)]  # fmt: skip
    (folder / "[").mkdir()
    code, out, err = retcon("edit", "./model", *FACT, *MEMIT, *fast, "-o", "[/x].safetensors")
    assert code == 0 and "[/x].safetensors" in out, err
    written = """retcon_study: 1
name: "[/x]"
model: ./model
data: {cases: starter, unique_subjects: true}
blocks: [{name: "[/y]", method: memit, layer: 1, schedule: single, n: 2}]
"""
    (folder / "s.yaml").write_text(written)
    for command in ("validate", "plan"):
        code, out, err = retcon("study", command, "s.yaml")
        assert code == 0 and "[/x]: 1" in out.replace("✓ ", ""), err


def test_a_name_that_looks_like_a_date_is_told_to_be_quoted(folder, retcon):
    (folder / "s.yaml").write_text("retcon_study: 1\nname: 2026-01-01\nblocks: []\n")
    said = refused(retcon, "study", "validate", "s.yaml")
    assert "line 2: name: 2026-01-01 is not right: it takes a text; put it in quotes" in said
