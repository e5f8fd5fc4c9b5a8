"""Batch sizes that adapt, and the guard: what they decide, and that taking back is exact."""

from dataclasses import replace

import pytest
import torch

from pico import pico, run
from retcon.algebra.compatible import compatible
from retcon.algebra.preservation import Preservation
from retcon.algebra.solve import write_keys
from retcon.data.cases import load_cases
from retcon.data.held_out import held_out
from retcon.edits import Case, Edit
from retcon.errors import Collapsed, InvalidSetting, UnknownName
from retcon.method.entries import find_method
from retcon.run import monitor
from retcon.run import schedule as schedule_module
from retcon.run.edit import edit as make
from retcon.run.evaluate import evaluate
from retcon.run.guard import Guard
from retcon.run.monitor import Monitor
from retcon.run.rules.aimd import Aimd
from retcon.run.schedule import Schedule
from retcon.run.signals import Signals
from retcon.run.steps import Past
from test_identities import problem

FAST = {"steps": 4, "corpus_tokens": 300, "document_tokens": 32, "jitter": 1e-3, "prefixes": 1}
EDITS = [
    Edit(id=f"{a}{b}", prompt="The mother tongue of {} is", subject=f"{a} {b}", target=t)
    for a, t in (("Marie", "English"), ("Rome", "Polish"), ("Danielle", "Spanish"))
    for b in ("Curie", "Paris", "city")
]
FINE = Signals(3.0, 1.0, 1.0, 1.0)


def fold(schedule, refresh="never", guard="off", past=(), model=None, **settings):
    model = pico() if model is None else model
    editor = find_method("memit").build((1,), {**FAST, "ridge": 5.0, **settings})
    plan = Schedule.parse(schedule, refresh, guard)
    steps, bits = [], []
    for step in run(model, editor, editor.setup.begin(model), EDITS, plan, past=past):
        steps.append(step)
        bits.append(model.weights_hash())
    return steps, bits


def scripted(monkeypatch, script):
    """A probe that sees what a test wants it to see. script: (size, facts written) → Signals."""

    def measure(_self, batch, earlier, step_norm):
        return script(len(batch), len(earlier))._replace(step_norm=step_norm)

    monkeypatch.setattr(Monitor, "measure", measure)


def test_schedules_are_read_and_said():
    for text in ("adaptive-aimd:4", "adaptive-energy:64"):
        assert str(Schedule.parse(text)) == text and Schedule.parse(text).carry
    with pytest.raises(UnknownName, match="adaptive-aimd"):
        Schedule.parse("adaptive-aimed:4")
    with pytest.raises(InvalidSetting, match="batch size"):
        Schedule.parse("adaptive-energy")
    with pytest.raises(InvalidSetting, match="rollback"):
        Guard.parse("yes")
    with pytest.raises(InvalidSetting, match="nothing"):
        Schedule.parse("batch:4", guard="stop")


def test_aimd_grows_while_all_is_well(monkeypatch, entries):
    scripted(monkeypatch, lambda size, earlier: FINE)
    steps, _ = fold("adaptive-aimd:2")
    assert [len(step.edits) for step in steps] == [2, 4, 3]
    assert not any(step.tried or step.note for step in steps) and steps[-1].last


def test_aimd_halves_and_takes_back(monkeypatch, entries):
    """A batch above two is too much: it is tried, taken back bit for bit, and written in half."""
    scripted(monkeypatch, lambda size, _: FINE if size <= 2 else FINE._replace(efficacy=0.5))
    steps, bits = fold("adaptive-aimd:2")
    assert [(len(step.edits), step.tried) for step in steps] == [
        (2, 0), (2, 1), (2, 1), (2, 1), (1, 0)
    ]  # fmt: skip
    assert "50% is said" in steps[1].note
    _, plain = fold("sequential-batch:2")
    assert bits[:3] == plain[:3]


