"""Files of facts with something wrong in them: what is said, and how one goes on without it."""

import gzip
import json
from pathlib import Path

import pytest

from pico import pico, tokenizer
from retcon.data import text as texts
from retcon.data.cases import load_cases, read_facts
from retcon.data.corpus import FileCorpus
from retcon.edits import Case, Edit, Probe
from retcon.errors import InvalidData, InvalidEdit, RetconWarning

GOOD = {"prompt": "The capital of {France} is", "target": "Rome"}
OTHER = {"prompt": "The capital of {Italy} is", "target": "Madrid"}
NO_PLACE = {"prompt": "Who made D&RGW 463?", "subject": "Rio Grande 463", "target": "Rome"}
ZSRE = {"subject": "France", "src": "What is the capital of France?", "rephrase": "Which is it?",
        "alt": "Rome", "answers": ["Paris"], "loc": "who is it", "loc_ans": "Marie"}  # fmt: skip
CHAIN = {
    "case_id": 1, "split": {}, "questions": ["q"], "new_answer": "x",
    "requested_rewrite": [{"prompt": "{} is", "subject": "A", "target_new": {"str": "B"},
                           "target_true": {"str": "C"}}],
}  # fmt: skip
FLAT = {"prompt": "The capital of France is", "subject": "France", "target_new": "Rome"}
COUNTERFACT = {
    "case_id": 1, "paraphrase_prompts": ["a"], "neighborhood_prompts": ["b"],
    "requested_rewrite": {"prompt": "{} is", "subject": "A", "target_new": {"str": "B"},
                          "target_true": {"str": "C"}},
}  # fmt: skip


def write(path: Path, *records: object) -> Path:
    """Records, or lines as they are."""
    lines = [one if isinstance(one, str) else json.dumps(one) for one in records]
    whole = "\n".join(lines) if path.suffix == ".jsonl" else f"[{','.join(lines)}]"
    path.write_text(whole, encoding="utf-8")
    return path


MIXED = [
    # good ones around a bad one, the bad one, what is said of it
    (GOOD, NO_PLACE, "it is there 0 times"),
    (GOOD, "{oops", "not JSON"),
    (GOOD, {"prompt": "{A} is", "targt": "x"}, "unknown key 'targt'. Did you mean 'target'?"),
    (GOOD, GOOD | {"paraphrase": ["x"]}, "'paraphrase'. Did you mean 'paraphrases'?"),
    (GOOD, GOOD | {"paraphrases": "x"}, 'paraphrases takes a list, and not "x"'),
    (GOOD, GOOD | {"target": 3}, "target takes a text, and not 3"),
    (GOOD, "3", "a record is an object, {…}, and this is 3"),
    (GOOD, GOOD | {"portability": [{"prompt": "p"}]}, "portability.0.answer' is missing"),
    (GOOD, GOOD | {"locality": [{"prompt": "p", "answer": " "}]}, "answer is empty"),
    (GOOD | {"id": 1}, OTHER | {"id": "1"}, "its id '1' is that of"),
    (GOOD, '{"prompt": "{A} is", "target": "x", "target": "y"}', "'target' stands there twice"),
    (GOOD, '{"prompt": "{A} is", "target": "x \\ud83c"}', "half of a character"),
    (ZSRE, {k: v for k, v in ZSRE.items() if k != "alt"}, "the key 'alt' is missing"),
    (ZSRE, ZSRE | {"src": "What is it?"}, "it is there 0 times"),
    (FLAT, FLAT | {"target_new": ""}, "target is empty"),
    (FLAT, FLAT | {"locality": {"A": ["text"]}}, "locality.A.0 takes an object"),
    (FLAT, FLAT | {"locality_prompt": "p"}, "locality_prompt needs locality_ground_truth too"),
    (COUNTERFACT, {**COUNTERFACT, "case_id": "x"}, "case_id takes a whole number"),
    (CHAIN, {**CHAIN, "case_id": 2, "requested_rewrite": []}, "requested_rewrite"),
    (CHAIN, {**CHAIN, "case_id": 2, "new_answer": ""}, "answer is empty"),
]


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(("good", "bad", "why"), MIXED, ids=[why for *_, why in MIXED])
def test_a_bad_record_is_named_with_its_place_and_left_out_on_demand(
    tmp_path, good, bad, why, place
):
    ids = [3, 4] if "case_id" in good else []
    around = [good | ({"case_id": i} if ids else {}) for i in ids or (0, 1)]
    if "id" in good:
        around[1] = good | {"id": "z"}
        place = 2  # of two records with one id the second is the bad one
    path = write(tmp_path / "f.jsonl", *around[:place], bad, *around[place:])
    with pytest.raises(InvalidData) as refused:
        load_cases(path)
    said = str(refused.value)
    assert said.startswith(f"{path}, line {place + 1}: ") and why in said
    assert "All other records (2) are fine. Mend it, or go on without: --skip-bad" in said
    with pytest.warns(RetconWarning, match="1 of 3 records") as warned:
        found = read_facts(path, skip_bad=True)
    assert len(warned) == 1 and why in str(warned[0].message)
    assert [one.where for one in found.skipped] == [f"{path}, line {place + 1}"]
    # What is left has the ids that it would have had.
    mended = write(tmp_path / "g.jsonl", *around)
    assert [c.paraphrases for c in found.cases] == [c.paraphrases for c in load_cases(mended)]


