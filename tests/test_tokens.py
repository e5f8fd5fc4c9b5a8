"""Where the subject ends and the target begins: properties over tokenizers and texts."""

import copy
import warnings
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

import many_tokenizers
from pico import FAMILIES, pico, tokenizer
from retcon.edits import Case, Edit, Probe
from retcon.errors import InvalidEdit, RetconWarning
from retcon.model.generate import sample
from retcon.model.handle import ModelHandle
from retcon.model.tokens import Tokens, by_length
from retcon.run.edit import edit as make_patch
from retcon.run.evaluate import evaluate
from retcon.scoring.exact_match import continuations
from retcon.scoring.score import score_targets
from retcon.writing_systems import blank

words = st.text(alphabet="abcdefgh é日ñ.,'-", min_size=1, max_size=12).filter(
    lambda text: text.strip() == text and text != ""
)
flavours = st.sampled_from([{}, {"bos": True}, {"padding_side": "left"}])


@given(flavours, words, words, words)
def test_the_lookup_token_ends_the_subject(flavour, before, subject, after):
    tokens = Tokens(tokenizer(**flavour))
    text = f"{before} {subject} {after}"
    end = len(before) + 1 + len(subject)
    located = tokens.locate(text, len(before) + 1, end)
    encoding = tokens.tokenizer(text, return_offsets_mapping=True)
    start, stop = encoding["offset_mapping"][located.lookup]
    assert start <= end - 1 < stop
    later = encoding["offset_mapping"][located.lookup + 1 :]
    assert all(not s <= end - 1 < e for s, e in later)
    assert located.ids == tuple(encoding["input_ids"])


@given(flavours, words, words)
def test_the_target_span_decodes_to_the_target(flavour, text, target):
    tokens = Tokens(tokenizer(**flavour))
    found = tokens.continuation(text, target)
    assert tokens.decode(found.target) == f"{blank(text, target)}{target}"
    assert found.ids[: found.start] == tokens.encode(text)
    assert tokens.continuation(text, f"  {target}") == found


@given(flavours, st.lists(words, min_size=1, max_size=5))
def test_padding_is_ours(flavour, texts):
    tokens = Tokens(tokenizer(**flavour))
    rows = [tokens.encode(text) for text in texts]
    batch = tokens.pad(rows)
    for row, ids, mask in zip(rows, batch.input_ids, batch.attention_mask, strict=True):
        assert tuple(ids[: len(row)].tolist()) == row
        assert mask.tolist() == [1] * len(row) + [0] * (len(ids) - len(row))


def test_bos_exactly_once():
    tokens = Tokens(tokenizer(bos=True))
    assert tokens.encode("The")[0] == 0 and tokens.encode("The").count(0) == 1
    with pytest.raises(InvalidEdit, match="special token"):
        tokens.encode("<s>The")


def test_a_target_keeps_its_own_tokens_where_it_would_melt_into_the_prompt():
    tokens = Tokens(many_tokenizers.made("byte-level, large"))
    assert len(tokens.encode("小明是一个学生")) == 1
    found = tokens.continuation("小明是", "一个学生")
    assert found.ids[: found.start] == tokens.encode("小明是")
    assert tokens.decode(found.target) == "一个学生"


def test_two_newlines_are_one_token_of_the_prompt():
    tokens = Tokens(many_tokenizers.made("byte-level"))
    found = tokens.continuation("assistant:\n\n", "Rome")
    assert tokens.decode(found.ids[found.start - 1 : found.start]) == "\n\n"
    assert tokens.decode(found.target) == "Rome"


@pytest.mark.parametrize("text", ["Rome \ud83c", "caf\udce9"])
def test_half_a_character_is_refused_with_its_name(text):
    half = ascii(text[-1]).replace("\\", r"\\")
    with pytest.raises(InvalidEdit, match=f"{half} in .* is half of a character"):
        Tokens(tokenizer()).encode(text)
    with pytest.raises(InvalidEdit, match=f"{half} in .* is half of a character"):
        Edit.parse("The capital of {France} is", text)


def test_blanks_around_answers_are_no_part_of_them():
    edit = Edit.parse("The capital of {France} is ", " Rome\n", target_old=" Paris ")
    assert (edit.target, edit.target_old) == ("Rome", "Paris")
    probe = Probe(prompt="Q:", answer=" Rome ", aliases=("Roma ",))
    assert (probe.answer, probe.aliases) == ("Rome", ("Roma",))
    tokens = Tokens(tokenizer())
    plain = tokens.continuation("The capital of France is", "Rome")
    assert tokens.continuation(edit.text, " Rome ") == plain
    assert tokens.prompt(edit.text) == plain.ids[: plain.start]


class Short(NamedTuple):
    """A model's family, and what becomes of texts longer than its 24 positions."""

    family: str
    refused: bool


