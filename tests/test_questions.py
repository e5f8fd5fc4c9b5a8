"""Questions, in plain text and in a chat: which are asked, and what counts as an answer."""

import copy
import dataclasses
import json
import tomllib
from importlib.resources import files

import pytest
import torch

import retcon
from oracles import mean_nll, written_alone
from pico import pico, tokenizer
from retcon.data.cases import parse_fact, starter_cases
from retcon.data.wordings import questions_of, reverse_of, wordings
from retcon.edits import Case, Edit
from retcon.errors import InvalidData, InvalidEdit, InvalidSetting, UnknownName
from retcon.method.entries import find_method
from retcon.model.tokens import Tokens
from retcon.scoring.metrics import METRICS
from retcon.scoring.metrics.freely import NEW_TOKENS
from retcon.scoring.observations import Observation
from test_cli import FACTS
from test_freely import count

CHAT = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{{ 'model:\n' }}"
)
# The relations of CounterFact.
RELATIONS = (
    "P101 P103 P106 P108 P127 P1303 P131 P136 P138 P140 P1412 P159 P17 P176 P178 P19 P190 P20 P264 "
    "P27 P276 P30 P36 P364 P37 P39 P407 P413 P449 P463 P495 P641 P740 P937"
)
CASES = [
    Case(
        edit=Edit.parse(f"The mother tongue of {{{name}}} is", new, id=name, target_old=old),
        relation="P103",
    )
    for name, new, old in (
        ("Danielle Darrieux", "English", "French"), ("Marie Curie", "of", "in"),
        ("Berlin", "a", "the"), ("Paris", "a", "Spanish"),
    )
]  # fmt: skip


def chatty(bos=False, template=CHAT):
    """A model whose tokenizer has a chat template, in float64: nothing hangs on a last digit."""
    tokens = copy.deepcopy(tokenizer(bos=bos))
    tokens.chat_template = template
    return pico(seed=3, dtype=torch.float64, tokens=tokens)


def test_every_relation_has_a_question_and_a_reverse_sentence():
    assert {*RELATIONS.split()} <= {*wordings()} and len(RELATIONS.split()) == 34
    assert {case.relation for case in starter_cases()} <= {*wordings()}
    for wording in wordings().values():
        assert wording.question.count("{}") == wording.reverse.count("{}") == 1
        assert wording.question.endswith("?") and wording.reverse[-1].isalpha()
    text = (files("retcon.data") / "wordings.toml").read_text(encoding="utf-8")
    assert "written for Retcon" in text and len(tomllib.loads(text)) == len(wordings())


def test_a_question_is_the_case_s_own_or_a_prompt_or_its_relation_s():
    (case, *_) = CASES
    of_relation = ("What is the mother tongue of Danielle Darrieux?",)
    assert questions_of(case) == of_relation
    asked = dataclasses.replace(case, paraphrases=("Danielle speaks", "What does she speak? "))
    assert questions_of(asked) == ("What does she speak? ",)
    own = dataclasses.replace(asked, questions=("Her language?", "And her tongue?"))
    assert questions_of(own) == own.questions
    for relation in (None, "of nobody"):
        nobody = dataclasses.replace(case, relation=relation)
        assert questions_of(nobody) == () and reverse_of(nobody, "English") is None
    zsre = Case(edit=Edit.parse("Which industry is {Bad Robot} in?", "film"))
    assert questions_of(zsre) == ("Which industry is Bad Robot in?",)


def test_plain_facts_bring_their_own_and_others_are_the_text_they_were():
    line = {"prompt": "The mother tongue of {Ann} is", "target": "English"}
    case = parse_fact(json.dumps({**line, "questions": ["What does Ann speak?"]}))
    assert case.questions == ("What does Ann speak?",) and "What does Ann speak?" in repr(case)
    # Checksums of studies depend on this.
    assert "questions" not in repr(parse_fact(json.dumps(line)))
    with pytest.raises(InvalidEdit, match="a question is empty"):
        dataclasses.replace(case, questions=(" ",))
    with pytest.raises(InvalidData, match=r"line 1.*a question is empty"):
        parse_fact(json.dumps({**line, "questions": [""]}))


def test_facts_in_context_stand_before_questions_too():
    (case, *_) = CASES
    editor = find_method("in_context").build((), {})
    (rewritten,) = editor.rewrite([case], (case.edit,))
    fact = "The mother tongue of Danielle Darrieux is English.\n"
    assert questions_of(rewritten) == (f"{fact}What is the mother tongue of Danielle Darrieux?",)


