"""What the methods of carried edits add to MEMIT: each against its formula, on a pico model."""

import dataclasses

import pytest
import torch

from oracles import joint_solution, memit_primal
from pico import pico, run
from retcon.edits import Edit
from retcon.errors import CollidingEdits, InvalidSetting, RetconWarning
from retcon.features.contexts import locate
from retcon.features.keys import read_at_lookup
from retcon.features.targets import optimise_targets
from retcon.method.entries import find_method
from retcon.method.norm_anchor import anchored, length_of
from retcon.run.schedule import Schedule
from retcon.run.steps import Past

FAST = {"steps": 4, "corpus_tokens": 300, "document_tokens": 32, "jitter": 1e-3, "prefixes": 1}
EDITS = [
    Edit(id=f"{a}{b}", prompt="The mother tongue of {} is", subject=f"{a} {b}", target=t)
    for a, t in (("Marie", "English"), ("Rome", "Polish"), ("Danielle", "Spanish"))
    for b in ("Curie", "Paris")
]
AGAIN = dataclasses.replace(EDITS[1], id="again", target="London")
SISTER = Edit(id="sister", prompt="The mother tongue of {} was", subject="Rome Curie", target="is")


def build(name="memit", layers=(1,), **settings):
    return find_method(name).build(layers, {**FAST, "ridge": 5.0, **settings})


def fold(editor, edits, schedule="sequential-batch:2", refresh="never", past=()):
    """The steps of a run in float64, the model, its W at the end, and W before."""
    model = pico(dtype=torch.float64)
    layer = editor.layers[-1]
    before, steps, W = model.master(layer).clone(), [], None
    plan = Schedule.parse(schedule, refresh)
    for step in run(model, editor, editor.setup.begin(model), edits, plan, past=past):
        steps.append(step)
        W = model.master(layer).clone()
    return steps, W, before


def frozen(editor, edits):
    model = pico(dtype=torch.float64)
    state = editor.setup.begin(model)
    factor = state.memory.preservations[editor.layers[-1]].whitening
    return model, state, editor.features(model, edits, state), factor


def test_a_fact_that_is_edited_again_ends_with_its_last_target(entries):
    """As if it had had that target from the beginning: the others notice nothing."""
    editor = build()
    _, got, before = fold(editor, [*EDITS, AGAIN])
    # The targets that a run freezes are those of all its facts on the untouched model.
    last = [EDITS[0], AGAIN, *EDITS[2:]]
    _, wanted, _ = fold(editor, last, "sequential-batch:6")
    assert (got - wanted).norm() < 1e-5 * (wanted - before).norm()
    _, careless, _ = fold(build(accumulate=False), [*EDITS, AGAIN])
    assert (careless - wanted).norm() > 1e-2 * (wanted - before).norm()


def test_of_two_edits_of_one_fact_in_a_batch_the_last_counts(entries):
    editor = build()
    steps, got, before = fold(editor, [*EDITS, AGAIN], "sequential-batch:7")
    _, wanted, _ = fold(editor, [EDITS[0], AGAIN, *EDITS[2:]], "sequential-batch:6")
    assert (got - wanted).norm() < 1e-5 * (wanted - before).norm()
    assert not steps[0].update.deltas[1].right[1].any()
    assert [len(steps[0].update.increment.learned.names), steps[0].update.deltas[1].rank] == [6, 7]


def test_a_hard_constraint_is_not_edited_again(entries):
    with pytest.raises(CollidingEdits, match="ridge > 0"):
        fold(build(ridge=0.0), [*EDITS, AGAIN])


def test_a_budget_that_is_never_spent_is_carried_memit(entries):
    _, wanted, before = fold(build(), [*EDITS, AGAIN])
    steps, got, _ = fold(build("lyaplock", budget=1e9), [*EDITS, AGAIN])
    assert (got - wanted).norm() < 1e-5 * (wanted - before).norm()
    assert all(step.update.report.layer["energy"][1] > 0 for step in steps)


