"""Other ways of asking: the prompts that are made of a case, and what is read off them."""

import dataclasses

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import retcon
from oracles import mean_nll
from pico import FAMILIES, pico
from retcon.edits import Case, Edit
from retcon.errors import InvalidEdit
from retcon.scoring.intervals import Estimate
from retcon.scoring.metrics import METRICS, estimate, unable
from retcon.scoring.metrics.forms import FORMS, Form, Statement, either, forms_of
from retcon.scoring.observations import Observation
from retcon.writing_systems import join

TEXT = "The mother tongue of Danielle Darrieux is"
CASE = Case(
    edit=Edit.parse("The mother tongue of {Danielle Darrieux} is", "English", target_old="French",
                    id="a"),
    neighbours=("The mother tongue of Marie Curie is",),
    relation="P103",
)  # fmt: skip
OF_FOUR = {"form chosen of four:target", "form chosen of four:old"}


def edited(**changes) -> Case:
    return dataclasses.replace(CASE, edit=dataclasses.replace(CASE.edit, **changes))


def test_a_case_is_asked_in_every_form():
    answers = ("English", "French")
    subject = "Danielle Darrieux"
    whose = "A person whose mother tongue is"
    assert forms_of(CASE) == {
        "form negated": either(f"{TEXT} not", *answers),
        "form true or false:target": either(
            f"{TEXT} English. True or false? Answer:", "True", "False"
        ),
        "form true or false:old": either(f"{TEXT} French. True or false? Answer:", "False", "True"),
        "form chosen": either(
            f"Complete the sentence: {TEXT} …\nA. English\nB. French\nAnswer:", "A", "B"
        ),
        "form repeated": either(f"French. French. French. {TEXT}", *answers),
        "form doubted": either(f"Is it French? {TEXT}", *answers),
        "form distracted": either(f"The mother tongue of Marie Curie is French. {TEXT}", *answers),
        "form introduced": either(f"Many people have heard of {subject}. {TEXT}", *answers),
        "form reversed": Form(
            Statement(f"{whose} English is", subject), (Statement(f"{whose} French is", subject),)
        ),
    }


def test_letters_change_places_with_the_case():
    cases = [edited(id=str(i)) for i in range(64)]
    letters = [forms_of(case)["form chosen"].statement.answer for case in cases]
    assert 16 < letters.count("A") < 48
    for case, letter in zip(cases, letters, strict=True):
        assert f"\n{letter}. English\n" in forms_of(case)["form chosen"].statement.prompt


def test_two_of_four_are_other_answers_of_the_relation():
    answers = {"English", "French", "German", "Spanish", "Polish", "Latin"}
    places: set[str] = set()
    drawn: set[str] = set()
    for i in range(64):
        forms = forms_of(edited(id=str(i)), answers)
        new, old = (forms[kind] for kind in sorted(OF_FOUR, reverse=True))
        lines = new.statement.prompt.splitlines()
        options = dict(line.split(". ") for line in lines[1:5])
        assert list(options) == ["A", "B", "C", "D"] and lines[5] == "Answer:"
        assert len({*options.values()}) == 4 and {*options.values()} <= answers
        assert options[new.statement.answer] == "English"
        assert options[old.statement.answer] == "French"
        for form in (new, old):
            letters = {form.statement.answer, *(rival.answer for rival in form.rivals)}
            assert letters == {*options}
            assert {rival.prompt for rival in form.rivals} == {form.statement.prompt}
        places.add(new.statement.answer)
        drawn |= {*options.values()}
    assert places == {"A", "B", "C", "D"} and drawn == answers


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ({"target_old": None}, {*FORMS}),
        ({"target_old": "English"}, {*FORMS}),
        ({"prompt": "The mother tongue of {} must be"}, {"form negated"}),
        ({"prompt": "{} was born in This"}, {"form negated"}),
    ],
)
def test_what_cannot_be_asked_is_missing(change, missing):
    answers = {"English", "French", "German", "Spanish"}
    assert {*FORMS} - {*forms_of(edited(**change), answers)} == missing


@pytest.mark.parametrize(
    ("change", "answers", "missing"),
    [
        ({"neighbours": ()}, {"German", "Spanish"}, {"form distracted"}),
        ({"relation": None}, {"German", "Spanish"}, {"form reversed"}),
        ({"relation": "of nobody"}, {"German", "Spanish"}, {"form reversed"}),
        ({}, {"English", "French", "German"}, OF_FOUR),
    ],
)
def test_what_a_case_lacks_is_not_asked(change, answers, missing):
    case = dataclasses.replace(CASE, **change)
    assert {*FORMS} - {*forms_of(case, answers)} == missing


def many() -> list[Case]:
    """Cases of one relation, whose answers are those of one another."""
    pairs = [("English", "French"), ("German", "Spanish"), ("Polish", "Russian")]
    return [
        dataclasses.replace(CASE, edit=dataclasses.replace(CASE.edit, id=str(i), target=new,
                                                           target_old=old))
        for i, (new, old) in enumerate(pairs)
    ]  # fmt: skip


