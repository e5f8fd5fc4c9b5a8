"""A packed study: four files that say what the folder said, and nothing once they are damaged."""

import json
import math
import shutil
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from made_study import lifelong_grid, make_study, seal_again, small_grid
from retcon.errors import DamagedCell, InvalidStudy, StorageError
from retcon.report import page
from retcon.sealed import digest_of, load_lines, load_record, save_lines
from retcon.study.packed import PACK, content_of_rows, open_pack
from retcon.study.packing import pack
from retcon.study.runner import run_cells
from retcon.study.spec import parse_spec
from retcon.study.study import read_study
from tiny_study import FAST, write_model_and_facts

FILES = ["cells.jsonl", "rows.parquet", "steps.parquet", "study.yaml"]
TEXT = f"""retcon_study: 1
name: tiny
threads: 1
model: ./model
data: {{cases: facts.jsonl, unique_subjects: true}}
tuning: {{ridges: [3, 30], n: 2}}
defaults: {{method: memit, layer: 1, n: 4, settings: {json.dumps(FAST | {"ridge": 5})}}}
blocks:
  - {{name: batch, schedule: batch, batch_size: 2, settings: {{ridge: tuned}}}}
  - name: carried
    schedule: sequential-batch
    batch_size: [1, 2]
    when: [pre, immediate, final, retention]
    generation: true
"""
GROWN = TEXT.replace("batch_size: [1, 2]", "batch_size: [1, 2, 3]")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def packed(folder: Path, name: str = "packed") -> Path:
    """The pack of a study's folder, beside it."""
    pack(read_study(folder), folder.with_name(name))
    return folder.with_name(name)


