"""The claims of the replicated study, on made-up rows whose effects are known."""

from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from made_study import batch_size_findings, flat, grid, make_study, paper, small_grid
from retcon.cli.commands.study import app
from retcon.replications.batch_size.charts import by_factor
from retcon.replications.batch_size.paper import answers
from retcon.report import page
from retcon.report.charts.sizes import factors
from retcon.report.findings import Finding
from retcon.report.headline import tallies
from retcon.report.results import Results
from retcon.report.verdicts import contrast
from retcon.study.study import Study, read_study


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    late = lambda p: p.block == "methods" and p.method == "rome"  # noqa: E731
    return make_study(tmp_path_factory.mktemp("paper"), small_grid(), paper, undone=late)


@pytest.fixture(scope="module")
def findings(folder) -> dict[str, Finding]:
    return batch_size_findings(read_study(folder))


@pytest.fixture(scope="module")
def level(tmp_path_factory) -> Study:
    return read_study(make_study(tmp_path_factory.mktemp("flat"), small_grid(), flat))


@pytest.fixture(scope="module")
def written(folder) -> page.ReportFiles:
    return page.write_report(folder, ["batch-size"])


def test_known_effects_are_found(findings):
    verdicts = {key: finding.verdict for key, finding in findings.items()}
    assert {verdicts[key] for key in ("a", "b1", "b2", "c")} == {"reproduced"}
    assert verdicts["e"] == "inconclusive"  # 32 facts at the smaller N cannot tell


def test_absent_effects_are_not(level):
    findings = batch_size_findings(level)
    assert findings["b1"].verdict != "reproduced"
    assert findings["b2"].verdict != "reproduced"
    # Nothing differs, but 128 facts cannot exclude a difference of one point in them.
    verdicts = {effect.metric: effect.verdict for effect in findings["d"].effects}
    assert verdicts["ES"] == verdicts["PS"] == "inconclusive"


def test_that_no_case_differs_is_not_taken_for_certain(level):
    results = Results(level)
    arms = [arm for arm in results.arms if arm.condition.n == 128 and not arm.condition.accumulate]
    one, other = [arm for arm in arms if arm.condition.refresh == "each-batch"][:2]
    effect = contrast(results, [(1.0, one), (-1.0, other)], "final", "ES")
    # t²/√2 of 128 cases, by 24 relations: the rule of three.
    margin = 2.0687**2 / 2**0.5 * 100 / 128
    assert effect[:3] == pytest.approx((0, -margin, margin), rel=1e-3)
    assert margin == pytest.approx(3 * 100 / 128, rel=0.01)


def test_the_best_of_a_half_done_sweep_is_not_yet_the_best(tmp_path):
    late = lambda p: p.block == "layers" and p.layers == (5,)  # noqa: E731
    half = read_study(make_study(tmp_path, small_grid(), undone=late))
    finding = batch_size_findings(half)["a"]
    assert finding.verdict == "inconclusive" and "Layers not done yet: 1;" in finding.missing


def test_a_factor_alone_leaves_the_claim_open_and_says_what_it_needs(tmp_path):
    late = lambda p: p.block == "sequential" and p.refresh == "never"  # noqa: E731
    half = read_study(make_study(tmp_path, small_grid(), undone=late))
    finding = batch_size_findings(half)["f"]
    assert finding.verdict == "no data"
    assert finding.effects and finding.missing.startswith("Needs ")


def test_of_two_families_held_still_the_one_with_more_scored_facts_decides(tmp_path):
    held = {"n": 512, "schedule": "sequential-batch", "refresh": "never"}
    sizes = {"batch_size": [4, 16, 64]}
    points = [*grid("few", sizes, score=32, **held), *grid("all", sizes, **held)]
    finding = batch_size_findings(read_study(make_study(tmp_path, points, flat)))["f"]
    (effect,) = finding.deciding("final")
    assert effect.estimate.cases == 512 and finding.verdict == "reproduced"


def test_the_headline_answers_the_title_question(findings):
    question, first, *_ = answers([*findings.values()])
    assert question.startswith("Is a bigger") and "no, one large batch is worse" in first
    assert "4 reproduced (a, b1, b2, c)" in tallies([*findings.values()])[0]


def test_a_factor_that_was_turned_twice_is_one_line_of_one_change():
    rows = [
        {"factor": "Order", "place": "alone", "change": f"order 0 → order {k}", "batch_size": size}
        for k in (1, 2)
        for size in (4, 16)
    ]
    kept = by_factor(rows)
    places = [(row["series"], row["batch_size"]) for row in kept]
    assert places == [("Order, alone", 4), ("Order, alone", 16)]
    assert all(row["change"].endswith("order 1") for row in kept)


def test_which_factor_matters_is_told(findings):
    finding = findings["f"]
    spreads = {
        effect.about["factor"]: effect.verdict
        for effect in finding.effects
        if (effect.metric, effect.about.get("kind"), effect.about.get("place"))
        == ("S", "spread", "alone")
    }
    assert spreads["Accumulation off"] == "reproduced"
    assert "widens the spread of S by +" in finding.outcome.summary


def test_times_are_never_mixed(findings):
    for finding in findings.values():
        for effect in finding.effects:
            assert {row.when for row in effect.evidence} == {effect.when}


def test_an_empty_study_says_what_is_missing(tmp_path):
    empty = make_study(tmp_path, small_grid(), undone=lambda p: True)
    for finding in batch_size_findings(read_study(empty)).values():
        assert finding.verdict == "no data" and finding.missing.startswith("Needs ")
    assert page.write_report(empty, ["batch-size"]).html.exists()


def test_the_page_shows_every_finding(written, findings):
    text = written.html.read_text(encoding="utf-8")
    for finding in findings.values():
        assert f'id="finding-{finding.key}"' in text and finding.title in text
    assert "Is a bigger edit batch better here?" in text
    assert "Recommended layer" in text and "## (b1)" in written.markdown.read_text()
    drawn = {path.stem for path in written.charts}
    assert {"verdicts", "methods", "factors", "effects", "differences"} <= drawn


def test_states_are_of_the_method_and_order_that_has_most_of_them(tmp_path):
    """Not of the first order, where that is another method's, with fewer."""
    kept = {"accumulate": [True, False]}
    sizes = {"batch_size": [4, 16, 128]}
    few = grid("few", kept | sizes, method="emmet", order=0, schedule="sequential-batch")
    more = kept | {"refresh": ["never", "each-batch"]} | sizes
    many = grid("many", more, order=1, schedule="sequential-batch")
    made = make_study(tmp_path, [*few, *many])
    data = factors(Results(read_study(made))).spec["data"]["values"]
    assert len({record["series"] for record in data}) == 4
    assert all(record["series"].startswith("MEMIT") for record in data)


def test_beside_the_page_lie_the_rows_behind_each_finding(written, findings):
    rows = pl.read_csv(written.rows.parent / "finding-b1-rows.csv")
    kept = rows.filter(pl.col("metric") == "NS").group_by("cell").agg(pl.col("score").mean())
    means = dict(kept.iter_rows())
    small, large = min(means.values()), max(means.values())
    (effect,) = findings["b1"].deciding("immediate")
    assert effect.estimate.mean == pytest.approx(small - large)


def test_a_single_finding_can_be_asked_for(folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    output = CliRunner().invoke(app, ["report", str(folder), "--findings", "batch-size/b1"]).output
    assert "(b1) Bigger batches" in output and "(b2)" not in output
    assert "Is a bigger" not in output