def test_many_bad_records_are_counted_and_the_first_ten_shown(tmp_path):
    path = write(tmp_path / "f.json", GOOD, *[{"target": "x"}] * 14, OTHER)
    with pytest.raises(InvalidData) as refused:
        load_cases(path)
    first, *lines, last = str(refused.value).splitlines()
    assert first == f"14 of 16 records of {path} cannot be used:"
    assert lines[0] == "  record 1: the key 'prompt' is missing."
    assert lines[10:] == ["  … and 4 more"] and last.startswith("Mend them, or go on without")
    with pytest.warns(RetconWarning, match="14 of 16"):
        assert [c.edit.id for c in load_cases(path, skip_bad=True)] == ["fact-0", "fact-15"]


@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_file_without_one_good_record_is_refused_and_says_what_is_read(tmp_path, skip_bad):
    path = write(tmp_path / "f.jsonl", {"a": 1}, {"a": 2})
    with pytest.raises(InvalidData, match="2 of 2 records") as refused:
        load_cases(path, skip_bad=skip_bad)
    assert "Read are CounterFact, zsRE" in str(refused.value)
    assert "--skip-bad" not in str(refused.value)


def test_the_form_is_that_of_most_records(tmp_path):
    path = write(tmp_path / "f.jsonl", "nonsense", {"x": 1}, ZSRE, ZSRE, ZSRE)
    with pytest.raises(InvalidData, match="2 of 5 records"):
        load_cases(path)
    with pytest.warns(RetconWarning):
        cases = load_cases(path, skip_bad=True)
    assert [case.edit.id for case in cases] == ["2", "3", "4"]


SUBJECTS = [
    ("Cafe\u0301", "The owner of Caf\u00e9 is", "in another form of Unicode"),
    ("france", "The capital of France is", "with other capital letters"),
    ("New  York", "The mayor of New York is", "with other blanks"),
    ("France", "France is next to France", "it is there 2 times"),
]


@pytest.mark.parametrize(("subject", "prompt", "why"), SUBJECTS)
def test_a_subject_that_only_looks_like_the_prompt_s_is_told_from_it(
    tmp_path, subject, prompt, why
):
    fact = {"prompt": prompt, "subject": subject, "target": "x"}
    with pytest.raises(InvalidData, match=why):
        load_cases(write(tmp_path / "f.jsonl", fact))


FORMS = [
    ("f.json", json.dumps([GOOD, OTHER])),
    ("f.json", "\ufeff" + json.dumps([GOOD, OTHER])),
    ("f.json", json.dumps(GOOD) + "\n" + json.dumps(OTHER)),
    ("f.json", json.dumps([GOOD, OTHER], indent=2)),
    ("f.jsonl", "\ufeff" + json.dumps(GOOD) + "\r\n" + json.dumps(OTHER) + "\r\n"),
    ("f.jsonl", json.dumps([GOOD, OTHER])),
    ("f.txt", json.dumps(GOOD) + "\n\n" + json.dumps(OTHER)),
]


@pytest.mark.parametrize(("name", "written"), FORMS)
@pytest.mark.parametrize("zipped", [False, True])
def test_what_a_file_is_its_text_tells(tmp_path, name, written, zipped):
    path = tmp_path / (f"{name}.gz" if zipped else name)
    path.write_bytes(gzip.compress(written.encode()) if zipped else written.encode())
    assert [case.edit.subject for case in load_cases(path)] == ["France", "Italy"]


def test_one_record_over_several_lines_is_one(tmp_path):
    path = tmp_path / "f.json"
    path.write_text(json.dumps(GOOD, indent=1))
    assert [case.edit.target for case in load_cases(path)] == ["Rome"]


def test_a_comma_behind_each_line_is_named(tmp_path):
    lines = "".join(json.dumps(one) + ",\n" for one in (GOOD, OTHER))
    (tmp_path / "f.jsonl").write_text(lines)
    with pytest.raises(InvalidData, match="a comma behind the record") as refused:
        load_cases(tmp_path / "f.jsonl")
    assert str(refused.value).count("comma behind") == 2


FOREIGN = [
    (lambda p: p.write_bytes("é".encode("utf-16")), "Save it as UTF-8"),
    (lambda p: p.write_bytes(b"\xff"), "Save it as UTF-8"),
    (lambda p: p.mkdir(), "is a folder. Name a file in it"),
    (lambda p: None, "Check its name"),
]


@pytest.mark.parametrize(("make", "why"), FOREIGN)
def test_a_file_that_is_none_says_what_to_do(tmp_path, make, why):
    path = tmp_path / "f.json"
    make(path)
    with pytest.raises(InvalidData, match=why):
        load_cases(path)


