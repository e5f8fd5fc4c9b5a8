"""What the code gives, in bytes and in numbers, for a rebuilt one to be held against.

    cd tests
    python -m golden.record FILE [--full] [--real] [--only WORD]
    python -m golden.record --compare OLD.json [--real] [--only WORD]

Writes a record; `golden/record.json` is the committed one, whose numbers `test_golden.py` compares
on any processor; it is made with --real. --full keeps every number of every patch and row,
to be compared on the machine that made it. --compare says line by line whether the bytes are those
of an older record, or how far its numbers are from them at most. --real: SmolLM2 too. --only: the
scenarios with that word in their name.

All that is asked of the package is in `runs.py`; what is run, in `scenarios.py`.
"""

import argparse
import base64
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from golden.runs import Run, Workshop
from golden.scenarios import REAL_MODEL, pico_scenarios, real_scenarios

Record = dict[str, Any]
STUDY = "a study"
COMMITTED = Path(__file__).parent / "record.json"
# Of each ΔW so many elements are kept, at places that depend on nothing but its shape.
_SAMPLES = 6
# What a prompt is known by, what is counted of it, and what was said.
_ASKED, _NLLS, _SAID = slice(0, 6), (6, 9), (8, 11, 12)


class Difference(NamedTuple):
    """How far two records of one scenario are apart.

    bytes: whether they are the same to the last bit. other: what should be equal and is not.
    patch: the largest difference of an element of ΔW, in units of its root mean square. nats: of an
    NLL. numbers: of the batches' numbers, relative. said: tokens and answers that are not the same.
    """

    bytes: bool
    other: tuple[str, ...]
    patch: float
    nats: float
    numbers: float
    said: int


def record_of(run: Run, *, full: bool = False) -> Record:
    """The record of one run."""
    if run.refused:
        return {"refused": run.refused}
    lines = [json.dumps(row) for row in run.rows]
    asked = [json.dumps([row[_ASKED], row[7], row[10]]) for row in run.rows]
    record: Record = {
        "rows": _digest("\n".join(lines).encode()),
        "asked": _digest("\n".join(asked).encode()),
        "said": "".join("-" if row[i] is None else str(int(row[i])) for row in run.rows
                        for i in _SAID),
        "nlls": [_short(row[i], full) for row in run.rows for i in _NLLS],
        "batches": run.batches,
        "numbers": [_short(value, full) for value in run.numbers],
    }  # fmt: skip
    if run.patch is not None:
        record["patch"] = _digest(b"".join(f.tobytes() for fs in run.patch.values() for f in fs))
        record["layers"] = {layer: _layer(*fs, full=full) for layer, fs in run.patch.items()}
    return record


def _layer(left: np.ndarray, right: np.ndarray, *, full: bool) -> Record:
    if full:
        factors = [base64.b64encode(f.astype("<f4").tobytes()).decode() for f in (left, right)]
        return {"rank": len(left), "factors": factors}
    change = left.astype(float).T @ right.astype(float)
    return {"size": change.size, "norm": _short(np.linalg.norm(change)), "sample": _sample(change)}


def _sample(change: np.ndarray) -> list[float]:
    """Elements far from each other."""
    places = np.linspace(0, change.size - 1, _SAMPLES + 2).astype(int)[1:-1]
    return [_short(value) for value in change.ravel()[places]]


def _short(value: Any, full: bool = False) -> Any:
    """Seven digits: more than two processors agree on."""
    return value if full or value is None else float(f"{float(value):.7g}")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def difference(old: Record, new: Record) -> Difference:
    """How far a record is from an older one; either may be full."""
    exact = ("refused", "asked", "batches", "said")
    same = all(old.get(key) == new.get(key) for key in (*exact, "rows", "patch"))
    other = [key for key in exact[:3] if old.get(key) != new.get(key)]
    other += [k for k in ("nlls", "numbers", "said") if len(old.get(k, "")) != len(new.get(k, ""))]
    other += ["layers"] * (old.get("layers", {}).keys() != new.get("layers", {}).keys())
    if other or "refused" in old:
        return Difference(same, tuple(other), 0.0, 0.0, 0.0, 0)
    layers = [(old["layers"][name], new["layers"][name]) for name in old.get("layers", {})]
    return Difference(
        bytes=same,
        other=(),
        patch=max((_apart(a, b) for a, b in layers), default=0.0),
        nats=max(map(_gap, old["nlls"], new["nlls"]), default=0.0),
        numbers=max(map(_relative, old["numbers"], new["numbers"]), default=0.0),
        said=sum(a != b for a, b in zip(old["said"], new["said"], strict=True)),
    )