def test_a_small_budget_raises_the_ridge_as_written(entries):
    """w ← max(1, w + D/(αD₁) − 1), and the weights are the joint solution with the last ridge."""
    editor = build("lyaplock", budget=0.5)
    steps, W, before = fold(editor, EDITS)
    energies, weight = [step.update.report.layer["energy"][1] for step in steps], 1.0
    for energy in energies[:-1]:
        weight = max(1.0, weight + energy / (0.5 * energies[0]) - 1)
    assert weight > 1.5 and steps[0].update.report.batch["ridge"] == 5.0
    assert steps[-1].update.report.batch["ridge"] == pytest.approx(5.0 * weight)
    _, _, features, whitening = frozen(editor, EDITS)
    C = whitening.factor @ whitening.factor.mT
    wanted = joint_solution(C, features.keys, features.targets.delta.double(), 5.0 * weight)
    assert (W - before - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.parametrize("process", ["bfloat16", "rect", "prune"])
def test_feedback_keeps_processed_steps_on_the_way(process, entries):
    _, wanted, before = fold(build(), EDITS, "sequential-batch:1")
    moved = (wanted - before).norm()

    def miss(**settings):
        return fold(build(process=process, **settings), EDITS, "sequential-batch:1")[1] - wanted

    kept, lost = miss().norm() / moved, miss(feedback=False).norm() / moved
    # Only the last step's loss is left.
    assert kept < lost or kept < 1e-3


@pytest.mark.parametrize("layers", [(1,), (0, 1)])
def test_what_a_layer_should_give_does_not_depend_on_what_it_has_too_much(layers, entries):
    """The error is part of the model that gaps are read from, not of what steps are solved on."""
    editor = build(layers=layers, process="rect")
    model, state, features, _ = frozen(editor, EDITS)
    g = torch.Generator().manual_seed(0)
    error = torch.randn(model.master(1).shape, generator=g, dtype=torch.float64)
    off = state._replace(memory=state.memory._replace(errors={1: error}))
    wanted = editor.solve(model, features, state).increment.learned.values[1]
    assert torch.allclose(
        editor.solve(model, features, off).increment.learned.values[1], wanted, atol=1e-9
    )


def test_prune_goes_by_the_weights_before_the_first_edit(entries):
    """However large W has become since."""
    editor = build(process="prune")
    model, state, features, _ = frozen(editor, EDITS)
    assert torch.equal(state.memory.start[1], model.master(1))
    plain = build().solve(model, features, state).deltas[1].dense()

    def pruned(scale):
        start = {1: state.memory.start[1] * scale}
        other = state._replace(memory=state.memory._replace(start=start))
        return editor.solve(model, features, other).deltas[1].dense()

    assert torch.allclose(pruned(1e3), plain, atol=1e-6)
    assert (pruned(1.0) - plain).norm() > 1e-3 * plain.norm()


@pytest.mark.filterwarnings("ignore:anchor_norm takes the length")
@pytest.mark.parametrize("settings", [
    {}, {"process": "rect"}, {"anchor_norm": "equal"},
])  # fmt: skip
@pytest.mark.parametrize("name", ["memit", "lyaplock"])
def test_runs_go_on_from_their_steps(name, settings, entries, tmp_path):
    """Also across a re-edit, and through what a study keeps on disk."""
    from retcon.run.looks import Stage
    from retcon.run.record import StepRecord
    from retcon.study.store import CellFolder

    editor = build(name, **settings)
    facts = [*EDITS[:4], AGAIN, *EDITS[4:]]
    steps, whole, _ = fold(editor, facts)
    folder = CellFolder(tmp_path)
    for i, step in enumerate(steps[:3]):
        record = StepRecord.of(pico(), step)
        folder.commit(i, Stage([step], [record], []), carried=True, end=None)
    parts, damage = folder.parts()
    assert damage is None
    past = [one for part in parts for one in part.past]
    assert len(past) == 3 and isinstance(past[0], Past)
    rest, again, _ = fold(editor, facts, past=past)
    assert len(rest) == 1 and torch.equal(whole, again)


def test_encore_penalises_the_norm_too(entries):
    """M = C + (μ/λ)I: R Kᵀ(λC + μI + KKᵀ)⁻¹."""
    model, state, features, own = frozen(build("encore", plain=20.0), EDITS)
    got = build("encore", plain=20.0).solve(model, features, state).deltas[1].dense()
    _, _, _, plain = frozen(build(), EDITS)
    C = plain.factor @ plain.factor.mT
    # Each jitter is a share of its own diagonal.
    more = 20.0 / 5.0 + own.jitter - plain.jitter
    shrunk = C + more * torch.eye(len(C), dtype=torch.float64)
    wanted = memit_primal(shrunk, features.keys, features.targets.delta.double(), 5.0)
    assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-6)


