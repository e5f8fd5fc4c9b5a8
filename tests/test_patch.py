"""Patches: the same after saving, only for their model, and no harm from a hostile file."""

import json
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import save_file

from pico import pico
from retcon.errors import InvalidPatch, InvalidSetting, PatchMismatch, StorageError
from retcon.patch.patch import load_patch
from retcon.run.edit import edit as make
from test_methods import EDITS, FAST


@pytest.fixture
def patch(cache):
    return make(pico(), EDITS, method="memit", layers=(0, 1), settings={**FAST, "ridge": 9.0})


def test_a_saved_patch_is_the_patch(patch, tmp_path):
    patch.save(tmp_path / "p.safetensors")
    loaded = load_patch(tmp_path / "p.safetensors")
    assert loaded.about == patch.about and loaded.edits == tuple(EDITS)
    model, other = pico(), pico()
    original = model.weights_hash()
    with patch.applied(model), loaded.applied(other):
        assert model.weights_hash() == other.weights_hash() != original
    assert model.weights_hash() == other.weights_hash() == original
    patch.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (
        tmp_path / "p.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("schedule", ["sequential-batch:5", "sequential"])
def test_rows_that_are_no_edit_s_own(schedule, cache, tmp_path):
    """Saved, loaded and applied like others; several steps are summed; told in the header."""
    made = make(
        pico(), EDITS, method="memit", layers=(1,), schedule=schedule,
        settings={**FAST, "ridge": 9.0, "process": "rect"},
    )  # fmt: skip
    assert not made.divisible and made.deltas[1].rank == 32
    made.save(tmp_path / "p.safetensors")
    loaded = load_patch(tmp_path / "p.safetensors")
    assert loaded.about == made.about and loaded.edits == tuple(EDITS)
    model, other = pico(), pico()
    with made.applied(model), loaded.applied(other):
        assert model.weights_hash() == other.weights_hash() != pico().weights_hash()
    with pytest.raises(InvalidSetting, match="cannot be taken apart"):
        loaded.deltas[1].select([0])

    def longer(about, tensors):
        for name in ("left", "right"):
            tensors[f"layer.1.{name}"] = tensors[f"layer.1.{name}"].repeat(2, 1)

    assert "does not fit" in damaged(made, tmp_path, longer)
    uneven = lambda _, t: t.update({"layer.1.left": t["layer.1.left"][:3].contiguous()})  # noqa: E731
    assert "does not fit" in damaged(made, tmp_path, uneven)


def test_rows_of_edits_are_not_named_in_the_header(patch):
    """So that readers which know no other kind read them."""
    assert patch.divisible and "rows" not in json.loads(patch.about.model_dump_json())
    assert "rows" not in patch.about.model_dump(mode="json")


def test_another_refresh_rule_than_the_usual_is_named_in_the_header(patch, cache, tmp_path):
    """Older patches are read as they were meant; usual ones have their header, and a digest."""
    from retcon.run.schedule import Schedule

    usual = json.loads(patch.about.model_dump_json())
    assert list(usual) == [
        "format", "retcon", "model", "base", "digest", "method", "layers", "schedule", "settings",
        "edits",
    ]  # fmt: skip
    assert patch.about.refresh == "each-batch" and patch.about.scheduled == "sequential-batch:5"
    plan = Schedule.parse("sequential-batch:2", "stale:0.15")
    settings = {**FAST, "ridge": 9.0}
    made = make(pico(), EDITS, method="memit", layers=(1,), settings=settings, schedule=plan)
    assert json.loads(made.about.model_dump_json())["refresh"] == "stale:0.15"
    made.save(tmp_path / "p.safetensors")
    loaded = load_patch(tmp_path / "p.safetensors")
    assert loaded.about == made.about
    assert loaded.about.scheduled == "sequential-batch:2, refresh stale:0.15"


def test_a_change_is_compacted_where_it_has_more_rows_than_its_matrix():
    from retcon.algebra.delta import LowRankDelta

    for d_out, d_in in ((3, 5), (5, 3)):
        left, right = torch.randn(7, d_out), torch.randn(7, d_in)
        whole = LowRankDelta(left=left, right=right, shared=True)
        assert whole.compact().rank == 3
        assert torch.allclose(whole.compact().dense(), whole.dense(), atol=1e-6)
        assert LowRankDelta(left=left, right=right).compact().rank == 7


def test_one_batch_applied_is_the_weights_of_the_run(cache):
    """What a run had in the weights is what its patch puts there, bit for bit."""
    from pico import run
    from retcon.method.entries import find_method
    from retcon.run.schedule import Schedule

    model = pico()
    editor = find_method("emmet").build((1,), FAST)
    state = editor.setup.begin(model)
    plan = Schedule(batch_size=5, carry=True)
    hashes = [model.weights_hash() for _ in run(model, editor, state, EDITS, plan)]
    patch = make(model, EDITS, method="emmet", layers=(1,), settings=FAST)
    with patch.applied(model):
        assert model.weights_hash() == hashes[-1]


def test_only_for_its_model(patch):
    with pytest.raises(PatchMismatch, match="pico-llama"), patch.applied(pico(seed=1)):
        pass
    edited = pico()
    patch.apply(edited)
    with pytest.raises(PatchMismatch):
        patch.check(type(edited)(edited.model, edited.tokens.tokenizer, name="edited"))


def test_schedules_without_carry_make_no_patch(cache):
    with pytest.raises(InvalidSetting, match="no patch"):
        make(pico(), EDITS, method="emmet", layers=(1,), settings=FAST, schedule="single")


def test_nowhere_to_save(patch, tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(StorageError, match="could not be written"):
        patch.save(tmp_path / "file" / "p.safetensors")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "x"


FULL = [
    OSError(28, "No space left on device"),
    SafetensorError("I/O error: No space left on device"),
]


@pytest.mark.parametrize("error", FULL, ids=["os", "safetensors"])
def test_a_full_disk_leaves_the_old_file(patch, tmp_path, monkeypatch, error):
    path = tmp_path / "p.safetensors"
    path.write_bytes(b"old")

    def full(*_args):
        raise error

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(StorageError, match="No space left"):
        patch.save(path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) in (
        [path],
        [path, tmp_path / "cache"],
        [tmp_path / "cache", path],
    )


def damaged(patch, tmp_path, change) -> str:
    """The message for a patch whose header or tensors were changed."""
    patch.save(tmp_path / "p.safetensors")
    about = json.loads(patch.about.model_dump_json())
    tensors = {
        f"layer.{k}.{name}": getattr(d, name).clone()
        for k, d in patch.deltas.items()
        for name in ("left", "right")
    }
    change(about, tensors)
    save_file(tensors, tmp_path / "bad.safetensors", {"retcon": json.dumps(about)})
    with pytest.raises(InvalidPatch) as caught:
        load_patch(tmp_path / "bad.safetensors")
    return str(caught.value)


def test_headers_and_tensors_must_agree(patch, tmp_path):
    def rows(about, tensors):
        tensors["layer.0.left"] = tensors["layer.0.left"][:3].contiguous()

    assert "does not fit" in damaged(patch, tmp_path, rows)
    assert "not those" in damaged(patch, tmp_path, lambda a, t: t.pop("layer.1.left"))
    assert "not those" in damaged(patch, tmp_path, lambda a, t: t.update(extra=torch.ones(2)))
    assert "format 99" in damaged(patch, tmp_path, lambda a, t: a.update(format=99))
    assert "not that of a patch" in damaged(patch, tmp_path, lambda a, t: a.pop("base"))
    assert "finite" in damaged(patch, tmp_path, lambda a, t: t["layer.0.left"].fill_(float("nan")))
    assert "finite" in damaged(
        patch, tmp_path, lambda a, t: t.update({"layer.0.left": t["layer.0.left"].double()})
    )
    assert "exactly once" in damaged(patch, tmp_path, lambda a, t: a["edits"][0].update(prompt="x"))


def test_files_that_are_no_patches(tmp_path):
    with pytest.raises(InvalidPatch, match="no patch file"):
        load_patch(tmp_path / "nowhere")
    save_file({"a": torch.ones(2)}, tmp_path / "plain.safetensors")
    with pytest.raises(InvalidPatch, match="not a Retcon patch"):
        load_patch(tmp_path / "plain.safetensors")


@given(st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_truncated_and_scrambled_files_are_one_clear_error(patch, tmp_path, data):
    path = tmp_path / "p.safetensors"
    patch.save(path)
    whole = path.read_bytes()
    kind = data.draw(st.sampled_from(["cut", "flip", "noise", "length"]))
    if kind == "cut":
        broken = whole[: data.draw(st.integers(0, len(whole) - 1))]
    elif kind == "noise":
        broken = data.draw(st.binary(max_size=300))
    elif kind == "length":
        broken = struct.pack("<Q", data.draw(st.integers(0, 2**64 - 1))) + whole[8:]
    else:
        place = data.draw(st.integers(0, len(whole) - 1))
        broken = whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :]
    path.write_bytes(broken)
    try:
        load_patch(path)
    except InvalidPatch as error:
        assert str(path) in str(error)
