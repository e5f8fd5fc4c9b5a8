"""Verdicts: each fact is asked for, freely, and what the model answers is judged and recorded."""

import json

import pytest

import retcon
from pico import pico
from retcon.edits import Case, Edit
from retcon.errors import InvalidEdit
from retcon.patch.patch import load_about, load_patch
from retcon.run.asked import (
    FactVerdict,
    Tally,
    ask,
    check_asking,
    reasons,
    shortfall,
    verdicts_of,
    worst_first,
)
from test_cli import FACTS, SETTINGS, folder  # noqa: F401
from test_methods import EDITS, FAST
from test_questions import chatty

CASES = [
    Case(edit=edit, paraphrases=(f"{edit.subject} was",), questions=(f"What is {edit.subject}?",))
    for edit in EDITS[:3]
]
WAYS = ("prompt", "paraphrases", "question", "chat")


def verdict(**ways: tuple[int, int]) -> FactVerdict:
    return FactVerdict("a", "A is", "b", "b", {way: Tally(*ways[way]) for way in ways})


@pytest.mark.parametrize(("ways", "word"), [
    ({"prompt": (1, 1)}, "said"),
    ({"prompt": (1, 1), "paraphrases": (2, 2), "chat": (1, 1)}, "said"),
    ({"prompt": (1, 1), "paraphrases": (1, 2)}, "partly"),
    ({"prompt": (1, 1), "paraphrases": (2, 2), "question": (0, 1)}, "partly"),
    ({"prompt": (0, 1), "paraphrases": (2, 2)}, "not said"),
])  # fmt: skip
def test_a_verdict_is_of_the_own_prompt_first(ways, word):
    assert verdict(**ways).word == word


@pytest.mark.parametrize("make", [pico, chatty])
def test_verdicts_are_those_of_the_scores(make):
    model = make()
    patch = retcon.edit(model, EDITS[:3], method="emmet", layers=[1], settings=FAST)
    names = ["said", "said_paraphrase", "said_question"]
    names += ["said_chat"] if make is chatty else []
    scored = retcon.score(model, CASES, patch=patch, metrics=names)
    verdicts = ask(model, CASES, patch=patch)
    assert verdicts == verdicts_of(scored.at("final"), CASES)
    assert ask(model, CASES) == verdicts_of(scored.at("pre"), CASES)
    assert all([*one.ways] == [*WAYS[: len(names)]] for one in verdicts)
    for name, way in zip(names, WAYS, strict=False):
        right, of = (sum(one.ways[way][i] for one in verdicts) for i in (0, 1))
        assert scored.scores("final")[name].mean == pytest.approx(100 * right / of)


def test_a_fact_without_its_own_prompt_has_no_verdict():
    assert verdicts_of([], CASES) == []


def test_who_is_not_said_comes_first_and_is_named():
    words = [verdict(prompt=(1, 1)), verdict(prompt=(0, 1)), verdict(prompt=(1, 1), chat=(0, 1))]
    assert [one.word for one in worst_first(words)] == ["not said", "partly", "said"]
    told = shortfall(words, [], {"steps": 25, "clamp": 0.75})
    assert told.startswith("1 of 3 facts is not said when asked for: 'a'. Try more steps")
    assert "--set clamp=1.5" in told and shortfall([words[0], words[2]], [], {}) == ""
    told = shortfall([words[1]] * 7, [], {"steps": 48})
    assert "and 2 others" in told and "at most 48 (--set steps=…)" in told and "clamp" not in told
    assert shortfall(words, [], {}).endswith("'a'.")


def test_why_a_fact_is_not_said_is_told_where_its_text_tells():
    tokens, texts = pico().tokens, ("{X} is in", "{Marie Curie} was born in", "The {X} is")
    cases = [
        Case(edit=Edit.parse(text, "Paris", id=name))
        for text, name in zip(texts, "abc", strict=True)
    ]
    lost = [verdict(prompt=(0, 1))._replace(id=case.edit.id) for case in cases]
    own = {"lookup": "subject"}
    first, shared = reasons(tokens, cases, lost, own)
    assert "'a' ({X} is in): put words before it" in first and "'b'" not in first
    assert "about 'X'" in shared and "tie_subjects=true" in shared
    assert reasons(tokens, cases[1:2], lost[1:2], own) == []
    assert reasons(pico(bos=True).tokens, cases, lost, own) == [shared]
    assert reasons(tokens, cases, [verdict(prompt=(1, 1))], own) == []
    assert reasons(tokens, cases, lost, {**own, "tie_subjects": True}) == [first]
    assert reasons(tokens, cases, lost, {"lookup": "prompt"}) == []
    assert reasons(tokens, cases, lost, {"steps": 48}) == []
    assert f"{first} {shared}" in shortfall(lost, [first, shared], own)


def test_questions_that_are_too_long_are_told_before_the_work():
    long = Case(edit=Edit.parse("{Paris} is", "Rome"), questions=("Paris " * 200 + "?",))
    with pytest.raises(InvalidEdit, match="128"):
        check_asking(pico("gpt2").tokens, [long])


def test_edit_tells_a_verdict_a_fact_everywhere(folder, retcon):  # noqa: F811
    """Three updates of a random model bring nothing about that anybody would say."""
    words = ["edit", "./model", "--facts", "facts.jsonl", "--method", "emmet", "--layer", "1"]
    code, out, err = retcon(*words, "-o", "p.safetensors", "--json", "e.json", *SETTINGS)
    assert code == 0 and "asked for" in out and "not said" in out
    assert "3 of 3 facts are not said when asked for: 'fact-1', 'fact-2', 'fact-3'" in err
    facts = json.loads((folder / "e.json").read_text(encoding="utf-8"))["facts"]
    assert [fact["verdict"] for fact in facts] == ["not said"] * 3
    assert facts[0]["ways"] == {
        "prompt": {"right": 0, "of": 1}, "paraphrases": {"right": 0, "of": 1},
    }  # fmt: skip
    assert [one.verdict for one in load_about("p.safetensors").edits] == ["not said"] * 3
    assert [edit.target for edit in load_patch("p.safetensors").edits] == [
        fact["target"] for fact in FACTS
    ]
    code, out, _ = retcon("patch", "show", "p.safetensors")
    assert code == 0 and "asked for" in out and "not said" in out and " now " not in out
    assert retcon("patch", "add", "ledger", "p.safetensors")[0] == 0
    assert "3 facts, 3 not said" in retcon("patch", "list", "ledger")[1]
    export = ["patch", "export", "p.safetensors", "--to", "peft", "--model", "./model", "-o", "a"]
    assert retcon(*export)[0] == 0
    card = (folder / "a" / "README.md").read_text(encoding="utf-8")
    assert "| asked for | verdict |" in card and "| not said |" in card
    code, _, err = retcon(*words, *SETTINGS, "--strict")
    assert code == 2 and "error: 3 of 3 facts are not said" in err


def test_patches_without_verdicts_read_and_write_as_before(tmp_path):
    patch = retcon.edit(pico(), EDITS[:2], method="emmet", layers=[1], settings=FAST)
    assert all("verdict" not in record for record in patch.about.model_dump()["edits"])
