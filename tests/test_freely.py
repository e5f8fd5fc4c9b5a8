"""Free generation: what follows each prompt, and how a reader or a judge would take it."""

import json
import re

import numpy as np
import pytest
import torch

import retcon
from oracles import written_alone
from pico import pico
from retcon import registry
from retcon.edits import Case, Edit
from retcon.errors import InvalidPlugin, InvalidVerdict, RetconWarning
from retcon.model import overlay
from retcon.scoring.metrics import METRICS
from retcon.scoring.metrics.freely import NEIGHBOUR, NEW_TOKENS, PARAPHRASE, REWRITE
from retcon.scoring.metrics.judged import judged
from retcon.scoring.observations import Observation
from retcon.writing_systems import plain, times_named
from test_cli import FACTS, SETTINGS, folder  # noqa: F401

WORDS = ("English", "French", "German", "Spanish", "Rome", "Paris")
CASES = [
    Case(
        edit=Edit.parse(f"The city of {{{name}}} is", new, id=name, target_old=old),
        paraphrases=(f"{name} was in the", f"I know that {name} is"),
        neighbours=("Paris is", "London was"),
        relation=relation,
    )
    for name, new, old, relation in (
        ("Warsaw", "English", "French", "r"), ("France", "of", "in", "r"),
        ("Madrid", "Rome", "city", "s"), ("Marie Curie", "the", "a", "t"),
    )
]  # fmt: skip


def count(text, word):
    """Whole words of a Latin text."""
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", " ".join(text.split())))


@pytest.mark.parametrize("seed", [0, 3])
def test_each_prompt_is_gone_on_behind_as_if_alone(seed):
    # In float64, so that no processor takes another of two tokens that are all but as probable.
    model = pico(seed=seed, dtype=torch.float64)
    rows = retcon.score(model, CASES, metrics=["said", "leaks"]).rows
    by_place = {(row.case, row.kind, row.index): row for row in rows}
    for case in CASES:
        texts = [(REWRITE, case.edit.text)]
        texts += [(PARAPHRASE, text) for text in case.paraphrases]
        texts += [(NEIGHBOUR, text) for text in case.neighbours]
        places = [0, *range(len(case.paraphrases)), *range(len(case.neighbours))]
        others = {a for c in CASES if c.relation == case.relation
                  for a in (c.edit.target, c.edit.target_old)}  # fmt: skip
        others -= {case.edit.target, case.edit.target_old}
        for (kind, text), index in zip(texts, places, strict=True):
            row, written = (
                by_place[case.edit.id, kind, index],
                written_alone(model, text, NEW_TOKENS),
            )
            assert row.text == written
            assert row.hits_new == count(written, case.edit.target)
            assert row.hits_old == count(written, case.edit.target_old)
            assert row.value == sum(count(written, one) > 0 for one in others)
            answer = case.edit.target_old if kind == NEIGHBOUR else case.edit.target
            assert row.exact is bool(re.match(rf"\s*{answer}(?!\w)", written))


def test_metrics_are_read_off_what_was_written():
    model = pico()
    seen = retcon.score(model, CASES, metrics=["said", "leaks"])
    scores = seen.scores("pre")
    rows = [row for row in seen.rows if row.kind == REWRITE]
    assert scores["said"].mean == pytest.approx(25 * sum(row.exact for row in rows))
    assert scores["stays"].mean <= scores["said"].mean
    assert {"said_paraphrase", "said_truth", "leaks", "repeats"} <= set(scores)
    # Without them nothing is written.
    assert not any(row.kind.startswith("free") for row in retcon.score(model, CASES).rows)


def row(**values):
    return Observation("c", "r", REWRITE, 0, "final", 1, **values)


@pytest.mark.parametrize(
    ("values", "begins", "stays", "contradicts"),
    [
        ({"exact": True, "hits_old": 0, "value": 0.0}, 1.0, 1.0, 0.0),
        ({"exact": True, "hits_old": 2, "value": 0.0}, 1.0, 0.0, 1.0),
        ({"exact": True, "hits_old": 0, "value": 1.0}, 1.0, 0.0, 0.0),
        ({"exact": False, "hits_old": 1, "value": 0.0}, 0.0, 0.0, 0.0),
        # Without an old answer nothing can be said of it.
        ({"exact": True, "hits_old": None, "value": 0.0}, 1.0, None, None),
    ],
)
def test_a_text_begins_stays_and_contradicts(values, begins, stays, contradicts):
    found = [METRICS.find(name).value(row(**values)) for name in ("said", "stays", "contradicts")]
    assert found == [begins, stays, contradicts]


def test_a_text_that_says_the_same_again_repeats_itself():
    repeats = METRICS.find("repeats").value
    assert repeats(row(text="a b c d e")) == 0.0
    assert repeats(row(text="a b c a b c a b c")) == pytest.approx(4 / 7)
    assert repeats(row(text="a b")) is None


