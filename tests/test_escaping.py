"""Texts of users in files that other programs obey: they stay texts."""

import csv
import io
import json
import re

import polars as pl
import pytest

from made_study import make_study, small_grid
from retcon.escaping import cell, code, fenced, markdown
from retcon.report import page
from retcon.report.evidence import harmless
from retcon.report.tables import Table
from retcon.sealed import load_record, save_record
from retcon.study.study import Study, read_study

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