def test_alphaedit_leaves_kept_directions_alone(entries):
    editor = build("alphaedit", null_threshold=1.0, null_relative=True)
    model, state, features, projection = frozen(editor, EDITS)
    assert 0 < projection.rank < projection.width
    change = editor.solve(model, features, state).deltas[1].dense()
    inside = projection.whiten(torch.eye(projection.width, dtype=torch.float64))
    kept = change - change @ inside
    # Factors are kept in float32.
    assert kept.norm() < 1e-6 * change.norm()


def test_passes_ask_again_for_what_is_left(entries):
    model, state, features, _ = frozen(build(ridge=50.0), EDITS)
    reached = [
        build(ridge=50.0, passes=p).solve(model, features, state).report.batch["reached"]
        for p in (1, 2, 4)
    ]
    assert reached[0] < reached[1] < reached[2] < 1
    twice = build(ridge=50.0, passes=2).solve(model, features, state)
    once = build(ridge=50.0).solve(model, features, state)
    share = (features.keys.float() @ once.deltas[1].right.mT).double()
    wanted = features.targets.delta.double()
    rest = wanted - share @ wanted
    assert torch.allclose(
        twice.deltas[1].left.double(), wanted + rest, rtol=1e-4, atol=1e-5
    ) and all(share < 1 for share in once.report.edit["reached"])


def test_a_fact_that_is_edited_again_in_passes_keeps_nothing_of_its_old_target(entries):
    editor = build(ridge=50.0, passes=3)
    _, got, before = fold(editor, [EDITS[1], AGAIN], "sequential-batch:1")
    _, wanted, _ = fold(editor, [AGAIN], "sequential-batch:1")
    assert (got - wanted).norm() < 1e-5 * (wanted - before).norm()


@pytest.mark.parametrize("cap", [True, False])
def test_anchored_values(cap):
    g = torch.Generator().manual_seed(0)
    stood = torch.randn(40, 6, generator=g, dtype=torch.float64)
    delta = torch.randn(40, 6, generator=g) * torch.linspace(0.1, 9, 40).unsqueeze(1)
    length = length_of(stood, delta)
    lengths = (stood + delta).norm(dim=-1).sort().values
    assert abs(length - float(lengths[:38].mean())) < 1e-9
    value = stood + anchored(stood, delta, length, cap=cap)
    was = (stood + delta).norm(dim=-1)
    left_out = was > 2 * length
    assert left_out.any() and torch.allclose(value[left_out], stood[left_out])
    turned = value[~left_out].norm(dim=-1)
    wanted = was[~left_out].clamp_max(length) if cap else torch.full_like(turned, length)
    assert torch.allclose(turned, wanted, rtol=1e-5)


@pytest.mark.parametrize("facts", [1, 19, 20])
def test_an_anchor_by_few_facts_is_warned_of(facts):
    stood = torch.ones(facts, 4, dtype=torch.float64)
    if facts < 20:
        with pytest.warns(RetconWarning, match=rf"has {facts} facts .* or set anchor_norm=off"):
            length_of(stood, torch.zeros(facts, 4))
    else:
        assert length_of(stood, torch.zeros(facts, 4)) == 2.0


@pytest.mark.filterwarnings("ignore:anchor_norm takes the length")
def test_the_anchor_is_that_of_the_first_batch(entries):
    editor = build(anchor_norm="equal")
    steps, _, _ = fold(editor, EDITS)
    _, _, features, _ = frozen(editor, EDITS[:2])
    # Two passes of other sizes: equal up to float32 rounding, not to the last digit.
    anchor = length_of(features.values, features.targets.delta)
    assert steps[0].update.increment.anchor == pytest.approx(anchor, rel=1e-5)
    assert {step.update.increment.anchor for step in steps} == {steps[0].update.increment.anchor}


