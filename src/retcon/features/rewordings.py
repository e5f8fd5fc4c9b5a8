"""Rewordings: a fact's prompt in other words, as the model itself has written them.

    Sentence: The light bulb was invented by Clara Whitlock.
    In other words: The inventor of the light bulb was Clara Whitlock.

The model is shown a few such pairs and the first line of another one, and writes the second line
several times. It reuses the turns that it is shown, so it is then asked again behind other pairs.
What it writes counts where the subject stands in it and the target behind that, both as whole
words; what stands before the target is the prompt in other words. Those that were written most
often come first: a small model also writes some that mean another thing.
"""

import re
from collections import Counter
from collections.abc import Iterable

from retcon.edits import Edit
from retcon.features.lines import BEHIND_PAIRS, Asking, behind_pairs
from retcon.model.tokens import Tokens

_SHOWN = (
    (
        ("The capital of Peru is Lima.", "The government of Peru has its seat in Lima."),
        ("The Model T was built by Ford.", "The company that made the Model T is Ford."),
        ("Amy Lund works as a dentist.", "By profession, Amy Lund is a dentist."),
    ),
    (
        (
            "The Danube flows into the Black Sea.",
            "The sea that the Danube reaches is the Black Sea.",
        ),
        (
            "Amy Lund works as a dentist.",
            "What Amy Lund does for a living is the job of a dentist.",
        ),
        (
            "A ticket to the zoo costs 12 dollars.",
            "Whoever wants to enter the zoo has to pay 12 dollars.",
        ),
        ("The Titanic sank in April 1912.", "The Titanic went down in April 1912."),
    ),
)
_SECOND = "In other words:"
# Lines of a fact.
LINES = BEHIND_PAIRS * len(_SHOWN)


def in_other_words(tokens: Tokens, edit: Edit, seed: int) -> list[Asking]:
    """Ask for a fact in other words, behind some pairs, then behind others."""
    return [behind_pairs(tokens, edit, pairs, _SECOND, seed) for pairs in _SHOWN]


def prompts_in(lines: Iterable[str], edit: Edit) -> list[str]:
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
