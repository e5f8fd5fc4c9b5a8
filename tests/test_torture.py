"""The torture harness can fail: what it must call a fault, and what not. `make torture` runs it."""

import shutil
from pathlib import Path

import pytest

from torture import damage, tries
from torture.running import HANG, Ending
from torture.tries import Command, Right, World

ONE = Command("one", ["x"], ["p.json"], makes="out.json")
VERIFY = Command("verify", ["x"], ["p.json"], "verify")
TOLD = Command("told", ["x"], ["p.json"], "told", makes="out.json")
SAYS = Command("says", ["x"], ["p.json"])


@pytest.fixture
def world(tmp_path: Path) -> World:
    good, work = tmp_path / "good", tmp_path / "work"
    good.mkdir()
    (good / "p.json").write_text('{"a": 1}')
    (good / "p.safetensors").write_text("a patch")
    shutil.copytree(good, work)
    (work / "out.json").write_text('{"b": 2, "seconds": 5}')
    right = {one.name: Right("fine", "", tries._made(one, work), 0.1) for one in (ONE, TOLD)}
    right |= {one.name: Right("fine", "", {}, 0.1) for one in (VERIFY, SAYS)}
    return World(good, work, None, right, tries._digests(good))


def judged(world, one, code=0, out="fine", err="", made='{"b": 2}', damaged='{"a": 2}'):
    (world.work / "p.json").write_text(damaged)
    (world.work / "out.json").write_text(made)
    return tries._judged(one, world, Ending(code, out, err, 0.1), world.work / "p.json")


def test_what_is_right_is_no_fault(world):
    assert judged(world, ONE) == ("same", None)
    assert judged(world, ONE, made='{"b": 2, "seconds": 99}') == ("same", None)
    assert judged(world, ONE, code=2, err="error: p.json is damaged") == ("refused", None)
    assert judged(world, ONE, err="warning: made anew") == ("same", None)
    assert judged(world, TOLD, err="warning: left out", made='{"b": 3}') == ("told", None)
    assert judged(world, VERIFY, out="p.json is damaged", code=2) == ("refused", None)
    assert judged(world, VERIFY, damaged='{ "a":1 }') == ("same", None)  # says the same


@pytest.mark.parametrize(
    ("one", "ending", "fault"),
    [
        (ONE, {"made": '{"b": 3}'}, "another result, exit 0, and no word"),
        (ONE, {"made": '{"b": 3}', "err": "warning: ?"}, "another result, exit 0, with a word"),
        (TOLD, {"made": '{"b": 3}'}, "another result, exit 0, and no word"),
        (VERIFY, {}, "verify finds nothing"),
        (SAYS, {"out": "something else"}, "says something else, exit 0"),
        (ONE, {"code": 1, "err": "Traceback (most recent call last):"}, "traceback"),
        (ONE, {"code": 2, "out": "", "err": ""}, "exit 2 without a word"),
        (ONE, {"code": -11}, "exit code -11"),
        (ONE, {"code": HANG}, "does not end"),
    ],
)
def test_what_is_wrong_is_a_fault(world, one, ending, fault):
    assert judged(world, one, **ending) == ("fault", fault)


def test_a_finished_file_that_is_nowhere_is_lost(world):
    before = tries._digests(world.work)
    (world.work / "aside").mkdir()
    (world.work / "p.safetensors").rename(world.work / "aside" / "p.safetensors")
    assert tries._lost(world, before) is None
    (world.work / "aside" / "p.safetensors").write_text("")
    assert tries._lost(world, before) == "lost: p.safetensors"


def test_harm_is_done_and_is_the_same_for_a_seed(tmp_path):
    import random

    for harm in {*damage.FILES}:
        found = []
        for copy in ("one", "two"):
            folder = tmp_path / harm.__name__ / copy / "it"
            folder.mkdir(parents=True)
            for name in ("a.json", "b.json"):
                (folder / name).write_text(f'{{"name": "{name}", "n": 12}}' * 9)
            said = harm(folder / "a.json", random.Random("seed"))
            left = folder / "a.json"
            found.append((said, left.read_bytes() if left.is_file() else None))
            assert said is not None
            assert found[-1][1] != b'{"name": "a.json", "n": 12}' * 9
        assert found[0] == found[1]
