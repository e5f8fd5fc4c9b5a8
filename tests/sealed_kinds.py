"""Every kind of file that is written and read back, each with a use that shows what is read.

`make` leaves a folder with files of the kind, two where they can change places; `use` reads them
again and returns what was made of them; `verify` lists what is damaged. After damage a kind that
is `anew` gives the same as before and says that it was made again; one that is `named` gives an
error that names it.
"""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch

import retcon
import tiny_study
from pico import pico
from retcon import cache
from retcon.edits import Case, Edit
from retcon.errors import InvalidLedger, InvalidStudy
from retcon.features import second_moments as covariance
from retcon.features.second_moments import MomentOptions, load_moments
from retcon.files import cache_folder
from retcon.model.load import load
from retcon.patch.ledger import Ledger
from retcon.patch.patch import load_patch
from retcon.patch.verify import verify, verify_file
from retcon.run.edit import edit
from retcon.scoring.score import score_cases
from retcon.study.packing import pack
from retcon.study.runner import run_cells
from retcon.study.spec import parse_spec
from retcon.study.study import read_file, read_study
from retcon.study.verifying import verify as verify_study
from retcon.toyworld import train
from retcon.toyworld.world import SMALL
from tiny_study import write_model_and_facts

FACTS = [
    Edit.parse("The mother tongue of {Danielle Darrieux} is", "English", id="a", target_old="Rome"),
    Edit.parse("{Marie Curie} was born in the city of", "London", id="b", target_old="Paris"),
]
FAST = {
    "steps": 3, "corpus_tokens": 300, "document_tokens": 32, "clamp": 3.0, "jitter": 1e-3,
    "prefixes": 2, "ridge": 9.0,
}  # fmt: skip
MODEL = pico()


class Kind(NamedTuple):
    """A kind of file: the last two are called in a folder of its own, which is the cache too."""

    outcome: str
    files: str
    make: Callable[[Path], object]
    use: Callable[[Path], torch.Tensor]
    verify: Callable[[Path], list[str]]


def flat(*parts: torch.Tensor) -> torch.Tensor:
    """All numbers in a row, to be compared."""
    return torch.cat([part.detach().double().reshape(-1) for part in parts])


def edited(_: Path) -> torch.Tensor:
    """A patch and scores, which need targets, keys, scores and moments."""
    patch = edit(MODEL, FACTS, method="memit", layers=(0, 1), settings=FAST)
    rows = score_cases(MODEL, [Case(edit=fact) for fact in FACTS], when="pre")
    scores = [[row.nll_new, row.n_new, row.hits_new, row.nll_old] for row in rows]
    return flat(*(d.left.T @ d.right for d in patch.deltas.values()), torch.tensor(scores))


def whitened(_: Path) -> torch.Tensor:
    """A patch whose targets need how much ordinary text minds each direction."""
    settings = {**FAST, "descent": "sphere", "whiten": 0.5}
    patch = edit(MODEL, FACTS, method="memit", layers=(0, 1), settings=settings)
    return flat(*(d.left.T @ d.right for d in patch.deltas.values()))


def written(_: Path) -> torch.Tensor:
    """What the model writes freely behind the prompts of two facts."""
    rows = retcon.score(MODEL, [Case(edit=fact) for fact in FACTS], metrics=["said"]).rows
    return flat(*(torch.tensor([*row.text.encode()]) for row in rows if row.text))


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
    hasty = train.RECIPES[SMALL]._replace(steps=1, batch=2, d_in=64, threads=1)
    folder = train.folder(SMALL, recipe=hasty)
    return flat(*load(str(folder)).model.parameters())


def damaged_in_cache(_: Path) -> list[str]:
    return [why for one in cache.verify() for why in one.damaged]


def patches(folder: Path) -> None:
    """Two patches, and a ledger of both from which a fact was taken back."""
    ledger = Ledger(folder / "ledger")
    for fact in FACTS:
        patch = edit(MODEL, [fact], method="memit", layers=(0, 1), settings=FAST)
        patch.save(folder / f"{fact.id}.safetensors")
        ledger.add(folder / f"{fact.id}.safetensors", who="ann")
    ledger.undo(ledger.choose(["a"]), who="ann")


def applied(folder: Path) -> torch.Tensor:
    found = [load_patch(folder / f"{fact.id}.safetensors") for fact in FACTS]
    return flat(*(d.left.T @ d.right for patch in found for d in patch.deltas.values()))


