"""Seals: what was written is read, and nothing else passes for it."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from retcon.errors import Damaged, RetconError, RetconWarning
from retcon.sealed import (
    FOLDER,
    check_folder,
    digest,
    load_lines,
    load_record,
    load_text,
    save_lines,
    save_record,
    save_text,
    seal_folder,
)
from retcon.sealed_tensors import check, open_tensors, save_tensors
from sealed_kinds import KINDS

MINE = {"kind": "test", "number": 1}
OTHER = {"kind": "test", "number": 2}
TENSORS = {
    "wide": torch.arange(6.0, dtype=torch.float64).reshape(2, 3).T,
    "brain": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "one": torch.tensor(7),
    "none": torch.zeros(0, 4),
    "said": torch.tensor([True, False]),
}
VALUE = {"text": "é ‖ 日本", "by": {10: [1, 2.5, None], 9: True}, "large": 10**20}
READ = json.loads(json.dumps(VALUE))


def write(kind: str, folder: Path, owner=MINE) -> Path:
    """A small file of a container."""
    if kind == "record":
        save_record(folder / "a.json", VALUE, owner)
        return folder / "a.json"
    if kind == "text":
        save_text(folder / "a.jsonl", '{"a": 1}\n{"b": "日本"}\n', owner)
        return folder / "a.jsonl"
    if kind == "lines":
        save_lines(folder / "lines.jsonl", VALUE, [{"a": "é\n"}, VALUE], owner)
        return folder / "lines.jsonl"
    if kind == "tensors":
        save_tensors(folder / "a.safetensors", TENSORS, owner, VALUE)
        return folder / "a.safetensors"
    made = folder / "made"
    (made / "in").mkdir(parents=True)
    (made / "config.json").write_text("{}", encoding="utf-8")
    (made / "in" / "weights").write_bytes(bytes(20))
    seal_folder(made, owner)
    return made


def read(path: Path, owner=MINE):
    """What is in a file of any container."""
    if path.is_dir():
        return check_folder(path, owner), sorted(p.name for p in path.rglob("*") if p.is_file())
    if path.suffix == ".safetensors":
        with open_tensors(path, owner) as opened:
            found = {name: (t.dtype, t.tolist()) for name, t in opened.read_all().items()}
            return opened.sealed, opened.about, found
    if path.name == "lines.jsonl":
        return True, load_lines(path, owner)
    return (load_record if path.suffix == ".json" else load_text)(path, owner)


def look(path: Path, owner) -> bool:
    """Whether all of a file is sealed, by the reader that commands use for it."""
    return read(path, owner)[0] if path.name == "lines.jsonl" else check(path, owner)


CONTAINERS = ["record", "text", "lines", "tensors", "folder"]


@pytest.mark.parametrize("kind", CONTAINERS)
def test_what_was_written_is_read_and_written_the_same_again(kind, tmp_path):
    path = write(kind, tmp_path)
    found = read(path)
    assert found[0] is True or found[1] is True
    if kind == "lines":
        assert found[1] == (READ, [{"a": "é\n"}, READ])
    assert look(path, MINE)
    if kind == "tensors":
        assert found[1:] == (READ, {n: (t.dtype, t.tolist()) for n, t in TENSORS.items()})
    if kind == "record":
        assert found.value == READ
    (tmp_path / "again").mkdir()
    again = write(kind, tmp_path / "again")
    for one in [path] if path.is_file() else path.rglob("*"):
        if one.is_file():
            other = again if one == path else again / one.relative_to(path)
            assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("kind", CONTAINERS)
def test_a_flipped_bit_never_passes(kind, tmp_path):
    """Each bit of each byte: either an error, or the very content."""
    path = write(kind, tmp_path)
    good = read(path)
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        whole = file.read_bytes()
        for place in range(len(whole)):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << (place * 5 % 8)
            file.write_bytes(flipped)
            try:
                found = read(path)
            except (Damaged, FileNotFoundError):
                continue
            # Blanks between the parts of a JSON text say nothing.
            assert found == good, (file.name, place)
        file.write_bytes(whole)


@pytest.mark.parametrize("kind", CONTAINERS)
def test_a_cut_file_never_passes(kind, tmp_path):
    path = write(kind, tmp_path)
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        whole = file.read_bytes()
        for length in range(len(whole) - 1):
            file.write_bytes(whole[:length])
            with pytest.raises(Damaged):
                look(path, MINE)
        file.write_bytes(whole)


@pytest.mark.parametrize("kind", CONTAINERS)
def test_another_s_is_refused_by_name(kind, tmp_path):
    path = write(kind, tmp_path, OTHER)
    with pytest.raises(Damaged, match="it is of number 2, and number 1 was asked for"):
        look(path, MINE)
    assert look(path, {"kind": "test"})  # who does not care which


def test_what_is_no_file_is_not_opened(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "zeros.json").symlink_to("/dev/zero")
    (tmp_path / "folder.json").mkdir()
    for name in ("pipe.json", "zeros.json", "folder.json"):
        with pytest.raises(Damaged, match="is no file"):
            load_record(tmp_path / name, MINE)
    with pytest.raises(FileNotFoundError):
        check(tmp_path / "absent.json", MINE)


@pytest.mark.parametrize(
    "text", ["", "[" * 5000, "1" * 5000, '{"a": nope}', "\ud800", '{"seal": 1}', '{"seal": {}}']
)
def test_odd_json_is_damage(text, tmp_path):
    (tmp_path / "a.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(Damaged):
        load_record(tmp_path / "a.json", MINE)


def test_what_was_written_without_a_seal_is_read_and_says_so(tmp_path):
    (tmp_path / "a.json").write_text('[{"x": 1}]', encoding="utf-8")
    assert load_record(tmp_path / "a.json", MINE) == ([{"x": 1}], False)
    (tmp_path / "a.yaml").write_text("# a study\nx: 1\n", encoding="utf-8")
    assert load_text(tmp_path / "a.yaml", MINE) == ("# a study\nx: 1\n", False)
    save_file({"x": torch.ones(2)}, tmp_path / "a.safetensors", {"retcon": "abc", "more": "x"})
    with open_tensors(tmp_path / "a.safetensors", MINE) as opened:
        assert (opened.sealed, opened.about, opened.metadata["more"]) == (False, "abc", "x")
        assert (opened.shape("x"), opened.dtype("x")) == ((2,), "F32")
    made = write("folder", tmp_path)
    (made / FOLDER).unlink()
    assert not check(made, MINE)


def test_a_file_more_or_less_in_a_folder_is_damage(tmp_path):
    made = write("folder", tmp_path)
    (made / ".lock").touch()
    assert check(made, MINE)
    (made / "adapter_config.json").touch()
    with pytest.raises(Damaged, match=r"adapter_config.json was added or removed"):
        check(made, MINE)


def test_a_digest_is_of_the_value_not_of_its_layout():
    assert digest({"a": 1, "b": [1.0]}) == digest(json.loads('{ "b": [1.0],\n "a": 1 }'))
    assert digest([1]) != digest([1.0]) != digest(["1.0"])


def flip(files: list[Path], *, last: bool) -> None:
    """A bit of a letter or digit in the first half, or of the very last byte."""
    content = bytearray(files[0].read_bytes())
    places = [i for i, byte in enumerate(content) if chr(byte).isalnum() and byte < 128]
    content[-2 if last else places[len(places) // 3]] ^= 1
    files[0].write_bytes(content)


def swap(files: list[Path]) -> None:
    """Two of a kind change places, the first with one that differs."""
    one, *others = (file.read_bytes() for file in files)
    place = next(i for i, other in enumerate(others, start=1) if other != one)
    files[0].write_bytes(others[place - 1])
    files[place].write_bytes(one)


DAMAGE = {
    "content": lambda files: flip(files, last=True),
    "about": lambda files: flip(files, last=False),
    "cut": lambda files: files[0].write_bytes(files[0].read_bytes()[:-9]),
    "empty": lambda files: files[0].write_bytes(b""),
    "swapped": swap,
}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder for each way to make one, and what is read from it."""
    made = {}

    def ask(name):
        kind = KINDS[name]
        with pytest.MonkeyPatch.context() as patch:
            if kind.make not in made:
                made[kind.make] = tmp_path_factory.mktemp("good") / "cache"
                use_as_cache(made[kind.make], patch)
                kind.make(made[kind.make])
            folder = made[kind.make]
            if (kind.make, kind.use) not in made:
                copy = shutil.copytree(folder, tmp_path_factory.mktemp("copy") / "cache")
                use_as_cache(copy, patch)
                made[kind.make, kind.use] = kind.use(copy)
        return folder, made[kind.make, kind.use]

    return ask


