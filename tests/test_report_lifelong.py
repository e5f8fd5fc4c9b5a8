"""What the report tells of carried edits by many methods."""

import math
import re
import shutil
import subprocess

import pytest

from made_study import lifelong_grid, make_study, small_grid
from retcon.method.entries import find_method, methods
from retcon.report import kinds
from retcon.report.charts import carried
from retcon.report.charts.carried import over_time
from retcon.report.conditions import called
from retcon.report.page import make_report, to_html
from retcon.report.results import Results
from retcon.study.study import read_study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return read_study(make_study(tmp_path_factory.mktemp("lifelong"), lifelong_grid()))


@pytest.fixture(scope="module")
def results(study):
    return Results(study)


def shown(chart):
    """The rows that a chart draws."""
    return chart.spec["data"]["values"]


def test_kinds_stand_side_by_side(results):
    data = shown(carried.side_by_side(results))
    names = {record["setting"] for record in data}
    assert len(names) == 7 and any("grow and shrink" in name for name in names)
    best = [record["score"] for record in data if record["metric"] == "S"]
    assert best == sorted(best, reverse=True)


def test_plain_studies_are_not_burdened(tmp_path):
    plain = Results(read_study(make_study(tmp_path, small_grid())))
    assert carried.side_by_side(plain) is None and carried.decisions(plain) is None
    assert carried.ridges(plain) is None
    assert kinds.difficulty(plain).rows == ()


def test_decisions_are_told_over_time(results):
    data = shown(carried.decisions(results))
    assert len({record["setting"] for record in data}) == 3
    assert sum(record["tried"] for record in data) == 1


def test_a_ridge_is_told_over_time_where_it_follows_the_energy(results):
    data = shown(carried.ridges(results))
    assert {record["series"] for record in data} == {"LyapLock"}
    assert [record["ridge"] for record in data] == [100.0 * (i + 1) for i in range(8)]
    assert data[-1]["energy"] == 16.0 and data[-1]["edits"] == 128


def test_facts_are_followed_as_they_age(results):
    one = [r for r in shown(carried.ages(results)) if r["setting"] == "MEMIT"]
    # 128 facts in 8 ages; each is asked when written, at the checkpoints behind it, and last.
    first = [record["asked"] for record in one if record["age"] == 0]
    assert first == [16, 32, 64, 128] and [r["asked"] for r in one if r["age"] == 7] == [128]
    assert one[0]["since"] == "1–16" and all(record["cases"] == 16 for record in one)


def test_what_tells_how_hard_a_fact_is(results):
    rows = kinds.difficulty(results).rows
    assert len(rows) == 7
    for _, steps, size, novelty, facts in rows:
        # Margins were drawn with the steps; sizes say nothing, and novelties are all equal.
        assert float(steps.split()[0]) > 0.5 and abs(float(size.split()[0])) < 0.3
        assert novelty == "–" and facts == "128"


def test_every_kind_is_told_with_what_it_does_to_the_rest(results):
    table = kinds.kinds(results)
    assert len(table.rows) == 7 and {row[0] for row in table.rows} == {"128"}
    best = [float(row[2].split()[0]) for row in table.rows]
    assert best == sorted(best, reverse=True)
    for row in table.rows:
        of = dict(zip(table.columns, row, strict=True))
        # exp(0.0004 · 128), the same in all passages; 12 of 100 items of either task.
        assert of["perplexity, ×"].startswith("1.053 [1.05")
        assert of["tasks, points"].startswith("−12.0 [−16")
        assert of["seconds an edit"] == "0.43"


def test_backward_transfer_is_final_minus_immediate(results):
    arm = kinds.compared(results)[0]
    ends = [results.estimate(arm, when, "S").mean for when in ("final", "immediate")]
    told = kinds.kinds(results).rows[0][6]
    assert float(told.split()[0].replace("−", "-")) == pytest.approx(ends[0] - ends[1], abs=0.051)
    assert "[" in told


def test_the_whole_is_followed_as_facts_are_written(results):
    data = over_time(results)
    assert {record["edits"] for record in data} == {0, 64, 128}
    assert len({record["series"] for record in data}) == 7
    text = [r for r in data if r["measure"].startswith("perplexity") and r["edits"] == 64]
    assert text[0]["value"] == pytest.approx(math.exp(0.0004 * 64))
    start = [r["value"] for r in data if r["edits"] == 0]
    assert set(start) == {0.0, 1.0}


def test_the_page_shows_them(study):
    report = make_report(study)
    assert {"side-by-side", "ages", "decisions", "ridges", "as-a-whole"} <= set(report.charts)
    assert "What tells how hard a fact is" in to_html(report)


BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="no browser that could draw the page")
@pytest.mark.parametrize("width", [1200, 420])
def test_a_browser_draws_every_chart_of_the_page(study, tmp_path, width):
    report = make_report(study)
    (tmp_path / "report.html").write_text(to_html(report), encoding="utf-8")
    asked = ["--headless", "--no-sandbox", "--disable-gpu", "--timeout=20000", "--dump-dom"]
    told = [f"--window-size={width},2000", f"--user-data-dir={tmp_path / 'browser'}"]
    done = subprocess.run(
        [str(BROWSER), *asked, *told, (tmp_path / "report.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    drawn = re.findall(r'<svg [^>]*class="marks"', done.stdout)
    # On a narrow page the chart of effects is left out.
    assert len(drawn) == len(report.charts) - ("verdicts" in report.charts and width < 900)


def test_methods_are_called_by_their_titles():
    assert {name: called(name) for name in methods()} == {
        name: find_method(name).title for name in methods()
    }
