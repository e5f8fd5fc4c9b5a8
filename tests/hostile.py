"""Malformed files of every kind that Retcon reads back, and what reading one may do.

Each kind is made from a good folder by cutting, flipping, splicing or replacing bytes, or by
changing JSON where it stands. A reader may accept what it gets or raise one `RetconError`: nothing
else, nothing for long, and no code. Used by the tests in small numbers and by
`benchmarks/malformed.py` in large ones.
"""

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pico import pico
from retcon.errors import RetconError
from retcon.model.checkpoint import CheckpointFiles
from retcon.model.structure import Outline
from retcon.patch.events import read_scores
from retcon.patch.export.lora import lora_of
from retcon.patch.export.peft import read_peft, write_peft
from retcon.patch.ledger import Ledger
from retcon.patch.patch import load_about, load_patch
from retcon.patch.verify import verify
from test_export import some_patch

# What JSON may hold in the place of what should be there.
ODD: list[Any] = [
    None, True, -1, 0, 1, 2**31, 2**63, -(2**70), 1e308, "", "x", "../../../etc/passwd",
    "/dev/zero", "\x00", "\x1b[2J", "{}", "🎭" * 40, [], {}, [[]], {"": None}, [1] * 50,
    "__import__('os').system('touch executed')", "!!python/object/apply:os.system ['true']",
    "0" * 64, "f" * 64, float("inf"), float("nan"), {"__reduce__": ["os.system", "true"]},
]  # fmt: skip
KINDS = ("patch", "ledger", "adapter", "checkpoint", "scores")


def make_good(folder: Path) -> Outline:
    """Fill a folder with a good one of each kind; the structure of the model they are for."""
    model = pico()
    patch = some_patch(model)
    patch.save(folder / "p.safetensors")
    ledger = Ledger(folder / "ledger")
    ledger.add(patch, who="ann", note="one", scores={"final": {"ES": 1.0}})
    ledger.add(some_patch(model, layers=(2,)), who="bob")
    ledger.undo(ledger.choose(["1:a"], [2]), who="ann")
    ledger.back_to(2, who="ann")
    (folder / "adapter").mkdir()
    lora = lora_of(patch, model.outline, dtype=torch.float32)
    write_peft(folder / "adapter", patch, lora, model.outline, torch.float32)
    model.model.save_pretrained(folder / "checkpoint", max_shard_size="60KB")
    scores = {"pre": {"ES": 1.0}, "final": {"ES": None}, "model": "x"}
    (folder / "scores.json").write_text(json.dumps(scores), encoding="utf-8")
    return model.outline


def read(kind: str, folder: Path, outline: Outline) -> None:
    """Read everything of one kind that a folder holds."""
    if kind == "patch":
        load_about(folder / "p.safetensors")
        load_patch(folder / "p.safetensors").edits  # noqa: B018
    elif kind == "ledger":
        verify(Ledger(folder / "ledger"))
        for entry in Ledger(folder / "ledger").entries():
            Ledger(folder / "ledger").patch(entry.number)
    elif kind == "adapter":
        read_peft(folder / "adapter", outline, base=load_about(folder / "p.safetensors").base)
    elif kind == "checkpoint":
        found = CheckpointFiles(folder / "checkpoint", outline)
        found.fingerprint  # noqa: B018
    else:
        read_scores(folder / "scores.json")


def files(kind: str, folder: Path) -> list[Path]:
    """The files of one kind in a folder."""
    if kind in ("ledger", "adapter", "checkpoint"):
        found = [file for file in (folder / kind).rglob("*") if file.is_file()]
        wanted = (".json", ".safetensors")
        return sorted(file for file in found if file.suffix in wanted and file.name[0] != ".")
    return [folder / {"patch": "p.safetensors", "scores": "scores.json"}[kind]]


def spoilt(whole: bytes, chance: random.Random) -> bytes:
    """The bytes of a file, made wrong in one of several ways."""
    return chance.choice([_cut, _flipped, _spliced, _length, _noise, _json])(whole, chance)


def attempt(kind: str, folder: Path, outline: Outline) -> str | None:
    """Read a kind; what a user would be told, or None where it was taken for good.

    Raises:
        AssertionError: an error that says nothing.
    """
    try:
        read(kind, folder, outline)
    except RetconError as error:
        said = str(error)
        assert said.strip() and len(said) < 5000, said[:200]
        return said
    return None


def _cut(whole: bytes, chance: random.Random) -> bytes:
    return whole[: chance.randrange(len(whole) + 1)]


def _flipped(whole: bytes, chance: random.Random) -> bytes:
    made = bytearray(whole)
    for _ in range(chance.choice([1, 1, 2, 8])):
        place = chance.randrange(min(len(made), chance.choice([16, 1000, 10**9])))
        made[place] ^= 1 << chance.randrange(8)
    return bytes(made)


def _spliced(whole: bytes, chance: random.Random) -> bytes:
    start, end = sorted(chance.randrange(len(whole) + 1) for _ in range(2))
    part = whole[start:end]
    return whole[:start] + part * chance.choice([0, 2, 3]) + whole[end:]


def _length(whole: bytes, chance: random.Random) -> bytes:
    length = chance.choice([0, 1, 2**31, 2**63, 2**64 - 1, chance.randrange(2**20)])
    return struct.pack("<Q", length) + whole[8:]


def _noise(whole: bytes, chance: random.Random) -> bytes:
    return chance.randbytes(chance.choice([0, 1, 7, 8, 9, 200, 5000]))


def _json(whole: bytes, chance: random.Random) -> bytes:
    """One value of the JSON changed: of the file, or of a safetensors header and the text in it."""
    if whole[:1] in b"{[":
        return _text(_changed(json.loads(whole), chance))
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    own = header.get("__metadata__", {}).get("retcon")
    if own is not None and chance.random() < 0.6:
        header["__metadata__"]["retcon"] = _text(_changed(json.loads(own), chance)).decode()
    else:
        header = _changed(header, chance)
    text = _text(header)
    return len(text).to_bytes(8, "little") + text + whole[8 + length :]


def _text(value: object) -> bytes:
    return json.dumps(value).encode()


def _changed(value: Any, chance: random.Random) -> Any:
    """A JSON value with something in it replaced, removed, repeated or nested too deep."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(sorted(value))
        return _one(value, key, chance) if chance.random() < 0.9 else {**value, "x": 1}
    if isinstance(value, list) and value and chance.random() < 0.8:
        place = chance.randrange(len(value))
        return [*value[:place], _changed(value[place], chance), *value[place + 1 :]]
    return chance.choice(ODD)


def _one(value: dict[str, Any], key: str, chance: random.Random) -> dict[str, Any]:
    ways: list[Callable[[], dict[str, Any]]] = [
        lambda: {**value, key: _changed(value[key], chance)},
        lambda: {**value, key: chance.choice(ODD)},
        lambda: {name: held for name, held in value.items() if name != key},
        lambda: {**value, key: {"a": value}},
    ]
    return chance.choice(ways)()
