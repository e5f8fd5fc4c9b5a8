"""A judge of one's own: asked of what the model writes, and never taken for more than it says."""

import json

import numpy as np
import pytest

import retcon
from pico import pico
from retcon import registry
from retcon.errors import InvalidPlugin, InvalidVerdict, RetconWarning
from retcon.scoring.metrics import METRICS
from retcon.scoring.metrics.freely import REWRITE
from retcon.scoring.metrics.judged import judged
from test_cli import FACTS, SETTINGS, folder  # noqa: F401
from test_freely import CASES


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
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
