"""The report on made-up rows whose effects are known."""

import csv
import importlib.util
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from made_study import Chances, grid, make_study, paper, point, seal_again, small_grid
from oracles import cluster_jackknife
from retcon.cli.commands.study import app
from retcon.report import page, tables
from retcon.report.charts.panels import ranged
from retcon.report.headline import headline
from retcon.report.layers import recommend
from retcon.report.observed import observed
from retcon.report.ranking import compare
from retcon.report.results import Results
from retcon.report.terminal import brief
from retcon.scoring.intervals import CaseMeans, combine, harmonic_mean, mean, slope, t_quantile
from retcon.scoring.metrics import estimate, summarise
from retcon.study.study import Study, read_study

COMPARE = Path(__file__).parents[1] / "examples" / "compare_reports.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    late = lambda p: p.block == "methods" and p.method == "rome"  # noqa: E731
    return make_study(tmp_path_factory.mktemp("paper"), small_grid(), paper, undone=late)


@pytest.fixture(scope="module")
def study(folder) -> Study:
    return read_study(folder)


@pytest.fixture(scope="module")
def written(folder) -> page.ReportFiles:
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


def test_scores_of_arms_are_those_of_the_metrics(study):
    results = Results(study)
    arm = next(arm for arm in results.arms if results.has(arm, "final"))
    rows = study.scored(arm.runs[0].cell, "final")
    for metric in ("ES", "PS", "NS"):
        assert results.estimate(arm, "final", metric) == pytest.approx(estimate(rows, metric))
    assert results.estimate(arm, "final", "S").mean == pytest.approx(summarise(rows)["S"])


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
    (fluency,) = observed(Results(read_study(folder)))
    (row,) = fluency.rows
    assert row[-4] == "4" and row[-3].startswith("615 [") and row[-1].startswith("−50 [")
    assert fluency.title == "Fluency" and fluency.columns[-3:] == (
        "untouched model", "after the last batch", "change"
    )  # fmt: skip


def test_portability_and_locality_are_reported(tmp_path):
    """Of data sets without an old answer there is no ES, and yet a report."""
    place = point("zsre", schedule="sequential-batch", batch_size=4, n=8)
    folder = make_study(tmp_path, [place])
    cell = folder / "cells" / str(place.cell)
    rows = pl.read_parquet(cell / "rows.parquet").with_columns(
        pl.col("kind").replace({"paraphrase": "portability", "neighbour": "locality"}),
        *(pl.lit(None).alias(name) for name in ("nll_old", "n_old", "hits_old")),
    )
    rows.write_parquet(cell / "rows.parquet")
    seal_again(cell, "rows.parquet")
    results = Results(read_study(folder))
    told = {table.title.partition(" (")[0]: table for table in tables.summary(results, [])}
    final = told["Scores, final"]
    assert final.columns[-3:] == ("cases", "portability", "locality")
    share = 100 * rows.filter(kind="locality", when="final")["hits_new"].mean()
    assert final.rows[0][-1].startswith(f"{share:.1f} [")
    assert "token accuracy" in told["Further scores, final"].columns
    assert len(told["Scores, pre"].rows) == 1
    shown = {table.title.partition(",")[0]: table for table in brief(results, [])}
    assert {"portability", "locality", "token accuracy"} <= {*shown["Scores"].columns}
    assert "ES" not in shown["Scores"].columns
    written = page.write_report(folder)
    assert "locality" in written.html.read_text(encoding="utf-8")
    assert "locality" in (folder / "report" / "scores-final.csv").read_text(encoding="utf-8")