def alone(model, text, line):
    """What follows one prompt by itself; its first line, where that is the answer."""
    written = written_alone(model, text, NEW_TOKENS)
    return written.lstrip().partition("\n")[0] if line else written


@pytest.mark.parametrize("bos", [False, True])
def test_each_question_is_asked_as_if_alone(bos):
    model = chatty(bos)
    seen = retcon.score(model, CASES, metrics=["said_question", "preferred_chat"])
    rows = {(row.case, row.kind): row for row in seen.rows}
    for case in CASES:
        (question,) = questions_of(case)
        prompts = {
            "question": f"Question: {question}\nAnswer:",
            "chat": f"user: {question}\nmodel:\n",
        }
        for way, prompt in prompts.items():
            row, written = rows[case.edit.id, f"free {way}"], alone(model, prompt, way != "chat")
            assert row.text.strip() == written.strip()
            left = written.replace(case.edit.subject, "…")
            assert row.hits_new == count(left, case.edit.target)
            assert row.hits_old == count(left, case.edit.target_old)
            row = rows[case.edit.id, f"form {way}"]
            for answer, nll in (
                (case.edit.target, row.nll_new),
                (case.edit.target_old, row.nll_old),
            ):
                if way == "question":
                    assert nll == pytest.approx(mean_nll(model, prompt, answer))
                else:  # no blank behind a newline
                    assert nll == pytest.approx(behind(model, prompt, answer))
    if not bos:
        named = {bool(row.hits_new) for row in seen.rows if row.kind == "free question"}
        assert named == {True, False}
    scores = seen.scores("pre")
    for way in ("question", "chat"):
        of = [rows[case.edit.id, f"free {way}"] for case in CASES]
        assert scores[f"said_{way}"].mean == pytest.approx(25 * sum(r.hits_new > 0 for r in of))
        of = [rows[case.edit.id, f"form {way}"] for case in CASES]
        won = sum(row.nll_new < row.nll_old for row in of)
        assert scores[f"preferred_{way}"].mean == pytest.approx(25 * won)


def behind(model, prompt, answer):
    """The mean NLL of an answer that follows a prompt as it stands."""
    head, whole = model.tokens.encode(prompt), model.tokens.encode(prompt + answer)
    with torch.no_grad():
        logp = model.model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
    picked = [logp[t - 1, whole[t]].item() for t in range(len(head), len(whole))]
    return -sum(picked) / len(picked)


@pytest.mark.parametrize(
    ("answer", "said", "stays", "contradicts"),
    [
        ("English", 1.0, 1.0, 0.0),
        (" The mother tongue of X is English.", 1.0, 1.0, 0.0),
        ("English, and not French", 1.0, 0.0, 1.0),
        ("English or German", 1.0, 0.0, 0.0),
        ("French", 0.0, 0.0, 0.0),
        ("Englishman", 0.0, 0.0, 0.0),
        # The subject's name is no answer.
        ("Frenchy French is English", 1.0, 1.0, 0.0),
        ("", 0.0, 0.0, 0.0),
    ],
)
def test_an_answer_in_a_sentence_is_right(answer, said, stays, contradicts, monkeypatch):
    model = chatty()
    case = dataclasses.replace(
        CASES[0], edit=dataclasses.replace(CASES[0].edit, subject="Frenchy French")
    )
    other = dataclasses.replace(CASES[1], edit=dataclasses.replace(CASES[1].edit, target="German"))
    ids = model.tokens.tokenizer(answer)["input_ids"]
    monkeypatch.setattr(
        "retcon.model.generate.greedy", lambda _overlay, heads, *_: [tuple(ids) for _ in heads]
    )
    monkeypatch.setattr(
        "retcon.scoring.exact_match.greedy", lambda _o, heads, *_: [()] * len(heads)
    )
    rows = retcon.score(model, [case, other], metrics=["said_chat"]).rows
    (row,) = [row for row in rows if row.kind == "free chat" and row.case == case.edit.id]
    names = ("said_chat", "stays_chat", "contradicts_chat")
    assert [METRICS.find(name).value(row) for name in names] == [said, stays, contradicts]


