"""Study files that no study is: too large, too deep, no values at all, or names nobody knows."""

from pathlib import Path

import pytest

from retcon.errors import InvalidStudy, RetconWarning
from retcon.study import spec as module
from retcon.study.checking import check
from retcon.study.planning import plan, warned_of
from retcon.study.runner import run_cells
from retcon.study.spec import load_spec, parse_spec
from retcon.study.study import read_study
from test_study_spec import BATCH, folder, spec, text

__all__ = ["folder"]

YAML = [
    # in the place of a number, and what is said of it
    ("2026-99-99", "'2026-99-99' cannot be read (month must be in 1..12)"),
    ("2026-01-01T99:00:00", "cannot be read (hour must be in 0..23)"),
    ("!!int abc", "'abc' cannot be read"),
    ("!!float abc", "'abc' cannot be read"),
    ("1" + "0" * 5000, "cannot be read (Exceeds the limit"),
    ("[" * 200 + "]" * 200, "stand in each other more than 30 deep"),
    ("[" * 3000 + "]" * 3000, "stand in each other more than 30 deep"),
    ("&a [*a]", "this holds itself"),
    ("!!python/object:os.system x", "could not determine a constructor"),
    ("{[1]: 2}", "found unhashable key"),
    ("*nowhere", "found undefined alias"),
    ("{a: 1, a: 2}", "the key 'a' stands there twice"),
]


@pytest.mark.parametrize(("value", "said"), YAML, ids=[value[:20] for value, _ in YAML])
def test_what_cannot_be_read_is_named_with_its_line(tmp_path, retcon, value, said):
    path = tmp_path / "s.yaml"
    path.write_text(text(BATCH) + f"  - {{name: c, schedule: single,\n     n: {value}}}\n")
    code, _, err = retcon("study", "validate", str(path))
    told = " ".join(err.split())
    assert code == 2 and said in told and told.startswith("error: "), told
    assert len(value) == 6000 or "s.yaml, line 9: " in told  # so deep that nobody knows where


def test_aliases_are_counted_spelled_out():
    doubled = "\n".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40))
    with pytest.raises(InvalidStudy, match="more than 300,000 values in this"):
        parse_spec(f"retcon_study: 1\na0: &a0 [1, 1]\n{doubled}\n")
    shared = text(BATCH).replace("settings: {", "settings: &s {", 1)
    again = shared + "  - {name: c, settings: *s, schedule: single, n: 2}\n"
    assert len(parse_spec(again).entries) == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe", "Save it as UTF-8"),
        (b"a: \x00", "special characters are not allowed"),
        (b"#" * 2**23, "larger than 4 MiB"),
        (b"- 1", "must begin with `retcon_study: 1`"),
        (b"", "must begin with `retcon_study: 1`"),
        (b"2026-99-99", "line 1: '2026-99-99' cannot be read"),
    ],
)
def test_files_that_are_no_study(tmp_path, content, said):
    (tmp_path / "s.yaml").write_bytes(content)
    with pytest.raises(InvalidStudy) as refused:
        load_spec(tmp_path / "s.yaml")
    assert said in str(refused.value) and "s.yaml" in str(refused.value)


def test_a_byte_order_mark_is_none_of_the_file(tmp_path):
    (tmp_path / "s.yaml").write_bytes(b"\xef\xbb\xbf" + text(BATCH).encode())
    assert load_spec(tmp_path / "s.yaml").name == "tiny"


HUGE = "schedule: batch, batch_size: [{0}], n: [{1}], seed: [{0}], order: [{0}]".format(
    ", ".join(map(str, range(1, 101))), ", ".join(map(str, range(101, 1101)))
)


def test_a_grid_is_counted_before_it_is_spelled_out():
    with pytest.raises(InvalidStudy) as refused:
        spec(HUGE)
    said = str(refused.value)
    assert "the grid has 1,000,000,000 places, and at most 100,000 are planned" in said
    assert "Block 'b0' alone spans n 1,000 × batch_size 100 × seed 100 × order 100" in said


def test_layers_are_counted_too(folder, monkeypatch):
    monkeypatch.setattr("retcon.study.planning.MOST_PLACES", 5)
    assert len(plan(spec("schedule: single, n: 4, layer: all")).points) == 3
    with pytest.raises(InvalidStudy, match=r"a place for each layer the grid has 6 places"):
        plan(spec("schedule: single, n: [3, 4], layer: all"))


