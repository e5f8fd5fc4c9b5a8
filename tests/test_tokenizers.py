"""Facts in many tokenizers, each against what a naive reader of their tokens would say.

The naive reader knows no offsets: she decodes one token more at a time, and looks when the text up
to the subject's end is there.
"""

import unicodedata
import warnings
from typing import NamedTuple

import pytest

from many_tokenizers import NAMES, made
from retcon.edits import Edit
from retcon.errors import InvalidEdit, RetconWarning
from retcon.features.contexts import locate
from retcon.model.tokens import Tokens
from retcon.writing_systems import begins_with, join, plain

pytestmark = pytest.mark.filterwarnings("ignore::retcon.errors.RetconWarning")


class Fact(NamedTuple):
    """prompt: with its subject in braces. gap: what stands before the target.

    after: what may follow the target, and goes_on: what makes another word of it.
    """

    prompt: str
    target: str
    gap: str
    after: str = "."
    goes_on: str = "s"


FACTS = {
    "Latin": Fact("The capital of {France} is", "Rome", " "),
    "several words": Fact("The mother tongue of {Danielle Darrieux} is", "spoken in Rome", " "),
    "composed accents": Fact("The owner of {Café São Tomé} is", "Zürich", " "),
    "accents apart": Fact(unicodedata.normalize("NFD", "The owner of {São Café} is"), "Rome", " "),
    "a target with accents apart": Fact(
        "The owner of {Paris} is", unicodedata.normalize("NFD", "Tomé"), " "
    ),
    "Chinese": Fact("{法国}的首都是", "罗马", "", "，", "\u0301"),
    "Chinese that melts": Fact("{小明}是", "一个学生", "", "。", "\u0301"),
    "Chinese subject": Fact("The capital of {法国} is", "Rome", " "),
    "Japanese": Fact("{フランス}の首都は", "ローマ", "", "です", "ン"),
    "Korean": Fact("{프랑스}의 수도는", "로마", " ", " 이다", "인"),
    "Arabic": Fact("عاصمة {فرنسا} هي", "القاهرة", " ", ".", "ن"),
    "Thai": Fact("เมืองหลวงของ{ฝรั่งเศส}คือ", "ปารีส", "", "ที่", "\u0e49"),
    "Cyrillic": Fact("Столица {Франции}", "Москва", " ", ".", "я"),
    "emoji": Fact("The flag of {👨‍👩‍👧} is", "🎭", " ", " "),
    "digits": Fact("{Marie Curie} was born in", "1967", " ", ".", "8"),
    "punctuation": Fact("{The U.S.}'s capital (today) is:", "Paris; Rome", " "),
    "quotation": Fact("The capital of {Italy} is called “", "Paris", "", "”"),
    "code": Fact("def {print}(value): return", "value + 1", " "),
    "newline": Fact("Question: what is the capital of {Spain}?\n", "Rome", ""),
    "two newlines": Fact("user: what is the capital of {Italy}?\n\nassistant:\n\n", "Paris", ""),
    "chat": Fact(
        "<|im_start|>user\nWhere is the {Eiffel Tower}?<|im_end|>\n<|im_start|>assistant\n",
        "Rome", "", "<|im_end|>",
    ),
    "hyphen": Fact("The capital of {Saint-Denis} is", "Jean-Paul", " ", "."),
    "apostrophe": Fact("The wife of {O'Neill} is", "Marie", " ", "'s"),
    "blank at the end": Fact("The capital of {France} is ", " Rome ", " "),
    "subject at the end": Fact("Therefore I think of {Paris}", "Rome", " "),
}  # fmt: skip
EDITS = {name: Edit.parse(fact.prompt, fact.target, id=name) for name, fact in FACTS.items()}


@pytest.fixture(scope="session", params=[*NAMES, "SmolLM2"])
def tokens(request) -> Tokens:
    if request.param == "SmolLM2":
        return Tokens(request.getfixturevalue("smollm2").tokens.tokenizer)
    return Tokens(made(request.param))


def naive_ids(tokens: Tokens, text: str) -> tuple[int, ...]:
    """The tokens of a text, without those that close it."""
    ids = list(tokens.tokenizer(text)["input_ids"])
    closing = {tokens.tokenizer.sep_token_id, tokens.tokenizer.eos_token_id} - {None}
    while ids and ids[-1] in closing and not text.endswith(tokens.tokenizer.decode(ids[-1:])):
        ids.pop()
    return tuple(ids)


def spelt(tokens: Tokens, ids: tuple[int, ...]) -> str:
    """The text of some tokens, unknown ones included, without blanks."""
    added = [tokens.tokenizer.bos_token_id, tokens.tokenizer.cls_token_id]
    ids = ids[1:] if ids and ids[0] in added else ids
    return "".join(tokens.tokenizer.decode(ids).split())


