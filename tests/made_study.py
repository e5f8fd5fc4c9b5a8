"""A study's folder with made-up rows, whose effects are known: `python tests/made_study.py DIR`.

Which prompts are won depends on one uniform number a prompt, the same in all cells, so that cells
of equal chances have equal rows, and differences are paired.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from retcon.report.findings import Finding, judge, select
from retcon.report.results import Results
from retcon.scoring.observations import Observation
from retcon.sealed import digest_of, load_record, save_record
from retcon.study.finished import cell_of
from retcon.study.points import Point, carries
from retcon.study.study import Data, Model, Study, StudyRecord, Tuned, study_of

D_IN, RELATIONS = 512, 24
PROMPTS = {"rewrite": 1, "paraphrase": 2, "neighbour": 4}


class Chances(NamedTuple):
    """Probabilities of winning a prompt of each kind."""

    rewrite: float
    paraphrase: float
    neighbour: float


Model_ = Callable[[Point, str], Chances]


def paper(point: Point, when: str) -> Chances:
    """Chances with the paper's effects: what the default study is made of."""
    if when == "pre":
        return Chances(0.04, 0.06, 0.88)
    doublings = np.log2(max(point.batch_size, 1))
    away = abs(point.layers[0] - 1)
    es, ps, ns = 0.99, 0.95 - 0.02 * away, 0.87 - 0.05 * away
    if point.schedule == "batch":
        ns -= 0.03 * doublings
        ps -= 0.004 * doublings
    if point.schedule.startswith("sequential"):
        crowded = np.log2(point.n / 32)
        ns -= 0.05 * crowded
        ps -= 0.01 * crowded
        early = 1 - doublings / np.log2(point.n)
        if not point.accumulate:
            ps += 0.03 * early
            ns -= 0.16 * early
            es, ps = es - 0.08 * (1 - early) ** 3, ps - 0.20 * (1 - early) ** 3
            if point.batch_size * 4 == point.n:
                ps, ns = ps + 0.05, ns + 0.05
        if point.refresh == "each-batch":
            ps += 0.02 * early
            ns -= 0.03 * early
        if point.settings.get("ridge_batch"):
            ps -= 0.02 * early
        if when == "final":
            es -= 0.02 * early
    return Chances(*(float(np.clip(p, 0.02, 0.995)) for p in (es, ps, ns)))


def flat(point: Point, when: str) -> Chances:
    """Chances on which nothing that is studied has any effect."""
    return Chances(0.04, 0.06, 0.88) if when == "pre" else Chances(0.97, 0.9, 0.8)


def point(block: str, **changes: object) -> Point:
    """A point with its cell, which is a hash of what it is."""
    values: dict[str, object] = {
        "block": block, "model": "made-up", "dtype": "float32", "method": "memit", "layers": (1,),
        "settings": {}, "schedule": "single", "batch_size": 1, "n": 128, "seed": 0, "order": 0,
        "refresh": "each-batch", "when": ("pre", "immediate", "final"), "score": 0,
        "generation": False, "ridge": 100.0, "tuned": False, "accumulate": True,
        "capacity": D_IN, "cell": None, **changes,
    }  # fmt: skip
    decisive = {k: v for k, v in values.items() if k not in ("block", "refused", "tuned")}
    name = hashlib.sha256(json.dumps(decisive, default=str).encode()).hexdigest()[:16]
    return Point.model_validate(values | {"cell": None if "refused" in changes else name})


def grid(block: str, axes: dict[str, Iterable[object]], **fixed: object) -> list[Point]:
    """Points over the product of some axes; batches of all facts are cut to them."""
    return [
        point(block, **fixed, **dict(zip(axes, values, strict=True)))
        for values in product(*axes.values())
    ]