def test_answers_are_scored_as_each_alone_would_be():
    model, cases = pico(), many()
    answers = {answer for case in cases for answer in (case.edit.target, case.edit.target_old)}
    seen = retcon.score(model, cases, metrics=["negated"])
    rows = {(row.case, row.kind): row for row in seen.rows}
    wins: dict[str, list[float]] = {}
    for case in cases:
        forms = forms_of(case, answers)
        assert {*forms} == {*FORMS}
        for kind, form in forms.items():
            row = rows[case.edit.id, kind]
            assert row.nll_new == pytest.approx(mean_nll(model, *form.statement), abs=1e-4)
            best = min(mean_nll(model, *rival) for rival in form.rivals)
            assert row.nll_old == pytest.approx(best, abs=1e-4)
            wins.setdefault(kind, []).append(100.0 * (row.nll_old > row.nll_new))
    scores = seen.scores("pre")
    kinds = {"affirmed": "true or false:target", "denied": "true or false:old",
             "chosen_of_four": "chosen of four:target",
             "control_chosen_of_four": "chosen of four:old"}  # fmt: skip
    for name in ("negated", "chosen", "repeated", "doubted", "distracted", "introduced",
                 "reversed", "control_negated", *kinds):  # fmt: skip
        won = wins[f"form {kinds.get(name, name.removeprefix('control_'))}"]
        assert scores[name].mean == pytest.approx(sum(won) / 3)
    # The untouched model is right where it prefers the old answer, affirms it, denies the other.
    lost = [100 - each for each in wins["form chosen"]]
    assert scores["control_chosen"].mean == pytest.approx(sum(lost) / 3)
    both = [100 - each for kind in ("target", "old") for each in wins[f"form true or false:{kind}"]]
    assert scores["control_true_or_false"].mean == pytest.approx(sum(both) / 6)


def test_a_control_is_of_the_untouched_model_alone():
    row = Observation("c", "r", "form chosen", 0, "pre", 0, nll_new=2.0, nll_old=1.0)
    value = METRICS.find("control_chosen").value
    assert value(row) == 1.0 and value(row._replace(when="final")) is None


def of_truth(kind: str, nlls: list[tuple[float, float]]) -> list[Observation]:
    return [
        Observation(str(i), f"r{i % 6}", kind, 0, "pre", 0, nll_new=new, nll_old=old)
        for i, (new, old) in enumerate(nlls)
    ]


@pytest.mark.parametrize(
    ("of_target", "of_old", "can"),
    [
        # log-probabilities of True, negated: of the target's sentence and of the old answer's.
        ((1.0, 2.0), (2.0, 1.0), False),  # "True", whatever is asked
        ((2.0, 1.0), (1.0, 2.0), False),  # "False", whatever is asked
        ((2.0, 1.0), (2.0, 1.0), True),  # the target is false, and the old answer true
        ((1.0, 2.0), (1.0, 2.0), False),  # the other way round
    ],
)
def test_who_says_true_to_everything_cannot_tell(of_target, of_old, can):
    rows = of_truth("form true or false:target", [of_target] * 48)
    # Of the old answer, "False" is what the edited model should say.
    rows += of_truth("form true or false:old", [of_old] * 48)
    told = unable(METRICS.find("affirmed"), lambda name: estimate(rows, name))
    assert (told == "") is can
    if not can:
        assert "cannot do this form" in told and "chance is 50 %" in told


def test_what_is_not_known_is_not_said():
    assert unable(METRICS.find("ES"), lambda name: estimate([], name)) == ""
    assert unable(METRICS.find("chosen"), lambda name: estimate([], name)) == ""
    one = of_truth("form chosen", [(1.0, 2.0)])  # no interval
    assert unable(METRICS.find("chosen"), lambda name: estimate(one, name)) == ""
    quarter = Estimate(30.0, 26.0, 34.0, 99)
    assert unable(METRICS.find("chosen_of_four"), lambda _: quarter) == ""
    assert unable(METRICS.find("chosen"), lambda _: quarter) != ""


def test_a_table_says_what_the_model_cannot_do():
    cases = [dataclasses.replace(case, relation=f"P{i}") for i, case in enumerate(many())]
    table = retcon.score(pico(), cases, metrics=["chosen"]).table()
    lines = {line.partition("  ")[0] for line in table.splitlines()}
    assert any(line.startswith("Affirms the target") for line in lines)
    marked = {line for line in lines if "cannot do this form" in line}
    seen = retcon.score(pico(), cases, metrics=["chosen"])
    low = seen.scores("pre")["control_true_or_false"].low
    assert (low <= 50) == any(line.startswith("Affirms") for line in marked)
    assert not any(line.startswith("Preferred after") for line in marked)


def by_words(*words: str) -> PreTrainedTokenizerFast:
    """A tokenizer that knows some words and no other of those that forms have."""
    others = [f"word{i}" for i in range(100)]
    known = {word: place for place, word in enumerate(["<unk>", *words, *others])}
    made = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation("isolated"), pre_tokenizers.Metaspace(prepend_scheme="first")]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


def test_a_form_in_words_that_the_tokenizer_does_not_know_is_missing():
    text = f"{TEXT} Marie Curie English French"
    tokens = by_words(".", *(f"▁{word}" for word in text.split()))
    seen = retcon.score(pico(tokens=tokens), [CASE], metrics=["negated"])
    forms = {row.kind for row in seen.rows if row.kind.startswith("form")}
    assert forms == {"form repeated", "form distracted"}


def test_a_form_that_is_too_long_is_told_before_any_work(monkeypatch):
    kind, dimensions = FAMILIES["gpt2"]
    monkeypatch.setitem(FAMILIES, "gpt2", (kind, {**dimensions, "n_positions": 24}))
    model = pico("gpt2")
    monkeypatch.setattr("retcon.run.looks.score_cases", None)
    with pytest.raises(InvalidEdit, match="the model has 24 positions"):
        retcon.score(model, [CASE], metrics=["negated"])


def test_the_blank_between_a_prompt_and_its_answer_is_written_once():
    assert join("It is ", "Rome") == "It is Rome"