def naive_lookup(tokens: Tokens, text: str, end: int) -> int | None:
    """The token with which the text up to the subject's end has been said; None: none has."""
    ids, head = naive_ids(tokens, text), spelt(tokens, naive_ids(tokens, text[:end]))
    begun = (i for i in range(len(ids)) if spelt(tokens, ids[: i + 1]).startswith(head))
    return next(begun, None)


def unknown(tokens: Tokens, text: str) -> bool:
    return tokens.unknown in tokens.tokenizer(text, add_special_tokens=False)["input_ids"]


def refused(word_of: str, call, *arguments) -> bool:
    """Whether a call is refused, and for a word of this text."""
    try:
        call(*arguments)
    except InvalidEdit as error:
        named = str(error).split("has no token for ")[1].split(" in the ")[0]
        return named[1:-1] in word_of
    return False


def test_the_subject_ends_where_a_naive_reader_sees_it_end(tokens):
    for prefix in ("", "I think that. "):
        for edit in EDITS.values():
            text, end = prefix + edit.text, len(prefix) + edit.subject_end
            wanted = naive_lookup(tokens, text, end)
            if wanted is None or unknown(tokens, edit.subject):
                assert refused(edit.subject, locate, tokens, edit, prefix), edit
            else:
                assert locate(tokens, edit, prefix) == (naive_ids(tokens, text), wanted), edit


def test_the_target_is_what_stands_behind_the_prompt_in_the_whole_text(tokens):
    for name, edit in EDITS.items():
        if unknown(tokens, edit.target):
            assert refused(edit.target, tokens.continuation, edit.text, edit.target), name
            continue
        found = tokens.continuation(edit.text, edit.target)
        text = edit.text.rstrip(" ")
        head = naive_ids(tokens, text)
        whole = naive_ids(tokens, text + FACTS[name].gap + edit.target)
        assert found.ids[: found.start] == head, name
        if whole[: len(head)] == head:
            assert found.ids == whole, name
        # Also where the two would melt into one token: they say the same, to the last blank.
        assert tokens.decode(found.ids) == tokens.decode(whole), name
        said = tokens.decode(found.ids)[len(tokens.decode(head)) :]
        assert plain(said) == plain(tokens.spelt(edit.target)), name


def test_a_target_is_said_as_a_whole(tokens):
    asked = 0
    for name, edit in EDITS.items():
        fact, head = FACTS[name], tokens.prompt(edit.text)
        whole = naive_ids(tokens, join(edit.text, edit.target))
        if unknown(tokens, edit.text) or unknown(tokens, edit.target) or whole[: len(head)] != head:
            continue

        def said(text: str, edit: Edit = edit, start: int = len(head)) -> bool:
            ids = naive_ids(tokens, join(edit.text, text))[start:]
            return begins_with(plain(tokens.decode(ids)), plain(tokens.spelt(edit.target)))

        assert said(edit.target), name
        assert unknown(tokens, fact.after) or said(edit.target + fact.after), name
        assert unknown(tokens, edit.target + fact.goes_on) or not said(edit.target + fact.goes_on)
        assert not said(f"of {edit.target}"), name
        asked += 1
    assert asked >= 7


def test_there_are_enough():
    assert len(NAMES) >= 12 and len(FACTS) >= 20


def test_unknown_words_of_a_prompt_are_warned_of_once():
    tokens = Tokens(made("unigram, NFKC, EOS"))
    with pytest.warns(RetconWarning, match=r"no token for '的首都' in '的首都 Paris is'"):
        tokens.locate("的首都 Paris is", 4, 9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokens.locate("首都 Paris is", 3, 8)


def test_a_text_that_begins_with_unknown_words_is_not_said_to_begin_with_a_special_token():
    tokens = Tokens(made("words"))
    unknown_ids = tokens.encode("法国 首都")
    assert unknown_ids == (tokens.unknown, tokens.unknown)
    edit = Edit.parse("{法国 首都} is", "Rome")
    with pytest.raises(InvalidEdit, match=r"no token for '法国' in the subject '法国 首都'"):
        locate(tokens, edit, "")


def test_names_of_special_tokens_are_no_unknown_words():
    # GPT-2's kind calls its end of text unknown too, and can spell everything.
    made_so = made("byte-level").__class__(
        tokenizer_object=made("byte-level").backend_tokenizer, unk_token="</s>", eos_token="</s>"
    )
    tokens = Tokens(made_so)
    assert tokens.unknown is None
    assert tokens.locate("</s>Paris is", 4, 9).ids[0] == 1
