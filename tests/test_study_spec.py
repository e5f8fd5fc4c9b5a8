"""Study files: what they span, what is refused, and what each place comes to."""

import json
import subprocess
import sys
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
from pytest import approx

from retcon.data.cases import seeded, take
from retcon.edits import Case, Edit
from retcon.errors import InvalidStudy, RetconError
from retcon.method.entries import find_method, methods
from retcon.model.load import load
from retcon.run.evaluate import evaluate
from retcon.sealed import load_record, save_record
from retcon.study.estimates import estimate
from retcon.study.facts import Facts
from retcon.study.planning import plan
from retcon.study.runner import run_cells
from retcon.study.spec import LISTS, json_schema, load_spec, parse_spec
from retcon.study.study import Data, read_study
from tiny_study import FAST, WORDS, write_model_and_facts

ROOT = Path(__file__).parents[1]
HEAD = """retcon_study: 1
name: tiny
model: ./model
data: {cases: facts.jsonl, unique_subjects: true}
"""
FASTER = json.dumps(FAST)
# The id of the first fact.
FIRST = "MarieCurie"


def text(*blocks: str, more: str = "") -> str:
    lines = "".join(f"  - {{name: b{i}, {block}}}\n" for i, block in enumerate(blocks))
    defaults = f"defaults: {{method: memit, layer: 1, settings: {FASTER}}}\n"
    return f"{HEAD}{defaults}{more}blocks:\n{lines}"


