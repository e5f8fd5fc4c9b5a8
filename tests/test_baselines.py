"""The methods that are no values of the one equation's loop, each against its naive oracle."""

import dataclasses
import math
import re

import pytest
import torch

from oracles import answer_rows, finetune_in_a_box, mean_nll, ultraedit_primal
from pico import FAMILIES, pico, run
from retcon.edits import Case, Probe
from retcon.errors import InvalidSetting
from retcon.features.gradients import read_answers
from retcon.method.entries import find_method
from retcon.method.ultraedit import normalised, with_rows
from retcon.run.edit import edit as make
from retcon.run.evaluate import evaluate
from retcon.run.record import StepRecord
from retcon.run.schedule import Schedule
from retcon.scoring.score import score_cases
from test_methods import EDITS


def fold(name, schedule, edits=EDITS, refresh="each-batch", layers=(1,), **settings):
    """The changes of each step of a run in float64."""
    model = pico(dtype=torch.float64)
    editor = find_method(name).build(layers, settings)
    plan = Schedule.parse(schedule, refresh)
    return list(run(model, editor, editor.setup.begin(model), edits, plan))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_answers_are_read_as_one_text_at_a_time(family):
    model = pico(family, dtype=torch.float64)
    answers, nll = read_answers(model, EDITS, (0, 1), 24)
    for i, edit in enumerate(EDITS):
        for layer in (0, 1):
            x, slope, loss = answer_rows(model, edit, layer)
            own = answers.select(slice(i, i + 1))
            assert not own.owner.any() and abs(loss - float(nll[i])) < 1e-5
            width = x.shape[-1]
            assert torch.allclose(own.keys[layer], x.reshape(-1, width), atol=1e-6)
            assert torch.allclose(own.gradients[layer], slope.reshape(len(x), -1), atol=1e-6)
            weight = model.site(layer).weight
            bias = getattr(model.site(layer).module, "bias", None)
            y = own.keys[layer] @ weight.mT + (0 if bias is None else bias)
            assert torch.allclose(own.outputs[layer], y, atol=1e-6)


def test_running_statistics_are_those_of_all_rows():
    rows = 3 + torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows[:, 2] = 5.0
    running = None
    for part in rows.split([1, 5, 3]):
        running = with_rows(running, part)
    assert torch.allclose(running[1], rows.mean(0))
    assert torch.allclose((running[2] / 8).sqrt(), rows.std(0))
    found = normalised(rows, running)
    assert not found[:, 2].any()
    assert torch.allclose(found[:, :2], ((rows - rows.mean(0)) / rows.std(0))[:, :2])


@pytest.mark.parametrize("accumulate", [True, False])
def test_ultraedit_is_its_formula(accumulate):
    """Batch by batch, on the weights as they have become, with all rows so far."""
    steps = fold("ultraedit", "sequential-batch:3", lr=1e-2, ridge=0.5, accumulate=accumulate)
    model = pico(dtype=torch.float64)
    past = torch.zeros(0, 80, dtype=torch.float64)
    for step in steps:
        read = [answer_rows(model, edit, 1)[:2] for edit in step.edits]
        H, G = (torch.cat(part) for part in zip(*read, strict=True))
        rows = torch.cat([H, G], 1)
        past = torch.cat([past, rows]) if accumulate else rows
        wanted = ultraedit_primal(H, G, past, 1e-2, 0.5)
        got = step.update.deltas[1]
        assert got.shared and (got.dense() - wanted).norm() < 1e-4 * wanted.norm()
        model.write(step.update.deltas)
    assert len(steps) == 2 and all(
        0 < float(min(s.update.report.edit["reached"])) < 1 for s in steps
    )


def test_ultraedit_makes_targets_more_probable():
    model = pico()
    editor = find_method("ultraedit").build((1,), {"lr": 0.02})
    before = read_answers(model, EDITS, (1,), 99)[1]
    (step,) = run(model, editor, editor.setup.begin(model), EDITS, Schedule.parse("batch:5"))
    with model.scratch():
        model.write(step.update.deltas)
        after = read_answers(model, EDITS, (1,), 99)[1]
    assert float(after.mean()) < float(before.mean())


def test_gradients_that_wait_are_used_and_their_drift_is_seen():
    frozen = fold("ultraedit", "sequential-batch:2", refresh="never", lr=1e-2)
    fresh = fold("ultraedit", "sequential-batch:2", lr=1e-2)
    first, second = (steps[1].update.deltas[1].dense() for steps in (frozen, fresh))
    assert torch.equal(frozen[0].update.deltas[1].left, fresh[0].update.deltas[1].left)
    assert not torch.allclose(first, second, rtol=1e-3)
    stale = fold("ultraedit", "sequential-batch:2", refresh="stale:1e-9", lr=1e-2)
    assert [s.refreshed for s in stale] == [True, True, True] and stale[1].staleness > 1e-9