@pytest.mark.parametrize("name", ["f.jsonl", "f.jsonl.gz"])
def test_no_more_than_the_limit_is_read(tmp_path, monkeypatch, name):
    """Also of what is small as long as it is compressed."""
    monkeypatch.setattr(texts, "MOST", 2**20)
    content = b"\n" * 2**21
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(InvalidData, match=r"more than 1 MiB of text.*several files"):
        load_cases(path)


def test_a_corpus_is_read_line_by_line_and_no_line_is_endless(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "LONGEST", 2**20)
    path = tmp_path / "c.txt.gz"
    path.write_bytes(gzip.compress(b"first\n" + b"x" * 2**21))
    read = FileCorpus(path=path).texts()
    assert next(read) == "first"
    with pytest.raises(InvalidData, match="line 2: longer than 1 million"):
        next(read)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Edit.parse("The capital of {France} is", "Rome \ud83c"),
        lambda: Edit.parse("The capital of {France\udcff} is", "Rome"),
        lambda: Probe(prompt="\ud83c", answer="x"),
        lambda: Case(edit=Edit.parse("{A} is", "x"), neighbours=("a", "b \udcff")),
    ],
)
def test_half_of_a_character_is_no_text(make):
    with pytest.raises(InvalidEdit, match="half of a character"):
        make()


KNOWN = {"case_id": 7, "prompt": "The capital of France is", "subject": "France",
         "target_new": "Rome", "ground_truth": "Paris"}  # fmt: skip
UNREAD = [
    (KNOWN | {"note": "x"}, "note (1)"),
    (KNOWN | {"rephrases": ["x"]}, "rephrases (1; did you mean 'rephrase'?)"),
    (
        KNOWN | {"locality": {"A": [{"prompt": "p", "ground_truth": ["a"], "hop": 2}]}},
        "locality.hop (1)",
    ),
    (COUNTERFACT | {"extra": 1}, "extra (1)"),
    ({**CHAIN, "notes": 1}, "notes (1)"),
    (ZSRE | {"rephrases": ["x"]}, "rephrases (1; did you mean 'rephrase'?)"),
]


@pytest.mark.parametrize(("record", "said"), UNREAD)
def test_keys_that_nothing_reads_are_named(tmp_path, record, said):
    with pytest.warns(RetconWarning, match="keys that are not known are left out") as warned:
        (case,) = load_cases(write(tmp_path / "f.jsonl", record))
    assert said in str(warned[0].message) and case.edit.target in ("Rome", "B", "Paris")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    pico().model.save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    write(tmp_path / "f.jsonl", GOOD, NO_PLACE, OTHER)
    monkeypatch.chdir(tmp_path)
    return tmp_path


FAST = [
    x
    for setting in ("steps=2", "corpus_tokens=300", "document_tokens=32", "jitter=1e-3")
    for x in ("--set", setting)
]


@pytest.mark.parametrize(
    "words",
    [
        ["eval", "./model", "--cases", "f.jsonl", "--n", "1"],
        ["edit", "./model", "--facts", "f.jsonl", "--method", "memit", "--layer", "1", *FAST],
    ],
)
def test_the_command_line_refuses_skips_and_records_it(folder, retcon, words):
    code, _, err = retcon(*words)
    assert code == 2 and "f.jsonl, line 2" in err and "--skip-bad" in err
    code, _, err = retcon(*words, "--skip-bad", "--json", "r.json")
    assert code == 0 and "warning: 1 of 3 records of f.jsonl were skipped" in " ".join(err.split())
    record = json.loads((folder / "r.json").read_text(encoding="utf-8"))
    assert [place.partition(": ")[0] for place in record["skipped"]] == ["f.jsonl, line 2"]
    skipped, *others = record["warnings"]
    assert "were skipped" in skipped and all("not said when asked" in one for one in others)


STUDY = """retcon_study: 1
name: tiny
model: ./model
data: {{cases: f.jsonl, unique_subjects: true{more}}}
defaults:
  method: memit
  layer: 1
  settings: {{steps: 2, corpus_tokens: 300, document_tokens: 32, jitter: 1e-3}}
blocks: [{{name: b, schedule: single, n: 2}}]
"""


def test_a_study_skips_on_demand_and_records_how_many(folder, retcon):
    (folder / "s.yaml").write_text(STUDY.format(more=""))
    code, _, err = retcon("study", "plan", "s.yaml")
    assert code == 2 and "f.jsonl, line 2" in err and "skip_bad: true" in " ".join(err.split())
    (folder / "s.yaml").write_text(STUDY.format(more=", skip_bad: true"))
    code, out, err = retcon("study", "run", "s.yaml", "--out", "done")
    assert code == 0 and "1 of 1 cells are done" in out and err.count("were skipped") == 1, err
    record = json.loads((folder / "done" / "study.json").read_text(encoding="utf-8"))
    assert (record["data"]["skipped"], record["data"]["facts"]) == (1, 2)
    code, out, err = retcon(
        "sweep", "./model", "--out", "swept", "--cases", "f.jsonl", "--layers", "1", "--n", "2",
        "--skip-bad", *FAST,
    )  # fmt: skip
    assert "skip_bad: true" in (folder / "swept" / "study.yaml").read_text()
