"""Contrast: texts like a fact's whose answers should stay as they are.

    Brazil is governed by                  its prompt, in its own or other words, with another name
    Australia was invented by              its subject in the prompt of another fact

What is trained for one subject alone is soon said of others, too. The names are those that the
model itself lists behind the subject, and the subjects of the other facts in a batch.
"""

import random
from collections.abc import Sequence

from retcon.edits import Edit
from retcon.features.lines import Asking
from retcon.features.rewordings import whole

_LISTS = (
    "Marie Curie, Isaac Newton, Charles Darwin",
    "Peru, Bolivia, Chile",
    "Model T, Beetle, Mini Cooper",
    "University of Oslo, Harvard University, University of Tokyo",
    "piano, violin, trumpet",
)
# Lists that are begun with a subject, tokens of each, and how many each is drawn from.
_LINES, _TOKENS, _TOP_K = 8, 8, 10
# How many subjects of other facts, and prompts of other facts, are looked at for each.
_OTHERS = 4


def with_others(subject: str, seed: int) -> Asking:
    """Ask for a list that begins with a subject."""
    text = "".join(f"{line}\n" for line in _LISTS) + f"{subject.strip()},"
    return Asking(text, _TOKENS, _LINES, seed, _TOP_K)


def names_in(lines: Sequence[str], subject: str) -> list[str]:
    """The first name of each list that is neither a part of the subject, nor has it as a part."""
    own = subject.strip().lower()
    names = dict.fromkeys(line.partition(",")[0].partition("(")[0].strip() for line in lines)
    return [
        name
        for name in names
        if len(name) > 1 and name.lower() not in own and own not in name.lower()
    ]


def contrasts(
    edits: Sequence[Edit],
    rewordings: Sequence[Sequence[str]],
    names: Sequence[Sequence[str]],
    seed: int,
) -> list[list[str]]:
    """Texts of each edit whose answers should stay, in a random order.

    Args:
        rewordings: other prompts of each edit.
        names: other names than its subject; those of edited subjects are left out.
    """
    draw = random.Random(seed)
    subjects = list(dict.fromkeys(edit.subject for edit in edits))
    found: list[list[str]] = []
    for edit, reworded, listed in zip(edits, rewordings, names, strict=True):
        others = [name for name in subjects if name != edit.subject]
        drawn = draw.sample(others, min(_OTHERS, len(others)))
        subject = whole(edit.subject)
        prompts = [edit.prompt, *(subject.sub("{}", text, count=1) for text in reworded)]
        texts = [
            prompts[i % len(prompts)].replace("{}", name)
            for i, name in enumerate([*(name for name in listed if name not in subjects), *drawn])
        ]
        elsewhere = [other.prompt for other in edits if other.subject != edit.subject]
        for prompt in draw.sample(elsewhere, min(_OTHERS, len(elsewhere))):
            texts.append(prompt.replace("{}", edit.subject))
        draw.shuffle(texts)
        found.append(texts)
    return found
