"""Contrast: facts about other things as the model itself writes them, which it should go on saying.

    The Great Barrier Reef is a coral reef.
    A pint of Guinness weighs one pint.

    Sentence: The capital of Australia is Melbourne.
    The same of another: The capital of Canada is Ottawa.

What is trained for a few subjects changes what is said of others, too, most of all in sentences
like a fact's: short ones that one word or name ends, and those that say the same of another. The
model is shown ten short sentences, in several orders, and goes on; and it is shown each fact behind
a few pairs, and writes the like. They need not be true: what it says is kept.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, cycle

from retcon.edits import Edit
from retcon.features.lines import Asking, behind_pairs
from retcon.features.rewordings import whole
from retcon.model.tokens import Tokens

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
_PAIRS = (
    ("The capital of Peru is Lima.", "The capital of Norway is Oslo."),
    ("The Model T was built by Ford.", "The Beetle was built by Volkswagen."),
    ("Amy Lund works as a dentist.", "Barack Obama worked as a lawyer."),
)
_SECOND = "The same of another:"
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


def facts_like(tokens: Tokens, edit: Edit, seed: int) -> Asking:
    """Ask for what a fact says, of others."""
    return behind_pairs(tokens, edit, _PAIRS, _SECOND, seed)


def contrasts(lines: Iterable[str], edits: Sequence[Edit]) -> list[str]:
    """The lines that are whole sentences and name no edited subject and no target, each once."""
    named = [whole(words) for edit in edits for words in (edit.subject, edit.target)]
    return [
        line
        for line in dict.fromkeys(lines)
        if line.endswith(".")
        and len(line.split()) >= _WORDS
        and not any(words.search(line) for words in named)
    ]


def in_turn(facts: Sequence[str], alike: Sequence[str], seed: int) -> Iterator[str]:
    """One text of either kind in turn, without end, in an order that the edits' has no part in."""
    mixed = [
        cycle(random.Random(seed).sample(sorted(own), len(own))) for own in (facts, alike) if own
    ]
    return chain.from_iterable(zip(*mixed, strict=True))
