"""What a model says by itself around its facts: what has moved, and what has only been reworded."""

from math import log

import pytest
import torch

import retcon
from pico import pico
from retcon.algebra.delta import LowRankDelta
from retcon.edits import Case, Edit
from retcon.model.handle import ModelHandle
from retcon.run.own_words import Remark, Remarks, own_words, remarks
from test_methods import EDITS, FAST

CASES = [
    Case(edit=edit, neighbours=(f"{edit.subject} was", "The river is", "The sea is"))
    for edit in EDITS[:3]
]


def logp(model: ModelHandle, prompt: str, text: str) -> float:
    """The log-probability of a text behind a prompt, by one plain pass."""
    whole = model.tokens.continuation(prompt, text)
    with torch.no_grad():
        rows = model.model(torch.tensor([whole.ids])).logits[0].float().log_softmax(-1)
    places = range(whole.start, len(whole.ids))
    return sum(float(rows[place - 1, whole.ids[place]]) for place in places)


@pytest.fixture(scope="module")
def model():
    return pico()


def test_it_is_asked_of_subjects_old_answers_and_two_neighbours(model: ModelHandle):
    edit = Edit(id="a", prompt="{} is", subject=EDITS[0].subject, target="red", target_old="blue")
    said = own_words(model, [Case(edit=edit, neighbours=("The sky is", "Grass is", "Snow is"))])
    about = [f"I think that {one} is known for" for one in (edit.subject, "blue")]
    assert {one.prompt for one in said} <= {*about, "The sky is", "Grass is"}
    assert len(said) >= 3 and {one.id for one in said} == {"a"}
    for one in said:
        assert one.logp == pytest.approx(logp(model, one.prompt, one.text), abs=1e-4)


def test_nothing_moves_on_a_model_that_stays_as_it_is(model: ModelHandle):
    said = own_words(model, CASES)
    assert remarks(model, said) == Remarks((), len(said))
    assert remarks(model, said).told() == ""
    assert own_words(model, []) == ()


def test_what_has_moved_is_less_than_a_tenth_as_probable(model: ModelHandle):
    said = own_words(model, CASES)
    with model.scratch():
        rows, columns = model.master(1).shape
        made = torch.Generator().manual_seed(0)
        left, right = (torch.randn(4, n, generator=made) for n in (rows, columns))
        model.write({1: LowRankDelta(left=left, right=right)})
        seen = remarks(model, said)
        fallen = {one.prompt: logp(model, one.prompt, one.text) - one.logp for one in said}
    assert seen.of == len(said)
    assert {one.prompt for one in seen.moved} == {
        prompt for prompt, change in fallen.items() if change < log(0.1)
    }
    for one in seen.moved:
        assert one.share == pytest.approx(torch.tensor(fallen[one.prompt]).exp().item(), rel=1e-3)
    assert seen.moved


def test_of_many_facts_forty_are_looked_around(model: ModelHandle):
    many = [
        Case(edit=Edit(id=str(i), prompt=f"{{}} number {i} is", subject="Rome", target="red"))
        for i in range(50)
    ]
    assert len({one.id for one in own_words(model, many)}) <= 40


def test_what_is_too_long_to_be_asked_is_not_asked():
    model = pico("gpt2")
    subject = "Rome " * 40
    while len(model.tokens.encode(f"{subject}Rome is")) <= 126:
        subject += "Rome "
    long = Edit(id="long", prompt="{} is", subject=subject.strip(), target="red")
    said = own_words(model, [Case(edit=long), CASES[0]])
    assert CASES[0].edit.id in {one.id for one in said}
    assert not any(long.subject in one.prompt for one in said)


def test_it_is_told_with_what_is_said_now():
    seen = Remarks((Remark("a", "Rome is", "old", "new", 0.01),), 3)
    assert seen.told() == (
        "Of 3 texts about the subjects, old answers and neighbours the model would hardly go on "
        "with 1 as it did before: 'Rome is' (old → new)."
    )
    assert seen.record()["moved"] == [
        {"id": "a", "prompt": "Rome is", "before": "old", "after": "new", "share": 0.01}
    ]


def test_an_outcome_tells_of_it(model: ModelHandle):
    from retcon.run.outcomes import outcome_of

    patch = retcon.edit(model, EDITS[:3], method="emmet", layers=[1], settings=FAST)
    outcome = outcome_of(model, CASES, patch)
    said = own_words(model, CASES)
    with patch.applied(model):
        assert outcome.remarks == remarks(model, said)
    assert (outcome.remarks.told() in outcome.told()) == bool(outcome.remarks.moved)
