"""Contrast: beginnings of sentences about other things, which should go on as they did.

    The Acropolis stands in the city of
    Ducati builds motorcycles and is a company from

What is trained for a few subjects changes what is said of others, too, most of all in sentences
like a fact's: short ones that one right word or name ends. These are all prompts of the set
`starter`, which SmolLM2 knows; another model says other things there, which are kept as well.
"""

import random
from collections.abc import Sequence

from retcon.data.cases import starter_cases
from retcon.edits import Edit
from retcon.features.rewordings import whole


def contrasts(edits: Sequence[Edit], seed: int) -> list[str]:
    """The beginnings that name no edited subject, in a random order."""
    every = dict.fromkeys(
        text
        for case in starter_cases()
        for text in (case.edit.text, *case.paraphrases, *case.neighbours)
    )
    subjects = [whole(edit.subject) for edit in edits]
    found = [text for text in every if not any(subject.search(text) for subject in subjects)]
    random.Random(seed).shuffle(found)
    return found
