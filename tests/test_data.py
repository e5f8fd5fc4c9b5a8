"""Files of facts: what is read, and how what is wrong is reported."""

import gzip
import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from retcon.data.cases import load_cases, parse_fact, starter_cases, take
from retcon.errors import InvalidData

RECORD = {
    "case_id": 7,
    "pararel_idx": 1,
    "requested_rewrite": {
        "prompt": "{} is located in",
        "relation_id": "P17",
        "subject": "Neryungri",
        "target_new": {"str": "Canada", "id": "Q16"},
        "target_true": {"str": "Russia", "id": "Q159"},
    },
    "paraphrase_prompts": ["a", "b"],
    "neighborhood_prompts": ["c"],
    "attribute_prompts": [],
    "generation_prompts": [],
}


def test_counterfact(tmp_path):
    path = tmp_path / "cf.json.gz"
    path.write_bytes(gzip.compress(json.dumps([RECORD]).encode()))
    (case,) = load_cases(path)
    assert (case.edit.id, case.edit.text) == ("7", "Neryungri is located in")
    assert (case.edit.target, case.edit.target_old) == ("Canada", "Russia")
    assert (case.paraphrases, case.neighbours, case.relation) == (("a", "b"), ("c",), "P17")


def test_plain_lines(tmp_path):
    path = tmp_path / "facts.jsonl"
    lines = [
        {"prompt": "The capital of {France} is", "target": "Rome"},
        {"id": 5, "prompt": "{} is", "subject": "Rome", "target": "big", "target_old": "old"},
        {"prompt": "In {Rome} one\u2028is", "subject": "Rome", "target": "x", "id": "braced"},
        {"prompt": "Where is Rome", "subject": "Rome", "target": "x", "neighbours": ["n"]},
    ]
    path.write_text(
        "\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8"
    )
    cases = load_cases(path)
    assert [case.edit.id for case in cases] == ["fact-1", "5", "braced", "fact-7"]
    assert cases[2].edit.text == "In Rome one\u2028is"
    assert cases[3].edit.prompt == "Where is {}" and cases[3].neighbours == ("n",)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"prompt": "no braces", "target": "x"}', "in braces"),
        ('{"prompt": "{A} is", "target": ""}', "target is empty"),
        ('{"prompt": "{A} is"}', "the key 'target' is missing"),
        ('{"prompt": "{A} is", "target": "x", "traget_old": "y"}', "traget_old"),
        ('{"prompt": "A is", "subject": "B", "target": "x"}', "must be in the prompt"),
        ('{"prompt": 3, "target": "x"}', "prompt"),
        ("[1, 2", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('"text"', "record"),
    ],
)
def test_wrong_lines_are_named(line, reason, tmp_path):
    path = tmp_path / "facts.jsonl"
    good = '{"prompt": "{A} is", "target": "x"}'
    path.write_text(f"{good}\n{line}\n", encoding="utf-8")
    with pytest.raises(InvalidData, match="line 2") as caught:
        load_cases(path)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cf.json", b"{}"),
        ("cf.json", b"[{}]"),
        ("cf.json", b"[]"),
        ("cf.json", b"\xff\xfe\x00"),
        ("cf.json.gz", b"not gzip"),
        ("cf.json.gz", gzip.compress(b"[" * 50, mtime=0)[:20]),
        ("facts.jsonl", b""),
    ],
)
def test_damaged_files(name, content, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InvalidData, match=name):
        load_cases(path)


def test_missing_and_double(tmp_path):
    with pytest.raises(InvalidData, match="no file"):
        load_cases(tmp_path / "nowhere.json")
    path = tmp_path / "cf.json"
    path.write_text(json.dumps([RECORD, RECORD]), encoding="utf-8")
    with pytest.raises(InvalidData, match="id '7'"):
        load_cases(path)


def test_samples_are_nested_and_seeded():
    cases = starter_cases()
    small, large = take(cases, 10, 0), take(cases, 40, 0)
    assert large[:10] == small and take(cases, 10, 1) != small
    assert len(take(cases, None, 0)) == len(cases)
    for n in (0, 10_000):
        with pytest.raises(InvalidData, match=str(n)):
            take(cases, n, 0)


@pytest.mark.parametrize("seed", range(6))
def test_cases_of_one_fact_keep_the_order_of_the_file(seed):
    """In the places that their hashes give them; every other case stays where it is."""
    once = starter_cases()[:12]
    cases = list(once)
    for place, target in ((3, "Rome"), (8, "Oslo"), (14, "Bern")):
        again = replace(once[5].edit, id=f"again-{target}", target=target)
        cases.insert(place, replace(once[5], edit=again))
    found = take(cases, None, seed)
    by_hash = sorted(
        cases, key=lambda c: hashlib.sha256(f"{seed}:{c.edit.id}".encode()).hexdigest()
    )
    assert [c.edit.fact for c in found] == [c.edit.fact for c in by_hash]
    fact = once[5].edit.fact
    assert [c for c in found if c.edit.fact == fact] == [c for c in cases if c.edit.fact == fact]
    assert take(cases, 7, seed) == found[:7]
    assert take(once, None, seed) == [c for c in by_hash if c in once]


def test_starter_set_is_well_formed():
    cases = starter_cases()
    assert len(cases) >= 60
    assert len({case.edit.subject.lower() for case in cases}) == len(cases)
    assert len({case.relation for case in cases}) >= 10
    for case in cases:
        assert case.edit.target_old and case.edit.target != case.edit.target_old
        assert len(case.paraphrases) == 2 and len(case.neighbours) >= 3
        assert all(case.edit.subject.lower() in text.lower() for text in case.paraphrases)
        assert not any(case.edit.subject in text for text in case.neighbours)
        assert not any(text.endswith(" ") for text in (case.edit.text, *case.neighbours))


def test_everyday_set_is_well_formed():
    """Facts as people bring them: several of a subject, long answers, every kind of answer."""
    cases = load_cases("everyday")
    assert len(cases) >= 60
    kinds = {"price", "date", "number", "person", "place", "product", "negation"}
    assert {case.relation for case in cases} == kinds
    subjects = Counter(case.edit.subject for case in cases)
    assert sum(3 <= count <= 5 for count in subjects.values()) >= 8
    shared = Counter(case.edit.head for case in cases)
    assert sum(count >= 3 for count in shared.values()) >= 5
    assert sum(len(case.edit.target.split()) >= 2 for case in cases) >= len(cases) / 2
    asked = [
        text for case in cases for text in (case.edit.text, *case.paraphrases, *case.questions)
    ]
    asked += [probe.prompt for case in cases for probe in case.locality]
    assert len(asked) == len({*asked})
    for case in cases:
        subject = case.edit.subject.lower()
        assert len(case.paraphrases) == 2 and len(case.questions) == 1
        assert all(subject in text.lower() for text in (*case.paraphrases, *case.questions))
        same, other = (subject in probe.prompt.lower() for probe in case.locality)
        assert same and not other
        assert not any(subject in text.lower() for text in case.neighbours)
        assert not case.neighbours or case.edit.target_old
        assert all(text == text.strip() for text in asked)


def test_parse_fact_names_its_source():
    with pytest.raises(InvalidData, match="here, line 4"):
        parse_fact("nonsense", 4, "here")


@pytest.mark.real
def test_real_counterfact(data: Path):
    cases = load_cases(data / "counterfact" / "counterfact_uniform.json.gz")
    assert len(cases) == 989 and all(case.edit.target_old for case in cases)
    assert [case.edit.id for case in take(cases, 2, 0)] == [c.edit.id for c in take(cases, 5, 0)][
        :2
    ]
