"""When targets are made anew, what then depends on the batch size, and facts that come again."""

from collections import defaultdict
from dataclasses import replace
from math import isfinite

import pytest
import torch

from pico import pico, run
from retcon.edits import Case, Edit
from retcon.errors import InvalidSetting, UnknownName
from retcon.method.entries import find_method
from retcon.run.looks import Looks
from retcon.run.looks import run as watch
from retcon.run.monitor import Monitor
from retcon.run.schedule import Refresh, Schedule
from retcon.run.steps import Past

FAST = {"steps": 4, "corpus_tokens": 300, "document_tokens": 32, "jitter": 1e-3, "prefixes": 1}
EDITS = [
    Edit(id=f"{a}{b}", prompt="The mother tongue of {} is", subject=f"{a} {b}", target=t)
    for a, t in (("Marie", "English"), ("Rome", "Polish"), ("Danielle", "Spanish"))
    for b in ("Curie", "Paris")
]
STREAM = [
    Edit(id=name, prompt="The mother tongue of {} is", subject=name, target="English")
    for name in ("Marie Curie", "Rome", "Danielle", "Paris")
]
AGAIN = replace(STREAM[0], id="again", target="Polish")


def fold(schedule: str, refresh: str, layers=(1,), past=(), **settings):
    """The steps of a run in float64, and the matrices at its end."""
    model = pico(dtype=torch.float64)
    editor = find_method("memit").build(layers, {**FAST, "ridge": 5.0, **settings})
    plan = Schedule.parse(schedule, refresh)
    steps = []
    for step in run(model, editor, editor.setup.begin(model), EDITS, plan, past=past):
        steps.append(step)
        weights = {layer: model.master(layer).clone() for layer in layers}
    return steps, weights


def test_rules_are_read_and_said():
    for text in ("each-batch", "never", "stale:0.15"):
        assert str(Refresh.parse(text)) == text
    for wrong in ("stale", "stale:x", "stale:0", "stale:-1", "stale:inf"):
        with pytest.raises(InvalidSetting, match="threshold"):
            Refresh.parse(wrong)
    with pytest.raises(UnknownName, match="each-batch"):
        Refresh.parse("always")


@pytest.mark.parametrize("size", [1, 2, 4])
def test_frozen_and_accumulated_every_batch_size_gives_the_same_weights(size, entries):
    _, whole = fold("batch:6".replace("batch", "sequential-batch"), "never")
    _, parts = fold(f"sequential-batch:{size}", "never")
    moved = (whole[1] - pico(dtype=torch.float64).master(1)).norm()
    # Factors are kept in float32.
    assert (whole[1] - parts[1]).norm() < 1e-5 * moved


def test_refreshed_targets_do_depend_on_the_batch_size(entries):
    _, whole = fold("sequential-batch:6", "each-batch")
    _, parts = fold("sequential-batch:2", "each-batch")
    moved = (whole[1] - pico(dtype=torch.float64).master(1)).norm()
    assert (whole[1] - parts[1]).norm() > 1e-3 * moved


def test_per_fact_a_batch_of_another_size_has_another_ridge(entries):
    steps, _ = fold("sequential-batch:4", "never", ridge_batch=2)
    assert [step.update.report.batch["ridge"] for step in steps] == [10.0, 5.0]


def test_never_makes_targets_once_and_each_batch_every_time(entries):
    never, _ = fold("sequential-batch:2", "never")
    assert [step.refreshed for step in never] == [True, False, False]
    assert never[0].staleness is None and never[2].staleness > 0
    each, _ = fold("sequential-batch:2", "each-batch")
    assert all(step.refreshed and step.staleness is None for step in each)


def test_a_small_threshold_is_each_batch_and_a_large_one_never(entries):
    _, each = fold("sequential-batch:2", "each-batch")
    steps, small = fold("sequential-batch:2", "stale:1e-12")
    assert all(step.refreshed for step in steps) and torch.equal(each[1], small[1])
    _, never = fold("sequential-batch:2", "never")
    steps, large = fold("sequential-batch:2", "stale:1e12")
    assert not any(step.refreshed for step in steps[1:]) and torch.equal(never[1], large[1])


def made_by(refresh, monkeypatch):
    """For how many facts targets were made, time after time."""
    made = []
    editor = find_method("memit").build((1,), {**FAST, "ridge": 5.0})
    features = type(editor).features

    def spy(self, model, edits, *rest):
        made.append(len(edits))
        return features(self, model, edits, *rest)

    monkeypatch.setattr(type(editor), "features", spy)
    fold("sequential-batch:1", refresh)
    return made