@pytest.mark.parametrize(
    ("text", "name", "times"),
    [
        ("Rome, and Romeo in Rome.", "Rome", 2),
        ("in France French is French", "French", 2),
        ("罗马和罗马人", "罗马", 2),
        ("São Paulo, Sao Paulo", "São Paulo", 1),
        ("New York New York", "New York", 2),
        ("nothing", "", 0),
    ],
)
def test_a_name_is_counted_as_whole_words(text, name, times):
    assert times_named(plain(text), plain(name)) == times


@pytest.mark.parametrize(
    ("text", "old"),
    [(" the Bank of Warsaw is of", 0), (" the Bank of Warsaw in Warsaw", 1), (" is in Warsaw", 1)],
)
def test_what_the_name_of_the_subject_holds_is_no_answer(text, old, monkeypatch):
    model = pico()
    case = Case(
        edit=Edit.parse("The {Bank of Warsaw} is in", "Rome", target_old="Warsaw"),
        paraphrases=("I know the Bank of Warsaw is",),
        relation="r",
    )
    ids = model.tokens.tokenizer(text)["input_ids"]
    monkeypatch.setattr(
        "retcon.model.generate.greedy", lambda _o, heads, *_: [tuple(ids) for _ in heads]
    )
    rows = retcon.score(model, [case], metrics=["said"]).rows
    assert {(r.kind, r.hits_old) for r in rows if r.kind.startswith("free")} == {
        (REWRITE, old), (PARAPHRASE, old)
    }  # fmt: skip


def test_what_the_untouched_model_writes_is_remembered(entries, monkeypatch):
    from retcon.model import generate

    model, asked = pico(), []
    greedy = generate.greedy

    def counted(overlay, heads, *rest):
        asked.append(len(heads))
        return greedy(overlay, heads, *rest)

    monkeypatch.setattr(generate, "greedy", counted)
    first = retcon.score(model, CASES[:2], metrics=["said"]).rows
    again = retcon.score(pico(), CASES, metrics=["said"]).rows
    assert asked == [6, 6]  # of four cases the two new ones
    assert [row for row in again if row.case in {"Warsaw", "France"}] == first
    patch = retcon.edit(model, [CASES[0].edit], method="rome", layers=[1])
    with patch.applied(model):
        retcon.score(model, CASES[:1], metrics=["said"])
    assert asked == [6, 6, 3]
    assert retcon.score(pico(seed=1), CASES[:1], metrics=["said"]).rows and asked[3:] == [3]


@pytest.mark.parametrize("most_rank", [8, 0])
def test_single_edits_are_looked_at_together_as_each_by_itself(most_rank, monkeypatch):
    """Laid over rows of shared batches, or written one by one."""
    monkeypatch.setattr(overlay, "_MOST_RANK", most_rank)
    model = pico(seed=3, dtype=torch.float64)
    names = ["said", "leaks", "repeated"]
    run = retcon.evaluate(model, CASES, method="rome", layers=[1], metrics=names)
    of_others = set()
    for case in CASES:
        patch = retcon.edit(model, [case.edit], method="rome", layers=[1])
        with patch.applied(model):
            alone = retcon.score(model, CASES, metrics=names).rows
        found = {(r.kind, r.index): r for r in run.rows
                 if r.case == case.edit.id and r.when == "immediate"}  # fmt: skip
        wanted = {(r.kind, r.index): r for r in alone if r.case == case.edit.id}
        assert found.keys() == wanted.keys()
        for place, one in wanted.items():
            close = one._replace(when="immediate", step=found[place].step)
            for name in ("nll_new", "nll_old"):
                if getattr(one, name) is not None:
                    assert getattr(found[place], name) == pytest.approx(getattr(one, name))
                    close = close._replace(**{name: getattr(found[place], name)})
            assert found[place] == close
            of_others.add(one.value)
    assert 1.0 in of_others  # answers of the relation's other cases count, though one is looked at


@pytest.fixture(autouse=True)
def no_judges(monkeypatch):
    """No judge is there before a test, and none after it."""
    monkeypatch.setattr(METRICS, "_entries", METRICS.all())
    monkeypatch.setattr(registry, "_LOADED", {})


def odd(prompt, answer, truth):
    """A verdict that is now this and now that."""
    return bool((len(prompt) + len(answer) + len(truth)) % 2)


