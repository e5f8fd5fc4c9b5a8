"""Whether the answer depends on the score: finding (g), ranks and rank correlations."""

from itertools import combinations
from math import sqrt
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from made_study import Chances, grid, make_study, point, seal_again
from retcon.report import page, tables
from retcon.report.agreement import agree, correlate, dependence
from retcon.report.charts import rankings
from retcon.report.findings import judge, select
from retcon.report.headline import reading
from retcon.report.ranking import compare, rank
from retcon.report.results import Results
from retcon.report.terminal import brief
from retcon.scoring.intervals import CaseMeans
from retcon.scoring.metrics import METRICS, metrics
from retcon.study.study import read_study

SIZES = {"batch_size": [2, 8, 32, 128]}
CARRIED = {"schedule": "sequential-batch", "accumulate": False, "n": 128}


def study(folder: Path, chances, **changes) -> Results:
    """Carried edits in four batch sizes, with chances that depend on the size."""
    places = grid("sizes", SIZES, **CARRIED | changes)
    return Results(read_study(make_study(folder, places, chances)))


def bigger(p, when):
    """Every score rises with the batch size."""
    up = np.log2(p.batch_size) / 7
    return Chances(0.5 + 0.45 * up, 0.4 + 0.5 * up, 0.5 + 0.4 * up)


def contrary(p, when):
    """What is said of a fact rises with the batch size, what is said of neighbours falls."""
    up = np.log2(p.batch_size) / 7
    return Chances(0.5 + 0.45 * up, 0.4 + 0.5 * up, 0.9 - 0.4 * up)


def still(p, when):
    """Nothing depends on the batch size."""
    return Chances(0.9, 0.8, 0.7)


@pytest.fixture(scope="module")
def contradicting(tmp_path_factory) -> Results:
    return study(tmp_path_factory.mktemp("contrary"), contrary)


def outcome(results: Results):
    (finding,) = judge(results, select(["batch-size/g"]))
    return finding


def answers(finding, when="final"):
    """The answer by each score, by its title."""
    return {
        effect.about["score"]: effect.about["answer"]
        for effect in finding.effects
        if effect.when == when and effect.about
    }


def test_all_scores_agree(tmp_path):
    finding = outcome(study(tmp_path, bigger))
    assert finding.verdict_at("final") == "reproduced"
    given = answers(finding)
    assert {*given.values()} == {"a bigger batch is better"}
    assert {"ES", "PS", "NS", "S", "token accuracy"} <= given.keys()
    number = len(given)
    assert f"for {number} of {number} scores the answer is the same" in finding.outcome.summary


def test_scores_disagree_and_are_counted(contradicting):
    finding = outcome(contradicting)
    assert finding.verdict_at("final") == "not reproduced"
    given = answers(finding)
    worse = {title for title, said in given.items() if said == "a bigger batch is worse"}
    assert worse == {"NS", "neighbour token accuracy"}
    better = [title for title, said in given.items() if said == "a bigger batch is better"]
    assert {"ES", "PS", "token accuracy"} <= {*better}
    assert (
        f"for {len(better)} of {len(given)} scores the answer is the same, a bigger batch is "
        "better (ES, PS" in finding.outcome.summary
    )
    assert "; a bigger batch is worse (NS, neighbour token accuracy)" in finding.outcome.summary
    # What decides is one of those that contradict, in points of its own, widened for all scores.
    (deciding,) = finding.deciding("final")
    alone = next(e for e in finding.effects if e.when == "final" and e.about.get("score") == "NS")
    assert deciding.metric == "NS" and deciding.estimate.mean == alone.estimate.mean < 0
    assert deciding.estimate.low < alone.estimate.low


def test_too_little_data_says_nothing(tmp_path):
    finding = outcome(study(tmp_path, still, n=16))
    assert finding.verdict_at("final") == "inconclusive"
    assert {*answers(finding).values()} == {"it cannot be told"}
    assert "by none of" in finding.outcome.summary


def test_no_carried_batches_are_missing(tmp_path):
    results = Results(read_study(make_study(tmp_path, grid("one", {"method": ["memit"]}))))
    finding = outcome(results)
    assert finding.verdict == "no data" and finding.missing.startswith("Needs carried edits")


def test_facts_that_were_written_first_decide_nothing(tmp_path):
    finding = outcome(study(tmp_path, bigger, score=64))
    assert finding.verdict_at("final") == "inconclusive"
    assert {*answers(finding).values()} == {"it cannot be told"}


def test_a_score_of_which_less_is_better_is_turned_round(speaking):
    results = speaking
    given = answers(outcome(results))
    # Facts are taken back less often as batches grow, see `speaking`.
    assert given["Takes it back later"] == given["Says it freely"] == "a bigger batch is better"
    (arm, *others) = results.arms
    best = rank(results, {a.condition: a for a in results.arms}, "final", "contradicts").best
    assert best.batch_size == 128
    levels = [results.estimate(a, "final", "contradicts").mean for a in (arm, *others)]
    assert min(levels) == results.estimate(results.arms[-1], "final", "contradicts").mean


