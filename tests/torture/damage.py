"""Ways in which files come to harm: bits, blocks, ends, places, and whole folders."""

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

Damage = Callable[[Path, random.Random], str | None]


def flip(file: Path, chance: random.Random) -> str | None:
    """One bit."""
    data = bytearray(file.read_bytes())
    if not data:
        return None
    place = chance.randrange(len(data))
    data[place] ^= 1 << chance.randrange(8)
    file.write_bytes(data)
    return f"a bit of byte {place}"


def flip_tail(file: Path, chance: random.Random) -> str | None:
    """One bit in the last tenth, where tensors and rows are."""
    data = bytearray(file.read_bytes())
    if not data:
        return None
    place = chance.randrange(len(data) * 9 // 10, len(data))
    data[place] ^= 1 << chance.randrange(8)
    file.write_bytes(data)
    return f"a bit of byte {place} of {len(data)}"


def digit(file: Path, chance: random.Random) -> str | None:
    """A digit or a letter of a text becomes another one, so that it still can be read."""
    text = file.read_bytes()[:100_000]
    places = [m.start() for m in re.finditer(rb"[0-9a-z]", text)]
    if not places:
        return None
    place = chance.choice(places)
    other = b"0123456789" if text[place : place + 1].isdigit() else b"abcdefghijklmnopqrstuvwxyz"
    data = bytearray(file.read_bytes())
    data[place] = chance.choice([c for c in other if c != data[place]])
    file.write_bytes(data)
    return f"a character at {place}"


def cut(file: Path, chance: random.Random) -> str | None:
    """The end is missing."""
    data = file.read_bytes()
    left = chance.choice([0, chance.randrange(len(data) + 1), max(0, len(data) - 1)])
    if left == len(data):
        return None
    file.write_bytes(data[:left])
    return f"cut to {left} of {len(data)} bytes"


def zeros(file: Path, chance: random.Random) -> str | None:
    """A block that a machine had not written when its power went."""
    data = bytearray(file.read_bytes())
    if not data:
        return None
    start = chance.randrange(len(data))
    size = min(len(data) - start, chance.choice([8, 512, 4096]))
    if not any(data[start : start + size]):
        return None
    data[start : start + size] = bytes(size)
    file.write_bytes(data)
    return f"{size} zeros from {start}"


def more(file: Path, chance: random.Random) -> str | None:
    """Something behind the end."""
    file.write_bytes(file.read_bytes() + chance.randbytes(chance.choice([1, 16, 1000])))
    return "bytes behind the end"


def noise(file: Path, chance: random.Random) -> str | None:
    """Nothing of the file is left."""
    file.write_bytes(chance.randbytes(chance.choice([1, 100, 5000])))
    return "noise"


def swap(file: Path, chance: random.Random) -> str | None:
    """Two files of one kind change places."""
    other = _sibling(file, chance)
    if other is None or other.read_bytes() == file.read_bytes():
        return None
    mine, its = file.read_bytes(), other.read_bytes()
    file.write_bytes(its)
    other.write_bytes(mine)
    return f"swapped with {other.name}"


def copy(file: Path, chance: random.Random) -> str | None:
    """Another file of the kind, in its place."""
    other = _sibling(file, chance)
    if other is None or other.read_bytes() == file.read_bytes():
        return None
    file.write_bytes(other.read_bytes())
    return f"a copy of {other.name}"


def remove(file: Path, chance: random.Random) -> str | None:
    """The file is gone."""
    file.unlink()
    return "removed"


def folder_instead(file: Path, chance: random.Random) -> str | None:
    """There is a folder of that name."""
    file.unlink()
    file.mkdir()
    return "a folder in its place"


def swap_folders(file: Path, chance: random.Random) -> str | None:
    """The file's folder changes places with one beside it."""
    return _with_folder(file, chance, copied=False)


def copy_folder(file: Path, chance: random.Random) -> str | None:
    """The folder beside the file's is copied over it."""
    return _with_folder(file, chance, copied=True)


def remove_folder(file: Path, chance: random.Random) -> str | None:
    """The file's folder is gone."""
    shutil.rmtree(file.parent)
    return f"the folder {file.parent.name} removed"


FILES: tuple[Damage, ...] = (
    flip, flip, flip_tail, flip_tail, digit, digit, cut, zeros, more, noise, swap, swap, copy,
    remove, folder_instead,
)  # fmt: skip
FOLDERS: tuple[Damage, ...] = (swap_folders, copy_folder, remove_folder)


def _sibling(file: Path, chance: random.Random) -> Path | None:
    """A file that could be taken for this one: of its name in a folder beside, or beside it."""
    beside = [p for p in file.parent.iterdir() if p.is_file() and p.suffix == file.suffix]
    over = [p for p in file.parent.parent.glob(f"*/*{file.suffix}") if p.is_file()]
    same = [p for p in over if p.name == file.name]
    found = sorted({*(same or over), *beside} - {file})
    return chance.choice(found) if found else None


def _with_folder(file: Path, chance: random.Random, *, copied: bool) -> str | None:
    mine = file.parent
    others = sorted(p for p in mine.parent.iterdir() if p.is_dir() and p != mine)
    if not others:
        return None
    other, aside = chance.choice(others), mine.with_name("aside")
    mine.rename(aside)
    if copied:
        shutil.copytree(other, mine)
        shutil.rmtree(aside)
    else:
        other.rename(mine)
        aside.rename(other)
    return f"{'a copy of' if copied else 'swapped with'} {other.name}"
