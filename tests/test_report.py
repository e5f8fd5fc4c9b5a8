"""The report on made-up rows whose effects are known."""

import csv
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from made_study import Chances, flat, grid, make_study, paper, point, seal_again, small_grid
from oracles import cluster_jackknife
from retcon.cli.commands.study import app
from retcon.report import page, tables
from retcon.report.arms import Results
from retcon.report.findings import Finding, all_findings
from retcon.report.findings.claims import Estimate, contrast, equal, not_worse, than_any, towards
from retcon.report.fluency import fluency
from retcon.report.headline import headline
from retcon.report.layers import recommend
from retcon.report.plots.effects import turned
from retcon.report.plots.style import ranged
from retcon.scoring.intervals import CaseMeans, combine, harmonic_mean, mean, slope, t_quantile
from retcon.scoring.metrics import estimate, summarise
from retcon.study.reading import Study, read_study


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    late = lambda p: p.block == "methods" and p.method == "rome"  # noqa: E731
    return make_study(tmp_path_factory.mktemp("paper"), small_grid(), paper, undone=late)


@pytest.fixture(scope="module")
def study(folder) -> Study:
    return read_study(folder)


@pytest.fixture(scope="module")
def findings(study) -> dict[str, Finding]:
    return {finding.key: finding for finding in all_findings(study)}


@pytest.fixture(scope="module")
def level(tmp_path_factory) -> Study:
    return read_study(make_study(tmp_path_factory.mktemp("flat"), small_grid(), flat))


@pytest.fixture(scope="module")
def written(folder) -> page.Written:
    return page.write_report(folder)


def drawn(cases=120, relations=15, seed=0):
    random = np.random.default_rng(seed)
    names = [str(i) for i in range(cases)]
    clusters = {name: f"P{i % relations}" for i, name in enumerate(names)}
    shift = random.normal(0, 8, relations)
    values = lambda centre: CaseMeans(  # noqa: E731
        {n: float(np.clip(random.normal(centre, 9) + shift[i % relations], 1, 100))
         for i, n in enumerate(names)}, clusters)  # fmt: skip
    return values(90), values(80), values(60)


def test_statistics_are_linear_and_a_difference_to_itself_is_nothing():
    first, second, _ = (mean(found) for found in drawn())
    assert first and second
    nothing = combine([(1.0, first), (-1.0, first)]).estimate()
    assert (nothing.mean, nothing.low, nothing.high) == (0, 0, 0)
    assert slope([(0.0, first), (1.0, second)]).value == pytest.approx(second.value - first.value)


def test_a_paired_difference_is_the_mean_of_differences():
    first, second, _ = drawn()
    apart = combine([(1.0, mean(first)), (-1.0, mean(second))]).estimate()
    gaps = {case: first.values[case] - second.values[case] for case in first.values}
    together = mean(CaseMeans(gaps, first.clusters)).estimate()
    assert apart == pytest.approx(together)


def test_the_interval_of_s_agrees_with_the_jackknife():
    parts = drawn()
    s = harmonic_mean([mean(part) for part in parts])

    def naive(kept):
        means = [np.mean([part.values[case] for case in kept]) for part in parts]
        return 3 / sum(1 / m for m in means)

    values, clusters = parts[0].values, parts[0].clusters
    assert s.value == pytest.approx(naive(values))
    assert s.error == pytest.approx(cluster_jackknife(naive, values, clusters), rel=0.05)


def test_s_of_zero_has_the_slopes_it_has_next_to_zero():
    parts = drawn()
    whole = [mean(part) for part in parts]

    def near(value, which):
        return [replace(m, value=value) if i in which else m for i, m in enumerate(whole)]

    for which in ({0}, {0, 1}, {0, 1, 2}):
        at, close = harmonic_mean(near(0.0, which)), harmonic_mean(near(1e-7, which))
        assert at.value == 0 and at.error == pytest.approx(close.error, rel=1e-4)
    zero = mean(CaseMeans({"1": 0.0, "2": 0.0}, {"1": "a", "2": "b"}))
    assert harmonic_mean([zero, zero, zero]).value == 0