def test_a_judge_is_asked_of_what_the_model_writes():
    calls = []

    def judge(prompt, answer, truth):
        calls.append((prompt, answer, truth))
        return odd(prompt, answer, truth)

    model = pico(seed=3)
    seen = retcon.score(model, CASES, metrics=["said", judged("odd", judge)])
    free = {(r.case, r.kind, r.index): r.text for r in seen.rows if r.kind.startswith("free ")}
    asked = [
        (case, kind, i, text)
        for case in CASES
        for kind, i, text in [
            (REWRITE, 0, case.edit.text),
            *(("free paraphrase", i, text) for i, text in enumerate(case.paraphrases)),
        ]
    ]
    wanted = [(text, free[c.edit.id, kind, i], c.edit.target) for c, kind, i, text in asked]
    assert calls == wanted
    rows = {(r.case, r.kind, r.index): r for r in seen.rows if r.kind.startswith("judged")}
    assert len(rows) == len(wanted)
    for (case, kind, i, _), call in zip(asked, wanted, strict=True):
        row = rows[case.edit.id, f"judged by odd, {kind}", i]
        assert (row.exact, row.text) == (odd(*call), call[1])
    right = [odd(*call) for call, one in zip(wanted, asked, strict=True) if one[1] == REWRITE]
    assert seen.scores("pre")["odd"].mean == pytest.approx(100 * sum(right) / len(right))
    assert "odd_paraphrase" in seen.scores("pre") and "Right by odd" in seen.table()


def test_under_every_update_of_single_edits_too():
    run = retcon.evaluate(
        pico(seed=3), CASES, method="rome", layers=[1], metrics=["said", judged("odd", odd)]
    )
    free = {r.case: r.text for r in run.at("immediate") if r.kind == REWRITE}
    told = {r.case: r for r in run.at("immediate") if r.kind == f"judged by odd, {REWRITE}"}
    assert {case: row.text for case, row in told.items()} == free and len(free) == 4
    for case in CASES:
        text = case.edit.text, free[case.edit.id], case.edit.target
        assert told[case.edit.id].exact is odd(*text)


def test_what_it_cannot_tell_is_left_out():
    def judge(prompt, answer, truth):
        return None if "Warsaw" in prompt else True

    scores = retcon.score(pico(), CASES, metrics=[judged("shy", judge)]).scores("pre")
    assert (scores["shy"].mean, scores["shy"].cases) == (100, 3)


def test_a_judge_that_raises_is_missing_and_counted():
    def judge(prompt, answer, truth):
        if "Warsaw" in prompt:
            raise ConnectionError("no answer")
        return False

    with pytest.warns(RetconWarning, match=r"judge far failed on 3 of 12.*Warsaw.*no answer"):
        seen = retcon.score(pico(), CASES, metrics=[judged("far", judge)])
    assert (seen.scores("pre")["far"].mean, seen.scores("pre")["far"].cases) == (0, 3)
    rows = [row for row in seen.rows if row.kind.startswith("judged") and row.case == "Warsaw"]
    assert len(rows) == 3 and all(row.exact is None and row.text is not None for row in rows)


def test_a_judge_that_always_raises_has_no_score():
    with pytest.warns(RetconWarning, match="12 of 12"):
        seen = retcon.score(pico(), CASES, metrics=[judged("gone", lambda *_: 1 / 0)])
    assert "gone" not in seen.scores("pre")


@pytest.mark.parametrize("verdict", ["yes", 1, 0.5, np.bool_(True), [True]])
def test_a_verdict_of_another_type_is_refused(verdict):
    with pytest.raises(InvalidVerdict, match=r"The judge loose returned .* behind 'The city of"):
        retcon.score(pico(), CASES, metrics=[judged("loose", lambda *_: verdict)])


def test_a_judge_is_replaced_by_name_and_takes_no_other_metric_s():
    first = judged("twice", lambda *_: True)
    assert judged("twice", lambda *_: False) is first
    assert retcon.score(pico(), CASES, metrics=["twice"]).scores("pre")["twice"].mean == 0
    with pytest.raises(InvalidPlugin, match="'ES' already"):
        judged("ES", odd)


def test_a_plugin_brings_a_judge(folder, retcon):  # noqa: F811
    text = (
        "from retcon.scoring.metrics.judged import judged\n"
        "judged('mine', lambda prompt, answer, truth: truth in answer)\n"
    )
    (folder / "judge.py").write_text(text, encoding="utf-8")
    code, out, err = retcon(
        "--plugin", "judge.py", "eval", "./model", "--cases", "facts.jsonl", "--method", "emmet",
        "--layer", "1", "--metric", "mine", "--json", "v.json", *SETTINGS,
    )  # fmt: skip
    assert code == 0, err
    assert "Right by mine" in out
    record = json.loads((folder / "v.json").read_text(encoding="utf-8"))
    assert record["immediate"]["mine"] is not None and len(FACTS) == record["n"]
    assert retcon("eval", "./model", "--cases", "facts.jsonl", "--metric", "nobody")[0] == 2
