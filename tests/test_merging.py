"""Facts with one key: one target, one row, and of one fact the last edit."""

import dataclasses

import pytest
import torch

from oracles import average_key
from pico import pico, solve
from retcon.edits import Edit
from retcon.errors import CollidingEdits, InvalidSetting
from retcon.features.targets import optimise_targets
from retcon.run.schedule import Schedule
from test_lifelong import AGAIN, EDITS, SISTER, build, fold, frozen

ONE, OTHER = EDITS[2], SISTER


def test_facts_with_one_key_share_a_target_and_a_row(entries):
    """MEMIT-Merge: δ by the mean of the losses of both; at ρ = 0 no collision."""
    edits = [ONE, OTHER, EDITS[0]]
    editor = build(ridge=0.0, merge_subjects=True)
    model, state, features, _ = frozen(editor, edits)
    assert torch.equal(features.targets.delta[0], features.targets.delta[1])
    tied = optimise_targets(model, edits[:2], state.prefixes, 1, editor.targets, tied=True)
    assert torch.equal(features.targets.delta[:2], tied.delta)
    again = editor.features(model, edits, state)
    assert again.cached.all() and torch.equal(again.targets.delta, features.targets.delta)
    update = editor.solve(model, features, state)
    assert not update.deltas[1].right[0].any() and update.deltas[1].right[1].any()
    moved = features.keys @ update.deltas[1].dense().mT
    assert torch.allclose(moved, features.targets.delta.double(), rtol=1e-3, atol=1e-4)
    alone = optimise_targets(model, edits[:1], state.prefixes, 1, editor.targets)
    assert not torch.allclose(alone.delta[0], tied.delta[0], atol=1e-4)
    with pytest.raises(CollidingEdits):
        fold(build(ridge=0.0), edits)


def test_facts_about_one_subject_share_a_target_that_is_written_at_each_of_their_keys(entries):
    """Behind other words the key is another one, and so is its row; δ is the same."""
    behind = Edit.parse(f"They say that {{{ONE.subject}}} is", "Rome", id="behind")
    edits = [ONE, behind, EDITS[0], OTHER]
    editor = build(ridge=0.0, tie_subjects=True)
    model, state, features, _ = frozen(editor, edits)
    delta, update = features.targets.delta, editor.solve(model, features, state)
    assert torch.equal(delta[0], delta[1]) and torch.equal(delta[0], delta[3])
    assert not torch.allclose(delta[0], delta[2], atol=1e-4)
    wanted = [row.any().item() for row in update.deltas[1].right]
    assert wanted == [False, True, True, True]  # the first and the last have one key
    moved = features.keys @ update.deltas[1].dense().mT
    assert torch.allclose(moved, delta.double(), rtol=1e-3, atol=1e-4)
    norms = delta.norm(dim=-1) / features.targets.anchor.norm(dim=-1)
    assert (norms <= editor.targets.clamp * (1 + 1e-5)).all()
    again = editor.retried(model, features, ["behind"], 1, state)
    assert torch.equal(again.targets.delta[0], again.targets.delta[1])
    assert torch.equal(again.targets.delta[2], delta[2])


def test_one_key_of_two_subjects_cannot_have_a_target_each(entries):
    one = Edit.parse("The {king of France} is", "Rome", id="one")
    two = Edit.parse("The king of {France} was", "Paris", id="two")
    with pytest.raises(InvalidSetting, match="'one' is about 'king of France' and 'two' about"):
        fold(build(ridge=5.0, tie_subjects=True), [one, two])


def test_at_the_end_of_prompts_facts_about_one_subject_have_a_key_each(entries):
    """A hard constraint writes both, each where its own prompt ends, and nothing is held there."""
    edits = [ONE, OTHER, EDITS[0]]
    editor = build(ridge=0.0, lookup="prompt")
    model, state, features, _ = frozen(editor, edits)
    assert features.edits == (*edits,)
    weights = editor.contexts.weights(len(state.prefixes))
    wholes = [Edit(id="x", prompt="{}", subject=edit.text, target=edit.target) for edit in edits]
    for i, whole in enumerate(wholes):
        wanted = average_key(model, whole, state.prefixes, 1, weights)
        assert (features.keys[i] - wanted).norm() <= 1e-5 * wanted.norm()
    options = dataclasses.replace(editor.targets, kl=0.0)
    alone = optimise_targets(model, wholes, state.prefixes, 1, options)
    assert torch.allclose(features.targets.delta, alone.delta, rtol=1e-4, atol=1e-5)
    moved = features.keys @ editor.solve(model, features, state).deltas[1].dense().mT
    assert torch.allclose(moved, alone.delta.double(), rtol=1e-3, atol=1e-4)
    again = editor.retried(model, features, [OTHER.id], 1, state)
    assert torch.equal(again.targets.delta[0], features.targets.delta[0])
    assert not torch.equal(again.targets.delta[1], features.targets.delta[1])
    with pytest.raises(InvalidSetting, match="Leave one of the two out"):
        build(lookup="prompt", tie_subjects=True)


def test_of_a_merged_fact_that_is_edited_again_the_last_edit_counts(entries):
    """It is no part of the target that the others share, and nothing of it is left."""
    again = dataclasses.replace(ONE, id="again", target="London")
    editor = build(merge_subjects=True)
    model, state, features, _ = frozen(editor, [ONE, OTHER, again])
    tied = optimise_targets(model, [OTHER, again], state.prefixes, 1, editor.targets, tied=True)
    assert torch.equal(features.targets.delta[1:], tied.delta)
    _, wanted, before = fold(editor, [OTHER, again], "sequential-batch:2")
    for size in (1, 2, 3):
        _, got, _ = fold(editor, [ONE, OTHER, again], f"sequential-batch:{size}")
        assert (got - wanted).norm() < 1e-5 * (wanted - before).norm()


def test_a_new_fact_beside_a_held_one_of_its_key_takes_its_place(entries):
    editor = build(merge_subjects=True)
    steps, _, _ = fold(editor, [ONE, EDITS[0], OTHER, AGAIN], refresh="each-batch")
    assert steps[1].update.increment.learned.names == (OTHER.head, AGAIN.head)
    rows = steps[1].update.deltas[1].right
    model = pico(dtype=torch.float64)
    state = editor.setup.begin(model)
    with model.scratch():
        for step in steps:
            model.write(step.update.deltas)
            state = editor.carry(state, step.update.increment)
    assert rows[0].any() and state.memory.facts.names == (ONE.head, EDITS[0].head, AGAIN.head)


def test_batches_on_the_untouched_model_share_nothing(entries):
    """However many are worked on together, a fact of another batch has no part in a target."""
    editor, model = build(merge_subjects=True), pico(dtype=torch.float64)
    plan = Schedule.parse("single")
    both = list(solve(model, editor, editor.setup.begin(model), [ONE, OTHER], plan))
    alone = list(solve(model, editor, editor.setup.begin(model), [OTHER], plan))
    assert torch.equal(both[1].features.targets.delta, alone[0].features.targets.delta)