@pytest.fixture(scope="module")
def speaking(tmp_path_factory) -> Results:
    """The same with free generation: half of what is preferred is said, and some of it taken back.

    The larger the batches, the less is taken back.
    """
    places = grid("sizes", SIZES, **CARRIED)
    made = make_study(tmp_path_factory.mktemp("speaking"), places, contrary)
    for place in places:
        cell = made / "cells" / str(place.cell)
        rows = pl.read_parquet(cell / "rows.parquet")
        kept = rows.filter(pl.col("kind") == "rewrite")
        number = pl.col("case").str.extract(r"(\d+)").cast(pl.Int64)
        said = (pl.col("nll_new") < pl.col("nll_old")) & (number % 2 == 0)
        free = kept.with_columns(
            pl.lit("free rewrite").alias("kind"),
            said.alias("exact"),
            (said & (number % place.batch_size < 4)).cast(pl.Int64).alias("hits_old"),
        )
        columns = rows.with_columns(
            pl.lit(None, pl.Float64).alias("value"), pl.lit(None, pl.String).alias("text")
        )
        free = free.with_columns(pl.lit(0.0).alias("value"), pl.lit("so it is").alias("text"))
        pl.concat([columns, free.select(columns.columns).cast(columns.schema)]).write_parquet(
            cell / "rows.parquet"
        )
        seal_again(cell, "rows.parquet")
    return Results(read_study(made))


def test_free_generation_comes_first(speaking):
    results = speaking
    told = {table.title.partition(" (")[0]: table for table in tables.summary(results, [])}
    scores = told["Scores, final"].columns
    shown = scores[scores.index("cases") + 1 :]
    assert shown == ("Says it freely", "Says it and stays with it", "ES", "PS", "NS", "S")
    further = told["Further scores, final"].columns
    assert further.index("Takes it back later") < further.index("token accuracy")
    titles = [table.title.partition(",")[0] for table in brief(results, [])]
    assert titles.index("Said freely") < titles.index("Scores")
    assert reading(results).startswith("First stands what the model writes by itself.")
    report = page.make_report(results.study)
    assert {"Says it freely"}.isdisjoint(table.title for table in report.tables)
    data = report.charts["sequential-final"].spec["data"]["values"]
    assert data[0]["metric"] == "said"


def test_exact_match_stands_in_for_it_where_there_is_nothing_else(tmp_path):
    results = study(tmp_path, bigger)
    assert reading(results).endswith("Nothing here was said freely.")
    for arm in results.arms:
        cell = tmp_path / "cells" / arm.runs[0].cell
        rows = pl.read_parquet(cell / "rows.parquet")
        said = pl.when(pl.col("kind") == "rewrite").then(pl.col("nll_new") < pl.col("nll_old"))
        rows.with_columns(said.alias("exact")).write_parquet(cell / "rows.parquet")
        seal_again(cell, "rows.parquet")
    results = Results(read_study(tmp_path))
    assert reading(results) == (
        "ES, PS and NS compare two answers, neither of which the model need say. Nothing here was "
        "said freely but for exact match."
    )
    final = next(t for t in tables.summary(results, []) if t.title.startswith("Scores, final"))
    assert final.columns[-5:] == ("exact match", "ES", "PS", "NS", "S")
    assert page.make_report(results.study).summary[-1] == reading(results)


@pytest.mark.parametrize("always", [True, False])
def test_a_form_that_the_model_cannot_do_is_marked_and_ranks_nothing(tmp_path, always):
    """Beside a model that says "True" of whatever it is asked stands one that can tell."""
    says = 1.0 if always else 2.0
    for arm in study(tmp_path, still).arms:
        for cell in (tmp_path / "cells" / run.cell for run in arm.runs):
            rows = pl.read_parquet(cell / "rows.parquet")
            kept = rows.filter(pl.col("kind") == "rewrite")
            of_old, of_target = (
                kept.with_columns(
                    pl.lit(f"form true or false:{answer}").alias("kind"),
                    pl.lit(new).alias("nll_new"),
                    pl.lit(3.0 - new).alias("nll_old"),
                )
                for answer, new in (("old", says), ("target", says))
            )
            pl.concat([rows, of_old, of_target]).write_parquet(cell / "rows.parquet")
            seal_again(cell, "rows.parquet")
    results = Results(read_study(tmp_path))
    found = {metric.name for metric in results.telling(results.arms, "pre")}
    assert ("affirmed" in found) is not always
    shown = tables.summary(results, []) + page.make_report(results.study).tables
    marked = [
        table.title
        for table in shown
        if any("cannot do this form" in str(field) for row in table.rows for field in row)
    ]
    assert bool(marked) is always
    told = [str(field) for table in brief(results, []) for row in table.rows for field in row]
    assert any("cannot do this form" in field for field in told) is always