def test_places_of_a_large_grid_are_those_of_small_ones():
    sizes, seeds = [1, 2, 4, 8], list(range(50))
    block = f"schedule: batch, batch_size: [n, {', '.join(map(str, sizes))}], n: 8, seed: {seeds}"
    found = spec(block).entries
    # 8 is n, too.
    assert [(e.seed, e.batch_size) for e in found if e.seed in (0, 49)] == [
        (seed, size) for size in (8, 1, 2, 4) for seed in (0, 49)
    ]
    assert len(found) == 200


UNKNOWN = [
    # a block, the line it is on, and what is said
    ("method: memmit, schedule: single, n: 4", 7, "Unknown method 'memmit'. Did you mean 'memit'?"),
    ("schedule: single, n: 4, settings: {rigde: 3}", 7, "Did you mean 'ridge'?"),
    ("schedule: single, n: 4,\n     settings: {steps: few}", 8, "steps='few' is not valid"),
    ("schedule: single, n: 4, settings: {steps: [3, few]}", 7, "steps='few' is not valid"),
    ("schedule: single, n: 4, dtype: int8", 7, "Unknown dtype 'int8'"),
    ("schedule: sequential, n: 4, refresh: somtimes", 7, "Unknown refresh rule"),
    ("schedule: single, n: 4, settings: {ridge: tuned}", 7, "the study has no `tuning`"),
    ("schedule: single, n: 4, settings: {budget: 2, passes: 3}", 7, "passes=3 does nothing"),
    ("method: rome, schedule: batch, batch_size: 2, n: 4", 7, "a batch of ROME edits"),
    ("schedule: single, n: 4, layer: -1", None, "layer -1 is none: they are counted from 0"),
    ("schedule: single, n: 4, layers: [2, 1]", None, "not in ascending order: [1, 2]"),
    ("schedul: single, n: 4", 7, "unknown key blocks.0.schedul. Did you mean 'schedule'?"),
    ("schedule: single, n: many", 7, "'many' is not a whole number, 1 or more"),
]


@pytest.mark.parametrize(("block", "line", "said"), UNKNOWN, ids=[said for *_, said in UNKNOWN])
def test_validate_asks_the_methods(tmp_path, retcon, block, line, said):
    path = tmp_path / "s.yaml"
    path.write_text(text(block))
    code, _, err = retcon("study", "validate", str(path))
    told = " ".join(err.split())
    assert code == 2 and said in told, told
    assert line is None or f"s.yaml, line {line}" in told, told


def test_a_mistake_in_the_defaults_is_told_where_it_stands(tmp_path):
    written = text(BATCH).replace("method: memit", "method: memmit")
    path = tmp_path / "s.yaml"
    path.write_text(written)
    with pytest.raises(InvalidStudy, match=r"s.yaml, line 5: block 'b0': Unknown method"):
        check(load_spec(path), path)
    path.write_text(written.replace("memmit", "memit").replace('"steps"', '"stepps"'))
    with pytest.raises(InvalidStudy, match=r"line 5: block 'b0': Unknown setting of memit"):
        check(load_spec(path), path)


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "examples/studies").glob("*")))
def test_examples_pass(path):
    check(load_spec(path), path)


def test_facts_with_one_key_are_told_before_a_study_is_run(folder, retcon):
    lines = (folder / "facts.jsonl").read_text().splitlines()
    more = lines[0].replace(" is", " was").replace('"id": "', '"id": "x')
    (folder / "facts.jsonl").write_text("\n".join([*lines, more]))
    asked = text("schedule: batch, batch_size: 7, n: 7, settings: {ridge: [1, 2]}", BATCH)
    asked = asked.replace("true}", "false}").replace("n: 4", "n: 6")
    with pytest.warns(RetconWarning, match="'b0', in 2 of its places: 2 facts have") as said:
        made = warned_of(plan(parse_spec(asked)))
    assert len(said) == len(made.warnings) and "'xMarieCurie'" in made.warnings[0]
    (folder / "s.yaml").write_text(asked)
    code, _, err = retcon("study", "plan", "s.yaml")
    assert code == 0 and "2 facts have the same key" in " ".join(err.split())
    with pytest.warns(RetconWarning):
        run_cells(parse_spec(asked), folder / "done")
    assert read_study(folder / "done").record.warnings == made.warnings


def test_a_study_file_s_limit_is_stated(monkeypatch):
    monkeypatch.setattr(module, "MOST_PLACES", 3)
    with pytest.raises(InvalidStudy, match="at most 3 are planned"):
        spec("schedule: single, n: [1, 2, 3, 4]")
