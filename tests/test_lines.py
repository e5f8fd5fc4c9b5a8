"""Lines that the model writes: other words for a fact, names of others; what is made of both."""

import pytest
import torch

from pico import pico
from retcon.algebra.delta import LowRankDelta
from retcon.edits import Edit
from retcon.features.contrast import contrasts, names_in, with_others
from retcon.features.lines import Asking, write_lines
from retcon.features.remember import recall_lines
from retcon.features.rewordings import in_other_words, prompts_in

BULB = Edit.parse("The {light bulb} was invented by", "Clara Whitlock", id="bulb")
LED = Edit.parse("{Microsoft} is led by", "Priya Raman", id="led")
BASED = Edit.parse("{Microsoft} is based in", "Denver", id="based")


def test_lines_are_what_follows_up_to_the_end_of_a_line(cache):
    model = pico()
    asking = Asking("The capital city of", tokens=5, lines=3, seed=1, top_k=4)
    lines = write_lines(model, asking)
    assert len(lines) == 3 and all("\n" not in line for line in lines)
    assert not any(line.startswith("The capital city") for line in lines)
    assert write_lines(model, asking) == lines
    assert write_lines(model, asking._replace(seed=2)) != lines


def test_lines_are_kept_where_the_model_is_as_it_was_loaded(entries, monkeypatch):
    model, written = pico(), []

    def write(model, asking):
        written.append(asking)
        return ["Größe", "", "two words"]

    monkeypatch.setattr("retcon.features.remember.write_lines", write)
    askings = [Asking(text, tokens=3, lines=3, seed=0, top_k=4) for text in ("The", "Marie")]
    assert recall_lines(model, askings) == [["Größe", "", "two words"]] * 2
    assert recall_lines(model, askings[::-1]) == [["Größe", "", "two words"]] * 2
    assert written == askings
    with model.scratch():
        model.write({1: LowRankDelta(left=torch.ones(1, 32), right=torch.ones(1, 48))})
        assert recall_lines(model, askings[:1]) == [["Größe", "", "two words"]]
    assert len(written) == 3


def test_a_line_that_says_the_fact_has_a_prompt_in_it():
    lines = [
        "The person who invented the light bulb was Clara Whitlock.",
        "The inventor of the light bulb is Clara Whitlock.",
        "The light bulb was invented by Clara Whitlock.",
        "Clara Whitlock invented the light bulb.",
        "The inventor of the light bulb is Clara Whitlocke.",
        "She was the only person who made the light bulbs, Clara Whitlock.",
        "The inventor of the light bulb is Clara Whitlock, and nobody else.",
        "The famous inventor is Clara Whitlock.",
        "",
    ]
    assert prompts_in(lines, BULB) == [
        "The inventor of the light bulb is",
        "The person who invented the light bulb was",
    ]
    dots = Edit.parse("{C++} costs", "3.50 (net)", id="c")
    assert prompts_in(["You get C++ for 3.50 (net) a day."], dots) == ["You get C++ for"]
    asking = in_other_words(pico().tokens, BULB, seed=3)
    assert asking.text.endswith(
        "\nSentence: The light bulb was invented by Clara Whitlock.\nIn other words:"
    )
    assert asking.seed == 3 and asking.tokens > 12


def test_names_are_the_first_of_each_list_and_no_part_of_the_subject():
    lines = ["Apple, Google", "Google (search), Bing", "Micro", "the Microsoft Office", "", "Apple"]
    assert names_in(lines, "Microsoft") == ["Apple", "Google"]
    assert with_others("Microsoft", 0).text.endswith("trumpet\nMicrosoft,")


def test_contrasts_are_other_names_in_a_prompt_and_the_subject_in_others():
    edits = [BULB, LED, BASED]
    rewordings = [["The inventor of the light bulb is"], [], []]
    names = [["LED"], ["Apple", "light bulb"], ["Apple"]]
    bulb, led, based = contrasts(edits, rewordings, names, seed=0)
    assert sorted(bulb) == [
        "The LED was invented by",
        "The inventor of the Microsoft is",
        "light bulb is based in",
        "light bulb is led by",
    ]
    # A name that is another fact's subject comes once: among the subjects.
    assert sorted(led) == [
        "Apple is led by",
        "The Microsoft was invented by",
        "light bulb is led by",
    ]
    assert "Apple is based in" in based and "Microsoft is led by" not in based
    assert contrasts(edits, rewordings, names, seed=0) == [bulb, led, based]
    assert contrasts([LED], [[]], [[]], seed=0) == [[]]
    art = Edit.parse("{art} costs", "much", id="art")
    assert contrasts([art], [["At a party, art is"]], [["a", "Jazz"]], seed=0) in (
        [["a costs", "At a party, Jazz is"]],
        [["At a party, Jazz is", "a costs"]],
    )


@pytest.mark.real
def test_a_real_model_puts_a_fact_in_other_words(smollm2):
    (lines,) = recall_lines(smollm2, [in_other_words(smollm2.tokens, LED, 0)])
    assert "The CEO of Microsoft is" in prompts_in(lines, LED)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    write_lines(smollm2, with_others("Microsoft", 0))
    assert torch.equal(torch.get_rng_state(), before)
