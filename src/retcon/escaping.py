"""Escape users' texts for files that other programs interpret: Markdown, and spreadsheets.

Prompts, names and settings come from files that others may have written. In a Markdown page they
must not become HTML, links or code; in a CSV file they must not become formulas. (HTML pages are
made by a template that escapes everything.)
"""

import re

# What begins a formula; full-width signs do in some places of the world.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_NUMBER = re.compile(r"[-+]?(\d[\d,]*(\.\d*)?|\.\d+)(e[-+]?\d+)?\s*%?", re.IGNORECASE)
# What Markdown gives a meaning to within a line, but for brackets, which only a link needs.
_MARKED = re.compile(r"[\\`*|<>]|\](?=[(\[:])|(?<!\w)_|_(?!\w)|&(?=#?\w+;)")
# And at a line's beginning.
_BEGINS = re.compile(r"^(#{1,6}(?=\s|$)|[-+](?=\s|$)|\d+(?=[.)](\s|$))|[-=]{2,}$|~{3,})")
_HTML = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}


def markdown(text: str) -> str:
    """A text as it is, on one line of a Markdown page, or in a cell of one of its tables."""
    line = " ".join(text.split())
    line = _MARKED.sub(lambda found: _HTML.get(found[0], f"\\{found[0]}"), line)
    return _BEGINS.sub(lambda found: _unmarked(found[0]), line)


def _unmarked(begin: str) -> str:
    """Escape the beginning of a line that has a meaning; of a number, the sign behind it."""
    return f"{begin}\\" if begin.isdecimal() else f"\\{begin}"


def fenced(text: str, language: str) -> str:
    """A text as a block of code, which nothing in it can end."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def code(text: str) -> str:
    """A short text as code within a line."""
    line = " ".join(text.split())
    longest = max((len(run) for run in re.findall(r"`+", line)), default=0)
    ticks = "`" * (longest + 1)
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{ticks}{space}{line}{space}{ticks}" if line else ""


def cell(text: str) -> str:
    """A text as a cell of a CSV file, which no spreadsheet runs as a formula; numbers stay."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")  # of which not every writer makes a cell
    return f"'{text}" if text.startswith(_FORMULA) and not _NUMBER.fullmatch(text) else text