@pytest.mark.parametrize(
    ("degrees", "probability", "value"),
    [(1, 0.975, 12.706), (2, 0.975, 4.303), (5, 0.975, 2.571), (20, 0.995, 2.845),
     (30, 0.9983, 3.186)],
)  # fmt: skip
def test_t_quantiles(degrees, probability, value):
    assert t_quantile(degrees, probability) == pytest.approx(value, rel=0.01)


def test_more_comparisons_widen():
    found = mean(drawn()[0])
    assert found.estimate(comparisons=10).low < found.estimate().low


@pytest.mark.parametrize(
    ("low", "high", "direction", "sameness", "best"),
    [(-3.0, -2.0, "reproduced", "not reproduced", "not reproduced"),
     (2.0, 3.0, "not reproduced", "not reproduced", "reproduced"),
     (-0.5, 0.5, "not reproduced", "reproduced", "reproduced"),
     (-3.0, 0.5, "inconclusive", "inconclusive", "inconclusive"),
     (None, None, "inconclusive", "inconclusive", "inconclusive")],
)  # fmt: skip
def test_the_rule(low, high, direction, sameness, best):
    effect = Estimate(0.0, low, high, 10)
    assert (towards(effect, -1), equal(effect), not_worse(effect)) == (direction, sameness, best)


def test_scores_of_arms_are_those_of_the_metrics(study):
    results = Results(study)
    arm = next(arm for arm in results.arms if results.has(arm, "final"))
    rows = study.scored(arm.runs[0].cell, "final")
    for metric in ("ES", "PS", "NS"):
        assert results.estimate(arm, "final", metric) == pytest.approx(estimate(rows, metric))
    assert results.estimate(arm, "final", "S").mean == pytest.approx(summarise(rows)["S"])


def test_known_effects_are_found(findings):
    found = {key: finding.verdict for key, finding in findings.items()}
    assert {found[key] for key in ("a", "b1", "b2", "c")} == {"reproduced"}
    assert found["e"] == "inconclusive"  # 32 facts at the smaller N cannot tell


def test_absent_effects_are_not(level):
    found = {finding.key: finding for finding in all_findings(level)}
    assert found["b1"].verdict != "reproduced"
    assert found["b2"].verdict != "reproduced"
    # Nothing differs, but 128 facts cannot exclude a difference of one point in them.
    told = {claim.metric: claim.verdict for claim in found["d"].claims}
    assert told["ES"] == told["PS"] == "inconclusive"


def test_that_no_case_differs_is_not_taken_for_certain(level):
    results = Results(level)
    arms = [arm for arm in results.arms if arm.setting.n == 128 and not arm.setting.accumulate]
    one, other = [arm for arm in arms if arm.setting.refresh == "each-batch"][:2]
    effect = contrast(results, [(1.0, one), (-1.0, other)], "final", "ES")
    # t²/√2 of 128 cases, by 24 relations: the rule of three.
    margin = 2.0687**2 / 2**0.5 * 100 / 128
    assert effect[:3] == pytest.approx((0, -margin, margin), rel=1e-3)
    assert margin == pytest.approx(3 * 100 / 128, rel=0.01)


def test_a_setting_is_the_best_only_if_it_is_not_worse_than_any_rival():
    close, unsure, ahead = (
        Estimate(0.1, -0.6, 0.8, 9), Estimate(0.5, -1.5, 2.5, 9), Estimate(-2.0, -3.0, -1.0, 9)
    )  # fmt: skip
    assert than_any({"close": close}) == ("close", "reproduced")
    # Its mean is lower than that of the close one, and it may be the better by more.
    assert than_any({"close": close, "unsure": unsure}) == ("unsure", "inconclusive")
    rivals = {"close": close, "unsure": unsure, "ahead": ahead}
    assert than_any(rivals) == ("ahead", "not reproduced")


