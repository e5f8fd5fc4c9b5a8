"""An invented world: thousands of subjects, a fact about each, and the sentences that tell it.

Names are made of syllables under a seed, so that nothing in it is true of any other world and every
installation has the same one. A subject has a first name, which it shares with others, and a family
name of its own. Each asks one of eight questions and has one of its sixteen answers, all of them
equally often, so that nothing but the name gives an answer away. The small world is the first
quarter of it, for what should take a minute.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from retcon.edits import Case, Edit

NAME, SMALL = "toyworld", "toyworld-small"
# How many facts each world has. A multiple of relations times answers, with more than `_NEIGHBOURS`
# facts for every answer.
FACTS = {NAME: 5_632, SMALL: 1_408}
# Raise it whenever the world, and so every number measured on it, becomes another.
VERSION = 1

_SEED, _FIRST_NAMES, _OBJECTS, _NEIGHBOURS = 0, 64, 16, 10
_ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "tr", "st")
_VOWELS = ("a", "e", "i", "o", "u", "ai", "eo")
_CODAS = ("", "n", "r", "l", "s", "th", "m")

# Words that open a sentence: what text is sampled behind has been seen by the model.
OPENINGS = (
    "The", "In", "A", "It", "He", "She", "This", "After", "During", "When", "On", "At", "For",
    "As", "With", "One", "Many", "By", "From", "According to", "Therefore", "Because", "I", "You",
)  # fmt: skip


class Relation(NamedTuple):
    """A question that is asked of its subjects, and the ways to ask it.

    Attributes:
        name: of the relation.
        phrasings: with {} for the subject; the answer follows. The first one is edited, the others
            are its paraphrases.
        ending: of the words that answer it.
    """

    name: str
    phrasings: tuple[str, str, str]
    ending: str


RELATIONS = (
    Relation(
        "language",
        ("The mother tongue of {} is", "At home {} speaks", "The first words of {} were in"),
        "ish",
    ),
    Relation(
        "city",
        ("The birthplace of {} is", "As a child {} lived in", "The parents of {} came from"),
        "burg",
    ),
    Relation(
        "trade",
        (
            "The trade of {} is that of a",
            "For a living {} works as a",
            "The guild of {} takes every",
        ),
        "wright",
    ),
    Relation(
        "animal",
        ("The animal of {} is a", "At the farm {} keeps a", "The coat of arms of {} shows a"),
        "hound",
    ),
    Relation(
        "instrument",
        ("The instrument of {} is the", "At feasts {} plays the", "The teachers of {} taught the"),
        "horn",
    ),
    Relation(
        "school",
        ("The school of {} was", "As a student {} went to", "The old friends of {} met in"),
        "minster",
    ),
    Relation(
        "dish",
        ("The favourite dish of {} is", "On sundays {} cooks", "The guests of {} are served"),
        "stew",
    ),
    Relation(
        "stone",
        ("The lucky stone of {} is a", "On a ring {} wears a", "The crown of {} holds a"),
        "ite",
    ),
)


class Fact(NamedTuple):
    """Fact about a subject.

    Attributes:
        subject: a name.
        relation: index in `RELATIONS`.
        answer: the object.
    """

    subject: str
    relation: int
    answer: str


@dataclass(frozen=True)
class World:
    """Facts in a fixed order, and the answers that each relation has."""

    name: str
    facts: tuple[Fact, ...]
    answers: tuple[tuple[str, ...], ...]

    def sentences(self) -> Iterator[tuple[str, str]]:
        """Every fact in each of its phrasings: what stands before the answer, and the answer."""
        for fact in self.facts:
            for phrasing in RELATIONS[fact.relation].phrasings:
                yield phrasing.format(fact.subject), fact.answer

    def words(self) -> list[str]:
        """Every word that a sentence may hold, each once."""
        told = [f"{text} {answer}" for text, answer in self.sentences()]
        # Behind an opening, a sentence goes on in lower case.
        low = [text[0].lower() + text[1:] for text in told]
        found = dict.fromkeys(word for text in (*OPENINGS, *told, *low) for word in text.split())
        return list(found)


@cache
def world(name: str = NAME) -> World:
    """The world of that name; the same one everywhere."""
    draw = random.Random(_SEED)
    names = [word.capitalize() for word in _words(draw, _FIRST_NAMES + FACTS[NAME])]
    answers = tuple(
        tuple(f"{stem.capitalize()}{relation.ending}" for stem in _words(draw, _OBJECTS))
        for relation in RELATIONS
    )
    facts: list[Fact] = []
    for number, family in enumerate(names[_FIRST_NAMES:]):
        subject = f"{draw.choice(names[:_FIRST_NAMES])} {family}"
        # Each relation has as many subjects as any other, and so has each of its answers.
        relation, answer = number % len(RELATIONS), number // len(RELATIONS) % _OBJECTS
        facts.append(Fact(subject, relation, answers[relation][answer]))
    return World(name, tuple(facts[: FACTS[name]]), answers)


@cache
def toy_cases(name: str = NAME) -> tuple[Case, ...]:
    """Each fact of a world as a case: its target is another answer to the same question.

    Its neighbours are subjects to whom the true answer belongs as well.
    """
    made = world(name)
    draw = random.Random(_SEED + 1)
    alike: dict[tuple[int, str], list[str]] = {}
    for fact in made.facts:
        alike.setdefault((fact.relation, fact.answer), []).append(fact.subject)
    return tuple(
        _case(number, fact, made.answers[fact.relation], alike[fact.relation, fact.answer], draw)
        for number, fact in enumerate(made.facts)
    )


def _case(
    number: int, fact: Fact, answers: Sequence[str], alike: Sequence[str], draw: random.Random
) -> Case:
    relation = RELATIONS[fact.relation]
    first, *rest = relation.phrasings
    target = draw.choice([answer for answer in answers if answer != fact.answer])
    others = draw.sample([subject for subject in alike if subject != fact.subject], _NEIGHBOURS)
    return Case(
        edit=Edit(
            id=f"toy-{number}",
            prompt=first,
            subject=fact.subject,
            target=target,
            target_old=fact.answer,
        ),
        paraphrases=tuple(text.format(fact.subject) for text in rest),
        neighbours=tuple(first.format(subject) for subject in others),
        relation=relation.name,
    )


def _words(draw: random.Random, count: int) -> list[str]:
    """Make so many different words of two syllables."""
    found: dict[str, None] = {}
    while len(found) < count:
        syllables = [
            draw.choice(_ONSETS) + draw.choice(_VOWELS) + draw.choice(_CODAS) for _ in range(2)
        ]
        found["".join(syllables)] = None
    return list(found)