def test_one_row_is_an_update_too():
    """Without statistics it is divided by its root mean square."""
    model = pico(dtype=torch.float64)
    short = [e for e in EDITS if len(answer_rows(model, e, 1)[0]) == 1][:1]
    (step,) = fold("ultraedit", "single", edits=short, lr=1e-3, ridge=1.0)
    h, g, _ = answer_rows(model, short[0], 1)
    value = -1e-3 * h.numel() * g / g.square().mean().sqrt()
    wanted = value.mT @ h / (h.square().sum() + 1.0)
    assert torch.allclose(step.update.deltas[1].dense(), wanted, rtol=1e-4)


def test_patches_of_more_rows_than_edits(tmp_path):
    """Answers of several tokens: rows are tokens, and the patch says that they are shared."""
    patch = make(pico(), EDITS, method="ultraedit", layers=(1,), settings={"lr": 1e-3})
    assert not patch.divisible and patch.deltas[1].rank > 0
    patch.save(tmp_path / "p.safetensors")
    model = pico()
    original = model.weights_hash()
    with patch.applied(model):
        assert model.weights_hash() != original
    assert model.weights_hash() == original


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt"])
def test_finetune_is_adam_on_the_weight_itself(family):
    model = pico(family, dtype=torch.float64)
    settings = {"steps": 4, "lr": 1e-3, "epsilon": 2.5e-3, "micro_batch": 24}
    editor = find_method("finetune").build((1,), settings)
    (step,) = run(model, editor, editor.setup.begin(model), EDITS, Schedule.parse("batch:5"))
    got = step.update.deltas[1].dense()
    wanted = finetune_in_a_box(model, EDITS, 1, steps=4, lr=1e-3, epsilon=2.5e-3)
    # The box binds somewhere, and not everywhere.
    binding = (wanted.abs() > 2.4999e-3).double().mean()
    assert 0 < binding < 1
    assert (got - wanted).norm() < 1e-4 * wanted.norm() and got.abs().max() < 2.5001e-3


@pytest.mark.parametrize("bound", ["batch", "run"])
def test_the_box_is_measured_from_the_batch_or_from_the_run(bound):
    steps = fold("finetune", "sequential-batch:2", lr=2e-3, epsilon=1e-3, steps=5, bound=bound)
    total = sum(step.update.deltas[1].dense() for step in steps)
    most = float(total.abs().max())
    assert len(steps) == 3 and all(s.update.deltas[1].dense().abs().max() > 9e-4 for s in steps)
    assert (most < 1.001e-3) is (bound == "run")


def test_finetune_stops_and_tells_how_it_went():
    (step,) = fold("finetune", "batch:5", stop_below=1e9)
    assert step.update.report.batch["target_steps"] == 1 and not step.update.deltas[1].dense().any()
    (step,) = fold("finetune", "batch:5", steps=60, lr=1e-2, epsilon=1.0, stop_below=2.0)
    told = step.update.report.batch
    assert 1 < told["target_steps"] < 60 and told["loss"] < 2
    record = StepRecord.of(pico(), step).as_json()
    assert {name: record[name] for name in told} == told and "ridge" not in record


def test_finetune_in_half_precision(tmp_path):
    model = pico(dtype=torch.bfloat16)
    original = model.weights_hash()
    settings = {"steps": 3, "lr": 1e-2, "epsilon": 0.1}
    patch = make(model, EDITS, method="finetune", layers=(1,), settings=settings)
    assert model.weights_hash() == original and not patch.divisible
    with patch.applied(model):
        assert model.weights_hash() != original


ASKED = [
    Case(
        edit=dataclasses.replace(edit, target_old="Polish"),
        paraphrases=(f"Some say {edit.subject} is",),
        neighbours=("The mother tongue of Rome Paris is",),
        openings=(f"{edit.subject} was",),
    )
    for edit in EDITS
]


def retrieved_by_hand(facts, text, shown, threshold):
    """The facts before a prompt, each scored with every other's words counted anew."""
    words = lambda t: set(re.findall(r"\w+", t.casefold()))  # noqa: E731
    rare = lambda w: math.log(1 + len(facts) / sum(w in words(f.text) for f in facts))  # noqa: E731
    found = []
    for place, fact in enumerate(facts):
        own = words(fact.text)
        score = sum(rare(w) for w in own & words(text)) / sum(rare(w) for w in own)
        if score >= threshold - 1e-9:
            found.append((round(score, 9), place, f"{fact.text} {fact.target}.\n"))
    return "".join(line for _, _, line in sorted(found)[-shown:])


