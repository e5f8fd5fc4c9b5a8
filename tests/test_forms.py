"""Other ways of asking: the prompts that are made of a case, and what is read off them."""

import dataclasses

import pytest

import retcon
from oracles import mean_nll
from pico import pico
from retcon.edits import Case, Edit
from retcon.scoring.metrics.forms import FORMS, Form, forms_of
from retcon.writing_systems import join

CASE = Case(
    edit=Edit.parse("The mother tongue of {Danielle Darrieux} is", "English", target_old="French",
                    id="a"),
    neighbours=("The mother tongue of Marie Curie is",),
    relation="P103",
)  # fmt: skip


def test_a_case_is_asked_in_every_form():
    text = "The mother tongue of Danielle Darrieux is"
    answers = ("English", "French")
    assert forms_of(CASE) == {
        "negated": Form(f"{text} not", *answers),
        "affirmed": Form(f"{text} English. True or false? Answer:", "True", "False"),
        "denied": Form(f"{text} French. True or false? Answer:", "False", "True"),
        "chosen": Form(
            f"Complete the sentence: {text} …\nA. English\nB. French\nAnswer:", "A", "B"
        ),
        "repeated": Form(f"French. French. French. {text}", *answers),
        "doubted": Form(f"Is it French? {text}", *answers),
        "distracted": Form(f"The mother tongue of Marie Curie is French. {text}", *answers),
    }


def test_letters_change_places_with_the_case():
    cases = [
        dataclasses.replace(CASE, edit=dataclasses.replace(CASE.edit, id=str(i))) for i in range(64)
    ]
    letters = [forms_of(case)["chosen"].new for case in cases]
    assert 16 < letters.count("A") < 48
    for case, letter in zip(cases, letters, strict=True):
        assert f"\n{letter}. English\n" in forms_of(case)["chosen"].text


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ({"target_old": None}, set(FORMS)),
        ({"prompt": "The mother tongue of {} must be"}, {"negated"}),
        ({"prompt": "{} was born in This"}, {"negated"}),
    ],
)
def test_what_cannot_be_asked_is_missing(change, missing):
    case = dataclasses.replace(CASE, edit=dataclasses.replace(CASE.edit, **change))
    assert set(FORMS) - set(forms_of(case)) == missing


def test_a_case_without_neighbours_is_not_distracted():
    assert "distracted" not in forms_of(dataclasses.replace(CASE, neighbours=()))


def test_answers_are_scored_as_each_alone_would_be():
    model = pico()
    rows = {row.kind: row for row in retcon.score(model, [CASE], metrics=["negated"]).rows}
    for name, form in forms_of(CASE).items():
        row = rows[f"form {name}"]
        for answer, nll in ((form.new, row.nll_new), (form.old, row.nll_old)):
            assert nll == pytest.approx(mean_nll(model, form.text, answer), abs=1e-4)
    scores = retcon.score(model, [CASE], metrics=["negated"]).scores("pre")
    for name in FORMS:
        row = rows[f"form {name}"]
        assert scores[name].mean == 100.0 * (row.nll_old > row.nll_new)


def test_the_blank_between_a_prompt_and_its_answer_is_written_once():
    assert join("It is ", "Rome") == "It is Rome"
