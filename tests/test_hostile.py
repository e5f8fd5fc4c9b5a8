"""Every reader meets malformed files: one clear error each, no crash, no hang, no code run."""

import os
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hostile import KINDS, attempt, files, make_good, spoilt
from retcon.errors import InvalidAdapter
from retcon.patch.export.peft import read_peft


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder with a good one of each kind, and the structure of their model."""
    folder = tmp_path_factory.mktemp("good")
    return folder, make_good(folder)


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_malformed_files_are_one_clear_error(good, kind, seed, monkeypatch):
    folder, outline = good
    monkeypatch.chdir(folder)
    chance = random.Random(seed)
    file = chance.choice(files(kind, folder))
    whole = file.read_bytes()
    file.write_bytes(spoilt(whole, chance))
    try:
        attempt(kind, folder, outline)
    finally:
        file.write_bytes(whole)
    assert not (folder / "executed").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_good_ones_are_read(good, kind):
    folder, outline = good
    assert attempt(kind, folder, outline) is None


def test_what_is_no_regular_file_is_not_opened(good, tmp_path):
    """A pipe in a file's place would be waited for, a device read without end."""
    folder, outline = good
    os.mkfifo(tmp_path / "p.safetensors")
    assert "no patch file" in (attempt("patch", tmp_path, outline) or "")
    (tmp_path / "ledger" / "events").mkdir(parents=True)
    (tmp_path / "ledger" / "ledger.json").write_bytes((folder / "ledger/ledger.json").read_bytes())
    os.mkfifo(tmp_path / "ledger" / "events" / "000001.json")
    assert "is no file" in (attempt("ledger", tmp_path, outline) or "")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").symlink_to("/dev/zero")
    with pytest.raises(InvalidAdapter, match="no adapter_config"):
        read_peft(tmp_path / "adapter", outline, base="0" * 64)
    (tmp_path / "scores.json").symlink_to("/dev/zero")
    assert "no file" in (attempt("scores", tmp_path, outline) or "")