def test_the_best_of_a_half_done_sweep_is_not_yet_the_best(tmp_path):
    late = lambda p: p.block == "layers" and p.layers == (5,)  # noqa: E731
    half = read_study(make_study(tmp_path, small_grid(), undone=late))
    found = all_findings(half)[0]
    assert found.verdict == "inconclusive" and "Layers not done yet: 1;" in found.missing


def test_a_factor_alone_leaves_the_claim_open_and_says_what_it_needs(tmp_path):
    late = lambda p: p.block == "sequential" and p.refresh == "never"  # noqa: E731
    half = read_study(make_study(tmp_path, small_grid(), undone=late))
    found = all_findings(half)[-1]
    assert (found.key, found.verdict) == ("f", "no data")
    assert found.claims and found.missing.startswith("Needs ")


def test_of_two_families_held_still_the_one_with_more_scored_facts_decides(tmp_path):
    held = {"n": 512, "schedule": "sequential-batch", "refresh": "never"}
    sizes = {"batch_size": [4, 16, 64]}
    points = [*grid("few", sizes, score=32, **held), *grid("all", sizes, **held)]
    found = all_findings(read_study(make_study(tmp_path, points, flat)))[-1]
    (claim,) = (c for c in found.claims if c.primary)
    assert claim.effect.cases == 512 and found.verdict == "reproduced"


def test_the_headline_answers_the_title_question(findings):
    said = headline(list(findings.values()))
    assert "no, one large batch is worse" in said.answers[0]
    assert "4 reproduced (a, b1, b2, c)" in said.tallies[0]


def test_a_factor_that_was_turned_twice_is_one_line_of_one_change():
    rows = [
        {"factor": "Order", "place": "alone", "change": f"order 0 → order {k}", "batch_size": size}
        for k in (1, 2)
        for size in (4, 16)
    ]
    assert [(r["series"], r["batch_size"]) for r in turned(rows)] == [
        ("Order, alone", 4), ("Order, alone", 16),
    ]  # fmt: skip
    assert all(r["change"].endswith("order 1") for r in turned(rows))


def test_axes_are_never_of_one_number():
    alike = {"metric": "ES", "score": 100.0, "low": 100.0, "high": 100.0}
    assert [(r["bottom"], r["top"]) for r in ranged([alike])] == [(96.0, 100.0)]


def test_texts_are_reported_where_there_are_some(tmp_path):
    place = point("texts", schedule="sequential-batch", batch_size=4, n=8, generation=True)
    folder = make_study(tmp_path, [place])
    texts = [
        {"case": f"fact-{i}", "relation": f"P{i}", "when": when, "step": 1, "index": 0,
         "text": "", "entropy": entropy + i / 10}
        for i in range(4) for when, entropy in (("pre", 6.0), ("final", 5.5))
    ]  # fmt: skip
    cell = folder / "cells" / str(place.cell)
    pl.DataFrame(texts).write_parquet(cell / "generations.parquet")
    seal_again(cell, "generations.parquet")
    row = fluency(Results(read_study(folder))).rows[0]
    assert row[-4] == "4" and row[-3].startswith("615 [") and row[-1].startswith("−50 [")


