"""Where a blank belongs, where a word ends, and how a text is shown, and escaped for others."""

import csv
import io
import json
import re

import polars as pl
import pytest

from made_study import make_study, small_grid
from retcon.cli.console import visible
from retcon.escaping import cell, code, fenced, markdown
from retcon.report import page
from retcon.report.evidence import harmless
from retcon.report.tables import Table
from retcon.sealed import load_record, save_record
from retcon.study.study import Study, read_study
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


FORMULAS = ["=HYPERLINK(1)", "+1+cmd", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1", "-x", "="]
NUMBERS = ["-1", "+1.5", "-1,234.5", "-1e-3", "-.5", "+12 %", "3", "", "–", "a=1", "−2 [1, 3]"]


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_is_a_formula(text):
    safe = "'" + text.replace("\r", "\n")
    assert cell(text) == safe
    written = Table("", "", ("a",), ((text,),)).csv()
    assert list(csv.reader(io.StringIO(written, newline=""))) == [["a"], [safe]]
    frame = harmless(pl.DataFrame({"case": [text, None], "score": [-1.0, 2.0]}))
    assert frame["case"].to_list() == [safe, None] and frame["score"].to_list() == [-1.0, 2.0]


@pytest.mark.parametrize("text", NUMBERS)
def test_numbers_and_other_texts_stay_as_they_are(text):
    assert cell(text) == text


MARKED = [
    ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
    ("a|b", "a\\|b"),
    ("`x` *y*", "\\`x\\` \\*y\\*"),
    ("[text](javascript:x)", "[text\\](javascript:x)"),
    ("[a]: http://x", "[a\\]: http://x"),
    ("&lt;b&gt; &#60; A&W", "&amp;lt;b&amp;gt; &amp;#60; A&W"),
    ("# head", "\\# head"),
    ("1. one", "1\\. one"),
    ("- item", "\\- item"),
    ("---", "\\---"),
    ("_x_ in_context", "\\_x\\_ in_context"),
    ("two\nlines", "two lines"),
    ("back\\slash", "back\\\\slash"),
    ("95.0 [91.2, 99.0], d_in", "95.0 [91.2, 99.0], d_in"),
    ("-1.5", "-1.5"),
    ("Is {} of 3.14?", "Is {} of 3.14?"),
]


@pytest.mark.parametrize(("text", "wanted"), MARKED)
def test_markdown_shows_what_was_written(text, wanted):
    assert markdown(text) == wanted


def test_nothing_ends_a_block_of_code():
    assert fenced("a\n```\n<b>", "yaml") == "````yaml\na\n```\n<b>\n````"
    assert fenced("a\n", "") == "```\na\n```"
    assert code("a`b") == "``a`b``" and code("`a`") == "`` `a` ``" and code("a") == "`a`"


EVIL = "<img src=x onerror=alert(1)> `|*"


def test_a_report_runs_nothing_of_a_study(tmp_path):
    """Names, descriptions and settings are texts, in the page and in its Markdown."""
    folder = make_study(tmp_path / "study", small_grid())
    record = folder / "study.json"
    owner = {"kind": "study"}
    text = json.dumps(load_record(record, owner).value).replace("made-up", "<b>made`up|")
    save_record(record, json.loads(text), owner)
    found = read_study(folder).record
    named = found.model_copy(update={"name": EVIL, "description": f"=1 {EVIL}"})
    (folder / "study.yaml").write_text(f"```\n{EVIL}\n```\n", encoding="utf-8")
    report = page.make_report(Study(folder, named))
    html, text = page.to_html(report), page.to_markdown(report)
    assert "<img src=x" not in html and "&lt;img src=x" in html and "<b>made" not in html
    outside = re.sub(r"(?ms)^(`{3,})\w*$.*?^\1$", "", text)
    assert "<img" not in outside and "&lt;img" in outside and "<b>made" not in outside
    assert "&lt;b&gt;made\\`up\\|" in outside
