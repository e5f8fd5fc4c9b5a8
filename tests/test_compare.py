"""`retcon compare` and `retcon chat`: both models side by side, and no trace of the patch after."""

import io
import json

import pytest

from retcon.model.load import load
from retcon.run.compare import side_by_side
from test_export import saved, some_patch


@pytest.fixture
def folder(tmp_path, monkeypatch):
    model = saved("llama", tmp_path / "model")
    some_patch(model).save(tmp_path / "p.safetensors")
    (tmp_path / "prompts.txt").write_text("Paris is in\n\nThe city of\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def test_both_speak_and_the_model_stays(folder):
    model = load("./model")
    before = model.weights_hash()
    patch = some_patch(model)
    (row,) = side_by_side(model, patch, ["Paris is in"], tokens=4, top=2)
    assert model.weights_hash() == before and row.changed
    assert [len(said.top) for said in (row.base, row.edited)] == [2, 2]
    with patch.applied(model):
        (same,) = side_by_side(model, some_patch(model, size=0.0), ["Paris is in"], tokens=4, top=2)
    assert same.base.text == row.edited.text


def test_compare_on_the_command_line(folder, retcon):
    code, out, err = retcon(
        "compare", "./model", "--patch", "p.safetensors", "--prompts", "prompts.txt",
        "--json", "c.json", "--top", "2",
    )  # fmt: skip
    assert code == 0 and "of 2 continuations changed" in out, err
    found = json.loads((folder / "c.json").read_text(encoding="utf-8"))["prompts"]
    assert [row["prompt"] for row in found] == ["Paris is in", "The city of"]
    assert len(found[0]["edited"]["top"]) == 2 and found[0]["changed"]
    code, out, err = retcon("compare", "./model", "--patch", "p.safetensors")
    assert code == 0 and "Danielle Darrieux" in out and "of 3" in out, err


def test_chat_reads_lines_until_an_empty_one(folder, retcon, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("Paris is in\nThe city of\n\nnot asked\n"))
    code, out, err = retcon("chat", "./model", "--patch", "p.safetensors", "--tokens", "3")
    assert code == 0, err
    assert out.count("edited") == 2 and "The city of" in out and "not asked" not in out


BAD = [
    (["--patch", "nowhere"], "no patch file"),
    (["--patch", "p.safetensors", "--prompts", "nowhere"], "no file"),
    (["--patch", "p.safetensors", "--prompts", "empty.txt"], "holds no prompts"),
    (["--patch", "p.safetensors", "--prompts", "model/model.safetensors"], "Save it as UTF-8"),
]


@pytest.mark.parametrize(("words", "said"), BAD, ids=[" ".join(w) for w, _ in BAD])
def test_mistakes_say_what_to_do(folder, retcon, words, said):
    (folder / "empty.txt").write_text("\n\n", encoding="utf-8")
    code, _, err = retcon("compare", "./model", *words)
    assert code == 2 and said in err