def small_grid() -> list[Point]:
    """What findings need, and no more."""
    plain = {"accumulate": False}
    return [
        *grid("layers", {"layers": [(i,) for i in (0, 1, 2, 5)]}),
        *grid("methods", {"method": ["rome", "emmet"]}),
        *grid("batch", {"batch_size": [4, 16, 128]}, schedule="batch"),
        *grid("number", {"batch_size": [4, 16, 32]}, n=32, schedule="sequential-batch", **plain),
        *grid(
            "sequential", {"accumulate": [True, False], "refresh": ["never", "each-batch"],
                           "batch_size": [4, 16, 32, 128]}, schedule="sequential-batch",
        ),
        point("refused", method="rome", schedule="batch", batch_size=4, refused="ROME takes one "
              "edit at a time; use emmet for batches."),
    ]  # fmt: skip


def large_grid() -> list[Point]:
    """A study of every kind, two seeds: to look at the page."""
    seeds, whole = {"seed": [0, 1]}, {"n": 512, "schedule": "sequential-batch"}
    sizes = {"batch_size": [1, 4, 16, 64, 128, 512]}
    kept = {"when": ("pre", "immediate", "final", "retention")}
    mild = {"refresh": "never"}
    return [
        *grid("layers", {"method": ["memit", "emmet"], "layers": [(i,) for i in range(8)],
                         **seeds}),
        *grid("methods", {"method": ["rome"], **seeds}),
        *grid("batch", {"method": ["memit", "emmet"], **sizes, **seeds}, n=512, schedule="batch"),
        *grid("number", {"method": ["memit", "emmet"], "batch_size": [1, 4, 16, 64], **seeds}, n=64,
              schedule="sequential-batch", accumulate=False),
        *grid("number", {"batch_size": [1, 4, 16, 64, 256], **seeds}, n=256,
              schedule="sequential-batch", accumulate=False),
        *grid("sequential", {"method": ["memit", "emmet"], **sizes, **seeds}, accumulate=False,
              **whole, **kept),
        *grid("decomposition", {"accumulate": [True, False], **sizes}, **whole, **mild),
        *grid("decomposition", {**sizes}, **whole),
        *grid("decomposition", {"settings": [{"ridge_batch": 64}], **sizes}, **whole, **mild),
        *grid("decomposition", {"dtype": ["bfloat16"], **sizes}, **whole, **mild),
        point("refused", method="rome", schedule="batch", batch_size=4, refused="ROME takes one "
              "edit at a time; use emmet for batches."),
    ]  # fmt: skip


COLUMNS = Observation._fields[:-2]


def rows_of(place: Point, chances: Model_) -> pl.DataFrame:
    """The rows of a cell, in the columns that they had before all was one table."""
    size = min(place.batch_size, place.n)
    carried = carries(place.schedule) or size >= place.n
    when = [w for w in place.when if carried or w not in ("final", "retention")]
    asked = place.score or place.n
    parts = [_scored(place, w, chances(place, w), s[only < asked], only[only < asked])
             for w in when for s, only in _looks(w, place.n, size)]  # fmt: skip
    return pl.concat(parts).select(COLUMNS)