@pytest.mark.parametrize(("refresh", "made"), [
    ("each-batch", [1] * 6), ("never", [6]), ("stale:1e12", [6]),
    # All six are made, one is used; then one, which is used up; then two, one of them stale; …
    ("stale:1e-12", [6, 1, 2, 1, 2, 1]),
])  # fmt: skip
def test_targets_are_not_made_for_facts_that_will_not_use_them(refresh, made, monkeypatch, entries):
    assert made_by(refresh, monkeypatch) == made


def test_facts_that_the_model_knows_are_no_reason_to_make_targets_anew(entries):
    """Their δ is 0: there is no unit of drift, and rounding for a residual."""
    steps, _ = fold("sequential-batch:2", "stale:0.1", stop_below=1e6)
    assert not any(step.features.targets.delta.any() for step in steps)
    assert [step.staleness for step in steps] == [None, 0, 0]
    assert all(isfinite(x) for step in steps for x in step.update.report.edit["reached"])


def test_drift_is_what_the_outputs_have_moved(entries):
    model = pico(dtype=torch.float64)
    editor = find_method("memit").build((1,), {**FAST, "ridge": 5.0})
    state = editor.setup.begin(model)
    features = editor.features(model, EDITS, state)
    # What a subject's prompt comes from activations in float32.
    assert editor.staleness(model, features).max() < 1e-12
    with model.scratch():
        update = editor.solve(model, features, state)
        model.write(update.deltas)
        moved = features.keys @ update.deltas[1].dense().mT
        wanted = moved.norm(dim=-1) / features.targets.delta.double().norm(dim=-1)
        assert torch.allclose(editor.staleness(model, features), wanted, rtol=1e-6)
        reached = torch.tensor(update.report.edit["reached"], dtype=torch.float64)
        left = (moved - features.targets.delta).norm(dim=-1)
        assert torch.allclose(
            reached, 1 - left / features.targets.delta.double().norm(dim=-1), atol=1e-5
        )


@pytest.mark.parametrize("layers", [(1,), (0, 1)])
@pytest.mark.parametrize("refresh", ["each-batch", "never", "stale:0.05"])
def test_steps_written_again_lead_to_the_same_end(layers, refresh, entries):
    steps, whole = fold("sequential-batch:2", refresh, layers)
    past = [Past(step.update, step.refreshed) for step in steps[:2]]
    rest, again = fold("sequential-batch:2", refresh, layers, past)
    assert [step.index for step in rest] == [2]
    assert all(torch.equal(whole[layer], again[layer]) for layer in layers)


def asked_after(schedule, edits):
    """Which cases are scored when, and after which batch."""
    model, editor = pico(), find_method("memit").build((1,), {**FAST, "ridge": 5.0})
    cases, seen = [Case(edit=edit) for edit in edits], defaultdict(set)
    looks = Looks(when=("immediate", "retention", "final"))
    plan = Schedule.parse(schedule)
    for one in watch(model, editor, editor.setup.begin(model), cases, plan, looks=looks):
        for row in one.rows:
            seen[row.when, row.step].add(row.case)
    return dict(seen)


def test_what_a_fact_said_before_it_was_edited_again_is_not_asked_for(entries):
    ids = [edit.id for edit in STREAM]
    seen = asked_after("sequential-batch:1", [*STREAM, AGAIN])
    assert seen["immediate", 1] == {ids[0]} and seen["immediate", 5] == {"again"}
    assert seen["retention", 2] == {ids[0]} and seen["retention", 4] == set(ids[:3])
    assert seen["final", 5] == {*ids[1:], "again"}
    early = asked_after("sequential-batch:1", [STREAM[0], AGAIN, *STREAM[1:]])
    assert ("retention", 2) not in early
    assert early["retention", 4] == {"again", ids[1]}


@pytest.mark.parametrize("schedule", ["sequential-batch:5", "batch:5"])
def test_nor_of_two_edits_of_a_fact_in_one_batch_the_first(schedule, entries):
    seen = asked_after(schedule, [*STREAM, AGAIN])
    assert seen["immediate", 1] == {*(edit.id for edit in STREAM[1:]), "again"}
    if schedule.startswith("sequential"):
        assert seen["final", 1] == seen["immediate", 1]


def test_a_probe_asks_for_the_last_target_of_a_batch(entries):
    model = pico()
    both = Monitor(model).measure([STREAM[0], AGAIN, STREAM[1]], [], 0.0)
    assert both == Monitor(model).measure([AGAIN, STREAM[1]], [], 0.0)
    assert both.efficacy in (0.0, 0.5, 1.0)