@pytest.mark.parametrize(("shown", "threshold"), [(1, 0.5), (3, 0.2), (5, 1.0)])
def test_in_context_puts_the_most_similar_facts_before_prompts(shown, threshold):
    editor = find_method("in_context").build((), {"shown": shown, "threshold": threshold})
    model = pico()
    state = editor.setup.begin(model)
    assert editor.rewrite(ASKED, state) == ASKED
    update = editor.solve(model, editor.features(model, EDITS, state), state)
    told = editor.rewrite(ASKED, editor.carry(state, update.increment))
    for case, now in zip(ASKED, told, strict=True):
        for old, new in (
            (case.edit.text, now.edit.text), (case.paraphrases[0], now.paraphrases[0]),
            (case.neighbours[0], now.neighbours[0]), (case.openings[0], now.openings[0]),
        ):  # fmt: skip
            assert new == retrieved_by_hand(EDITS, old, shown, threshold) + old
        assert now.edit.text.endswith(f"{case.edit.text} {case.edit.target}.\n{case.edit.text}")
        assert (now.edit.id, now.edit.target) == (case.edit.id, case.edit.target)


def test_facts_are_put_before_probes_too():
    """Else what follows from an edit could not be told, and nothing could be harmed by it."""
    follows = Probe(prompt=EDITS[0].text, answer="English", aliases=("en",), needs=(EDITS[1].id,))
    stays = (Probe(prompt=f"Is it said that {EDITS[1].text}", answer="no"),)
    far = Probe(prompt="Nothing of this", answer="x")
    case = dataclasses.replace(ASKED[0], portability=(follows, far), locality=stays)
    editor = find_method("in_context").build((), {"threshold": 0.2})
    model = pico()
    state = editor.setup.begin(model)
    update = editor.solve(model, editor.features(model, EDITS, state), state)
    (told,) = editor.rewrite([case], editor.carry(state, update.increment))
    for old, new in zip(
        (*case.portability, *case.locality), (*told.portability, *told.locality), strict=True
    ):
        before = retrieved_by_hand(EDITS, old.prompt, 1, 0.2)
        assert new == dataclasses.replace(old, prompt=before + old.prompt)
        assert bool(before) == (old != far)


def test_a_fact_that_is_edited_again_is_told_once():
    editor = find_method("in_context").build((), {})
    model = pico()
    again = dataclasses.replace(EDITS[0], id="again", target="Spanish")
    state = editor.setup.begin(model)
    for edits in (EDITS, [again]):
        update = editor.solve(model, editor.features(model, edits, state), state)
        state = editor.carry(state, update.increment)
    (told,) = editor.rewrite(ASKED[:1], state)
    assert told.edit.text.startswith(f"{again.text} Spanish.\n{again.text}")
    assert len(state) == len(EDITS)


@pytest.mark.parametrize("schedule", ["single", "batch:2", "sequential", "sequential-batch:2"])
def test_what_is_kept_so_far_decides_what_is_told(schedule, entries):
    """Scores are those of prompts that are written out; the cache does not mix the two up."""
    model = pico()
    settings = {"threshold": 0.2, "shown": 3}
    trial = evaluate(
        model, ASKED, method="in_context", settings=settings, schedule=schedule
    )  # fmt: skip
    plan, seen = Schedule.parse(schedule), {row.when for row in trial.rows}
    assert seen == {"pre", "immediate"} | ({"final"} if plan.carry else set())
    assert trial.at("pre") == score_cases(pico(), ASKED, when="pre")
    size = plan.batch_size
    for start in range(0, len(EDITS), size):
        kept = EDITS[0 if plan.carry else start : start + size]
        for case in ASKED[start : start + size]:
            rows = [r for r in trial.at("immediate") if r.case == case.edit.id]
            text = retrieved_by_hand(kept, case.edit.text, 3, 0.2) + case.edit.text
            assert abs(rows[0].nll_new - mean_nll(model, text, case.edit.target)) < 1e-4
            text = retrieved_by_hand(kept, case.neighbours[0], 3, 0.2) + case.neighbours[0]
            assert abs(rows[-1].nll_old - mean_nll(model, text, "Polish")) < 1e-4
    about = trial.describe()
    assert about["prompts"] == "behind retrieved facts" and about["layers"] == []
    assert about["covariance"] is None and "loss" not in about["steps"][0]
    assert evaluate(
        model, ASKED, method="in_context", settings=settings, schedule=schedule
    ).rows == (trial.rows)


def test_in_context_makes_no_patch():
    with pytest.raises(InvalidSetting, match="retcon eval --method in_context"):
        make(pico(), EDITS, method="in_context")
