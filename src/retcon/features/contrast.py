"""Contrast: facts about other things as the model itself writes them, which it should go on saying.

    The Great Barrier Reef is a coral reef.
    A pint of Guinness weighs one pint.

What is trained for a few subjects changes what is said of others, too, most of all in sentences
like a fact's: short ones that one word or name ends. The model is shown ten such sentences, in
several orders, and goes on. They need not be true: what it says is kept.
"""

import random
from collections.abc import Iterable, Sequence

from retcon.edits import Edit
from retcon.features.lines import Asking
from retcon.features.rewordings import whole

_SHOWN = (
    "The capital of Peru is Lima.",
    "The Model T was built by Ford.",
    "Amy Lund works as a dentist.",
    "The Danube flows into the Black Sea.",
    "Hamlet was written by William Shakespeare.",
    "A litre of water weighs one kilogram.",
    "The Titanic sank in April 1912.",
    "Toledo is a city in Spain.",
    "Honey is made by bees.",
    "The piano was invented by Bartolomeo Cristofori.",
)
_ABOVE = "Short facts that everybody can look up:"
# Orders of what is shown, lines behind each, their tokens, and how many each is drawn from.
_ORDERS, _LINES, _TOKENS, _TOP_K = 8, 64, 20, 50
# Words of a sentence, at least.
_WORDS = 4


def facts_of_others(seed: int) -> list[Asking]:
    """Ask for facts about anything."""
    draw = random.Random(seed)
    orders = [draw.sample(_SHOWN, len(_SHOWN)) for _ in range(_ORDERS)]
    return [
        Asking("\n".join([_ABOVE, *shown, ""]), _TOKENS, _LINES, seed + i, _TOP_K)
        for i, shown in enumerate(orders)
    ]


def contrasts(lines: Iterable[str], edits: Sequence[Edit]) -> list[str]:
    """The lines that are whole sentences and name no edited subject, each once."""
    subjects = [whole(edit.subject) for edit in edits]
    return [
        line
        for line in dict.fromkeys(lines)
        if line.endswith(".")
        and len(line.split()) >= _WORDS
        and not any(subject.search(line) for subject in subjects)
    ]