def test_what_makes_aimd_shrink():
    rule = Aimd(step=16)
    assert rule.judge(32, None, FINE).next_size == 48
    drifted = FINE._replace(log_perplexity=3.1)
    # FINE is at 3.0: 0.1 nats by 32 facts are 0.003 a fact.
    assert "ordinary text" in rule.judge(32, FINE, drifted, 0.001).reason
    assert rule.judge(32, FINE, drifted, 0.001).next_size == 16
    assert rule.judge(32, FINE, drifted, 0.002).stays and rule.judge(32, FINE, drifted).stays
    # Facts that have cost nothing so far do not forbid others to cost a little.
    little = FINE._replace(log_perplexity=FINE.log_perplexity + 0.005)
    assert rule.judge(32, FINE, little, -0.001).stays
    assert not rule.judge(24, FINE, little, -0.001).stays
    assert "earlier facts" in rule.judge(32, FINE, FINE._replace(retention=0.8)).reason
    broken = FINE._replace(log_perplexity=float("inf"))
    assert not rule.judge(32, FINE, broken).stays
    assert rule.judge(40, FINE, drifted, 0.001).next_size == 20
    # The smallest batch stays, whatever it does: the next one is of its size, and none is smaller.
    for size in (1, 16):
        least = rule.judge(size, FINE, drifted, 0.001)
        assert least.stays and least.reason and least.next_size == 16


def test_a_batch_that_is_cut_short_is_no_reason_to_begin_anew(monkeypatch, entries):
    """Targets are made for six facts at a time: the last of them are fewer than might have been."""
    monkeypatch.setattr(schedule_module, "_WINDOW", 6)
    scripted(monkeypatch, lambda *_: FINE)
    steps, _ = fold("adaptive-aimd:2", "stale:1e9")
    assert [len(step.edits) for step in steps] == [2, 4, 3] and steps[1].next_size == 6
    monkeypatch.setattr(schedule_module, "_WINDOW", 3)
    steps, _ = fold("adaptive-aimd:2", "stale:1e9")
    assert [(len(step.edits), step.next_size) for step in steps[:2]] == [(2, 4), (2, 4)]


@pytest.mark.parametrize("refresh", ["never", "each-batch", "stale:0.3"])
def test_adaptive_runs_go_on_from_their_steps(monkeypatch, refresh, entries):
    scripted(monkeypatch, lambda size, _: FINE if size <= 3 else FINE._replace(efficacy=0.5))
    steps, bits = fold("adaptive-aimd:2", refresh)
    past = [Past(s.update, s.refreshed, s.signals, s.next_size) for s in steps[:2]]
    rest, again = fold("adaptive-aimd:2", refresh, past=past)
    assert bits[2:] == again and [s.index for s in rest] == [s.index for s in steps[2:]]


def test_energy_is_what_a_batch_costs():
    """Bisection against the naive cost tr(ΔW M ΔWᵀ) of every size."""
    C, K, R = problem(3, 12)
    K[6:] = K[:6] + 0.05 * K[6:]
    R[6:] = R[:6]
    M = Preservation.of(C, jitter=0.0)

    def cost(rows):
        D = R[rows].mT @ write_keys(K[rows], M, 50.0).rows
        return float((D @ C * D).sum())

    alone = [cost([i]) for i in range(12)]
    fits = [cost(list(range(n + 1))) <= 1.5 * sum(alone[: n + 1]) for n in range(12)]
    size = compatible(K, R, M, 50.0)
    assert fits[size - 1] and (size == 12 or not fits[size])
    assert compatible(K[:1], R[:1], M, 50.0) == 1


def test_energy_parts_facts_that_pull_the_same_way():
    """Equal residuals at unlike but overlapping keys add up; opposite ones cancel."""
    C = torch.eye(24, dtype=torch.float64)
    shared = torch.ones(1, 24, dtype=torch.float64)
    own = torch.eye(24, dtype=torch.float64)[:10]
    K, R = shared + 2 * own, torch.ones(10, 3, dtype=torch.float64)
    M = Preservation.of(C, jitter=0.0)
    assert compatible(K, R, M, 1e3) < 10
    signs = torch.tensor([1.0, -1.0] * 5, dtype=torch.float64).unsqueeze(1)
    assert compatible(K, R * signs, M, 1e3) == 10