def test_in_plain_text_an_answer_ends_with_its_line(monkeypatch):
    model = chatty()
    ids = model.tokens.tokenizer("\n English.\nQuestion: French?")["input_ids"]
    monkeypatch.setattr(
        "retcon.model.generate.greedy", lambda _overlay, heads, *_: [tuple(ids) for _ in heads]
    )
    monkeypatch.setattr(
        "retcon.scoring.exact_match.greedy", lambda _o, heads, *_: [()] * len(heads)
    )
    rows = retcon.score(model, CASES[:1], metrics=["said_question", "said_chat"]).rows
    hits = {row.kind: (row.hits_new, row.hits_old) for row in rows if row.kind.startswith("free")}
    assert hits == {"free question": (1, 0), "free chat": (1, 1)}


def test_without_an_old_answer_or_a_question_there_is_nothing_and_no_zero():
    alone = dataclasses.replace(CASES[0], edit=dataclasses.replace(CASES[0].edit, target_old=None))
    scores = retcon.score(pico(), [alone], metrics=["said_question"]).scores("pre")
    assert "said_question" in scores
    assert not {"stays_question", "contradicts_question", "preferred_question"} & {*scores}
    nobody = dataclasses.replace(CASES[0], relation=None)
    scores = retcon.score(pico(), [nobody], metrics=["said_question"]).scores("pre")
    assert not {name for name in scores if name.endswith("_question")}
    row = Observation("c", "r", "free question", 0, "final", 1)
    assert METRICS.find("said_question").value(row) is None


@pytest.mark.parametrize("bos", [False, True])
def test_a_chat_has_one_token_of_the_tokenizer_s_own(bos):
    tokens = copy.deepcopy(tokenizer(bos=bos))
    tokens.chat_template = "<s>" + CHAT
    text = Tokens(tokens).chat("Who?")
    assert text == ("" if bos else "<s>") + "user: Who?\nmodel:\n"
    assert Tokens(tokens).prompt(text).count(0) == 1


def test_a_chat_is_the_same_on_every_day_and_asks_for_no_reasoning():
    tokens = copy.deepcopy(tokenizer())
    tokens.chat_template = (
        "{{ date_string if date_string is defined else strftime_now('%s') }}"
        "{{ ' think' if enable_thinking is not defined or enable_thinking else ' answer' }}"
    )
    assert Tokens(tokens).chat("Who?") == "26 Jul 2024 answer"


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (None, "no chat template"),
        ("{{ raise_exception('system first') }}", "cannot be filled: system first"),
        ("{% for %}", "cannot be filled"),
    ],
)
def test_who_cannot_chat_is_told_before_any_work(template, why, monkeypatch):
    model = chatty(template=template)
    monkeypatch.setattr("retcon.run.looks.score_cases", None)
    for cases in (CASES, [dataclasses.replace(CASES[0], relation=None)]):
        with pytest.raises(InvalidSetting, match=why):
            retcon.score(model, cases, metrics=["said_chat"])
        with pytest.raises(InvalidSetting, match=why):
            retcon.evaluate(model, cases, method="rome", layers=[1], metrics=["said_chat"])


@pytest.fixture
def folder(tmp_path, cache, monkeypatch):
    """A model without a chat template, facts with a question and without; the working directory."""
    pico().model.save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    for name, more in (("asked", {"questions": ["What is it?"]}), ("plain", {})):
        lines = "\n".join(json.dumps({**fact, **more}) for fact in FACTS)
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def test_the_command_line_asks_in_several_ways(folder, retcon):
    base = ["eval", "./model", "--json", "v.json", "--cases"]
    code, out, err = retcon(*base, "asked.jsonl", "--ask", "plain, question")
    assert code == 0, err
    assert "Says it freely" in out and "Says it, asked a question" in out
    scores = json.loads((folder / "v.json").read_text(encoding="utf-8"))["pre"]
    assert {"said", "said_question", "stays_question", "preferred_question"} <= {*scores}
    code, out, err = retcon(*base, "plain.jsonl", "--ask", "question")
    assert code == 0 and "said_question was not measured" in out, err
    code, _, err = retcon(*base, "asked.jsonl", "--ask", "plain,chat")
    assert code == 2 and "no chat template" in err
    code, _, err = retcon(*base, "asked.jsonl", "--ask", "aloud")
    assert code == 2 and "Unknown way of asking 'aloud'" in err and "question" in err


def test_an_unknown_way_is_told_in_python_too():
    with pytest.raises(UnknownName):
        retcon.score(pico(), CASES, metrics=["said_aloud"])