def test_tables_fit_a_terminal(folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    said = CliRunner().invoke(app, ["report", str(folder)]).output
    assert max(map(len, said.splitlines()[:-1])) <= 120
    assert "is best, S" in said and str(folder / "report.html") in said


def test_seeds_are_pooled_and_their_cases_kept_apart(tmp_path):
    places = [point("batch", schedule="batch", batch_size=b, n=32, seed=s)
              for b in (4, 16) for s in (0, 1)]  # fmt: skip
    results = Results(read_study(make_study(tmp_path, places)))
    assert [len(arm.runs) for arm in results.arms] == [2, 2]
    assert results.estimate(results.arms[0], "immediate", "ES").cases == 64


def test_the_best_condition_comes_first_with_what_differs_from_it(tmp_path):
    chances = {"memit": Chances(0.95, 0.9, 0.8), "emmet": Chances(0.95, 0.9, 0.79),
               "rome": Chances(0.8, 0.5, 0.5)}  # fmt: skip
    told = lambda p, when: paper(p, when) if when == "pre" else chances[p.method]  # noqa: E731
    places = grid("methods", {"method": [*chances]})
    results = Results(read_study(make_study(tmp_path, places, told)))
    (comparison,) = compare(results)
    ranking, names = comparison.ranking, comparison.names
    assert [names[key] for key in ranking.scores] == ["MEMIT", "EMMET", "ROME"]
    assert [names[key] for key in ranking.tied] == ["EMMET"]
    best, rome = (next(arm for arm in results.arms if arm.condition.method == m)
                  for m in ("memit", "rome"))  # fmt: skip
    by_hand = results.contrast([(1.0, rome), (-1.0, best)], "immediate", "S")
    # Two conditions are compared with the best: their intervals are widened for both.
    assert ranking.differences[rome.condition] == by_hand.estimate(comparisons=2)
    (sentence,) = headline([comparison])
    assert sentence.startswith("Right after each fact’s own batch, 128 facts: MEMIT is best, S ")
    assert "Statistically indistinguishable from it: EMMET (" in sentence
    assert "Worse, in points: ROME (−" in sentence


def test_conditions_are_compared_by_time_and_number_of_facts(study):
    compared = compare(Results(study))
    groups = {(one.ranking.when, one.n): len(one.arms) for one in compared}
    assert groups.keys() == {("final", 128), ("final", 32), ("immediate", 128)}
    # Those of most conditions first.
    assert [*groups.values()] == sorted(groups.values(), reverse=True)


def test_what_most_conditions_have_goes_without_saying(tmp_path):
    held = {"schedule": "sequential-batch", "n": 32, "batch_size": 4}
    places = [
        *grid("kinds", {"method": ["memit", "emmet"]}, **held),
        point("frozen", refresh="never", **held),
        point("larger", **{**held, "batch_size": 16}),
    ]
    (comparison,) = compare(Results(read_study(make_study(tmp_path, places))))
    assert {*comparison.names.values()} == {
        "MEMIT", "EMMET", "MEMIT, targets frozen", "MEMIT, batches of 16"
    }  # fmt: skip
    assert comparison.usual == "batches of 4, targets refreshed"
    assert "EMMET, batches of 4, targets refreshed" in comparison.full_names.values()
    (sentence,) = headline([comparison])
    assert sentence.endswith("Unless named: batches of 4, targets refreshed.")


def test_facts_without_neighbours_are_compared_by_what_there_is(tmp_path):
    places = grid("methods", {"method": ["memit", "emmet"]}, n=32)
    folder = make_study(tmp_path, places)
    for place in places:
        cell = folder / "cells" / str(place.cell)
        rows = pl.read_parquet(cell / "rows.parquet")
        rows.filter(pl.col("kind") == "rewrite").write_parquet(cell / "rows.parquet")
        seal_again(cell, "rows.parquet")
    (comparison,) = compare(Results(read_study(folder)))
    assert comparison.ranking.metric == "ES" and len(comparison.ranking.differences) == 1


def test_a_study_that_names_no_findings_is_told_without_any(written, study):
    report = page.make_report(study)
    assert report.findings == [] and report.answers == []
    assert {"verdicts", "methods", "effects"}.isdisjoint(report.charts)
    assert not list(written.rows.parent.glob("finding-*"))
    body = page.to_html(report).split("</style>")[1].split("<script")[0]
    for text in (body, page.to_markdown(report)):
        assert "paper" not in text and "Verdict" not in text and "reproduced" not in text


def test_the_recommended_layer_and_its_ties(study, tmp_path):
    best = recommend(study)[0]
    assert best.layer == (1,) and (5,) not in best.tied
    alike = lambda p, when: Chances(0.9, 0.9, 0.8)  # noqa: E731
    places = [point("layers", layers=(i,)) for i in range(3)]
    tied = recommend(read_study(make_study(tmp_path, places, alike)))[0]
    assert len(tied.tied) == 2


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


def test_the_page_is_whole_and_loads_nothing(written):
    text = written.html.read_text()
    loads = Loads()
    loads.feed(text)
    assert not [s for s in loads.found if re.match(r"(https?:)?//", s)]
    assert "@import" not in text and "url(http" not in text
    assert text.count('class="chart"') == len(written.charts) / 2
    for link in re.findall(r'href="([^#":]+)"', text):
        assert (written.html.parent / link).exists(), link


def test_the_page_needs_its_extra(folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(page.MissingExtra, match=r"retcon-llm\[report\]"):
        page.write_report(folder)


def test_a_report_needs_no_torch():
    code = "import sys, retcon.report.page; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def comparing():
    spec = importlib.util.spec_from_file_location("compare_reports", COMPARE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(scope="module")
def drawn_twice(tmp_path_factory):
    folder = make_study(
        tmp_path_factory.mktemp("drawn") / "study", grid("methods", {"method": ["memit", "emmet"]})
    )
    page.write_report(folder)
    return folder


def test_a_report_is_like_itself(comparing, drawn_twice, capsys):
    assert comparing(drawn_twice, drawn_twice) == 0
    assert "0 differ" in capsys.readouterr().out


def test_other_numbers_are_told(comparing, drawn_twice, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(drawn_twice, other)
    table = other / "report" / "differences-from-the-best.csv"
    table.write_text(table.read_text(encoding="utf-8").replace("best", "worst", 1), "utf-8")
    page = other / "report.html"
    text = page.read_text(encoding="utf-8")
    where = text.index('"effect":', text.index('id="specs"')) + len('"effect":')
    page.write_text(text[:where] + "1" + text[where:].lstrip("-"), encoding="utf-8")
    (other / "report" / "costs.csv").unlink()
    assert comparing(drawn_twice, other) == 1
    said = capsys.readouterr().out
    for name in ("differences-from-the-best.csv:", "chart differences:", "costs.csv: is not"):
        assert name in said