def test_energy_schedules_run(entries):
    steps, _ = fold("adaptive-energy:4", ridge=1e3)
    assert sum(len(step.edits) for step in steps) == len(EDITS)
    assert max(len(step.edits) for step in steps) <= 4
    editor = find_method("memit").build((0, 1), FAST)
    model = pico()
    with pytest.raises(InvalidSetting, match="several"):
        list(
            run(
                model, editor, editor.setup.begin(model), EDITS, Schedule.parse("adaptive-energy:4")
            )
        )


@pytest.mark.parametrize("action", ["warn", "stop", "rollback"])
def test_the_guard_does_what_it_says(monkeypatch, action, entries):
    collapse = FINE._replace(log_perplexity=9.0)
    scripted(monkeypatch, lambda _, earlier: collapse if earlier >= 4 else FINE)
    model = pico()
    original = model.weights_hash()
    steps, bits = fold("sequential-batch:2", guard=action, model=model)
    assert "perplexity" in steps[2].note and not steps[1].note
    assert len(steps) == (5 if action == "warn" else 3)
    _, plain = fold("sequential-batch:2")
    if action == "rollback":
        assert steps[2].undone and steps[2].at == 4 and bits[2] == bits[1] == plain[1]
    else:
        assert not steps[2].undone and bits[2] == plain[2]
    assert model.weights_hash() == original


def test_the_guard_trips_on_a_real_collapse_and_the_model_is_back(entries):
    """Targets a hundred times too long, as hard constraints, forgotten by later batches."""
    model = pico()
    original = model.weights_hash()
    wild = {"clamp": 300.0, "lr": 60.0, "decay": 0.0, "ridge": 1e-6, "accumulate": False}
    steps, bits = fold("sequential-batch:2", "each-batch", "rollback", model=model, **wild)
    assert steps[-1].undone and steps[-1].note
    assert bits[-1] == (bits[-2] if len(bits) > 1 else original)
    assert model.weights_hash() == original


def test_a_patch_of_a_stopped_run_holds_what_was_written(monkeypatch, entries):
    collapse = FINE._replace(retention=0.1)
    scripted(monkeypatch, lambda _, earlier: collapse if earlier >= 4 else FINE)
    settings = {**FAST, "ridge": 5.0}
    plan = Schedule.parse("sequential-batch:2", guard="rollback")
    patch = make(pico(), EDITS, method="memit", layers=(1,), settings=settings, schedule=plan)
    assert [e.id for e in patch.edits] == [e.id for e in EDITS[:4]]
    scripted(monkeypatch, lambda size, _: collapse if size else FINE)
    with pytest.raises(Collapsed, match="first batch"):
        make(pico(), EDITS, method="memit", layers=(1,), settings=settings, schedule=plan)


def test_a_trial_that_was_stopped_scores_all_its_cases(monkeypatch, entries):
    collapse = FINE._replace(retention=0.1)
    scripted(monkeypatch, lambda _, earlier: collapse if earlier >= 2 else FINE)
    plan = Schedule.parse("sequential-batch:2", guard="rollback")
    cases = [Case(edit=edit) for edit in EDITS]
    settings = {**FAST, "ridge": 5.0}
    trial = evaluate(pico(), cases, method="memit", layers=(1,), settings=settings, schedule=plan)
    assert {row.case for row in trial.at("final")} == {e.id for e in EDITS}
    assert {row.case for row in trial.at("immediate")} == {e.id for e in EDITS[:2]}
    assert trial.steps[-1].undone and trial.describe()["guard"] == "rollback"