def damaged_patches(folder: Path) -> list[str]:
    found = [f for fact in FACTS for f in verify_file(folder / f"{fact.id}.safetensors")]
    return [one.problem for one in found if one.problem]


def stacked(folder: Path) -> torch.Tensor:
    """The stack with both patches in it."""
    stack = Ledger(folder / "ledger").stack(at=2)
    return flat(*(d.left.T @ d.right for d in stack.deltas.values()))


def damaged_ledger(folder: Path) -> list[str]:
    try:
        return [one.problem for one in verify(Ledger(folder / "ledger")) if one.problem]
    except InvalidLedger as error:
        return [str(error)]


STUDY = """retcon_study: 1
name: tiny
model: model
threads: 1
data: {cases: facts.jsonl, unique_subjects: true}
tuning: {ridges: [30, 300], n: 2}
defaults: {method: memit, layer: 1, n: 4, schedule: sequential-batch, settings: SETTINGS}
blocks:
  - {name: sizes, batch_size: [1, 2]}
  - {name: tuned, batch_size: 2, settings: {ridge: tuned}}
"""


def studied(folder: Path) -> None:
    write_model_and_facts(folder, paraphrased=True)
    settings = json.dumps(tiny_study.FAST)
    with contextlib.chdir(folder):
        run_cells(parse_spec(STUDY.replace("SETTINGS", settings)), folder / "study")


def reported(folder: Path) -> torch.Tensor:
    """Everything that is read of finished cells, and of what says which they are."""
    study = read_study(folder / "study")
    read_file(study.folder)
    numbers = [one.ridge for one in study.tuned]
    tuning = {cell for one in study.tuned for cell in one.cells}
    for cell in sorted(tuning | {point.cell for point in study.points if point.cell}):
        rows, steps = study.rows(cell), study.steps(cell)
        numbers += [study.environment(cell)["threads"], *rows["nll_new"], *rows["step"]]
        numbers += [step["at"] for step in steps] + [len(study.examples(cell))]
    return torch.tensor(numbers)


def damaged_study(folder: Path) -> list[str]:
    try:
        found = verify_study(read_study(folder / "study"))
        return [why for one in found for why in one.damaged]
    except InvalidStudy as error:
        return [str(error)]


def put_together(folder: Path) -> None:
    """The same study as a pack."""
    studied(folder)
    (folder / "study").rename(folder / "live")
    pack(read_study(folder / "live"), folder / "study")


def of_cache(files: str, make: Callable[..., object], use: Callable[..., torch.Tensor]) -> Kind:
    return Kind("anew", files, make, use, damaged_in_cache)


def of_study(files: str, make: Callable[[Path], object] = studied) -> Kind:
    return Kind("named", f"study/{files}", make, reported, damaged_study)


KINDS = {
    "targets": of_cache("targets/*/*", edited, edited),
    "keys": of_cache("keys/*/*", edited, edited),
    "prefixes": of_cache("prefixes/*/*", edited, edited),
    "scores": of_cache("scores/*/*", edited, edited),
    "texts": of_cache("texts/*/*", written, written),
    "sensitivity": of_cache("sensitivity/*/*", whitened, whitened),
    "moments": of_cache("moments/*/layer-*", edited, edited),
    "partial moments": of_cache("moments/*/partial-*", begun, partial),
    "corpora": of_cache("corpora/*.jsonl", corpora, told),
    "models": of_cache("models/*/*", trained, trained),
    "patches": Kind("named", "?.safetensors", patches, applied, damaged_patches),
    "ledgers": Kind("named", "ledger/ledger.json", patches, stacked, damaged_ledger),
    "events": Kind("named", "ledger/events/*", patches, stacked, damaged_ledger),
    "patches of ledgers": Kind("named", "ledger/patches/*", patches, stacked, damaged_ledger),
    "studies": of_study("study.json"),
    "study files": of_study("study.yaml"),
    "tunings": of_study("tuned.json"),
    "cells": of_study("cells/*/done.json"),
    "rows": of_study("cells/*/rows.parquet"),
    "steps": of_study("cells/*/steps.jsonl"),
    "examples": of_study("cells/*/examples.json"),
    "environments": of_study("cells/*/environment.json"),
    "packed cells": of_study("cells.jsonl", put_together),
    "packed rows": of_study("rows.parquet", put_together),
    "packed steps": of_study("steps.parquet", put_together),
    "packed study files": of_study("study.yaml", put_together),
}