@pytest.mark.parametrize("short", [Short("gpt2", True), Short("opt", True), Short("llama", False)])
def test_texts_longer_than_the_model_s_positions(short, monkeypatch):
    name = {"gpt2": "n_positions"}.get(short.family, "max_position_embeddings")
    kind, dimensions = FAMILIES[short.family]
    monkeypatch.setitem(FAMILIES, short.family, (kind, {**dimensions, name: 24}))
    model = pico(short.family)
    assert model.tokens.positions == (24, short.refused)
    word = " France"
    (one,) = model.tokens.encode(word)
    fits = model.tokens.continuation(word * 23, "Rome")
    assert fits.ids[:23] == (one,) * 23 and len(fits.ids) == 24
    edit = Edit.parse("{France}" + word * 24, "Rome")
    monkeypatch.setattr(ModelHandle, "master", None)  # no work is done
    if short.refused:
        for call in (
            lambda: make_patch(model, [edit], method="memit", layers=[1]),
            lambda: score_targets(model, [(word * 30, "Rome")]),
            lambda: continuations(model, [word * 25]),
        ):
            with pytest.raises(
                InvalidEdit, match=r"has \d\d tokens, and the model has 24 positions"
            ):
                call()
        # Where only what is generated has no place, it is shorter; documents are cut.
        assert sample(model, [one] * 20, count=2, new_tokens=10, seed=0)
        assert continuations(model, [word * 24]) == [""]
        assert len(model.tokens.document(word * 30, 28)) == 24
        return
    with pytest.warns(RetconWarning, match="30 tokens, more than the 24 that the model was made"):
        model.tokens.prompt(word * 30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.tokens.prompt(word * 31)  # said once
    assert len(model.tokens.document(word * 30, 28)) == 28


@pytest.mark.parametrize("name", ["byte-level", "llama", "unigram, NFKC, EOS, bytes"])
def test_of_a_character_that_has_not_come_whole_nothing_is_said(name):
    tokens = Tokens(many_tokenizers.made(name))
    ids = tokens.encode("马罗")
    said = [tokens.decode_begun(ids[:count]) for count in range(len(ids) + 1)]
    assert sorted(set(said), key=len) == ["", "马", "马罗"] and said == sorted(said, key=len)


UNSAYABLE = {
    "subject": Case(edit=Edit.parse("The capital of {法国} is", "Rome")),
    "target": Case(edit=Edit.parse("The capital of {France} is", "罗马")),
    "old target": Case(edit=Edit.parse("The capital of {France} is", "Rome", target_old="巴黎")),
    "answer": Case(
        edit=Edit.parse("The capital of {France} is", "Rome"),
        locality=(Probe(prompt="The capital of Italy is", answer="罗马"),),
    ),
}


@pytest.mark.parametrize("name", UNSAYABLE)
def test_what_the_model_cannot_say_is_refused_before_any_work(name, monkeypatch):
    model, case = pico(tokens=many_tokenizers.made("words")), UNSAYABLE[name]
    monkeypatch.setattr(model.model, "forward", None)
    words = "法国|罗马|巴黎"
    with pytest.raises(InvalidEdit, match=f"has no token for '({words})' in the (subject|target)"):
        evaluate(model, [case], method="memit", layers=[1])
    if name != "answer":
        with pytest.raises(InvalidEdit, match=f"has no token for '({words})'"):
            make_patch(model, [case.edit], method="memit", layers=[1])


def test_what_is_asked_again_is_remembered_and_what_is_refused_is_refused_again(monkeypatch):
    tokens, asked = Tokens(tokenizer()), []
    encode = tokens._encode
    monkeypatch.setattr(tokens, "_encode", lambda text: asked.append(text) or encode(text))
    first = tokens.continuation("The capital of France is", "Rome")
    count = len(asked)
    assert tokens.continuation("The capital of France is", " Rome ") is first
    located = tokens.locate("The capital of France is", 15, 21)
    assert tokens.locate("The capital of France is", 15, 21) is located
    assert len(asked) == count + 2
    assert tokens.continuation("The capital of France is", "Paris") != first
    for _ in range(2):
        with pytest.raises(InvalidEdit, match="empty"):
            tokens.continuation("", "Rome")


def test_a_tokenizer_is_known_by_what_it_does():
    ids = {Tokens(many_tokenizers.made(name)).identity for name in many_tokenizers.NAMES}
    # Where it pads is our affair.
    assert len(ids) == len(many_tokenizers.NAMES) - 1
    one = many_tokenizers.made("byte-level")
    before = Tokens(one).identity
    one(["a", "b c d e f"], padding=True, truncation=True, max_length=3)
    assert Tokens(one).identity == before
    other = copy.deepcopy(one)
    other.clean_up_tokenization_spaces = True
    assert Tokens(other).identity != before


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 100))
def test_groups_hold_every_row_once(lengths, limit):
    groups = list(by_length(lengths, limit))
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        longest = max(lengths[i] for i in group)
        assert len(group) == 1 or len(group) * longest <= limit


def test_edits_are_checked():
    edit = Edit.parse("The mother tongue of {Danielle Darrieux} is", "English")
    assert edit.text == "The mother tongue of Danielle Darrieux is"
    assert edit.text[: edit.subject_end].endswith("Darrieux")
    for prompt in ("no subject here", "{two} of {them}", "nothing in {} braces"):
        with pytest.raises(InvalidEdit):
            Edit.parse(prompt, "x")
    with pytest.raises(InvalidEdit, match="target is empty"):
        Edit.parse("{A} is", "  ")
    with pytest.raises(InvalidEdit, match="exactly once"):
        Edit(id="1", prompt="{} and {}", subject="a", target="b")
    assert Case(edit=edit).neighbours == ()
