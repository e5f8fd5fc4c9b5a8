"""The command line as a user meets it: what it prints, what it writes, how it fails."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from pico import pico, tokenizer
from retcon.cli.choices import parse_layers, told_layers
from retcon.locking import locked
from retcon.patch.patch import load_patch

FACTS = [
    {"prompt": "The mother tongue of {Danielle Darrieux} is", "target": "English",
     "target_old": "French", "paraphrases": ["Danielle Darrieux was"], "neighbours": ["Paris is"]},
    {"prompt": "{Marie Curie} was born in the city of", "target": "London", "target_old": "Warsaw",
     "paraphrases": ["Marie Curie is of"], "neighbours": ["Poland is"]},
    {"prompt": "The capital city of {France} is", "target": "Rome", "target_old": "Paris",
     "paraphrases": ["France is of"], "neighbours": ["The Eiffel Tower is in"]},
]  # fmt: skip
FAST = ["steps=3", "corpus_tokens=400", "document_tokens=32", "jitter=1e-3"]
SETTINGS = [part for setting in FAST for part in ("--set", setting)]


@pytest.fixture
def folder(tmp_path, cache, monkeypatch):
    """A folder with a model, facts, and nothing else; also the working directory."""
    model = pico()
    model.model.save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    lines = "\n".join(json.dumps(fact) for fact in FACTS)
    (tmp_path / "facts.jsonl").write_text(lines, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def test_version_and_help(retcon):
    import retcon as package

    assert retcon("--version")[:2] == (0, f"retcon {package.__version__}\n")
    code, out, _ = retcon("eval", "--help")
    assert code == 0 and "sequential-batch" in out
    code, out, _ = retcon()
    assert code == 0 and "Begin with one of these" in out


@pytest.mark.parametrize(
    ("shell", "asked"),
    [
        ("bash", {"COMP_WORDS": "retcon patch un", "COMP_CWORD": "2"}),
        ("zsh", {"_TYPER_COMPLETE_ARGS": "retcon patch un"}),
        (
            "fish",
            {"_TYPER_COMPLETE_ARGS": "retcon patch un", "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
        ),
    ],
)
def test_shells_complete_commands(shell, asked, retcon, monkeypatch):
    monkeypatch.setenv("_RETCON_COMPLETE", f"complete_{shell}")
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    code, out, _ = retcon()
    assert code == 0 and "undo" in out and "export" not in out


def test_edit_saves_shows_and_scores(folder, retcon):
    code, out, err = retcon(
        "edit", "./model", "--fact", "The mother tongue of {Danielle Darrieux} is", "English",
        "--method", "emmet", "--layer", "1", "-o", "p.safetensors", "--json", "e.json", *SETTINGS,
    )  # fmt: skip
    assert code == 0, err
    assert "token_accuracy" in out and "ES" not in out and "p.safetensors" in out
    result = json.loads((folder / "e.json").read_text(encoding="utf-8"))
    assert result["final"]["ES"] is None and result["final"]["token_accuracy"] is not None
    assert [edit.target for edit in load_patch("p.safetensors").edits] == ["English"]
    code, out, _ = retcon("patch", "show", "p.safetensors")
    assert code == 0 and "Danielle Darrieux" in out and "emmet" in out
    code, out, err = retcon(
        "eval", "./model", "--patch", "p.safetensors", "--cases", "facts.jsonl", "--json", "v.json"
    )
    assert code == 0, err
    scores = json.loads((folder / "v.json").read_text(encoding="utf-8"))
    assert scores["immediate"] is None and scores["final"]["ES"] is not None


def test_eval_scores_a_patch_after_treatments(folder, retcon):
    made = retcon(
        "edit", "./model", "--facts", "facts.jsonl", *EMMET, "-o", "p.safetensors", *SETTINGS
    )
    assert made[0] == 0
    code, out, err = retcon(
        "eval", "./model", "--patch", "p.safetensors", "--cases", "facts.jsonl",
        "--after", "int4", "--after", "with:p.safetensors", "--json", "v.json",
    )  # fmt: skip
    assert code == 0, err
    assert "after int4" in out and "after with:p.safetensors" in out
    result = json.loads((folder / "v.json").read_text(encoding="utf-8"))
    assert {*result["after"]} == {"int4", "with:p.safetensors"}
    for scores in result["after"].values():
        assert scores["final"]["ES"] is not None and scores["immediate"] is None
        assert {*scores["intervals"]} == {"pre", "final"}


def test_eval_records_everything(folder, retcon):
    code, out, err = retcon(
        "eval", "./model", "--cases", "facts.jsonl", "--method", "memit", "--layers", "0-1",
        "--schedule", "sequential-batch:2", "--set", "ridge=7", "--json", "v.json", *SETTINGS,
        "--fast",
    )  # fmt: skip
    assert code == 0, err
    result = json.loads((folder / "v.json").read_text(encoding="utf-8"))
    for when in ("pre", "immediate", "final"):
        assert {"ES", "PS", "NS", "S", "token_accuracy", "exact_match"} <= set(result[when])
    assert result["settings"]["descent"] == "sphere" and result["rule"] is None  # other steps
    assert result["n"] == 3 and result["settings"]["ridge"] == 7 and result["layers"] == [0, 1]
    assert result["schedule"] == "sequential-batch:2" and len(result["steps"]) == 2
    assert result["covariance"]["tokens"] >= 400 and result["covariance"]["jitter"] == 1e-3
    assert result["seconds_per_edit"] > 0 and result["versions"]["torch"]
    assert "immediate" in out and "final" in out


def test_without_carry_final_is_null_and_without_method_only_pre(folder, retcon):
    base = ["eval", "./model", "--cases", "facts.jsonl", "--json", "v.json"]
    assert retcon(*base, "--method", "emmet", "--layer", "1", *SETTINGS)[0] == 0
    result = json.loads((folder / "v.json").read_text(encoding="utf-8"))
    assert result["final"] is None and result["immediate"] is not None
    assert retcon(*base)[0] == 0
    result = json.loads((folder / "v.json").read_text(encoding="utf-8"))
    assert result["immediate"] is None and result["pre"]["NS"] is not None


def test_probe_stats_methods_and_plan(folder, retcon):
    code, out, _ = retcon("probe", "./model", "--json", "p.json")
    assert code == 0 and "mlp.down_proj" in out
    assert json.loads((folder / "p.json").read_text(encoding="utf-8"))["d_in"] == 48
    options = ["--set", "corpus_tokens=300", "--set", "document_tokens=32", "--json", "s.json"]
    code, out, err = retcon("stats", "./model", "--layers", "0,2", *options)
    assert code == 0 and "smallest pivot" in out, err
    tokens = json.loads((folder / "s.json").read_text(encoding="utf-8"))["tokens"]
    assert set(tokens) == {"0", "2"}
    assert "MEMIT" in retcon("methods", "memit")[1] and "rome" in retcon("methods")[1]
    code, out, err = retcon(
        "edit", "./model", "--facts", "facts.jsonl", "--method", "memit", "--layer", "1", "--plan"
    )
    assert code == 0 and "GFLOP/s" in out and "targets of 3" in out, err


@pytest.mark.parametrize(
    ("layers", "told"),
    [((5,), "5"), ((3, 4, 5), "3,4,5"), (tuple(range(30)), "0-29"), ((1, 2, 3, 5), "1,2,3,5")],
)
def test_layers_are_told_as_they_are_given(layers, told):
    assert told_layers(layers) == told
    assert parse_layers(None, told) == layers


# The dimensions of Llama-3-8B and Llama-3-70B; what is computed from them needs no weights.
LLAMA_3 = {
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
           "num_attention_heads": 32},
    "70B": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
            "num_attention_heads": 64},
}  # fmt: skip
PLANNED = [
    # model, options, weights, C of a layer, what else must be said
    ("8B", ["--gflops", "120000"], "14.96 GiB", "1.53 GiB", "memit at layer 1"),
    ("8B", ["--layers", "3-5", "--method", "emmet"], "14.96 GiB", "4.59 GiB", "measured here"),
    ("70B", ["--layer", "5", "--method", "emmet"], "131.42 GiB", "6.12 GiB", "573,440 tokens"),
]


@pytest.fixture
def configurations(tmp_path, monkeypatch):
    """Folders with nothing but a config.json."""
    for size, dimensions in LLAMA_3.items():
        LlamaConfig(
            vocab_size=128256, num_key_value_heads=8, dtype="bfloat16", **dimensions
        ).save_pretrained(tmp_path / size)
        assert [file.name for file in (tmp_path / size).iterdir()] == ["config.json"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.parametrize(("size", "words", "weights", "moments", "said"), PLANNED)
def test_a_plan_needs_the_configuration_alone(
    configurations, retcon, size, words, weights, moments, said
):
    asked = ("--plan", "--edits", "1000", "--dtype", "bfloat16", "--json", "p.json", *words)
    code, out, err = retcon("edit", f"./{size}", *asked)
    assert code == 0 and not err.strip(), err
    assert weights in out and moments in out and said in out and "targets of 1,000" in out
    found = json.loads(Path("p.json").read_text())
    assert found["edits"] == 1000 and f"{found['memory']['weights'] / 2**30:.2f} GiB" in out
    assert found["memory"]["together"] > found["memory"]["weights"] and found["target_seconds"] > 0


def test_probe_without_weights_says_what_it_did_not_see(configurations, retcon):
    code, out, err = retcon("probe", "./70B", "--dtype", "bfloat16", "--json", "p.json")
    assert code == 0 and "131.42 GiB in torch.bfloat16" in out, err
    assert "0 to 79" in out and "not measured" in out and "none known" in out
    assert "arxiv.org/abs/2405.00664" in retcon("probe", "./8B")[1]
    code, _, err = retcon("edit", "./8B", *FACT, *EMMET)
    assert code == 2 and "./8B" in err


FACT = ["--fact", "The capital of {France} is", "Rome"]
EMMET = ["--method", "emmet", "--layer", "1", *SETTINGS]
BAD = [
    (["edit", "./model", "--fact", "no braces", "x", *EMMET], "in braces"),
    (["edit", "./model", "--fact", "{A} is", " ", *EMMET], "target is empty"),
    (["edit", "./model", *EMMET], "neither was given"),
    (["edit", "./model", *FACT, "--facts", "facts.jsonl", *EMMET], "both were given"),
    (["edit", "./model", *FACT, "--method", "emet", "--layer", "1"], "Did you mean 'emmet'"),
    (["edit", "./model", *FACT, "--method", "emmet", "--layer", "9"], "0 to 2"),
    (["edit", "./model", *FACT, *EMMET, "--set", "stps=3"], "Did you mean 'steps'"),
    (["edit", "./model", *FACT, *EMMET, "--set", "steps=many"], "steps='many'"),
    (["edit", "./model", *FACT, *EMMET, "--set", "steps"], "name=value"),
    (["edit", "./model", *FACT, *EMMET, "--set", " =3"], "name=value"),
    (["edit", "./model", *FACT], "--layer 1"),
    (["edit", "./model", *FACT, *EMMET, "--layers", "1-x"], "not both"),
    (["edit", "./model", *FACT, "--method", "emmet", "--layers", "x"], "4-8"),
    (["edit", "./nowhere", *FACT, *EMMET], "no folder"),
    (["edit", "", *FACT, *EMMET], "no folder"),
    (["edit", ".", *FACT, *EMMET], "no config.json"),
    (["edit", "facts.jsonl", *FACT, *EMMET], "is a file"),
    (["edit", "smollm2", *FACT, *EMMET], "smollm2-135m"),
    (["edit", "./model", *FACT, *EMMET, "--dtype", "int8"], "float32"),
    (["edit", "./model", *FACT, *EMMET, "--dtype", "int8", "--plan"], "float32"),
    (["edit", "./model", *FACT, *EMMET, "--device", "quantum"], "quantum"),
    (["edit", "./model", *FACT, *EMMET, "--set", "corpus=none.txt"], "no corpus"),
    (["edit", "./model", *FACT, *EMMET, "--schedule", "batch:2"], "no patch"),
    (["edit", "./model", *FACT, *EMMET, "--schedule", "nonsense", "--plan"], "Available"),
    (["edit", "./model", *FACT, *EMMET, "--edits", "5"], "add --plan"),
    (["edit", "./model", *FACT, *EMMET, "--edits", "5", "--plan"], "one of them"),
    (["edit", "./model", *FACT, *EMMET, "-o", "facts.jsonl/p"], "could not be written"),
    (["edit", "./model", *FACT, *EMMET, "-o", "model"], "is a folder"),
    (["edit", "./model", *FACT, "--method", "emmet", "--layers", "2-1"], "Did you mean 1-2"),
    (["edit", "./model", *FACT, "--method", "emmet", "--layers", "0-999999999999"], "4-8"),
    (["stats", "./model", "--json", "model"], "is a folder"),
    (["eval", "./model", "--cases", "none.json"], "no file"),
    (["eval", "./model", "--cases", "facts.jsonl", "--schedule", "sequentail"], "Available"),
    (["eval", "./model", "--cases", "facts.jsonl", "--n", "9"], "holds 3"),
    (["eval", "./model", "--cases", "facts.jsonl", *EMMET, "--schedule", "all"], "Available"),
    (["eval", "./model", "--cases", "facts.jsonl", *EMMET, "--schedule", "batch:0"], "batch:64"),
    (
        ["eval", "./model", "--cases", "facts.jsonl", "--method", "rome", "--layer", "1",
         "--schedule", "batch:2"],
        "emmet",
    ),
    (["eval", "./model", "--cases", "facts.jsonl", "--patch", "none"], "no patch file"),
    (["eval", "./model", "--cases", "facts.jsonl", "--patch", "x", *EMMET], "either --patch"),
    (["eval", "./model", "--cases", "facts.jsonl", "--patch", "x", "--plan"], "are made"),
    (["eval", "./model", "--cases", "facts.jsonl", "--after", "int4", *EMMET], "retcon edit --out"),
    (["eval", "./model", "--cases", "facts.jsonl", "--after", "int3"], "finetune:STEPS"),
    (["eval", "./nowhere", "--cases", "facts.jsonl", "--patch", "facts.jsonl"], "no patch file"),
    (["patch", "show", "facts.jsonl"], "no patch file, or a damaged one"),
    (["methods", "memmit"], "Did you mean 'memit'"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "reason"), BAD, ids=lambda x: x if isinstance(x, str) else "")
def test_mistakes_are_explained_and_change_nothing(words, reason, folder, retcon):
    before = {p: p.read_bytes() for p in sorted(folder.glob("*/*")) if p.is_file()}
    code, _, err = retcon(*words)
    assert code == 2, err
    text = " ".join(err.split())
    assert reason in text and "Traceback" not in text and text.count("error:") == 1
    assert {p: p.read_bytes() for p in before} == before


@pytest.mark.parametrize(("method", "where", "work"), [
    ("finetune", "at layer 1", "gradients of 3"), ("ultraedit", "at layer 1", "gradients of 3"),
    ("in_context", "in no layer", "none"),
])  # fmt: skip
def test_plans_of_methods_without_targets(method, where, work, folder, retcon):
    options = ["--cases", "facts.jsonl", "--method", method, "--plan"]
    at = [] if method == "in_context" else ["--layer", "1"]
    code, out, err = retcon("eval", "./model", *options, *at)
    assert code == 0 and f"{method} {where}" in out and work in out, err


def test_in_context_is_measured_and_makes_no_patch(folder, retcon):
    code, _, err = retcon("edit", "./model", *FACT, "--method", "in_context", "-o", "p")
    assert code == 2 and "writes no weight" in err and not (folder / "p").exists()
    options = ["--cases", "facts.jsonl", "--method", "in_context", "--json", "r.json"]
    code, out, err = retcon("eval", "./model", *options, "--schedule", "sequential-batch:2")
    assert code == 0 and "in_context" in out, err
    said = json.loads((folder / "r.json").read_text())
    assert said["prompts"] == "behind retrieved facts" and said["final"]["ES"] is not None


def test_a_patch_for_another_model(folder, retcon):
    assert retcon("edit", "./model", *FACT, *EMMET, "-o", "p.safetensors")[0] == 0
    pico(seed=1).model.save_pretrained(folder / "other")
    tokenizer().save_pretrained(folder / "other")
    code, _, err = retcon("eval", "./other", "--cases", "facts.jsonl", "--patch", "p.safetensors")
    assert code == 2 and "was made for" in err


def test_colliding_facts(folder, retcon):
    twin = [FACTS[0], {**FACTS[0], "target": "Polish"}]
    (folder / "twin.jsonl").write_text("\n".join(map(json.dumps, twin)), encoding="utf-8")
    code, _, err = retcon("edit", "./model", "--facts", "twin.jsonl", *EMMET)
    assert code == 2 and "Danielle Darrieux" in err and "same key" in " ".join(err.split())


def test_a_model_with_nan(folder, retcon):
    broken = pico().model
    with torch.no_grad():
        broken.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    broken.save_pretrained(folder / "broken")
    tokenizer().save_pretrained(folder / "broken")
    code, _, err = retcon("edit", "./broken", *FACT, *EMMET)
    assert code == 2 and "NaN" in err


def test_interrupt_leaves_no_file(folder, retcon, monkeypatch):
    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("retcon.features.remember.optimise_targets", interrupt)
    code, _, err = retcon("edit", "./model", *FACT, *EMMET, "-o", "p.safetensors")
    assert code == 130 and "Interrupted" in err
    assert not (folder / "p.safetensors").exists()


def test_no_space_in_the_cache(folder, retcon, monkeypatch):
    (folder / "full").write_text("a file where a folder should be", encoding="utf-8")
    monkeypatch.setenv("RETCON_CACHE", str(folder / "full"))
    code, _, err = retcon("edit", "./model", *FACT, *EMMET)
    assert code == 2 and "RETCON_CACHE" in err


@pytest.mark.parametrize("where", ["moments", "corpora"])
def test_a_lock_that_cannot_be_taken(where, folder, cache, retcon):
    assert retcon("edit", "./model", *FACT, *EMMET)[0] == 0
    (moments,), (corpus,) = (cache / "moments").iterdir(), (cache / "corpora").glob("*.jsonl")
    (moments / "layer-1.safetensors").unlink()
    corpus.unlink()
    lock = {"moments": moments / "lock", "corpora": corpus.with_name(f"{corpus.name}.lock")}[where]
    lock.unlink(missing_ok=True)
    lock.mkdir()  # what refuses root too, as a read-only folder does not
    code, _, err = retcon("edit", "./model", *FACT, *EMMET)
    assert code == 2 and str(lock) in err and "RETCON_CACHE" in err


def test_a_lock_is_only_about_itself(tmp_path):
    lock = tmp_path / "lock"
    for _ in range(2):
        with pytest.raises(OSError, match="of the work inside"), locked(lock):
            raise OSError("of the work inside")
    with locked(lock):
        pass


def test_a_patch_is_made_before_anything_is_scored(folder, retcon, monkeypatch):
    monkeypatch.setattr("retcon.scoring.score.score_cases", pytest.fail)
    code, _, err = retcon("edit", "./model", *FACT, *EMMET, "--schedule", "batch:2")
    assert code == 2 and "no patch" in err


def test_the_command_is_installed():
    done = subprocess.run(
        [sys.executable, "-c", "from retcon.cli.main import run; run()", "--version"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("retcon ")