def test_tables_fit_a_terminal(folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    said = CliRunner().invoke(app, ["report", str(folder)]).output
    assert max(map(len, said.splitlines()[:-1])) <= 120
    assert "Is a bigger batch better here?" in said and str(folder / "report.html") in said


def test_which_factor_matters_is_told(findings):
    finding = findings["f"]
    spreads = {c.about["factor"]: c for c in finding.claims if c.about.get("kind") == "spread"
               and c.metric == "S" and c.about["place"] == "alone"}  # fmt: skip
    assert spreads["Accumulation off"].verdict == "reproduced"
    assert "widens the spread of S by +" in finding.effect


def test_seeds_are_pooled_and_their_cases_kept_apart(tmp_path):
    places = [point("batch", schedule="batch", batch_size=b, n=32, seed=s)
              for b in (4, 16) for s in (0, 1)]  # fmt: skip
    results = Results(read_study(make_study(tmp_path, places)))
    assert [len(arm.runs) for arm in results.arms] == [2, 2]
    assert results.estimate(results.arms[0], "immediate", "ES").cases == 64


def test_the_recommended_layer_and_its_ties(study, tmp_path):
    best = recommend(study)[0]
    assert best.layer == (1,) and (5,) not in best.tied
    alike = lambda p, when: Chances(0.9, 0.9, 0.8)  # noqa: E731
    places = [point("layers", layers=(i,)) for i in range(3)]
    tied = recommend(read_study(make_study(tmp_path, places, alike)))[0]
    assert len(tied.tied) == 2


def test_times_are_never_mixed(study, findings):
    for finding in findings.values():
        assert all({item.when for item in claim.evidence} == {claim.when}
                   for claim in finding.claims)  # fmt: skip
    titles = [table.title for table in tables.summary(study, list(findings.values()))]
    assert sum("immediate" in title for title in titles) == 2


def test_an_empty_study_says_what_is_missing(tmp_path):
    empty = make_study(tmp_path, small_grid(), undone=lambda p: True)
    for finding in all_findings(read_study(empty)):
        assert finding.verdict == "no data" and finding.missing.startswith("Needs ")
    assert page.write_report(empty).html.exists()


def test_missing_and_refused_points_are_listed(study):
    table = tables.missing(study)
    assert sum(int(row[-2]) for row in table.rows) == 2
    assert {row[-1] for row in table.rows} == {
        "not done yet", "ROME takes one edit at a time; use emmet for batches."
    }  # fmt: skip


def test_tables_as_markdown_and_csv():
    table = tables.Table("T", "", ("a", "b"), (("1|2", "–"),))
    assert table.markdown().splitlines()[-1] == "| 1\\|2 | – |"
    assert list(csv.reader(table.csv().splitlines())) == [["a", "b"], ["1|2", "–"]]


def test_all_rows_go_into_one_file(study, tmp_path):
    rows = pl.read_parquet(tables.export(study, tmp_path / "rows.parquet"))
    assert {"cell", "case", "when", "nll_new", "batch_size", "method"} <= set(rows.columns)
    assert rows["cell"].n_unique() == len({p.cell for p in study.finished()})


class Loads(HTMLParser):
    """What a page would fetch."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        source = named.get("src") or (named.get("href") if tag == "link" else None)
        if source:
            self.found.append(source)


def test_the_page_lies_in_the_folder_and_all_else_beside_it(written, folder):
    assert written.html == folder / "report.html"
    beside = (written.markdown, written.rows, *written.charts, *written.tables)
    assert all(path.is_relative_to(folder / "report") for path in beside)


def test_the_page_is_whole_and_loads_nothing(written, findings):
    text = written.html.read_text()
    loads = Loads()
    loads.feed(text)
    assert not [s for s in loads.found if re.match(r"(https?:)?//", s)]
    assert "@import" not in text and "url(http" not in text
    for finding in findings.values():
        assert f'id="finding-{finding.key}"' in text and finding.name in text
    assert text.count('class="chart"') == len(written.charts) / 2
    for link in re.findall(r'href="([^#":]+)"', text):
        assert (written.html.parent / link).exists(), link


def test_beside_the_page_lie_the_rows_behind_each_finding(written, findings):
    rows = pl.read_csv(written.rows.parent / "finding-b1-rows.csv")
    kept = rows.filter(pl.col("metric") == "NS").group_by("cell").agg(pl.col("score").mean())
    means = dict(kept.iter_rows())
    small, large = min(means.values()), max(means.values())
    assert findings["b1"].leading.effect.mean == pytest.approx(small - large)
    assert "## (b1)" in written.markdown.read_text()


def test_the_page_needs_its_extra(folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(page.MissingExtra, match=r"retcon-llm\[report\]"):
        page.write_report(folder)


def test_a_report_needs_no_torch():
    code = "import sys, retcon.report.page; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
