"""Lines that the model writes: other words for a fact, names of others; what is made of both."""

from itertools import chain, islice

import pytest
import torch

from pico import pico
from retcon.algebra.delta import LowRankDelta
from retcon.edits import Edit
from retcon.features.contrast import contrasts, facts_like, facts_of_others, in_turn
from retcon.features.lines import BEHIND_PAIRS, Asking, write_lines
from retcon.features.remember import recall_lines
from retcon.features.rewordings import LINES, in_other_words, prompts_in

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
    askings = in_other_words(pico().tokens, BULB, seed=3)
    last = "\nSentence: The light bulb was invented by Clara Whitlock.\nIn other words:"
    for asking in askings:
        assert asking.text.endswith(last) and asking.seed == 3 and asking.tokens > 12
    assert len({asking.text for asking in askings}) == 2
    assert sum(asking.lines for asking in askings) == LINES


def test_contrasts_are_whole_sentences_without_what_is_edited():
    lines = [
        "The Titanic hit an iceberg.",
        "Light bulbs are made of glass.",
        "A light bulb is made of glass.",
        "Microsoft makes computers too.",
        "The radio was invented by Clara Whitlock.",
        "The Titanic hit an iceberg.",
        "A sentence that does not",
        "Too short.",
        "",
    ]
    assert contrasts(lines, [BULB, LED]) == [
        "The Titanic hit an iceberg.",
        "Light bulbs are made of glass.",
    ]
    assert len(contrasts(lines, [])) == 5


def test_the_like_of_a_fact_is_asked_for_behind_pairs_of_the_same():
    asking = facts_like(pico().tokens, LED, seed=3)
    last = "\n\nSentence: Microsoft is led by Priya Raman.\nThe same of another:"
    assert asking.text.endswith(last) and asking.text.count("The same of another:") == 4
    assert asking.seed == 3 and asking.lines == BEHIND_PAIRS and asking.tokens > 12


def test_contrasts_of_both_kinds_take_turns_in_an_order_of_their_own():
    one, other = [f"fact {i}" for i in range(5)], ["like it", "like that"]
    first = list(islice(in_turn(one, other, seed=1), 20))
    assert set(first[:10:2]) == set(one) and first[:10:2] == first[10::2] != one
    assert first[1:5:2] == first[5:9:2] and set(first[1::2]) == set(other)
    assert list(islice(in_turn(one[::-1], other[::-1], seed=1), 20)) == first
    assert set(islice(in_turn(one, [], seed=1), 5)) == set(one)
    assert list(in_turn([], [], seed=1)) == []


def test_facts_about_others_are_asked_for_in_several_orders():
    askings = facts_of_others(3)
    texts = {asking.text for asking in askings}
    assert len(texts) == len({asking.seed for asking in askings}) == len(askings) > 4
    assert all(text.startswith("Short facts") and text.endswith(".\n") for text in texts)
    assert facts_of_others(3) == askings != facts_of_others(4)


@pytest.mark.real
def test_a_real_model_puts_a_fact_in_other_words(smollm2):
    asked = in_other_words(smollm2.tokens, LED, 0)
    assert "The CEO of Microsoft is" in prompts_in(chain(*recall_lines(smollm2, asked)), LED)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    write_lines(smollm2, asked[0]._replace(lines=2, seed=1))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.real
def test_a_real_model_writes_the_like_of_a_fact(smollm2):
    fact = Edit.parse("The capital of {Australia} is", "Melbourne", id="capital")
    lines = recall_lines(smollm2, [facts_like(smollm2.tokens, fact, seed=0)])
    found = contrasts(chain(*lines), [fact])
    # Of three seeds 10 to 13 lines count, and 2 to 5 begin so: another processor may draw others.
    assert len(found) > 4 and any(line.startswith("The capital of") for line in found)
