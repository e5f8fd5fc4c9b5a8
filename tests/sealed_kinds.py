"""Every kind of file that is written and read back, each with a use that shows what is read.

`make` leaves a folder with files of the kind, two at least, so that they can change places;
`use` reads them again and returns what was made of them. After damage a kind that is `anew` gives
the same as before and says that it was made again; one that is `named` gives an error that names
it, or what `otherwise` says.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch

from pico import pico
from retcon.activations import covariance
from retcon.activations.covariance import MomentOptions, load_moments
from retcon.editing.making import edit
from retcon.edits import Case, Edit
from retcon.evaluation.scoring import score_cases
from retcon.model.load import load
from retcon.storage import cache_folder
from retcon.toyworld import train

FACTS = [
    Edit.parse("The mother tongue of {Danielle Darrieux} is", "English", id="a", target_old="Rome"),
    Edit.parse("{Marie Curie} was born in the city of", "London", id="b", target_old="Paris"),
]
FAST = {
    "steps": 3, "corpus_tokens": 300, "document_tokens": 32, "clamp": 3.0, "jitter": 1e-3,
    "prefixes": 1, "ridge": 9.0,
}  # fmt: skip
MODEL = pico()


class Kind(NamedTuple):
    """A kind of file: the last two are called in a folder of its own, which is the cache too."""

    outcome: str
    files: str
    make: Callable[[Path], object]
    use: Callable[[Path], torch.Tensor]


def flat(*parts: torch.Tensor) -> torch.Tensor:
    """All numbers in a row, to be compared."""
    return torch.cat([part.detach().double().reshape(-1) for part in parts])


def edited(_: Path) -> torch.Tensor:
    """A patch and scores, which need targets, keys, scores and moments."""
    patch = edit(MODEL, FACTS, method="memit", layers=(0, 1), settings=FAST)
    rows = score_cases(MODEL, [Case(edit=fact) for fact in FACTS], when="pre")
    scores = [[row.nll_new, row.n_new, row.hits_new, row.nll_old] for row in rows]
    return flat(*(d.left.T @ d.right for d in patch.deltas.values()), torch.tensor(scores))


def corpora(folder: Path) -> None:
    """Two corpora, and no moments that would do without them."""
    for seed in (1, 0):
        moments(folder, corpus_seed=seed)
    shutil.rmtree(cache_folder() / "moments")


def told(folder: Path) -> torch.Tensor:
    """What comes of both corpora, whichever of them is named first."""
    return flat(*(moments(folder, corpus_seed=seed) for seed in (1, 0)))


def moments(_: Path, **options) -> torch.Tensor:
    chosen = MomentOptions(corpus_tokens=300, document_tokens=32, **options)
    return flat(*(moment.mean for _, moment in load_moments(MODEL, [0, 1], chosen)))


def begun(folder: Path) -> None:
    """Sums of two passes that were cut off."""
    for layers in ([0, 1], [0]):
        counter = iter(range(3))

        def stop(task: str, done: int, total: int, counter=counter) -> None:
            if next(counter, None) is None:
                raise KeyboardInterrupt

        try:
            partial(folder, layers, stop)
        except KeyboardInterrupt:
            continue
        raise AssertionError


def partial(_: Path, layers=(0, 1), progress=lambda *_: None) -> torch.Tensor:
    text = cache_folder().parent / "corpus.txt"
    text.write_text("The capital city of France is Paris.\n" * 40, encoding="utf-8")
    options = MomentOptions(corpus=str(text), corpus_tokens=300, document_tokens=16)
    with (
        mock.patch.object(covariance, "_PASS_TOKENS", 16),
        mock.patch.object(covariance, "_PER_SAVE", 0.0),
        mock.patch.object(covariance, "_SAVING", float("inf")),
    ):
        found = load_moments(MODEL, list(layers), options, progress)
        return flat(*(moment.mean for _, moment in found))


def trained(_: Path) -> torch.Tensor:
    """A model of the toy world, which has hardly learnt anything."""
    folder = train.folder(recipe=train.RECIPE._replace(steps=1, batch=2, d_in=64, threads=1))
    return flat(*load(str(folder)).model.parameters())


KINDS = {
    "targets": Kind("anew", "targets/*/*", edited, edited),
    "keys": Kind("anew", "keys/*/*", edited, edited),
    "scores": Kind("anew", "scores/*/*", edited, edited),
    "moments": Kind("anew", "moments/*/layer-*", edited, edited),
    "partial moments": Kind("anew", "moments/*/partial-*", begun, partial),
    "corpora": Kind("anew", "corpora/*.jsonl", corpora, told),
    "models": Kind("anew", "models/*/*", trained, trained),
}
