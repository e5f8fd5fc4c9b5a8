"""Divergence from the untouched model: every distribution again, one prompt at a time."""

import pytest
import torch

import retcon
from pico import pico
from retcon.data.held_out import held_out
from retcon.edits import Case, Edit, Probe
from retcon.scoring.metrics.moved import MEASURES

CASES = [
    Case(
        edit=Edit.parse(prompt.format(f"{{{name}}}"), new, id=name, target_old=old),
        neighbours=("Paris is", "London was in the"),
        locality=(Probe(prompt=f"{name} was", answer="the"),) if name == "Warsaw" else (),
        relation=relation,
    )
    for name, prompt, new, old, relation in [
        ("Warsaw", "The city of {} is", "English", "French", "r"),
        ("France", "I know that {} is", "of", "in", "s"),
        ("Madrid", "In {} they speak", "Rome", "city", "t"),
    ]
]
FAST = {"steps": 3, "prefixes": 2, "corpus_tokens": 400, "document_tokens": 32, "jitter": 1e-3}
NAMES = [
    f"{measure}_{place}" for place in ("neighbours", "subject", "text") for measure in MEASURES
]


def distributions(model, ids, start):
    """The next-token distribution behind each token from `start` on, by itself."""
    with torch.no_grad():
        logits = [model.model(torch.tensor([ids[: at + 1]])).logits[0, -1]
                  for at in range(start, len(ids))]  # fmt: skip
    return torch.stack(logits).double().softmax(-1)


def compared(before, after):
    kl = sum((p * (p / q).log()).sum() for p, q in zip(before, after, strict=True))
    tv = sum((p - q).abs().sum() / 2 for p, q in zip(before, after, strict=True))
    top = sum(float(p.argmax() == q.argmax()) for p, q in zip(before, after, strict=True))
    return {"KL": float(kl) / len(before), "TV": float(tv) / len(before), "top": top / len(before)}


def texts_of(model, case):
    """What is compared of a case: by place, ids and the token from which on it is read."""
    others = [one.edit.prompt for one in CASES if one is not case]
    subject = [probe.prompt for probe in case.locality]
    places = {"neighbours": list(case.neighbours), "subject": subject}
    return places, {text.replace("{}", case.edit.subject) for text in others}


@pytest.mark.parametrize("schedule", ["single", "sequential-batch:2"])
def test_divergences_are_those_of_each_prompt_alone(schedule):
    model = pico(seed=3, dtype=torch.float64)
    method = "rome" if schedule == "single" else "memit"
    ridge = {} if schedule == "single" else {"ridge": 1.0}
    options = {"method": method, "layers": [1], "settings": {**FAST, **ridge}}
    run = retcon.evaluate(model, CASES, schedule=schedule, metrics=NAMES, **options)
    when = "immediate" if schedule == "single" else "final"
    assert not [row for row in run.rows if row.kind.startswith(MEASURES) and row.when == "pre"]
    seen = {(row.case, row.kind, row.index): row.value for row in run.rows if row.when == when}
    everything = (
        retcon.edit(model, [case.edit for case in CASES], schedule=schedule, **options)
        if schedule != "single"
        else None
    )
    moved = 0.0
    for case in CASES:
        patch = everything or retcon.edit(model, [case.edit], **options)
        places, others = texts_of(model, case)
        asked = [("neighbours", text) for text in places["neighbours"]]
        asked += [("subject", text) for text in places["subject"]]
        count = len(asked)
        # Two other relations there are, so both are asked, in an order of the case's own.
        for index, (place, text) in enumerate(asked):
            ids = model.tokens.prompt(text)
            before = distributions(model, ids, len(ids) - 1)
            with patch.applied(model):
                after = distributions(model, ids, len(ids) - 1)
            for measure, value in compared(before, after).items():
                assert seen[case.edit.id, f"{measure} {place}", index] == pytest.approx(
                    value, rel=1e-6, abs=1e-9
                )
                moved += value if measure == "KL" else 0.0
        wanted = []
        for text in others:
            ids = model.tokens.prompt(text)
            before = distributions(model, ids, len(ids) - 1)
            with patch.applied(model):
                wanted.append(compared(before, distributions(model, ids, len(ids) - 1))["KL"])
        found = [seen[case.edit.id, "KL subject", count + i] for i in range(2)]
        assert sorted(found) == pytest.approx(sorted(wanted), rel=1e-6, abs=1e-9)
    assert moved > 1e-4


def test_ordinary_text_is_compared_at_every_token():
    model = pico(seed=3, dtype=torch.float64)
    patch = retcon.edit(
        model, [case.edit for case in CASES], method="emmet", layers=[1], settings=FAST
    )
    seen = retcon.score(model, CASES, patch=patch, metrics=["KL_text"])
    rows = [row for row in seen.rows if row.when == "final" and row.kind == "KL text"]
    first = held_out(passages=32).texts[rows[0].index]
    ids = model.tokens.document(first, 128)
    before = distributions(model, ids, 0)
    with patch.applied(model):
        after = distributions(model, ids, 0)
    wanted = compared(before, after)
    assert rows[0].value == pytest.approx(wanted["KL"], rel=1e-6)
    assert wanted["KL"] > 0
    scores = seen.scores("final")
    assert scores["TV_text"].mean == pytest.approx(
        100 * sum(r.value for r in seen.rows if r.kind == "TV text") / len(rows)
    )


def test_a_model_that_is_not_edited_has_not_moved():
    model = pico(seed=3)
    patch = retcon.edit(model, [CASES[0].edit], method="emmet", layers=[1], settings=FAST)
    nothing = [
        row for row in retcon.score(model, CASES, metrics=NAMES).rows if row.value is not None
    ]
    assert nothing == []
    with patch.applied(model):
        inside = retcon.score(model, CASES, metrics=NAMES).rows
    assert not [row for row in inside if row.kind.startswith(MEASURES)]


def test_facts_before_prompts_move_neighbours_that_are_told_and_leave_out_other_relations():
    model = pico(seed=3)
    run = retcon.evaluate(
        model, CASES, method="in_context", schedule="batch:3", metrics=["KL_subject"],
        settings={"threshold": 0.1},
    )  # fmt: skip
    kinds = {(row.case, row.kind) for row in run.rows if row.when == "immediate"}
    assert ("Warsaw", "KL subject") in kinds
    assert ("France", "KL subject") not in kinds
    assert ("France", "KL neighbours") in kinds
