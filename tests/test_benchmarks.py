"""Every script of `benchmarks/` runs to its end, on a model and at sizes that say nothing."""

import gzip
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from made_study import lifelong_grid, make_study
from pico import pico, tokenizer

# PEFT asks transformers for a name that transformers is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

FOLDER = Path(__file__).parents[1] / "benchmarks"
# Arguments of each script, and what it has to print. In braces: what `places` makes. Two work in a
# process of their own, which is this one here; `run` starts both.
SCRIPTS = {
    "beside": (
        "--model {model} --layer 1 --edits 2 --methods emmet finetune_lora --set steps=2",
        "| finetune_lora |",
    ),
    "carried": (
        "{study} --n 128 --metric ES --against MEMIT --widest 3 --quarters",
        "The farthest from 0 of 3 pairs",
    ),
    "equal_scores": (
        "--model {model} --edits 1 --batch 2 --carried 3 --rules three_contexts fast_16 "
        "--json {file}",
        "fast_16        sequential-batch:64",
    ),
    "evaluation": ("--model {model} --records 1 --repeats 1", "single_schedule_speedup"),
    "every_score": ("{study} --facts 2", "| minus "),
    "facts_in_use": (
        "--model {model} --facts {facts} --n 2 --method memit --layers 1 --until-said 1 "
        "--set ridge=5 --set micro_batch=256 --set steps=2 --json {file}",
        "own prompt",
    ),
    "forms": (
        "--model {model} --layers 1 --facts 3 --undo 1 "
        "--set micro_batch=256 --set steps=2 --json {file}",
        "original ones: True",
    ),
    "gpu": ("--device cpu --size least --json {file}", "refined_float32_residual"),
    "growth": ("--model {model} --edits 2 --steps 1 --most 4 --json {file}", "| 16 |"),
    "interference": (
        "--model {model} --layer 1 --facts 5 --set ridge=5 --set micro_batch=256 --set steps=2 "
        "--json {file}",
        "| carried, keys forgotten | metric |",
    ),
    "malformed": ("--files 5", "scores      1 files"),
    "memory": ("--child --model {model} --edits 2 --steps 2", "peak_megabytes_solve"),
    "moments": ("--model {model} --tokens 300", "covariance_all_layers_ratio"),
    "predicted_targets": (
        "--model {model} --facts 6 --held-out 2 --layer 1",
        "share of targets at the clamp",
    ),
    "re_edits": (
        "--model {model} --cases {facts} --facts 6 --again 1 --batch 4 "
        "--set micro_batch=256 --set steps=2 --json {file}",
        "| keys forgotten, targets refreshed | again − once | the others |",
    ),
    "recursion": ("--edits 32 --batch 4 --width 16 --threads 1", "quarter 4, median of 2"),
    "run": ("--model {model} --size least --json {file}", "growth_ratio"),
    "scores_table": ("{record} --relations 2", "| memit, layer 1, ρ = 5 | sequential-batch:2 |"),
    "solves": ("--child 8 16 1", "solve_8x16_peak_megabytes"),
    "starter_knowledge": ("--model {model}", "96 facts in"),
    "targets": ("--model {model} --edits 2 --oracle 1", "targets_limit_fraction"),
    "wide": ("--size least --held 2 --json {file}", "edit_undone_bit_for_bit"),
}
SHARED = {"machine"}
FACTS = [
    {"prompt": f"{{{name}}} {words}", "target": new, "target_old": old, "id": name,
     "relation": words, "paraphrases": [f"{name} was"], "neighbours": ["Paris is"]}
    for name, words, new, old in (
        ("Danielle Darrieux", "is", "English", "French"), ("Marie Curie", "is", "German", "Polish"),
        ("The city", "is", "Spanish", "German"), ("Rome", "was in", "Paris", "Italy"),
        ("Madrid", "was in", "London", "Paris"), ("Berlin", "was in", "Rome", "Warsaw"),
    )
]  # fmt: skip
WRITE = (
    "eval {model} --cases {facts} --n 3 --method memit --layer 1 --schedule sequential-batch:2 "
    "--set ridge=5 --set steps=3 --set corpus_tokens=400 --json {record}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    pico().model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def places(model, tmp_path, monkeypatch) -> Iterator[dict[str, Path]]:
    """What scripts read and write; in the place of CounterFact there are six facts."""
    facts = tmp_path / "data" / "counterfact" / "counterfact_uniform.json.gz"
    facts.parent.mkdir(parents=True)
    facts.write_bytes(gzip.compress(json.dumps(FACTS).encode()))
    monkeypatch.setenv("RETCON_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(sys, "path", [*sys.path, str(FOLDER)])
    names = {"study": "study", "record": "record.json", "file": "figures.json"}
    files = {name: tmp_path / file for name, file in names.items()}
    threads = torch.get_num_threads()
    yield {"model": model, "facts": facts, **files}
    torch.set_num_threads(threads)


def test_further_scores_and_texts_are_timed(places, capsys, monkeypatch):
    monkeypatch.setenv("RETCON_CACHE_LIMIT", "0")
    evaluation = importlib.import_module("evaluation")
    evaluation.main(f"--model {places['model']} --records 2 --repeats 1 --further".split())
    found = json.loads(capsys.readouterr().out)["further_cost"]
    assert found["further_prompts_ratio"] == 1 and found["further_all_ratio"] > 0
    assert found["texts"] >= 2 and found["texts_speedup"] > 0


def test_the_table_of_facts_in_use_shows_what_a_file_holds(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [*sys.path, str(FOLDER)])
    some = {"mean": 50.0, "low": 20.4, "high": 79.6, "cases": 8}
    row = {"name": "MEMIT", "shares": {"own prompt": some, "neighbours": None}, "perplexity": 1.02}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    importlib.import_module("facts_in_use").main(["--table", str(tmp_path / "rows.jsonl")])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "| settings | own prompt | neighbours, changed | perplexity |"
    assert printed[-1] == "| MEMIT | 50 % [20, 80] | – | 1.020 |"


def test_every_script_is_run_here():
    assert {path.stem for path in FOLDER.glob("*.py")} == {*SCRIPTS, *SHARED}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_runs_to_its_end(name, places, retcon, capsys):
    arguments, printed = SCRIPTS[name]
    if "{study}" in arguments:
        make_study(places["study"], lifelong_grid())
    if "{record}" in arguments:
        code, _, err = retcon(*WRITE.format(**places).split())
        assert code == 0, err
    importlib.import_module(name).main(arguments.format(**places).split())
    assert printed in capsys.readouterr().out
    if "{file}" in arguments:
        assert json.loads(places["file"].read_text(encoding="utf-8"))
