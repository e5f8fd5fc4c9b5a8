"""The guard's rules, what they are measured against, and that its word gets to the user."""

import json
from dataclasses import replace

import pytest
import torch

from pico import pico, run
from retcon.algebra.preservation import Preservation
from retcon.algebra.whitening import Cholesky, Projection, Root
from retcon.edits import Probe
from retcon.errors import Collapsed
from retcon.method.entries import find_method
from retcon.run.edit import edit as make
from retcon.run.guard import Guard
from retcon.run.monitor import Monitor
from retcon.run.schedule import Schedule
from retcon.run.signals import Signals, first_written
from retcon.scoring.exact_match import top_answers
from test_cli import FACTS, SETTINGS, folder  # noqa: F401
from test_identities import problem
from test_methods import EDITS, FAST

FINE = Signals(3.0, 1.0, 1.0, 1.0)
NOTHING = FINE._replace(step_norm=0.0, energy=0.0)
WARN = Guard(action="warn")


def scripted(monkeypatch, script):
    """A probe that sees what a test wants it to see. script: facts written → Signals."""
    monkeypatch.setattr(Monitor, "measure", lambda _, batch, earlier, norm: script(len(earlier)))


def test_a_batch_that_moved_nothing_is_no_measure():
    moved = FINE._replace(step_norm=0.5, energy=2.0, facts=4)
    assert first_written([NOTHING, moved, FINE]) == moved
    assert first_written([NOTHING]) is None and first_written([]) is None
    wild = moved._replace(step_norm=15.0)
    assert "30 times as far" in WARN.judge(FINE, moved, wild)
    assert not WARN.judge(FINE, moved, moved._replace(step_norm=9.9))
    # Against one that moved nothing there is nothing to say, and nothing is divided by.
    assert not WARN.judge(FINE, NOTHING, wild) and not WARN.judge(FINE, None, wild)


def test_a_guarded_run_goes_on_from_a_batch_that_moved_nothing(monkeypatch, entries):
    scripted(monkeypatch, lambda earlier: FINE if earlier else NOTHING)
    plan = Schedule.parse("sequential-batch:2", guard="stop")
    settings = {**FAST, "ridge": 5.0}
    patch = make(pico(), EDITS, method="memit", layers=(1,), settings=settings, schedule=plan)
    assert len(patch.edits) == len(EDITS) and not patch.notes


def test_the_energy_is_judged_by_facts():
    first = FINE._replace(energy=8.0, facts=4)
    assert first.energy_a_fact == 2.0 and FINE.energy_a_fact is None
    # As many times the energy for as many times the facts is no alarm; per fact it is.
    assert not WARN.judge(FINE, first, FINE._replace(energy=8000.0, facts=4000))
    assert not WARN.judge(FINE, first, FINE._replace(energy=39.0 * 40, facts=40))
    assert "20.5 times" in WARN.judge(FINE, first, FINE._replace(energy=41.0 * 40, facts=40))
    strict = Guard(action="warn", energy=2.0)
    assert "costs ordinary text" in strict.judge(FINE, first, FINE._replace(energy=50.0, facts=10))
    for unknown in (FINE, FINE._replace(energy=0.0)):
        assert not WARN.judge(FINE, unknown, FINE._replace(energy=1e9, facts=1))
        assert not WARN.judge(FINE, first, unknown)