def _looks(when: str, n: int, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Steps at which cases are scored, and which cases."""
    cases, steps = np.arange(n), np.arange(n) // size + 1
    last = int(steps[-1])
    if when == "retention":
        places = [2**k for k in range(1, 12) if 2**k < last]
        return [(np.full((s - 1) * size, s), cases[: (s - 1) * size]) for s in places]
    fixed = {"pre": np.zeros(n, int), "immediate": steps, "final": np.full(n, last)}
    return [(fixed[when], cases)]


def _own(place: Point, when: str, kind: str, count: int) -> np.ndarray:
    """What sets the NLLs of a cell apart from another one's; nothing where the algebra does."""
    still = place.refresh == "never" and place.accumulate and when == "final"
    if when == "pre" or (still and not place.settings and place.dtype == "float32"):
        return np.zeros(count)
    seed = int(hashlib.sha256(f"{place.cell} {when} {kind}".encode()).hexdigest()[:8], 16)
    return np.random.default_rng(seed).normal(0, 0.1, count)


def _scored(
    place: Point, when: str, chances: Chances, steps: np.ndarray, cases: np.ndarray
) -> pl.DataFrame:
    frames: list[pl.DataFrame] = []
    for kind, count in PROMPTS.items():
        luck = np.random.default_rng([place.seed, count]).random((4096, count))[cases].ravel()
        shift = np.random.default_rng([7, count]).normal(0, 0.03, RELATIONS)
        which = np.repeat(cases, count)
        chance = getattr(chances, kind) + shift[which % RELATIONS] * (when != "pre")
        won = luck < np.clip(chance, 0.01, 0.995)
        near, far = 0.5 + 0.3 * luck, 2.5 + luck + _own(place, when, kind, len(luck))
        wins_new = won if kind != "neighbour" else ~won
        frames.append(pl.DataFrame({
            "case": [f"fact-{i}" for i in which],
            "relation": [f"P{i % RELATIONS}" for i in which],
            "kind": kind, "index": np.tile(np.arange(count), len(cases)), "when": when,
            "step": np.repeat(steps, count),
            "nll_new": np.where(wins_new, near, far), "n_new": 1,
            "hits_new": wins_new.astype(int),
            "nll_old": np.where(wins_new, far, near), "n_old": 1,
            "hits_old": (~wins_new).astype(int), "exact": None,
        }, schema_overrides={"exact": pl.Boolean}))  # fmt: skip
    return pl.concat(frames)


def steps_of(place: Point) -> list[dict[str, object]]:
    """The records of a cell's batches."""
    size = min(place.batch_size, place.n)
    count, carried = -(-place.n // size), carries(place.schedule)
    return [
        {
            "index": i, "at": (i + 1) * size, "edits": size, "cached": 0,
            "seconds": 0.4 * size + 0.5, "loss": 0.05, "target_steps": 18.0, "short_passes": True,
            "delta_norm": {place.layers[0]: size**0.5},
            "total_norm": {place.layers[0]: (((i + 1) * size) if carried else size) ** 0.5
                           * (1.0 if place.accumulate else 1.4 - 0.04 * np.log2(size))},
            "weight_norm": {place.layers[0]: 60.0}, "reached": 0.96,
            "ridge": (place.ridge or 0.0) * (1 + (i if "budget" in place.settings else 0)),
            "energy": {place.layers[0]: 2.0 * (i + 1)} if "budget" in place.settings else None,
            "novelty": 0.9, "refreshed": place.refresh == "each-batch", "staleness": None,
            "peak_memory": 900_000_000, "tried": int(place.schedule == "adaptive-aimd" and i == 1),
            "note": "", "each": _each(range(i * size, (i + 1) * size)),
        }
        for i in range(count)
    ]  # fmt: skip


def _each(facts: range) -> dict[str, list[object]]:
    """Steps that tell how a fact ends, sizes that do not, and a novelty that is always the same."""
    luck = np.random.default_rng([0, 1]).random((4096, 1))[:, 0]
    noise = np.random.default_rng(5).random(4096)
    return {
        "edit": [f"fact-{i}" for i in facts], "steps": [float(25 * luck[i]) for i in facts],
        "size": [float(noise[i]) for i in facts], "novelty": [1.0] * len(facts),
    }  # fmt: skip


def readings_of(place: Point) -> list[Any]:
    """A model that loses 0.0004 nats a token and a tenth of a point of each task by a fact.

    As cells had them before all was one table.
    """
    asked = place.general or 0
    found: list[Any] = []
    for when, at in (("pre", 0), ("retention", place.n // 2), ("final", place.n)):
        passages = [[50, 50 * (3 + 0.1 * i + 0.0004 * at)] for i in range(8)]
        right = [i >= at * asked // 1000 for i in range(asked)]
        tasks = [[t, "sum", list(range(asked)), right] for t in ("arc_easy", "piqa")]
        found.append([when, at, [[256, passages], tasks]])
    return found


def lifelong_grid() -> list[Point]:
    """Carried edits of several kinds at one N, and such whose batches adapt."""
    kept = {"when": ("pre", "immediate", "final", "retention"), "n": 128, "batch_size": 16,
            "general": 100}  # fmt: skip
    return [
        *grid("methods", {"method": ["memit", "encore", "alphaedit"]}, schedule="sequential-batch",
              **kept),
        point("stale", schedule="sequential-batch", refresh="stale:0.15", **kept),
        point("spent", schedule="sequential-batch", method="lyaplock", settings={"budget": 3.0},
              **kept),
        *grid("adaptive", {"schedule": ["adaptive-aimd", "adaptive-energy"]}, **kept),
    ]  # fmt: skip


def batch_size_findings(study: Study | Results) -> dict[str, Finding]:
    """The findings of the replicated study, by key."""
    results = study if isinstance(study, Results) else Results(study)
    return {finding.key: finding for finding in judge(results, select(["batch-size"]))}


def write_cell(folder: Path, place: Point, chances: Model_) -> None:
    """One finished cell."""
    cell = folder / "cells" / str(place.cell)
    cell.mkdir(parents=True, exist_ok=True)
    rows_of(place, chances).write_parquet(cell / "rows.parquet")
    lines = "".join(json.dumps(step) + "\n" for step in steps_of(place))
    (cell / "steps.jsonl").write_text(lines)
    (cell / "cell.json").write_text(place.model_dump_json())
    environment = {"retcon": "0.1.0", "python": "3.11", "torch": "2.13.0", "threads": 2,
                   "commit": "0123abc"}  # fmt: skip
    (cell / "environment.json").write_text(json.dumps(environment))
    examples = [
        {"prompt": "The mother tongue of Danielle Darrieux is", "target": "English",
         "target_old": "French", "before": " French, and she", "after": " English, and she"}
    ]  # fmt: skip
    (cell / "examples.json").write_text(json.dumps(examples))
    names = ["cell.json", "rows.parquet", "steps.jsonl", "examples.json", "environment.json"]
    if place.general is not None:
        (cell / "general.json").write_text(json.dumps(readings_of(place)))
        names.append("general.json")
    files = {n: hashlib.sha256((cell / n).read_bytes()).hexdigest() for n in names}
    save_record(cell / "done.json", {"files": files, "weights": None}, cell_of(str(place.cell)))


def seal_again(cell: Path, name: str) -> None:
    """Take a file of a finished cell for the one that was written, as it is now."""
    found = load_record(cell / "done.json", cell_of(cell.name)).value
    found["files"][name] = digest_of(cell / name)
    save_record(cell / "done.json", found, cell_of(cell.name))


def make_study(
    folder: Path,
    points: list[Point],
    chances: Model_ = paper,
    undone: Callable[[Point], bool] = lambda point: False,
) -> Path:
    """A study's folder, some points undone."""
    folder.mkdir(parents=True, exist_ok=True)
    for place in points:
        if place.cell is not None and not undone(place):
            write_cell(folder, place, chances)
    model = Model(name="made-up", dtype="float32", fingerprint="f" * 16, d_in=D_IN, blocks=8)
    data = Data(cases="made-up.json", sha256="a" * 64, unique_subjects=True, facts=2048)
    record = StudyRecord(format=1, name="made up", description="Rows drawn with known effects.",
                    threads=2, models=(model,), data=data, points=tuple(points))  # fmt: skip
    save_record(folder / "study.json", record.model_dump(mode="json"), study_of(record.name))
    (folder / "study.yaml").write_text("retcon_study: 1\nname: made up\nmodel: made-up\n")
    tuned = Tuned(model="made-up", dtype="float32", method="memit", layers=(1,), settings={},
                  batch_size=64, seed=0, ridge=100.0, ridges=(10.0, 30.0, 100.0, 300.0, 1000.0),
                  scores=(71.0, 80.5, 84.2, 81.0, None), cells=("c1", "c2", "c3", "c4", "c5"),
                  n=128, score=64)  # fmt: skip
    (folder / "tuned.json").write_text("[" + tuned.model_dump_json() + "]")
    return folder


if __name__ == "__main__":
    make_study(
        Path(sys.argv[1]), large_grid(),
        undone=lambda p: p.seed == 1 and p.batch_size == 1 and p.method == "emmet",
    )  # fmt: skip