def test_free_generation_is_before_all_others_at_each_place():
    for place in ("headline", "table", "record"):
        freely = [metric.freely for metric in metrics(place)]
        assert freely == sorted(freely, reverse=True)
    assert next(one.name for one in metrics("headline") if one.freely) == "said"


def tau_b(one, other):
    """Kendall's τ_b, pair by pair."""
    alike, ties_one, ties_other = 0, 0, 0
    pairs = list(combinations(range(len(one)), 2))
    for i, j in pairs:
        first, second = np.sign(one[i] - one[j]), np.sign(other[i] - other[j])
        alike += first * second
        ties_one += first == 0
        ties_other += second == 0
    return alike / sqrt((len(pairs) - ties_one) * (len(pairs) - ties_other))


def test_rank_correlations_are_kendall_s(contradicting):
    arms = contradicting.arms
    known = [METRICS.find(name) for name in ("ES", "PS", "NS", "S")]
    found = correlate(known, 4, lambda i, name: contradicting.pooled(arms[i], "final", name))
    levels = {
        m.name: [round(contradicting.estimate(arm, "final", m.name).mean, 9) for arm in arms]
        for m in known
    }
    assert found.keys() == set(combinations(levels, 2))
    for (one, other), tau in found.items():
        assert tau.mean == pytest.approx(tau_b(levels[one], levels[other]))
        assert tau.low <= tau.mean <= tau.high and tau.cases == 4
    # Steps of eleven points are told apart; what is equal has no order.
    assert found["ES", "NS"].mean == -1 and found["ES", "NS"].high < -0.5
    same = lambda i, name: contradicting.pooled(arms[0], "final", name)  # noqa: E731
    assert correlate(known, 4, same) == {}


def drawn(conditions: int, relations: int, times: int, *, alone: bool = False):
    """τ of two scores that are alike for all facts of a relation; `alone`: which stand alone."""
    random = np.random.default_rng(3)
    values = random.normal(size=(2, conditions, relations)) + np.arange(conditions)[:, None] / 8
    facts = [
        (f"{r} {i}", f"P{r} {i}" if alone else f"P{r}", r)
        for r in range(relations)
        for i in range(times)
    ]

    def pooled(place: int, name: str) -> CaseMeans:
        scores = values[("ES", "PS").index(name), place]
        return CaseMeans(
            {fact: float(scores[relation]) for fact, _, relation in facts},
            {fact: cluster for fact, cluster, _ in facts},
        )

    known = [METRICS.find(name) for name in ("ES", "PS")]
    return correlate(known, conditions, pooled)["ES", "PS"]


def test_intervals_are_of_relations():
    """Facts of one relation that are all alike are one observation, however many they are."""
    once, often, apart = drawn(5, 20, 1), drawn(5, 20, 9), drawn(5, 20, 9, alone=True)
    assert often == pytest.approx(once) and once.high - once.low > 0.3
    assert apart.mean == pytest.approx(once.mean)
    assert apart.high - apart.low < 0.7 * (once.high - once.low)
    few = drawn(5, 3, 9)
    assert few.low is None and few.mean is not None


def test_what_is_best_by_each_score_is_told(contradicting):
    results = contradicting
    comparisons = compare(results)
    (agreement,) = agree(results, comparisons)
    best = {name: one.best.batch_size for name, one in agreement.rankings.items()}
    assert best["ES"] == 128 and best["NS"] == 2
    sentence = dependence(agreement)
    assert sentence.startswith("Does that depend on the score? ")
    assert sentence.endswith(" is better by NS, neighbour token accuracy.")
    data = rankings.ranked(agreement)
    ns = {row["setting"]: row["rank"] for row in data if row["score"] == "NS"}
    es = {row["setting"]: row["rank"] for row in data if row["score"] == "ES"}
    assert all(ns[name] + es[name] == 5 for name in ns)
    assert all(row["bold"] for row in data if row["rank"] == 1)
    square = rankings.alike(agreement).spec["data"]["values"]
    assert {(r["one"], r["other"]) for r in square} == {(r["other"], r["one"]) for r in square}


def test_one_condition_has_no_ranking(tmp_path):
    place = point("one", schedule="sequential-batch", batch_size=4, n=32)
    report = page.make_report(read_study(make_study(tmp_path, [place])))
    assert report.agreements == [] and "by-score" not in report.charts


def test_the_page_shows_ranks(contradicting):
    results = contradicting
    written = page.write_report(results.study.folder, ["batch-size/g"])
    text = written.html.read_text(encoding="utf-8")
    assert 'id="by-score"' in text and 'id="chart-rank-correlations"' in text
    assert 'id="chart-answers"' in text and "scores the answer is the same" in text
    beside = (written.rows.parent / "best-condition-by-score.csv").read_text(encoding="utf-8")
    (agreement,) = agree(results, compare(results))
    assert len(beside.splitlines()) == 1 + len(agreement.rankings)
