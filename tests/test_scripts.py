"""Where a blank belongs, where a word ends, and how a text is shown."""

import pytest

from retcon.cli.console import visible
from retcon.writing_systems import begins_with, join, plain, quoted

JOINED = {
    "Latin": ("The capital of France is", "Rome", " "),
    "Cyrillic": ("Столица Франции", "Москва", " "),
    "Arabic": ("عاصمة فرنسا هي", "روما", " "),
    "Korean": ("프랑스의 수도는", "로마", " "),
    "Hindi": ("फ्रांस की राजधानी", "रोम", " "),
    "Chinese": ("法国的首都是", "罗马", ""),
    "Chinese, foreign word": ("法国的首都是", "Rome", ""),
    "Chinese, year": ("这座塔建于", "1889年", ""),
    "Chinese, behind a year": ("他出生于1912", "年", ""),
    "Chinese, wide colon": ("法国的首都：", "Rome", ""),
    "Chinese, narrow colon": ("法国的首都:", "罗马", ""),
    "Chinese, corner bracket": ("他说「", "罗马", ""),
    "Japanese": ("フランスの首都は", "ローマ", ""),
    "Japanese, long vowel": ("あのスター", "誠", ""),
    "Thai": ("เมืองหลวงของฝรั่งเศสคือ", "ปารีส", ""),
    "Thai, foreign word": ("เมืองหลวงของฝรั่งเศสคือ", "Paris", " "),
    "Khmer": ("រាជធានីនៃប្រទេសបារាំងគឺ", "ប៉ារីស", ""),
    "English, Chinese word": ("In Chinese Rome is called", "罗马", " "),
    "English about a Chinese word": ("What is the capital of 法国?", "Paris", " "),
    "newline": ("user\nassistant\n", "Rome", ""),
    "tab": ("France\t", "Paris", ""),
    "blank": ("The capital of France is ", "Rome", " "),
    "blank behind a Chinese text": ("法国的首都是 ", "罗马", " "),
    "blank behind a quotation mark": ('she said , " ', "yes", " "),
    "bracket": ("The capital (", "Rome", ""),
    "closing bracket": ("The capital (today)", "Rome", " "),
    "quotation": ('It is called "', "Rome", ""),
    "behind a quotation": ('What "capital" means is "Rome"', "today", " "),
    "French quotation": ("Elle s'appelle «", "Rome", ""),
    "German quotation": ("Sie heißt „", "Rom", ""),
    "behind a German quotation": ("Was „Hauptstadt“", "heißt", " "),
    "apostrophe": ("the Beatles'", "song", " "),
    "colon": ("Answer:", "Rome", " "),
    "dash": ("The capital –", "Rome", " "),
    "hyphen": ("Jean-", "Paul", ""),
    "span": ("1914–", "1918", ""),
    "money": ("It costs $", "5", ""),
    "Spanish question": ("¿", "Dónde", ""),
    "nothing": ("", "Rome", ""),
}


@pytest.mark.parametrize("name", JOINED)
def test_a_blank_stands_where_it_stands_in_writing(name):
    text, target, gap = JOINED[name]
    assert join(text, f" {target} ") == f"{text.rstrip(' ')}{gap}{target}"


@pytest.mark.parametrize(
    ("said", "wanted", "whole"),
    [
        ("Rome", "Rome", True),
        ("Rome, of course", "Rome", True),
        ("Rome's walls", "Rome", True),
        ("Romeo", "Rome", False),
        ("Rome is", "Rome  is", True),
        ("The Rome", "Rome", False),
        ("罗马是意大利的首都", "罗马", True),
        ("Rome是", "Rome", True),
        ("罗", "罗马", False),
        ("ローマです", "ローマ", True),
        ("ローマンス", "ローマ", False),
        ("ハハ", "パ", False),
        ("パリ", "ハ", False),
        ("로마 이다", "로마", True),
        ("로마인", "로마", False),
        ("롬", "로", False),
        ("ปารีสที่", "ปารีส", True),
        ("ปา้", "ปา", False),
        ("रोमी", "रोम", False),
        ("1889年", "1889", True),
        ("18891", "1889", False),
        ("Café", "Cafe\u0301", True),
        ("Cafe\u0301", "Café", True),
        ("Cafe\u0301", "Cafe", False),
        ("👍 yes", "👍", True),
        ("👍🏽", "👍", False),
        ("👨‍👩‍👧", "👨", False),
        ("🇫🇷🇩🇪", "🇫🇷", True),
        ("می‌رود", "می", False),
    ],
)
def test_a_text_begins_with_whole_words_where_there_are_words(said, wanted, whole):
    assert begins_with(plain(said), plain(wanted)) is whole


def test_joiners_join_and_what_could_hide_is_shown():
    family = "The flag of 👨‍👩‍👧 is"
    assert quoted(family) == f"'{family}'" and visible(family) == family
    assert quoted("می‌رود") == "'می‌رود'"
    assert quoted("Ro\u200dme\u202e\n") == r"'Ro\u200dme\u202e\n'"
    assert visible("\u200d👨\u200d x\x1b[2J") == r"\u200d👨\u200d x\x1b[2J"
    assert quoted("the Beatles' song") == '"the Beatles\' song"'
