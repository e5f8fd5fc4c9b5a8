"""Where the subject ends and the target begins: properties over tokenizers and texts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pico import tokenizer
from retcon.edits import Case, Edit
from retcon.errors import InvalidEdit
from retcon.model.tokens import Tokens, by_length

words = st.text(alphabet="abcdefgh é日ñ.,'-", min_size=1, max_size=12).filter(
    lambda text: text.strip() == text and text != ""
)
flavours = st.sampled_from([{}, {"bos": True}, {"padding_side": "left"}])


@given(flavours, words, words, words)
def test_the_lookup_token_ends_the_subject(flavour, before, subject, after):
    tokens = Tokens(tokenizer(**flavour))
    text = f"{before} {subject} {after}"
    end = len(before) + 1 + len(subject)
    located = tokens.locate(text, end)
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
    assert tokens.decode(found.target) == f" {target}"
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


def test_a_prompt_that_melts_into_its_target_is_refused():
    tokens = Tokens(tokenizer())
    tokens.encode_plain = tokens.encode
    with pytest.raises(InvalidEdit, match="whole word"):
        # A tokenizer that merges across the space.
        tokens.encode = lambda text: tuple(range(len(text) % 7 + 2, 0, -1))
        tokens.continuation("abc", "def")


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
