"""A model with and without a patch: `retcon compare`, `chat` and `serve`; no trace of it after."""

import copy
import io
import json
import subprocess
from socket import create_server

import pytest
import torch
from transformers import AutoTokenizer

from pico import pico
from retcon.edits import Case, Edit
from retcon.model.load import load
from retcon.run import close_up, serving
from retcon.run.compare import posed, side_by_side
from retcon.scoring.exact_match import Answer
from test_export import fresh, logits, saved, some_patch


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


TEMPLATE = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}model:"


def test_a_text_is_put_in_the_way_that_is_asked_for():
    tokens = pico().tokens
    assert posed(tokens, ["Who?"]) == ["Who?"]
    assert posed(tokens, ["Who?"], "question") == ["Question: Who?\nAnswer:"]
    chatty = copy.deepcopy(tokens)
    chatty.tokenizer.chat_template = TEMPLATE
    assert posed(chatty, ["Who?"], "chat") == ["user: Who?\nmodel:"]
    assert posed(chatty, ["Who?"], "chat", "Be brief.") == ["system: Be brief.\nuser: Who?\nmodel:"]


def test_chat_and_compare_ask_in_a_chat(folder, retcon, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("Paris is in\n"))
    words = ["./model", "--patch", "p.safetensors", "--tokens", "3"]
    code, _, err = retcon("chat", *words, "--ask", "chat")
    assert code == 2 and "no chat template" in err
    (folder / "model" / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    code, out, err = retcon("chat", *words, "--ask", "chat", "--system", "Be brief.")
    assert code == 0 and out.count("edited") == 1, err
    plain, asked = (
        retcon("compare", *words, "--prompts", "prompts.txt", "--ask", way)[1]
        for way in ("plain", "question")
    )
    assert plain != asked


BAD = [
    (["--patch", "p.safetensors", "--ask", "shout"], "Available: "),
    (["--patch", "p.safetensors", "--system", "Be brief."], "add --ask chat"),
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


@pytest.fixture
def server(monkeypatch):
    """Let the server's packages be there, and what stands in for the server look at its folder."""
    started: list[dict[str, object]] = []

    def run(words, *, cwd, env, check):
        names = ("edited", "base")
        outputs = {name: logits(fresh(cwd / name)) for name in names}
        tokens = {name: AutoTokenizer.from_pretrained(cwd / name) for name in names}
        started.append({"words": words, "env": env, "folder": cwd, **outputs})
        assert not check and len({one.chat_template for one in tokens.values()}) == 1
        return subprocess.CompletedProcess(words, 3)

    monkeypatch.setattr(serving, "is_serve_available", lambda: True)
    monkeypatch.setattr(serving.subprocess, "run", run)
    return started


def test_serve_lays_out_both_models_and_leaves_nothing_behind(folder, retcon, server, cache):
    code, out, err = retcon("serve", "./model", "--patch", "p.safetensors", "--port", "8123")
    assert code == 3 and "`edited` and `base` at http://127.0.0.1:8123/v1" in out, err
    (one,) = server
    assert one["words"][-6:-2] == ["--dtype", "float32", "--host", "127.0.0.1"]
    assert one["words"][-2:] == ["--port", "8123"]
    assert one["env"]["HF_HUB_OFFLINE"] == "1"
    model = load("./model")
    assert torch.equal(one["base"], logits(model))
    with some_patch(model).applied(model):
        assert torch.equal(one["edited"], logits(model))
    assert not one["folder"].exists() and one["folder"].parent == cache
    assert (folder / "model" / "config.json").exists()


def test_serve_ends_with_ctrl_c_and_says_what_it_lacks(folder, retcon, server, monkeypatch):
    def interrupted(*_words, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(serving.subprocess, "run", interrupted)
    code, _, err = retcon("serve", "./model", "--patch", "p.safetensors")
    assert code == 130 and "Nothing is served any more" in err
    with create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, _, err = retcon("serve", "./model", "--patch", "p.safetensors", "--port", port)
    assert code == 2 and f"Port {port}" in err and "another --port" in err
    monkeypatch.setattr(serving, "is_serve_available", lambda: False)
    code, _, err = retcon("serve", "./model", "--patch", "p.safetensors")
    assert code == 2 and "retcon-llm[serve]" in err


def test_a_neighbour_that_goes_on_with_a_new_line_can_be_looked_at(monkeypatch):
    """Its true answer is then the most probable token that can be seen."""
    model = pico()
    case = Case(
        edit=Edit.parse("The city of {Paris} is in", "Rome", target_old="France"),
        neighbours=("Rome is a city.",),
    )
    blank = [Answer("", 0.6), Answer("Paris", 0.3), Answer("in", 0.1)]
    with monkeypatch.context() as patched:
        patched.setattr(close_up, "top_answers", lambda *_: blank)
        patched.setattr(close_up, "said", lambda *_: [Answer("\n", 1.0)])
        rows = close_up.watched(model, case)
    (row,) = [row for row in rows if row.kind == close_up.NEIGHBOUR]
    assert row.answers == ("Paris", "Rome")
    seen = close_up.look_at(model, rows)
    assert all(0 < one < 1 for sight in seen for one in sight.probabilities)
