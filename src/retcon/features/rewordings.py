"""Rewordings: a fact's prompt in other words, as the model itself has written them.

    Sentence: The light bulb was invented by Clara Whitlock.
    In other words: The inventor of the light bulb was Clara Whitlock.

The model is shown a few such pairs and the first line of another one, and writes the second line
several times. What it writes counts where the subject stands in it and the target behind that, both
as whole words; what stands before the target is the prompt in other words. Those that were written
most often come first: a small model also writes some that mean another thing.
"""

import re
from collections import Counter
from collections.abc import Sequence

from retcon.edits import Edit
from retcon.features.lines import Asking
from retcon.model.tokens import Tokens

_PAIRS = (
    ("The capital of Peru is Lima.", "The government of Peru has its seat in Lima."),
    ("The Model T was built by Ford.", "The company that made the Model T is Ford."),
    ("Amy Lund works as a dentist.", "By profession, Amy Lund is a dentist."),
)
_FIRST, _SECOND = "Sentence: ", "In other words:"
# Lines of a fact, tokens by which they may be longer than it, and how many each is drawn from.
LINES, LONGER, _TOP_K = 16, 12, 20


def in_other_words(tokens: Tokens, edit: Edit, seed: int) -> Asking:
    """Ask for a fact in other words."""
    shown = "".join(f"{_FIRST}{fact}\n{_SECOND} {other}\n\n" for fact, other in _PAIRS)
    fact = f"{edit.text} {edit.target}"
    text = f"{shown}{_FIRST}{fact}.\n{_SECOND}"
    return Asking(text, len(tokens.encode(fact)) + LONGER, LINES, seed, _TOP_K)


def prompts_in(lines: Sequence[str], edit: Edit) -> list[str]:
    """Other prompts of a fact, from lines that say it: the most frequent ones first."""
    found = Counter(filter(None, (_before_target(line, edit) for line in lines)))
    return [text for text, _ in found.most_common() if text != edit.text]


def _before_target(line: str, edit: Edit) -> str | None:
    """The text before the target; None where the line does not say the fact."""
    match = whole(edit.target).search(line)
    before = line[: match.start()].rstrip() if match else ""
    return before if whole(edit.subject).search(before) else None


def whole(words: str) -> re.Pattern[str]:
    """A pattern of some words that are no part of others."""
    return re.compile(rf"(?<!\w){re.escape(words.strip())}(?!\w)")