def block_outputs(model, edits, layer):
    located = [locate(model.tokens, edit, "") for edit in edits]
    block = {layer: model.architecture.blocks[layer]}
    return read_at_lookup(model, located, block, of_input=False)[layer].double()


@pytest.mark.parametrize("spread", ["forward", "each"])
def test_undivided_targets_are_reached_at_each_layer(spread, entries):
    """With a tiny ridge and bare keys, every layer gives what it was to give."""
    editor = build(layers=(0, 1), ridge=1e-5, spread=spread, prefixes=0)
    model, state, features, _ = frozen(editor, EDITS)
    update = editor.solve(model, features, state)
    with model.scratch():
        model.write({0: update.deltas[0]})
        first = features.targets.anchor.double() + features.targets.delta.double()
        assert torch.allclose(block_outputs(model, EDITS, 0), first, rtol=1e-2, atol=1e-2)
        if spread == "forward":
            wanted = features.target_outputs[1]
        else:
            own = optimise_targets(model, EDITS, state.prefixes, 1, editor.targets)
            wanted = own.anchor.double() + own.delta.double()
        model.write({1: update.deltas[1]})
        assert torch.allclose(block_outputs(model, EDITS, 1), wanted, rtol=1e-2, atol=1e-2)


def test_replayed_outputs_are_those_behind_an_added_target(entries):
    """FE's other targets, one whole prompt at a time, δ added at the subject's end by hand."""
    model, _, features, _ = frozen(build(layers=(0, 1), spread="forward"), EDITS)
    blocks = model.architecture.blocks
    for i, edit in enumerate(EDITS):
        located, seen = locate(model.tokens, edit, ""), {}

        def add(_module, _args, output, at=located.lookup, own=features.targets.delta[i]):
            hidden = (output[0] if isinstance(output, tuple) else output).clone()
            hidden[0, at] += own
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        def keep(_module, _args, output, at=located.lookup, seen=seen):
            seen["y"] = (output[0] if isinstance(output, tuple) else output)[0, at]

        hooks = [blocks[0].register_forward_hook(add), blocks[1].register_forward_hook(keep)]
        with torch.no_grad():
            model.model(input_ids=torch.tensor([located.ids]), use_cache=False)
        for hook in hooks:
            hook.remove()
        assert torch.allclose(
            features.target_outputs[1, i], seen["y"].double(), rtol=1e-4, atol=1e-5
        )


def test_what_does_not_go_together_is_refused():
    with pytest.raises(InvalidSetting, match="ridge > 0"):
        build("encore", ridge=0.0)
    with pytest.raises(InvalidSetting, match="ridge > 0"):
        build("lyaplock", ridge=0.0)
    with pytest.raises(InvalidSetting, match="accumulate"):
        build(budget=2.0, accumulate=False)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("encore", {"base": "null-space"}, "plain=20 is added to the covariance.*Set plain=0"),
        ("encore", {"base": "identity"}, "base=identity has none"),
        ("alphaedit", {"plain": 1.0}, "base=null-space has none"),
        ("memit", {"budget": 2.0, "passes": 3}, "passes=3 does nothing with a budget"),
        ("lyaplock", {"passes": 2}, "Leave passes out, or set budget=0"),
        ("memit", {"budget": 2.0, "feedback": False}, "feedback=false does nothing with a budget"),
        ("memit", {"spread": "each", "anchor_norm": "cap"}, "bounds the value at the last layer"),
        ("lyaplock", {"feedback": False}, "Leave feedback out, or set budget=0"),
        ("memit", {"momentum": 0.5}, "momentum=0.5 does nothing with descent=adam.*descent=sphere"),
    ],
)
def test_what_would_do_nothing_is_refused(name, settings, said):
    with pytest.raises(InvalidSetting, match=said):
        find_method(name).build((1,), settings)


def test_what_is_refused_beside_others_can_be_had_without_them():
    assert find_method("encore").build((1,), {"base": "identity", "plain": 0.0})
    assert find_method("memit").build((1,), {"momentum": 0.5, "descent": "sphere"})
    assert find_method("alphaedit").build((1,), {"base": "covariance", "plain": 1.0})
    assert find_method("lyaplock").build(
        (1,), {"budget": 0.0, "passes": 2, "process": "rect", "feedback": False}
    )
