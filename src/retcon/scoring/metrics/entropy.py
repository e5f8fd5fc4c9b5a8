"""GE: whether what the model writes about a subject is still text, and not one word for ever.

    GE = ½ (⅔ H₂ + 4⁄3 H₃)        H_n: entropy in bits of a text's distribution of word n-grams

Generation entropy as in ROME (arXiv:2202.05262 §3.4), tables quoting 100 times its mean. Texts are
an opening and its continuation, 100 tokens in all, sampled from the five most probable tokens; the
opening counts. Words are runs of letters and digits, and every other sign is one: one rule for all
models, where the literature's code took a library's tokeniser of the day.
"""

import re
from collections import Counter
from collections.abc import Sequence
from math import log2
from typing import Any

from retcon.edits import Case
from retcon.progress import Progress, silent
from retcon.scoring.metrics import Observer, metric
from retcon.scoring.observations import TEXT, Moment, Observation
from retcon.scoring.scales import Amount

_TOKENS, _TOP_K, _SEED = 100, 5, 0
_WORD = re.compile(r"\w+|[^\w\s]")


def write_texts(
    model: Any, cases: Sequence[Case], moment: Moment, progress: Progress = silent
) -> list[Observation]:
    """Let a model go on behind each case's openings, or behind its prompt where it has none."""
    from retcon.model.generate import sample_behind

    openings = [
        (case, index, opening)
        for case in cases
        for index, opening in enumerate(case.openings or (case.edit.text,))
    ]
    heads = [model.tokens.prompt(opening) for _, _, opening in openings]
    texts = sample_behind(
        model, heads, total_tokens=_TOKENS, seed=_SEED, top_k=_TOP_K, progress=progress
    )
    return [
        Observation(
            case.edit.id,
            case.relation,
            TEXT,
            index,
            *moment,
            value=generation_entropy(text),
            text=text,
        )
        for (case, index, _), text in zip(openings, texts, strict=True)
    ]


@metric(
    "GE",
    title="Fluency",
    kind=TEXT,
    scale=Amount(unit="100 × bits", factor=100.0, digits=0),
    observer=Observer(observe=write_texts, at=("pre", "final")),
)
def entropy(row: Observation) -> float | None:
    """Generation entropy (GE, arXiv:2202.05262): texts that repeat themselves have little."""
    return row.value


def generation_entropy(text: str) -> float:
    """GE of one text; 0 where it has too few words for any n-gram."""
    words = _WORD.findall(text)
    return (2 / 3 * _entropy(words, 2) + 4 / 3 * _entropy(words, 3)) / 2


def _entropy(words: Sequence[str], n: int) -> float:
    grams = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    total = grams.total()
    return sum((k / total * log2(total / k) for k in grams.values()), 0.0)