def use_as_cache(folder, monkeypatch):
    monkeypatch.setenv("RETCON_CACHE", str(folder))
    monkeypatch.delenv("RETCON_CACHE_LIMIT", raising=False)
    folder.mkdir(parents=True, exist_ok=True)


def same(found, expected):
    """To the last bits but those in which targets differ that were made in other company."""
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


# A patch file may be called anything; of these there is but one, or all are equal.
NOT_SWAPPED = {"patches", "ledgers", "studies", "study files", "tunings", "environments",
               "packed cells", "packed rows", "packed steps", "packed study files"}  # fmt: skip
TRIES = [(name, damage) for name in KINDS for damage in DAMAGE
         if damage != "swapped" or name not in NOT_SWAPPED]  # fmt: skip


@pytest.mark.parametrize(("name", "damage"), TRIES, ids=["-".join(each) for each in TRIES])
def test_damage_is_told_and_nothing_wrong_comes_of_it(name, damage, good, tmp_path, monkeypatch):
    kind, (folder, expected) = KINDS[name], good(name)
    copy = shutil.copytree(folder, tmp_path / "copy" / "cache")
    use_as_cache(copy, monkeypatch)
    assert kind.verify(copy) == []
    files = sorted(path for path in copy.glob(kind.files) if path.is_file())
    DAMAGE[damage](files)
    assert kind.verify(copy)
    if kind.outcome == "named":
        with pytest.raises(RetconError, match=r"damaged|digest|another|written|hash"):
            kind.use(copy)
        return
    with pytest.warns(RetconWarning, match="made anew"):
        same(kind.use(copy), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RetconWarning)
        same(kind.use(copy), expected)


def test_what_is_verified_is_shown_and_damage_ends_with_2(good, tmp_path, monkeypatch, retcon):
    """The same for a cache and for a study; nothing is changed by it."""
    for name, words, kind in (
        ("targets", ["cache", "verify"], "targets"),
        ("rows", ["study", "verify", "study"], "cells"),
    ):
        copy = shutil.copytree(good(name)[0], tmp_path / name / "cache")
        use_as_cache(copy, monkeypatch)
        monkeypatch.chdir(copy)
        code, out, _ = retcon(*words)
        assert code == 0 and kind in out and "without a digest" in out
        file = sorted(copy.glob(KINDS[name].files))[0]
        DAMAGE["content"]([file])
        code, out, err = retcon(*words, "--json", "found.json")
        assert code == 2 and file.parent.name in out and "damaged" in out and "error" in err
        kinds = {one["kind"]: one for one in json.loads(Path("found.json").read_text())["kinds"]}
        assert len(kinds[kind]["damaged"]) == 1 and kinds[kind]["whole"] > 0
        assert file.exists()