def test_a_probe_is_deterministic_and_asks_for_the_last_target(entries):
    model = pico()
    cases = load_cases("starter")[:12]
    edits = [case.edit for case in cases]
    one = Monitor(model).measure(edits[:4], edits[4:], 0.5)
    assert one == Monitor(model).measure(edits[:4][::-1], edits[4:][::-1], 0.5)
    assert one.log_perplexity > 0 and 0 <= one.efficacy <= 1 and one.retention is not None
    assert Monitor(model).measure(edits[:2], [], 0.0).retention is None
    # What is edited again is asked with its new target only.
    assert Monitor(model).measure(edits[:2], edits[:2], 0.0).retention is None


def test_a_model_of_other_words_is_asked_for_text_of_its_own(entries, monkeypatch):
    """Of a text that is nothing but unknown words a model's perplexity tells nothing."""
    foreign = held_out(passages=2)
    foreign = replace(foreign, texts=tuple(f"<s><s> {text}" for text in foreign.texts))
    monkeypatch.setattr(monitor, "held_out", lambda **_: foreign)
    model = pico()
    seen = Monitor(model).measure(EDITS[:1], [], 0.0)
    assert 0 < seen.log_perplexity < float("inf")
    assert seen == Monitor(model).measure(EDITS[:1], [], 0.0)
    plan = Schedule.parse("sequential-batch:2", guard="warn")
    settings = {**FAST, "ridge": 5.0}
    cases = [Case(edit=edit) for edit in EDITS]
    trial = evaluate(model, cases, method="memit", layers=(1,), settings=settings, schedule=plan)
    assert all(step.signals["log_perplexity"] > 0 for step in trial.steps)


def test_rules_and_guards_refuse_methods_that_give_nothing_to_go_by(entries):
    model = pico()

    def refused(method, schedule, guard="off", **settings):
        editor = find_method(method).build((1,), settings)
        plan = Schedule.parse(schedule, guard=guard)
        with pytest.raises(InvalidSetting) as error:
            list(run(model, editor, editor.setup.begin(model), EDITS, plan))
        return str(error.value)

    for schedule, guard in (("adaptive-aimd:2", "off"), ("sequential-batch:2", "warn")):
        assert "writes no weight" in refused("in_context", schedule, guard)
    assert "no weight" in refused("in_context", "adaptive-energy:2")
    assert "gradients" in refused("ultraedit", "adaptive-energy:2")
    budget = {**FAST, "ridge": 5.0, "budget": 10.0}
    assert "budget" in refused("memit", "adaptive-energy:2", **budget)


def test_aimd_does_not_outgrow_a_method_of_single_facts(monkeypatch, entries):
    scripted(monkeypatch, lambda *_: FINE)
    model = pico()
    editor = find_method("rome").build((1,), FAST)
    plan = Schedule.parse("adaptive-aimd:1")
    steps = list(run(model, editor, editor.setup.begin(model), EDITS[:3], plan))
    assert [len(step.edits) for step in steps] == [1, 1, 1]


@pytest.mark.parametrize("ridge", [0.0, 1e-300, 1e-18])
@pytest.mark.parametrize("noise", [0.0, 1e-16, 1e-15, 1e-14, 1e-13])
def test_energy_parts_two_hard_constraints_at_one_key(noise, ridge):
    """Also where rounding, which differs between processors, tells the keys apart."""
    for seed in range(8):
        C, K, R = problem(seed, 4)
        unlike = torch.randn(K.shape[1], generator=torch.Generator().manual_seed(seed)).double()
        K[2] = K[1] * (1 + noise * unlike)
        assert compatible(K, R, Preservation.of(C, jitter=0.0), ridge) == 2


def test_energy_goes_by_the_ridge_of_the_batch(monkeypatch, entries):
    """A ridge that is meant for one fact is larger for more of them."""
    seen = []

    def spied(keys, residual, metric, ridge):
        seen.append((len(keys), ridge))
        return len(keys)

    monkeypatch.setattr("retcon.method.locate_then_edit.compatible", spied)
    fold("adaptive-energy:4", ridge=5.0, ridge_batch=2)
    assert seen == [(4, 10.0), (4, 10.0), (1, 2.5)]