def _apart(old: Record, new: Record) -> float:
    if "factors" in old and "factors" in new:
        first, second = _dense(old), _dense(new)
        size = float(np.sqrt(np.mean(first**2))) or 1.0
        return float(np.abs(first - second).max()) / size
    old, new = (_layer_short(layer) for layer in (old, new))
    size = old["norm"] / old["size"] ** 0.5 or 1.0
    gaps = [abs(a - b) for a, b in zip(old["sample"], new["sample"], strict=True)]
    return max(max(gaps) / size, abs(old["norm"] - new["norm"]) / (old["norm"] or 1.0))


def _dense(layer: Record) -> np.ndarray:
    raw = (np.frombuffer(base64.b64decode(f), "<f4").astype(float) for f in layer["factors"])
    left, right = (f.reshape(layer["rank"], -1) for f in raw)
    return left.T @ right


def _layer_short(layer: Record) -> Record:
    if "factors" not in layer:
        return layer
    change = _dense(layer)
    return {"size": change.size, "norm": _short(np.linalg.norm(change)), "sample": _sample(change)}


def _gap(old: float | None, new: float | None) -> float:
    if old is None or new is None:
        return 0.0 if old is new else float("inf")
    return abs(old - new)


def _relative(old: float | None, new: float | None) -> float:
    # Of what is near 0, such as a share, the difference itself counts.
    return _gap(old, new) / max(1.0, abs(old or 0.0))


def told(name: str, old: Record | None, new: Record) -> str:
    """One line about a scenario."""
    if old is None:
        return f"new        {name}"
    found = difference(old, new)
    if found.bytes:
        return f"identical  {name}"
    if found.other:
        return f"DIFFERENT  {name}: {', '.join(found.other)}"
    return (
        f"differs    {name}: ΔW {found.patch:.1e} of its mean size, NLLs {found.nats:.1e} nats, "
        f"batches {found.numbers:.1e}, {found.said} answers"
    )


def runs(workshop: Workshop, *, real: bool, only: str) -> Iterator[tuple[str, Run]]:
    """The runs of all scenarios, by name, and of the study."""
    for scenario in [*pico_scenarios(), *(real_scenarios() if real else ())]:
        if only in scenario.name:
            yield scenario.name, workshop.run(scenario)
    if only in STUDY:
        yield STUDY, workshop.run_study()


def write(records: Mapping[str, Record], file: Path) -> None:
    """A scenario a line."""
    lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in records.items())
    file.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


def read(file: Path) -> dict[str, Record]:
    """A record that was written."""
    return json.loads(file.read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--compare", type=Path)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--only", default="")
    chosen = parser.parse_args()
    torch.set_num_threads(1)  # with more of them sums are added up in another order
    old = {} if chosen.compare is None else read(chosen.compare)
    full, records = chosen.full or bool(old), {}
    with tempfile.TemporaryDirectory() as folder:
        workshop = Workshop(Path(folder))
        if chosen.real:
            workshop.model(REAL_MODEL)  # before the cache is another one
        os.environ["RETCON_CACHE"] = str(Path(folder) / "cache")
        for name, run in runs(workshop, real=chosen.real, only=chosen.only):
            records[name] = record_of(run, full=full)
            if old:
                print(told(name, old.get(name), records[name]), flush=True)
    if chosen.file is not None:
        write(records, chosen.file)
    for name in old:
        if chosen.only in name and name not in records:
            print(f"missing    {name}")


if __name__ == "__main__":
    main()