def spec(*blocks: str, more: str = ""):
    return parse_spec(text(*blocks, more=more), Path("study.yaml"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(write_model_and_facts(tmp_path, paraphrased=True))
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path


def test_lists_span_the_grid_in_a_stable_order():
    block = (
        "schedule: batch, batch_size: [2, n], n: [3, 4], seed: [0, 1], settings: {ridge: [1, 2]}"
    )
    entries = spec(block).entries
    assert len(entries) == 16 and entries == spec(block).entries
    assert [e.settings["ridge"] for e in entries[:4]] == [1, 2, 1, 2]
    assert {(e.n, e.batch_size) for e in entries} == {(3, 2), (3, 3), (4, 2), (4, 4)}
    assert all(e.settings["steps"] == 3 for e in entries)  # of defaults
    assert all(e.when == ("pre", "immediate") for e in entries)  # nothing is carried


def test_a_size_that_is_listed_twice_is_one_place():
    entries = spec("schedule: batch, batch_size: [2, n], n: [2, 4]").entries
    assert [(e.n, e.batch_size) for e in entries] == [(2, 2), (4, 2), (4, 4)]


def test_layers_are_one_set_and_lists_of_them_span():
    layers = [e.layers for e in spec("schedule: single, n: 2, layers: [1, 2]").entries]
    assert layers == [(1, 2)]
    spanned = spec("schedule: single, n: 2, layers: [[1, 2], [0]]").entries
    assert [e.layers for e in spanned] == [(1, 2), (0,)]
    assert [e.layers for e in spec("schedule: single, n: 2, layer: all").entries] == [None]


def test_a_setting_that_is_a_list_is_one_value_and_lists_of_it_span():
    one = spec("schedule: single, n: 2, settings: {prefix_tokens: [5, 10]}").entries
    assert [e.settings["prefix_tokens"] for e in one] == [[5, 10]]
    two = spec("schedule: single, n: 2, settings: {prefix_tokens: [[5], [5, 10]]}").entries
    assert [e.settings["prefix_tokens"] for e in two] == [[5], [5, 10]]
    kinds = {k: s.kind for name in methods() for k, s in find_method(name).settings().items()}
    assert {name for name, kind in kinds.items() if "tuple" in str(kind)} == set(LISTS)


BATCH = "schedule: batch, batch_size: 2, n: 4"
BAD_FILES = [
    (text("schedul: batch, n: 4"), r"unknown key blocks.0.schedul. Did you mean 'schedule'"),
    (HEAD + "tunning: {}\nblocks: []\n", "Did you mean 'tuning'"),
    (text(BATCH).replace("cases:", "casses:"), "data.casses. Did you mean 'cases'"),
    (text(BATCH, more="model: x\n"), "line 6: the key 'model' stands there twice"),
    (text("schedule: batch, batch_size: 8, n: 4"), "batch of 8 facts is larger than n = 4"),
    (text("schedule: batch, n: 4"), "batch needs a batch_size"),
    (text("schedule: sequential, batch_size: 4, n: 4"), "did you mean sequential-batch"),
    (text("schedule: single"), "n is missing"),
    (text("schedule: single, n: many"), "blocks.0.n"),
    (text("schedule: once, n: 4"), "blocks.0.schedule"),
    (text("schedule: single, n: 4, layer: 1, layers: [1]"), "either layer or layers"),
    (text(BATCH).replace("retcon_study: 1", "retcon_study: 2"), "Update Retcon"),
    (text(BATCH).replace("retcon_study: 1\n", ""), "must begin with"),
    ("retcon_study: 1\nname: [\n", "line 3"),
    (text("schedule: single, n: 0"), "blocks.0.n: 0 is not a whole number, 1 or more"),
    (text("schedule: batch, batch_size: [2, 0], n: 4"), r"batch_size: \[2, 0\] is not"),
    (text("schedule: single, n: []"), "n is an empty list"),
    (text("schedule: single, n: 4, layers: []"), "layers is an empty list"),
    (text("schedule: single, n: 4, settings: {ridge: []}"), "settings.ridge is an empty list"),
    (text("schedule: single, n: 4, seed: [1, 1]"), "seed has 1 twice"),
    (text("schedule: single, n: 4, when: [final]"), "no final scores with the schedule single"),
    (text("schedule: single, n: 4, when: [pre, retention, final]"), "no retention scores"),
    (text("schedule: sequential, n: 4, when: [retention]"), "Add final to when"),
    (text(BATCH, more="tuning: {ridges: [-1], n: 2}\n"), "numbers, 0 or more"),
    (text(BATCH, BATCH).replace("name: b1", "name: b0"), "two blocks have the name 'b0'"),
    (text(BATCH).replace("name: tiny", "name: tiny\ntext: x"), "unknown key text"),
    (text(BATCH).replace("true}", "true, options: alto}"), "data.options"),
    (HEAD, "the file lacks the key blocks"),
    ("", "no study file"),
]


@pytest.mark.parametrize(("written", "said"), BAD_FILES, ids=[said for _, said in BAD_FILES])
def test_a_bad_file_is_refused_at_once(tmp_path, retcon, written, said):
    with pytest.raises(InvalidStudy, match=said):
        parse_spec(written)
    (tmp_path / "bad.yaml").write_text(written, encoding="utf-8")
    code, _, err = retcon("study", "validate", str(tmp_path / "bad.yaml"))
    assert code == 2 and "bad.yaml" in err


BAD_GRIDS = [
    ("method: rome, schedule: batch, batch_size: 2, n: 4", "batch of ROME"),
    ("schedule: single, n: 9", "n = 9 facts are asked for, and facts.jsonl has 6"),
    ("method: memmit, schedule: single, n: 4", "Did you mean 'memit'"),
    ("schedule: single, n: 4, settings: {rigde: 3}", "Did you mean 'ridge'"),
    ("schedule: single, n: 4, settings: {steps: few}", "steps='few'"),
    ("schedule: single, n: 4, layer: 7", "0 to 2"),
    ("schedule: single, n: 4, dtype: int8", "float32"),
    ("schedule: single, n: 4, model: ./nowhere", "no folder"),
    ("schedule: sequential, n: 4, refresh: somtimes", "refresh rule"),
    ("schedule: single, n: 4, settings: {ridge: tuned}", "no `tuning`"),
    ("schedule: single, n: 4, settings: {budget: 2, passes: 3}", "passes=3 does nothing"),
]


@pytest.mark.parametrize(("block", "said"), BAD_GRIDS, ids=[said for _, said in BAD_GRIDS])
def test_a_bad_grid_is_refused_before_a_model_is_loaded(folder, monkeypatch, block, said):
    def load(*_args, **_kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("retcon.study.worker.load", load)
    with pytest.raises(RetconError, match=said):
        plan(spec(block))


def test_tuning_facts_are_scored_nowhere_else_and_need_their_room(folder):
    tuning = "tuning: {ridges: [1, 1e3], n: 2}\n"
    made = plan(spec("schedule: batch, batch_size: 2, n: 4, settings: {ridge: tuned}", more=tuning))
    assert made.places[0].cell is None and len(made.cells) == 2
    tail = {c.edit.id for c in made.cases(made.cells[0]).cases}
    head = {c.edit.id for c in made.facts.ordered(0)[:4]}
    assert len(tail) == 2 and not tail & head
    assert [cell.settings["ridge"] for cell in made.cells] == [1, 1000]
    with pytest.raises(InvalidStudy, match="2 are kept for tuning"):
        plan(spec("schedule: single, n: 5, settings: {ridge: tuned}", more=tuning))


def test_facts_without_s_tune_nothing(folder):
    facts = [json.loads(line) for line in (folder / "facts.jsonl").read_text().splitlines()]
    lines = [json.dumps(fact | {"paraphrases": []}) for fact in facts]
    (folder / "facts.jsonl").write_text("\n".join(lines))
    tuning = "tuning: {ridges: [1, 1e3], n: 2}\n"
    with pytest.raises(InvalidStudy, match="A ridge is tuned by S"):
        plan(spec("schedule: single, n: 2, settings: {ridge: tuned}", more=tuning))


def test_subsets_are_nested_and_orders_permute_them(folder):
    facts = plan(spec("schedule: single, n: 4")).facts

    def ids(**how):
        cases, scored = facts.pick(**{"seed": 0, "order": 0, "score": 2, "split": "head", **how})
        return [c.edit.id for c in cases], list(scored)

    small, large = ids(n=3)[0], ids(n=6)[0]
    assert large[:3] == small and ids(n=6, seed=1)[0] != large
    other, scored = ids(n=6, order=1)
    assert other != large and sorted(other) == sorted(large) and scored == large[:2]


def test_facts_that_are_scored_are_not_those_that_are_written_first():
    """Their places are spread as chance would have it, over every third of the run."""
    facts = Facts(
        about=Data(cases="made", sha256="", unique_subjects=True, facts=900),
        cases=tuple(
            Case(edit=Edit(prompt="{} is", subject=f"s{i}", target="x", id=str(i)))
            for i in range(900)
        ),
        tail=0,
    )
    for seed, order, n in product((0, 1), (1, 2), (300, 900)):
        picked = facts.pick(n=n, seed=seed, order=order, score=n // 3, split="head")
        places = [i for i, case in enumerate(picked.cases) if case.edit.id in set(picked.scored)]
        thirds = Counter(3 * place // n for place in places)
        assert len(places) == n // 3 and min(thirds.values()) > n // 9 * 0.7
        assert abs(sum(places) / len(places) - n / 2) < 0.1 * n
        # And facts that are scored first in a shorter run are not in a longer one.
        first = [c.edit.id for c in picked.cases[:64]]
        longer = facts.pick(n=600, seed=seed, order=order, score=100, split="head").cases[:64]
        assert n == 600 or first != [c.edit.id for c in longer]


def test_carried_facts_of_which_a_part_is_scored_are_written_in_an_order_of_their_own():
    block = "schedule: sequential-batch, batch_size: 2, n: 6"
    assert spec(f"{block}, score: 3").entries[0].order == 1
    assert spec(f"{block}, score: 3, order: dispersed").entries[0].order == "dispersed"
    # Where all are scored, or nothing is carried, no score tells of a place.
    for other in (block, f"{block}, score: 6", "schedule: batch, batch_size: 2, n: 6, score: 3"):
        assert spec(other).entries[0].order == 0
    assert spec(f"{block}, order: 0").entries[0].order == 0
    with pytest.raises(InvalidStudy, match=r"that part is written first.*Take order 1, 2"):
        spec(f"{block}, score: 3, order: [0, 1]")


def test_a_subject_counts_once_if_subjects_are_unique(folder):
    again = (folder / "facts.jsonl").read_text().splitlines()[0].replace('"id": "', '"id": "x')
    with (folder / "facts.jsonl").open("a") as stream:
        stream.write("\n" + again)
    one = plan(spec("schedule: single, n: 6")).facts
    assert len(one.ordered(0)) == 6 and len(one.cases) == 7
    both = plan(parse_spec(text("schedule: single, n: 7").replace("true}", "false}")))
    assert len(both.facts.ordered(0)) == 7


def edited_again(folder: Path, count: int = 1) -> None:
    """So many more lines for the first fact, each with another target."""
    lines = (folder / "facts.jsonl").read_text().splitlines()
    more = [{**json.loads(lines[0]), "id": f"x{i}", "target": WORDS[i + 5]} for i in range(count)]
    with (folder / "facts.jsonl").open("a") as stream:
        stream.writelines(f"\n{json.dumps(fact)}" for fact in more)


def several(*blocks: str):
    """A study of subjects that may come more than once."""
    return parse_spec(text(*blocks).replace("true}", "false}"))


@pytest.mark.parametrize("seed", range(4))
def test_edits_of_one_fact_keep_the_order_of_the_file(folder, seed):
    edited_again(folder, 3)
    facts = plan(several("schedule: single, n: 9")).facts
    for order in (0, 1, 2, 3):
        cases, scored = facts.pick(n=9, seed=seed, order=order, score=9, split="head")
        assert [c.edit.id for c in cases if c.edit.target in WORDS[5:] or c.edit.id == FIRST] == [
            FIRST, "x0", "x1", "x2",
        ]  # fmt: skip
        assert len(set(scored)) == 9
    assert take(facts.cases, None, seed) == facts.ordered(seed)


def test_of_one_subject_the_first_by_its_hash_is_kept_whatever_the_file_s_order(folder):
    edited_again(folder, 3)
    facts = plan(spec("schedule: single, n: 6")).facts
    kept = set()
    for seed in range(8):
        place, found = seeded(seed), facts.ordered(seed)
        assert found == sorted(found, key=place) and len(found) == 6
        subject = facts.cases[0].edit.subject
        rivals = [c for c in facts.cases if c.edit.subject == subject]
        (one,) = (c for c in found if c.edit.subject == subject)
        assert one == min(rivals, key=place)
        kept.add(one.edit.id)
    assert len(kept) > 1


def test_another_file_of_that_name_is_refused(folder):
    with pytest.raises(InvalidStudy, match="is not the file that this study is about"):
        plan(
            parse_spec(text(BATCH).replace("cases: facts.jsonl", "cases: facts.jsonl, sha256: ab"))
        )


def test_two_names_for_the_same_weights_are_one_cell(folder):
    made = plan(
        spec(
            "method: [emmet, memit], schedule: batch, batch_size: 2, n: 4, settings: {ridge: 300}",
            "schedule: sequential-batch, batch_size: n, n: 4, settings: {accumulate: [true, no]}",
            "schedule: batch, batch_size: 1, n: 3",
            "schedule: single, n: 3",
        )
    )
    assert len(made.points) == 6 and len(made.cells) == 3


def test_a_fact_that_is_edited_again_in_its_batch_sets_accumulate_apart(folder):
    block = "schedule: sequential-batch, batch_size: n, n: 6, settings: {accumulate: [true, no]}"
    alone = plan(several(block))
    edited_again(folder)
    (apart, one) = (plan(several(block.replace("n: 6", f"n: {n}"))) for n in (7, 2))
    assert [len(made.cells) for made in (alone, apart, one)] == [1, 2, 1]
    assert [cell.settings["accumulate"] for cell in apart.cells] == [True, False]
    assert plan(spec(block)).cells[0].id != apart.cells[0].id


def test_a_cell_knows_whether_its_own_facts_are_edited_again(folder):
    """Also the cells by which a ridge is tuned, whose facts are others."""
    edited_again(folder)
    tuning = "tuning: {ridges: [1, 1e3], n: 3}\n"
    block = "schedule: batch, batch_size: 2, n: 4, seed: [2, 6, 11], settings: "
    asked = text(block + "{ridge: tuned}", more=tuning).replace("true}", "false}")
    made = plan(parse_spec(asked), guess=True)
    for cell in made.cells:
        facts = [case.edit.fact for case in made.cases(cell).cases]
        assert cell.edits_again == (len(set(facts)) < len(facts))
    found = {(cell.split, cell.edits_again) for cell in made.cells}
    assert found == {("head", False), ("head", True), ("tail", False), ("tail", True)}


def test_of_two_edits_in_a_study_s_batch_the_last_counts(folder, entries):
    """As it does with the same batch outside of a study."""
    edited_again(folder)
    asked = several("schedule: batch, batch_size: n, n: 7, settings: {ridge: 3.0}")
    made = plan(asked)
    assert not run_cells(asked, folder / "done").failed
    (point,) = read_study(folder / "done").points
    found = read_study(folder / "done").scored(point.cell, "immediate")
    trial = evaluate(
        load("./model"), made.facts.ordered(0), method="memit", layers=[1],
        settings={**FAST, "ridge": 3.0}, schedule="batch:7",
    )  # fmt: skip
    wanted = trial.at("immediate")
    assert [row[:4] for row in found] == [row[:4] for row in wanted]
    assert [row.nll_new for row in found] == approx([row.nll_new for row in wanted], abs=1e-5)


ZSRE = [
    {"subject": f"{a} Curie", "src": f"The mother tongue of {a} Curie is", "alt": "Rome",
     "rephrase": f"{a} Curie was born in", "answers": ["Paris", "Polish"], "loc": f"{a} is",
     "loc_ans": "German", "portability": {"New Question": f"{a} was", "New Answer": "Madrid"}}
    for a in ("Marie", "Danielle")
]  # fmt: skip


def test_what_is_written_of_zsre_is_chosen_by_the_study(folder, entries):
    (folder / "facts.jsonl").write_text("\n".join(json.dumps(record) for record in ZSRE))
    written = text("schedule: batch, batch_size: 2, n: 2")

    def asked(target: str):
        return parse_spec(written.replace("true}", f"true, options: {{target: {target}}}}}"))

    untold, first, other = (plan(s) for s in (parse_spec(written), asked("answers"), asked("alt")))
    assert untold.cells[0].id == first.cells[0].id != other.cells[0].id
    for made, target in ((untold, "Paris"), (other, "Rome")):
        cases = made.cases(made.cells[0]).cases
        assert {c.edit.target for c in cases} == {target}
        assert all(bool(c.portability) == (target == "Rome") for c in cases)
    assert not run_cells(asked("alt"), folder / "done").failed
    done = read_study(folder / "done")
    assert done.record.data.options == {"target": "alt"}
    rows = done.scored(done.points[0].cell, "immediate")
    assert {row.kind for row in rows} >= {"portability", "locality"}


def test_more_hard_constraints_than_dimensions_are_refused_and_the_rest_goes_on(folder):
    lines = (folder / "facts.jsonl").read_text().splitlines()
    more = [json.dumps({**json.loads(line), "id": f"{i}-{k}", "prompt": f"The {{s{i} n{k}}} is"})
            for i in range(10) for k, line in enumerate(lines)]  # fmt: skip
    (folder / "facts.jsonl").write_text("\n".join(more))
    hard = "method: emmet, n: 60, schedule: sequential-batch, batch_size: [20, 60], settings: "
    made = plan(spec(hard + "{accumulate: [true, false]}"))
    refused = [p.refused for p in made.points]
    assert [why is not None for why in refused] == [True, False, True, True]
    assert "d_in = 48" in str(refused[0]) and len(made.cells) == 1


def test_growing_the_grid_leaves_cells_their_names(folder):
    small = plan(spec("schedule: batch, batch_size: 2, n: 4"))
    large = plan(spec("schedule: batch, batch_size: [1, 2, 4], n: 4, seed: [0, 1]"))
    assert {c.id for c in small.cells} < {c.id for c in large.cells}


def test_estimates_count_what_is_shared_once(folder):
    made = plan(spec("schedule: batch, batch_size: [1, 2, 4], n: 4", "schedule: sequential, n: 4"))
    costs = list(estimate(made, 1e9).values())
    assert [c.made for c in costs] == [4, 0, 0, 3]
    assert costs[0].moments > 0 and all(c.moments == 0 for c in costs[1:])
    done = {made.cells[0].id}
    assert len(estimate(made, 1e9, done)) == 3


TUNING = "tuning: {ridges: [1.0, 2.0], n: 2}\n"


def asking(ridge):
    return f"schedule: batch, batch_size: 2, n: 4, settings: {{ridge: {ridge}}}"


def test_a_block_may_bring_ridges_of_its_own(folder):
    blocks = [asking("tuned"), asking("{tuned: [0.1, 2, 3]}")]
    made = plan(spec(*blocks, more=TUNING))
    assert [choice.ridges for choice in made.tunings] == [(1.0, 2.0), (0.1, 2.0, 3.0)]
    # A ridge that both name is one cell; what is chosen is each one's own.
    assert len({cell.id for choice in made.tunings for cell in choice.cells}) == 4
    assert all(place.point.tuned and place.cell is None for place in made.places)
    guessed = plan(spec(*blocks, more=TUNING), guess=True)
    assert [place.point.ridge for place in guessed.places] == [2.0, 2.0]


@pytest.mark.parametrize("said", ["{tuned: []}", "{tuned: [-1]}", "{tuned: 3}", "{}", "{all: [1]}"])
def test_a_choice_of_ridges_that_is_none(folder, said):
    with pytest.raises(InvalidStudy, match=r"is no choice of ridges\. Write `tuned`, or"):
        plan(spec(asking(said), more=TUNING))


def test_the_command_line_plans_runs_and_tells(folder, retcon, entries):
    (folder / "s.yaml").write_text(text("schedule: batch, batch_size: [1, 2], n: 2"))
    code, out, err = retcon("study", "validate", "s.yaml")
    assert code == 0 and "2 places" in out, err
    code, out, err = retcon("study", "plan", "s.yaml", "--json", "p.json")
    assert code == 0 and "2 targets, at most" in out, err
    assert json.loads((folder / "p.json").read_text())["cells"] == 2
    code, out, err = retcon("study", "run", "s.yaml", "--out", "done")
    assert code == 0 and "2 of 2 cells are done" in out, err
    code, out, err = retcon("study", "status", "done", "--json", "s.json")
    assert code == 0 and "2 of 2" in out, err
    code, out, err = retcon("study", "plan", "s.yaml", "--out", "done")
    assert code == 0 and "All cells are done" in out, err
    code, out, err = retcon("study", "resume", "done", "--data", ".")
    assert code == 0 and "2 of 2 cells are done" in out, err
    (folder / "t.yaml").write_text(text(BATCH).replace("name: tiny", "name: other"))
    code, _, err = retcon("study", "run", "t.yaml", "--out", "done")
    assert code == 2 and "folder of its own" in err
    record = folder / "done" / "study.json"
    save_record(record, {**load_record(record, {}).value, "format": 99}, {"kind": "study"})
    code, _, err = retcon("study", "status", "done")
    assert code == 2 and "newer version" in err


def test_there_is_a_current_schema():
    committed = json.loads((ROOT / "docs" / "study.schema.json").read_text(encoding="utf-8"))
    assert committed == json_schema(), "retcon study schema > docs/study.schema.json"


@pytest.mark.parametrize("name", sorted(p.name for p in (ROOT / "examples/studies").glob("*.yaml")))
def test_examples_can_be_read(name):
    for entry in load_spec(ROOT / "examples" / "studies" / name).entries:
        known = {k: v for k, v in entry.settings.items() if k != "ridge" or isinstance(v, float)}
        # Settings that do not go together are refused here.
        assert find_method(entry.method).build(entry.layers or (0,), known)


def test_reading_a_study_file_needs_no_torch():
    code = (
        "import sys\nfrom retcon.study.spec import load_spec\nimport retcon.study.study\n"
        "import retcon.cli.studies\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
