"""The rule of verdicts, and the registry of what is judged by it."""

import doctest

import pytest

from made_study import make_study, small_grid
from retcon.errors import InvalidStudy, UnknownName
from retcon.report import findings, verdicts
from retcon.report.findings import FINDINGS, FindingSet, Outcome, finding, judge, select, select_for
from retcon.report.results import Results
from retcon.report.verdicts import (
    judge_best,
    judge_equal,
    judge_higher,
    judge_lower,
    judge_not_worse,
    measure,
    while_pending,
)
from retcon.scoring.intervals import Estimate
from retcon.study.study import read_study


@pytest.mark.parametrize(
    ("low", "high", "lower", "equal", "not_worse"),
    [
        (-3.0, -2.0, "reproduced", "not reproduced", "not reproduced"),
        (2.0, 3.0, "not reproduced", "not reproduced", "reproduced"),
        (-0.5, 0.5, "not reproduced", "reproduced", "reproduced"),
        (-3.0, 0.5, "inconclusive", "inconclusive", "inconclusive"),
        (None, None, "inconclusive", "inconclusive", "inconclusive"),
    ],
)
def test_the_rule(low, high, lower, equal, not_worse):
    mean = None if low is None else (low + high) / 2
    estimate = Estimate(mean, low, high, 10)
    assert judge_lower(estimate) == lower
    assert judge_equal(estimate) == equal
    assert judge_not_worse(estimate) == not_worse
    if low is not None:
        assert judge_higher(Estimate(-mean, -high, -low, 10)) == lower


def test_a_setting_is_the_best_only_if_it_is_not_worse_than_any_rival():
    close = Estimate(0.1, -0.6, 0.8, 9)
    unsure, ahead = Estimate(0.5, -1.5, 2.5, 9), Estimate(-2.0, -3.0, -1.0, 9)
    assert judge_best({"close": close}) == ("close", "reproduced")
    # Its mean is lower than that of the close one, and it may be the better by more.
    assert judge_best({"close": close, "unsure": unsure}) == ("unsure", "inconclusive")
    rivals = {"close": close, "unsure": unsure, "ahead": ahead}
    assert judge_best(rivals) == ("ahead", "not reproduced")


def test_what_has_yet_to_be_run_can_refute_and_not_confirm():
    assert while_pending("reproduced", 1) == "inconclusive"
    assert while_pending("not reproduced", 1) == "not reproduced"
    assert while_pending("reproduced", 0) == "reproduced"


def test_the_examples_of_the_rule_hold():
    assert doctest.testmod(verdicts).failed == 0
    assert doctest.testmod(verdicts).attempted == 4


@pytest.fixture
def results(tmp_path):
    return Results(read_study(make_study(tmp_path, small_grid())))


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(FINDINGS, "_entries", FINDINGS.all())


def test_an_effect_knows_its_rows(results):
    one, other = [arm for arm in results.arms if arm.point.block == "batch"][:2]
    terms = [(1.0, one), (-1.0, other)]
    effect = measure(results, "one − other", terms, "immediate", "NS", judge_higher)
    assert {row.cell for row in effect.evidence} == one.cells | other.cells
    assert {row.metric for row in effect.evidence} == {"NS"} and not effect.decides
    assert measure(results, "none", terms, "retention", "NS") is None


def test_claims_of_a_set_come_together(registry, results):
    own = FindingSet(name="mine", title="Mine", introduction="", headline=lambda f: ["So it is."])
    for key in ("x", "y"):
        finding(key, set=own, title=key, claim=key)(lambda results: Outcome(missing="All."))
    assert [claim.name for claim in select(["mine"])] == ["mine/x", "mine/y"]
    assert [claim.key for claim in select(["mine/y", "mine"])] == ["y", "x"]
    judged = judge(results, select(["mine"]))
    assert [one.verdict for one in judged] == ["no data", "no data"]
    ((of, members),) = findings.by_set(judged)
    assert of is own and list(of.headline(members)) == ["So it is."]


def test_two_findings_of_one_key_are_refused(registry):
    finding("a", title="Another", claim="Another.")(lambda results: Outcome())
    with pytest.raises(InvalidStudy, match="have the key 'a'"):
        select(["batch-size", "a"])


def test_unknown_findings_are_told_with_what_there_is():
    with pytest.raises(UnknownName, match=r"'batch-sise'\. Did you mean 'batch-size'"):
        select(["batch-sise"])
    with pytest.raises(InvalidStudy, match=r"retcon --plugin FILE\.py study report"):
        select_for(["a-plugin's"])
    assert select(["none"]) == []