def whitenings():
    C, _, _ = problem(5, 3)
    root = torch.randn(24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    root = root + 6 * torch.eye(24, dtype=torch.float64)
    inside = Projection.null_space(C, float(torch.linalg.eigvalsh(C)[9]), relative=False)
    outside = Projection.null_space(C, float(torch.linalg.eigvalsh(C)[19]), relative=False)
    return [
        (Cholesky.of(C, jitter=0.0, overwrite=False), C),
        (Root(root=root), torch.linalg.inv(root.mT @ root)),
        (Projection.identity(C), torch.eye(24, dtype=torch.float64)),
        (inside, None),
        (outside, None),
    ]


@pytest.mark.parametrize("which", range(5))
def test_the_energy_of_a_change_is_its_naive_trace(which):
    whitening, M = whitenings()[which]
    D = problem(6, 5)[1][:, :24]
    if M is None:
        # In a null space every direction costs the same, and there a change lies.
        D, M = whitening.whiten(D), torch.eye(24, dtype=torch.float64)
    naive = float((D @ M @ D.mT).trace())
    metric = Preservation.over(whitening, M)
    assert metric.energy(D) == pytest.approx(naive, rel=1e-9)
    assert torch.allclose(whitening.unwhiten(whitening.weigh(D)), D)
    # Keys that were written since do not count.
    assert metric.remember(0.1 * D, 1.0).energy(D) == pytest.approx(naive, rel=1e-9)


@pytest.mark.parametrize("layers", [(1,), (0, 1)])
def test_the_energy_is_that_of_the_whole_change(layers, cache):
    model = pico()
    editor = find_method("memit").build(layers, {**FAST, "ridge": 5.0})
    state, plan = editor.setup.begin(model), Schedule.parse("sequential-batch:2")
    start = {layer: model.master(layer).double().clone() for layer in layers}
    for _ in run(model, editor, state, EDITS, plan):
        naive = 0.0
        for layer in layers:
            factor = state.memory.preservations[layer].base.factor
            D = model.master(layer).double() - start[layer]
            naive += float((D @ (factor @ factor.mT) * D).sum())
        assert editor.energy(model, state) == pytest.approx(naive, rel=1e-9)


def test_facts_count_from_the_first_that_moved_anything(cache):
    """A batch of facts that the model says already costs nothing, and is no measure."""
    model = pico()
    settings = {**FAST, "ridge": 5.0, "stop_below": 1e6}
    editor = find_method("memit").build((1,), settings)
    plan = Schedule.parse("sequential-batch:2", guard="warn")
    still = list(run(model, editor, editor.setup.begin(model), EDITS, plan))
    assert [step.signals.energy for step in still] == [0.0] * 3
    assert [step.signals.facts for step in still] == [2, 2, 1]
    editor = find_method("memit").build((1,), {**FAST, "ridge": 5.0})
    moved = list(run(model, editor, editor.setup.begin(model), EDITS, plan))
    assert [step.signals.facts for step in moved] == [2, 4, 5]
    assert all(s.signals.energy_a_fact == s.signals.energy / s.signals.facts for s in moved)


def test_the_energy_is_the_controller_s(cache):
    """What lyaplock's ridge follows, and what the guard sees, is one number."""
    model = pico()
    editor = find_method("lyaplock").build((1,), {**FAST, "ridge": 20.0, "budget": 1.5})
    state = editor.setup.begin(model)
    for step in run(model, editor, state, EDITS, Schedule.parse("sequential-batch:2")):
        energy = step.update.report.layer["energy"][1]
        assert editor.energy(model, state) == pytest.approx(energy, rel=1e-4)


def test_a_guarded_run_is_compared_with_its_first_batch_that_wrote(monkeypatch, entries):
    """The first batch moves nothing; the second does, and the third thirty times as far."""
    norms = {0: 0.0, 2: 0.1, 4: 3.0}
    scripted(monkeypatch, lambda earlier: FINE._replace(step_norm=norms[earlier]))
    plan = Schedule.parse("sequential-batch:2", guard="warn")
    settings = {**FAST, "ridge": 5.0}
    patch = make(pico(), EDITS, method="memit", layers=(1,), settings=settings, schedule=plan)
    (note,) = patch.notes
    assert "at 5 facts: a fact moves the weights 30 times" in note


def test_a_guarded_run_knows_its_energy(cache):
    """On the weights with the batch, whether it stays or not; nothing where there is no metric."""
    model, plan = pico(), Schedule.parse("sequential-batch:2", guard="warn")
    editor = find_method("memit").build((1,), {**FAST, "ridge": 5.0})
    state = editor.setup.begin(model)
    for step in run(model, editor, state, EDITS, plan):
        assert step.signals.energy == editor.energy(model, state)
        assert step.signals.facts == step.at
        assert step.signals.energy > 0
    editor = find_method("finetune").build((1,), {"steps": 2})
    for step in run(model, editor, editor.setup.begin(model), EDITS, plan):
        assert (step.signals.energy, step.signals.facts) == (None, 0)


def test_a_guarded_run_trips_on_energy(monkeypatch, cache):
    scripted(monkeypatch, lambda _: FINE)
    settings = {**FAST, "ridge": 5.0}

    def made(limit):
        guard = Guard(action="stop", energy=limit)
        plan = replace(Schedule.parse("sequential-batch:2"), guard=guard)
        return make(pico(), EDITS, method="memit", layers=(1,), settings=settings, schedule=plan)

    # No batch alone costs less than a tenth of the first, and none a hundred times as much.
    (note,) = made(0.1).notes
    assert "at 4 facts: a fact costs ordinary text" in note and not made(100.0).notes


def collapsing(after):
    """Facts written earlier are lost once so many are in."""
    return lambda earlier: FINE._replace(retention=0.1) if earlier >= after else FINE


@pytest.mark.parametrize(("action", "left"), [("warn", 5), ("stop", 4), ("rollback", 2)])
def test_what_the_guard_has_seen_is_in_the_patch(monkeypatch, action, left, cache, tmp_path):
    from retcon.patch.patch import load_patch

    scripted(monkeypatch, collapsing(2))
    plan = Schedule.parse("sequential-batch:2", guard=action)
    settings = {**FAST, "ridge": 5.0}
    patch = make(pico(), EDITS, method="memit", layers=(1,), settings=settings, schedule=plan)
    assert [edit.id for edit in patch.edits] == [edit.id for edit in EDITS[:left]]
    at = {"warn": [4, 5], "stop": [4], "rollback": [2]}[action]
    said = "of the facts written earlier 10% are still said"
    assert patch.notes == tuple(f"at {number} facts: {said}" for number in at)
    patch.save(tmp_path / "p.safetensors")
    assert load_patch(tmp_path / "p.safetensors").notes == ()


def test_a_first_batch_that_is_taken_back_says_what_to_do(monkeypatch, cache):
    scripted(monkeypatch, collapsing(0))
    plan = Schedule.parse("sequential-batch:2", guard="rollback")
    settings = {**FAST, "ridge": 5.0}
    with pytest.raises(Collapsed, match=r"10% are still said\. Take smaller batches"):
        make(pico(), EDITS, method="memit", layers=(1,), settings=settings, schedule=plan)


GUARDED = [
    "edit", "./model", "--facts", "facts.jsonl", "--method", "memit", "--layer", "1", *SETTINGS,
    "--set", "ridge=5", "--schedule", "sequential", "-o", "p.safetensors", "--json", "e.json",
]  # fmt: skip


@pytest.mark.parametrize(("action", "written"), [("warn", 3), ("stop", 2), ("rollback", 1)])
def test_the_command_line_says_what_the_guard_did(monkeypatch, action, written, folder, retcon):  # noqa: F811
    from retcon.patch.patch import load_patch

    scripted(monkeypatch, collapsing(1))
    code, out, err = retcon(*GUARDED, "--guard", action)
    said = json.loads((folder / "e.json").read_text(encoding="utf-8"))
    ids = [edit.id for edit in load_patch("p.safetensors").edits]
    text = " ".join(err.split())
    assert len(ids) == written and said["asked"] == len(FACTS) and "p.safetensors" in out
    assert [edit["id"] for edit in said["edits"]] == ids
    assert said["notes"] and all(f"warning: {note}" in text for note in said["notes"])
    assert len(said["left_out"]) == 3 - written and not {*said["left_out"]} & {*ids}
    if action == "warn":
        assert code == 0 and "error" not in text and said["left_out"] == []
        return
    assert code == 2 and f"written {written} of 3 facts" in text and "--guard warn" in text
    assert all(id in text for id in said["left_out"]) and "saved in p.safetensors" in text


def test_the_command_line_says_nothing_where_all_is_well(monkeypatch, folder, retcon):  # noqa: F811
    scripted(monkeypatch, lambda _: FINE)
    code, _, err = retcon(*GUARDED, "--guard", "rollback")
    said = json.loads((folder / "e.json").read_text(encoding="utf-8"))
    assert code == 0 and "guard" not in err and (said["notes"], said["left_out"]) == ([], [])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_change_is_what_was_written_since(dtype, cache):
    """Of half-precision weights, before rounding; back to nothing when it is undone."""
    model = pico(dtype=dtype)
    settings = {**FAST, "ridge": 5.0}
    delta = make(pico(), EDITS[:2], method="memit", layers=(1,), settings=settings).deltas[1]
    with model.scratch():
        for times in (1, 2):
            model.write({1: delta})
            wanted = times * delta.dense()
            assert (model.change(1) - wanted).norm() < 1e-4 * wanted.norm()
        with model.scratch():
            model.write({1: delta})
            assert (model.change(1) - 3 * delta.dense()).norm() < 1e-4 * wanted.norm()
    assert not model.change(1).any()


def test_probes_that_changed_trip_the_guard_where_they_are_more_than_one_and_a_tenth():
    assert not WARN.judge(FINE, None, FINE._replace(changed=1, probes=1))
    assert not WARN.judge(FINE, None, FINE._replace(changed=3, probes=30))
    told = WARN.judge(FINE, None, FINE._replace(changed=4, probes=30))
    assert told == "4 of 30 probes that were right before are not any more"
    assert WARN.judge(FINE, None, FINE._replace(changed=2, probes=2))


def test_the_command_line_guards_one_batch_and_its_own_probes(monkeypatch, folder, retcon):  # noqa: F811
    watched = []

    def begin(_monitor, _model, probes):
        watched[:] = probes

    def measure(_monitor, batch, _earlier, _norm):
        return FINE._replace(changed=2 * len(batch), probes=6)

    monkeypatch.setattr(Monitor, "__init__", begin)
    monkeypatch.setattr(Monitor, "measure", measure)
    place = GUARDED.index("--schedule")
    once = GUARDED[:place] + GUARDED[place + 2 :]
    code, _, err = retcon(*once, "--guard", "rollback")
    assert code == 2 and "6 of 6 probes that were right before" in " ".join(err.split())
    assert not (folder / "p.safetensors").exists()
    asked = [(one.prompt, one.answer) for one in watched]
    assert ("Paris is", "French") in asked and len(asked) == 3
    code, _, err = retcon(*once, "--guard", "warn")
    assert code == 0 and "6 of 6 probes" in " ".join(err.split())
    code, _, err = retcon(*once, "--guard", "warn", "--until-said", "1")
    assert code == 2 and "leave --schedule and --guard out" in " ".join(err.split())


def test_a_guard_watches_probes_and_takes_back_what_changes_them(cache):
    """Probes are what the model says behind the facts' own prompts, which are to say else."""
    model = pico()
    probes = [
        Probe(prompt=prompt, answer=answer.text)
        for prompt in dict.fromkeys(text for edit in EDITS for text in (edit.head, edit.text))
        for answer in top_answers(model, prompt, 1)
        if answer.text.strip()
    ]
    wrong = Probe(prompt="Warsaw is", answer="the Eiffel Tower")
    monitor = Monitor(model, [*probes, wrong])
    seen = monitor.measure([], [], 0.0)
    assert seen.changed == 0 and 1 < seen.probes <= len(probes)
    assert Monitor(model).measure([], [], 0.0).probes == 0
    how = {
        "method": "memit",
        "layers": (1,),
        "settings": {**FAST, "ridge": 0.01, "clamp": 30.0, "steps": 12},
    }
    with make(model, EDITS, **how).applied(model):
        changed = monitor.measure([], [], 0.0).changed
    assert changed > 1
    guard = Guard(action="rollback", perplexity=float("inf"), probes=(*probes, wrong))
    plan = replace(Schedule.parse(f"sequential-batch:{len(EDITS)}"), guard=guard)
    with pytest.raises(Collapsed, match=f"{changed} of {seen.probes} probes that were right"):
        make(model, EDITS, schedule=plan, **how)
    unharmed = replace(plan, guard=replace(guard, probes=(wrong,)))
    assert len(make(model, EDITS, schedule=unharmed, **how).edits) == len(EDITS)
