"""Rules of writing systems: where a blank belongs, where a word ends, how texts are quoted.

Some scripts put no blanks between words. In those of East Asia none stands before a foreign word
or a number either; those of South-East Asia set these off.
"""

import unicodedata

import regex

_EAST = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}"
_UNBROKEN = rf"{_EAST}\p{{Tibetan}}\p{{Line_Break=Complex_Context}}"
# Letters of such scripts, their punctuation, and wide forms of Latin signs.
_NO_BLANK_BEHIND = regex.compile(rf"[{_EAST}\u3000-\u303f\u30fc\uff00-\uffef]\Z")
_UNBROKEN_END = regex.compile(rf"[{_UNBROKEN}]\P{{L}}*\Z")
_UNBROKEN_START = regex.compile(rf"\P{{L}}*[{_UNBROKEN}]")
_UNBROKEN_ONE = regex.compile(rf"[{_UNBROKEN}]")
_KATAKANA = regex.compile(r"[\p{Katakana}\u30fc]{2}")
# Brackets and signs that open; dashes that hang on a word; quotation marks with nothing before.
_OPENS = regex.compile(
    r"""(?: [\p{Ps}\p{Sc}¿¡\#@]
          | (?<=\S) [\p{Pd}/]
          | (?<! [^\s\p{Ps}\p{Pi}"'] ) ["'\p{Pi}\p{Pf}]
        ) \Z""",
    regex.VERBOSE,
)
# What belongs to the character before it: marks, joiners, colours of skin.
_BELONGS = regex.compile(r"[\p{M}\u200c\u200d\U0001f3fb-\U0001f3ff]")
_JOINER = regex.compile(r"(?<=[^\x00-\x7f\s])[\u200c\u200d](?=[^\x00-\x7f\s])")


def join(text: str, target: str) -> str:
    """A prompt and its target, with a blank between them where there is one in writing."""
    target = target.strip()
    return f"{text.rstrip(' ')}{blank(text, target)}{target}"


def blank(text: str, target: str) -> str:
    """Text between a text and what follows it: one blank, or nothing.

    One where the text ends in blanks itself. Else nothing behind white space, an opening bracket or
    quotation mark, or an East Asian character; and nothing between two words of scripts that put no
    blanks between words.
    """
    if text.endswith(" "):
        return " "
    if not text or text[-1].isspace() or _OPENS.search(text) or _NO_BLANK_BEHIND.search(text):
        return ""
    return "" if _UNBROKEN_END.search(text) and _UNBROKEN_START.match(target) else " "


def begins_with(text: str, beginning: str) -> bool:
    """True if a text begins with another, as whole words where its script has words.

    Both in the form that `plain` gives.
    """
    return text.startswith(beginning) and _word_ends(text, len(beginning))


def times_named(text: str, name: str) -> int:
    """Count how often a text names something, as whole words where its script has words.

    Both in the form that `plain` gives.
    """
    starts = [at for at in range(len(text)) if name and text.startswith(name, at)]
    return sum(_word_begins(text, at) and _word_ends(text, at + len(name)) for at in starts)


def plain(text: str) -> str:
    """A text for comparison: accents apart from their letters, and single blanks.

    So the beginning of a text has the beginning of its form.
    """
    return " ".join(unicodedata.normalize("NFD", text).split())


def quoted(text: str) -> str:
    """A text in quotation marks, as `repr` has it, but that joiners join what is around them."""
    hidden = {repr(joiner)[1:-1]: joiner for joiner in _JOINER.findall(text)}
    shown = repr(text)
    for escape, joiner in hidden.items():
        shown = shown.replace(escape, joiner)
    return shown


def visible(text: str) -> str:
    """A text out of a file, fit for a terminal: its control characters are shown, not obeyed."""
    joiners = {mark.start() for mark in _JOINER.finditer(text)}
    return "".join(
        c if c.isprintable() or c == "\n" or at in joiners else ascii(c)[1:-1]
        for at, c in enumerate(text)
    )


def _word_begins(text: str, at: int) -> bool:
    """True if a word may begin at `text[at]`."""
    before, after = text[at - 1 : at] if at else "", text[at : at + 1]
    if not before or _UNBROKEN_ONE.match(before) or _UNBROKEN_ONE.match(after):
        return True
    return not (before.isalnum() or _BELONGS.match(before))


def _word_ends(text: str, at: int) -> bool:
    """True if a word may end before `text[at]`."""
    before, after = text[at - 1 : at], text[at : at + 1]
    if not before or not after:
        return True
    if _BELONGS.match(after) or _KATAKANA.match(before + after):
        return False
    if _UNBROKEN_ONE.match(before) or _UNBROKEN_ONE.match(after):
        return True
    return not after.isalnum()