def start(text: str, into: Path):
    return run_cells(parse_spec(text, Path("s.yaml")), into)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A model and facts, the study of them that was run to its end, and its pack."""
    folder = write_model_and_facts(tmp_path_factory.mktemp("ran"), paraphrased=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETCON_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        start(TEXT, folder / "study")
    packed(folder / "study")
    return folder


@pytest.fixture
def folder(ran, tmp_path, monkeypatch):
    """A copy of them."""
    shutil.copytree(ran, tmp_path / "copy")
    (tmp_path / "copy" / "s.yaml").write_text(TEXT, encoding="utf-8")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def test_a_pack_is_four_files(ran):
    assert list(contents(ran / "packed")) == FILES
    head, *lines = (ran / "packed" / "cells.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(head)["study"]["name"] == "tiny"
    ids = [json.loads(line)["id"] for line in lines]
    assert ids == sorted(path.name for path in (ran / "study" / "cells").iterdir() if path.is_dir())


def test_every_value_is_kept_to_the_last_bit(ran):
    live, copy = read_study(ran / "study"), read_study(ran / "packed")
    assert copy.record == live.record and copy.tuned == live.tuned and live.tuned
    assert copy.finished_cells() == live.finished_cells()
    texts = 0
    for name in live.finished_cells():
        one, other = live.finished_cell(name), copy.finished_cell(name)
        assert_frame_equal(one.rows(), other.rows(), check_exact=True)
        assert one.steps() == other.steps() and list(one.steps()[0]) == list(other.steps()[0])
        for what in ("resolved", "environment", "weights", "examples", "sealed"):
            assert getattr(one, what)() == getattr(other, what)()
        texts += len(one.rows().filter(pl.col("kind") == "text"))
    assert texts


def test_what_earlier_versions_kept_beside_the_rows_is_read_from_a_pack_too(tmp_path):
    """Held-out text, tasks and texts were no rows: made-up studies have them as they were."""
    (place,) = [one for one in lifelong_grid() if one.block == "stale"]
    live = make_study(tmp_path / "live", [place])
    cell = live / "cells" / place.cell
    texts = [
        {"case": f"fact-{i}", "relation": None, "when": "final", "step": 8, "index": 0,
         "text": f"Text {i}.", "entropy": 5.5 + i}
        for i in range(3)
    ]  # fmt: skip
    pl.DataFrame(texts).write_parquet(cell / "generations.parquet")
    seal_again(cell, "generations.parquet")
    rows = read_study(live).rows(place.cell)
    of = {kind: rows.filter(pl.col("kind") == kind) for kind in ("passage", "item:piqa", "text")}
    assert of["text"].select("case", "value", "text").rows()[2] == ("fact-2", 7.5, "Text 2.")
    assert of["passage"].select("when", "step").unique(maintain_order=True).rows() == [
        ("pre", 0), ("retention", 4), ("final", 8)
    ]  # fmt: skip
    assert of["passage"]["nll_new"][:2].to_list() == [3.0, 3.1] and len(of["item:piqa"]) == 300
    # A pack of before, which has them in its lines, and one of today, which has rows alone.
    line = packed(live) / "cells.jsonl"
    assert "Text 2" not in line.read_text(encoding="utf-8")
    assert_frame_equal(read_study(line.parent).rows(place.cell), rows)
    pack_as_before(live, cell, tmp_path / "before")
    assert_frame_equal(read_study(tmp_path / "before").rows(place.cell), rows)
    assert read_study(tmp_path / "before").finished_cell(place.cell).check()


def pack_as_before(live: Path, cell: Path, target: Path) -> None:
    """A pack in the form in which readings and texts were no rows."""
    shutil.copytree(live.with_name("packed"), target)
    scored = pl.read_parquet(cell / "rows.parquet")
    scored.select(pl.lit(cell.name).alias("cell"), pl.all()).write_parquet(target / "rows.parquet")
    head, lines = load_lines(target / "cells.jsonl", PACK)
    (line,) = lines
    line |= {
        "rows": content_of_rows(scored),
        "general": json.loads((cell / "general.json").read_text(encoding="utf-8")),
        "generations": pl.read_parquet(cell / "generations.parquet").to_dict(as_series=False),
    }
    head["files"]["rows.parquet"] = digest_of(target / "rows.parquet")
    save_lines(target / "cells.jsonl", head, [line], {**PACK, "study": "made up"})


def test_the_report_of_a_pack_is_that_of_the_folder(tmp_path, monkeypatch):
    """Every file of it, with what charts draw in place of pictures."""

    def specification(chart, out):
        return [page._write(out / f"{chart.key}.json", json.dumps(chart.spec))]

    monkeypatch.setattr(page, "draw", specification)
    monkeypatch.setattr("vl_convert.javascript_bundle", lambda _: "the program that draws")
    places = [*small_grid()[:13], *lifelong_grid()[2:]]
    live = make_study(tmp_path / "live", places)
    copy = packed(live)
    reports: list[dict[str, bytes]] = []
    for study in (live, copy):
        page.write_report(study)
        whole = contents(study)
        reports.append({k: v for k, v in whole.items() if k.startswith("report")})
    assert reports[0] == reports[1] and {"report.html", "report/rows.parquet"} <= {*reports[0]}


def test_the_same_study_gives_the_same_bytes_and_so_does_its_pack(folder):
    again = packed(folder / "study", "again")
    assert contents(again) == contents(folder / "packed")
    assert contents(packed(again, "once more")) == contents(again)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_file_is_named_and_not_used(folder, retcon, name, damage):
    path = folder / "packed" / name
    whole = path.read_bytes()
    flipped = whole.replace(b"tiny", b"tinz", 1) if name == "study.yaml" else whole[:-9] + b"X" * 9
    path.write_bytes(flipped if damage == "flipped" else whole[:-5])
    if damage == "gone":
        path.unlink()
    before = contents(folder / "packed")
    code, _, err = retcon("study", "resume", "packed", "--data", ".")
    assert code == 2 and name in err
    if name != "study.yaml":
        code, _, err = retcon("study", "report", "packed")
        assert code == 2 and name in err
    if damage != "gone":
        code, out, err = retcon("study", "verify", "packed")
        assert code == 2 and name in out + err
    assert contents(folder / "packed") == before


def test_the_tables_of_another_pack_are_not_taken(tmp_path):
    ones, others = small_grid()[:4], small_grid()[4:8]
    one = packed(make_study(tmp_path / "one", ones), "packed")
    other = packed(make_study(tmp_path / "other", others), "others")
    shutil.copy(other / "rows.parquet", one)
    with pytest.raises(InvalidStudy, match=r"rows\.parquet .* bring back all of them"):
        read_study(one).rows(str(ones[0].cell))


def test_every_command_reads_a_pack(folder, retcon):
    said: list[str] = []
    for study in ("study", "packed"):
        said.append(retcon("study", "status", study, "--json", f"{study}.json")[1])
        assert retcon("study", "export", study, "-o", f"{study}.parquet")[0] == 0
        code, out, _ = retcon("study", "plan", "s.yaml", "--out", study, "--json", "plan.json")
        assert code == 0 and json.loads(Path("plan.json").read_text())["to_be_run"] == {}
        code, out, _ = retcon("study", "verify", study, "--json", "looked.json")
        kinds = {
            each["kind"]: each for each in json.loads(Path("looked.json").read_text())["kinds"]
        }
        assert code == 0 and kinds["cells"]["whole"] == 5 and kinds["places"]["whole"] == 3, out
    assert said[0] == said[1] and "3 of 3 cells done" in said[0]
    for name in ("study.json", "study.parquet"):
        assert Path(name).read_bytes() == Path(name.replace("study", "packed")).read_bytes()


def test_a_pack_is_gone_on_with_and_nothing_is_run_again(folder, retcon, monkeypatch):
    before = contents(folder / "packed")
    with monkeypatch.context() as patch:
        patch.setattr("retcon.study.worker.load", None)  # no model is needed
        code, out, _ = retcon("study", "resume", "packed", "--data", ".")
        assert code == 0 and "5 of 5 cells are done, and were before" in out
        assert contents(folder / "packed") == before
    (folder / "grown.yaml").write_text(GROWN, encoding="utf-8")
    code, out, _ = retcon("study", "run", "grown.yaml", "--out", "packed")
    assert code == 0 and "6 of 6 cells are done, 5 of them were before" in out
    after = contents(folder / "packed")
    assert all(after[name] == before[name] for name in FILES[:3])
    assert len(list((folder / "packed").glob("cells/*/done.json"))) == 1
    assert retcon("study", "verify", "packed")[0] == 0
    code, out, _ = retcon("study", "resume", "packed", "--data", ".")
    assert code == 0 and "nothing was left to run" in out
    study, again = read_study("packed"), read_study(packed(folder / "packed", "again"))
    assert again.record == study.record and len(open_pack(again.folder).cells) == 6
    for name in study.finished_cells():
        assert_frame_equal(study.rows(name), again.rows(name), check_exact=True)


def test_a_cell_that_is_damaged_in_its_folder_is_not_packed(folder, retcon):
    done = next((folder / "study").glob("cells/*/done.json"))
    with (done.parent / "rows.parquet").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(DamagedCell, match=f"{done.parent.name}.*is not the file that was written"):
        pack(read_study(folder / "study"), folder / "new")
    code, _, err = retcon("study", "pack", "study", "--out", "new")
    assert code == 2 and done.parent.name in err and not (folder / "new").exists()


def test_what_is_not_done_is_named_and_stays_where_it_is(folder, retcon):
    place = read_study(folder / "study").points[-1].cell
    (folder / "study" / "cells" / str(place) / "done.json").unlink()
    code, out, err = retcon("study", "pack", "study")
    said = " ".join((out + err).split())
    assert code == 0 and f"1 cell is not done, and is not in the pack: {place}" in said
    assert "4 cells" in said and "study is as it was" in said
    study = read_study(folder / "study-packed")
    assert not study.is_done(place) and len(study.finished_cells()) == 4
    code, out, _ = retcon("study", "resume", "study-packed", "--data", ".")
    assert code == 0 and "5 of 5 cells are done, 4 of them were before" in out


def test_a_study_without_a_finished_cell_and_a_full_folder_are_refused(folder):
    with pytest.raises(StorageError, match="not an empty folder"):
        pack(read_study(folder / "study"), folder / "packed")
    shutil.rmtree(folder / "study" / "cells")
    with pytest.raises(InvalidStudy, match="nothing to pack"):
        pack(read_study(folder / "study"), folder / "new")


def test_cells_of_a_version_without_seals_are_packed_and_counted(folder, retcon):
    for path in (folder / "study").glob("cells/*/done.json"):
        path.write_text(json.dumps(load_record(path, {}).value), encoding="utf-8")
    code, out, _ = retcon("study", "pack", "study", "--out", "new")
    assert code == 0 and "5 of the cells" in out and "without a digest" in " ".join(out.split())
    code, _, _ = retcon("study", "verify", "new", "--json", "looked.json")
    kinds = {each["kind"]: each for each in json.loads(Path("looked.json").read_text())["kinds"]}
    assert code == 0 and (kinds["cells"]["whole"], kinds["cells"]["unsealed"]) == (0, 5)


def test_cells_are_found_by_every_name_that_they_had(tmp_path):
    live = make_study(tmp_path / "live", small_grid()[:3])
    study = read_study(live)
    first, other = (str(place.cell) for place in study.points[:2])
    pack(study, tmp_path / "one", renamed={first: "f" * 16})
    pack(read_study(tmp_path / "one"), tmp_path / "two", renamed={"f" * 16: "0" * 16})
    pack(read_study(tmp_path / "two"), tmp_path / "three")
    renamed = read_study(tmp_path / "three")
    assert renamed.points[0].cell == "0" * 16 and renamed.points[1].cell == other
    assert open_pack(tmp_path / "three").cells["0" * 16].line.formerly == [first, "f" * 16]
    for name in (first, "f" * 16, "0" * 16):
        assert renamed.is_done(name)
        assert_frame_equal(renamed.rows(name), study.rows(first))
    with pytest.raises(InvalidStudy, match="Two cells would have one name"):
        pack(study, tmp_path / "four", renamed={first: other})
    assert len(renamed.finished_cells()) == 3 and not renamed.is_done("1" * 16)


def test_records_of_batches_come_back_as_they_were(tmp_path):
    """Numbers of any size, texts that look like JSON, and what only some of them have."""
    places = small_grid()[:2]
    live = make_study(tmp_path / "live", places)
    kept = [
        [
            {
                "index": 0,
                "mixed": 1,
                "loss": 0.1 + 0.2,
                "text": '"[1',
                "on": True,
                "by": {"1": 1e-300},
            }
        ],
        [
            {
                "index": 2**62,
                "mixed": 0.5,
                "loss": -0.0,
                "text": "null",
                "on": False,
                "by": {},
                "no": [],
            }
        ],
    ]
    for place, steps in zip(places, kept, strict=True):
        cell = live / "cells" / str(place.cell)
        (cell / "steps.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
        seal_again(cell, "steps.jsonl")
    last = live / "cells" / str(places[1].cell)
    pl.read_parquet(last / "rows.parquet").clear().write_parquet(last / "rows.parquet")
    seal_again(last, "rows.parquet")
    copy = read_study(packed(live))
    assert copy.rows(last.name).is_empty() and not copy.rows(str(places[0].cell)).is_empty()
    one, other = (copy.steps(str(place.cell)) for place in places)
    assert one == [kept[0][0] | {"no": None}] and other == kept[1]
    assert (type(one[0]["mixed"]), type(other[0]["mixed"])) == (int, float)
    assert math.copysign(1, other[0]["loss"]) == -1
    table = pl.read_parquet(tmp_path / "packed" / "steps.parquet")
    assert table.schema["loss"] == pl.Float64 and table.schema["on"] == pl.Boolean
