"""Cells that have measured the same, and claims that rest on the facts that were written first."""

from pathlib import Path

import polars as pl
import pytest

from made_study import (
    batch_size_findings,
    flat,
    grid,
    make_study,
    paper,
    point,
    seal_again,
)
from retcon.report import tables
from retcon.report.results import Results
from retcon.report.sameness import SAME, Measurements
from retcon.report.verdicts import contrast
from retcon.study.points import Point
from retcon.study.study import read_study

SIZES = {"batch_size": [4, 16, 32]}
CARRIED = {"schedule": "sequential-batch", "accumulate": False}


def rewrite(folder: Path, place: Point, rows: pl.DataFrame) -> None:
    """Other rows for a finished cell."""
    cell = folder / "cells" / str(place.cell)
    rows.write_parquet(cell / "rows.parquet")
    seal_again(cell, "rows.parquet")


def rows(folder: Path, place: Point) -> pl.DataFrame:
    return pl.read_parquet(folder / "cells" / str(place.cell) / "rows.parquet")


def moved(folder: Path, place: Point, by: float) -> None:
    """A cell whose NLLs are others by so much."""
    shifted = rows(folder, place).with_columns(pl.col("nll_new") + by)
    rewrite(folder, place, shifted)


@pytest.fixture
def still(tmp_path):
    held = {**CARRIED, "accumulate": True, "refresh": "never", "n": 128, "score": 64}
    points = grid("still", SIZES, **held)
    return make_study(tmp_path, points, flat), points


def test_the_same_nlls_are_one_measurement_whatever_the_facts_are_few(still):
    folder, (first, second, _) = still
    moved(folder, second, 0.9 * SAME)
    results = Results(read_study(folder))
    assert results.measurements.gap(first.cell, second.cell, "final") == pytest.approx(0.9 * SAME)
    one, other, _ = results.arms
    effect = contrast(results, [(1.0, one), (-1.0, other)], "final", "S")
    assert effect[:3] == pytest.approx((0, 0, 0))
    finding = batch_size_findings(results)["f"]
    (effect,) = finding.deciding("final")
    assert finding.verdict == "reproduced" and "NLLs differ by 0.005 nats at most" in effect.text


def test_other_nlls_are_another_measurement_though_no_comparison_flips(still):
    folder, (_, second, _) = still
    moved(folder, second, 1.1 * SAME)
    results = Results(read_study(folder))
    assert results.measurements.first(second.cell, "final") == second.cell
    one, other, _ = results.arms
    effect = contrast(results, [(1.0, one), (-1.0, other)], "final", "ES")
    assert effect.mean == 0 and effect.high > 3
    assert batch_size_findings(results)["f"].verdict == "inconclusive"


def test_a_missing_nll_is_not_the_same_as_one(still):
    folder, (first, second, _) = still
    emptied = rows(folder, second).with_columns(
        nll_old=pl.when(pl.col("kind") == "rewrite").then(None).otherwise(pl.col("nll_old"))
    )
    rewrite(folder, second, emptied)
    measurements = Measurements(read_study(folder))
    assert measurements.gap(first.cell, second.cell, "final") == float("inf")
    assert not measurements.within(first.cell, second.cell, "final")


def number_study(folder: Path, score: int):
    """Two N of three sizes, in order 0: the first facts of the longer runs are the shorter runs."""
    few = grid("number", SIZES, n=64, score=min(score, 64), **CARRIED)
    many = grid("number", SIZES, n=256, score=score, **CARRIED)
    made = make_study(folder, [*few, *many], paper)
    for short, long in zip(few, many, strict=True):
        now, before = rows(made, long), rows(made, short).filter(pl.col("when") == "immediate")
        own = now.join(before, on=["case", "kind", "index", "when"], how="anti")
        rewrite(made, long, pl.concat([own, before]))
    return read_study(made)


def test_a_loss_between_runs_whose_rows_are_the_same_is_refused(tmp_path):
    found = batch_size_findings(number_study(tmp_path, score=64))["e"]
    assert found.times == ("final",)
    assert "At immediate the largest N has no row of its own" in found.missing


def test_a_loss_between_runs_that_share_some_rows_is_told(tmp_path):
    found = batch_size_findings(number_study(tmp_path, score=256))["e"]
    assert set(found.times) == {"immediate", "final"} and found.missing is None


@pytest.mark.parametrize(("order", "score"), [(0, 112), (1, 112), (0, 128)])
def test_nothing_is_concluded_from_the_facts_that_were_written_first(tmp_path, order, score):
    sizes = {"batch_size": [4, 16, 32, 128]}
    places = grid("sequential", sizes, n=128, score=score, order=order, **CARRIED)
    found = batch_size_findings(read_study(make_study(tmp_path, places, paper)))
    oldest = order == 0 and score < 128
    for key in ("b2", "c"):
        first = next(effect for effect in found[key].effects if effect.decides)
        assert ("only the facts that were written first are scored" in first.text) is oldest
        if oldest:
            assert {found[key].verdict_at(when) for when in found[key].times} == {"inconclusive"}
    # It is not that the facts are few: the same number of them tells it in another order.
    assert (found["b2"].verdict_at("immediate") == "reproduced") is not oldest


def test_one_batch_of_all_facts_belongs_to_every_order(tmp_path):
    places = [
        *grid("sequential", {"batch_size": [4, 16]}, n=128, order=1, **CARRIED),
        point("whole", n=128, batch_size=128, order=0, **CARRIED),
    ]
    found = batch_size_findings(read_study(make_study(tmp_path, places, paper)))
    assert "one batch − mean of the smaller sizes (2)" in found["b2"].effects[0].text


def test_draws_of_prefixes_and_corpus_are_runs_of_one_arm(tmp_path):
    draws = [{"seed": s, "corpus_seed": c} for s in (0, 1) for c in (0, 2)]
    places = grid("draws", {"settings": draws, "seed": [0, 3]}, n=32, **CARRIED, batch_size=4)
    results = Results(read_study(make_study(tmp_path, places)))
    (arm,) = results.arms
    assert [run.name for run in arm.runs][:4] == [
        "0", "0 (corpus 2)", "0 (prefixes 1)", "0 (prefixes 1, corpus 2)",
    ]  # fmt: skip
    assert results.estimate(arm, "final", "ES").cases == 8 * 32
    assert arm.condition.others == "{}"
    (row,) = tables.runs(results).rows
    assert (
        row[3] == "final" and row[-1].count("; ") == 7 and "3 (prefixes 1, corpus 2): " in row[-1]
    )
    each = [float(part.rpartition(" ")[2]) for part in row[-1].split("; ")]
    assert float(row[4]) == pytest.approx(max(each) - min(each), abs=0.11) and float(row[4]) > 0
    # A fact that flips does so in each of the four draws.
    (flip,) = results.statistic(arm, "final", "ES").flips.values()
    assert flip == pytest.approx(100 / 64)
