"""The methods, one table of them, and what every one of them must do."""

import dataclasses

import pytest
import torch

from oracles import emmet_primal, memit_primal, rome_primal
from pico import pico, run
from retcon.edits import Edit
from retcon.errors import (
    CapacityExceeded,
    CollidingEdits,
    InvalidEdit,
    InvalidSetting,
    UnknownName,
    UnsupportedModel,
)
from retcon.features.targets import Targets
from retcon.method import presets
from retcon.method.entries import find_method, methods
from retcon.method.key_features import KeyFeatures
from retcon.method.presets import families, resolve, rules
from retcon.run.edit import edit as make
from retcon.run.schedule import Schedule

EDITS = [
    Edit.parse("The mother tongue of {Danielle Darrieux} is", "English", id="a"),
    Edit.parse("{Marie Curie} was born in the city of", "London", id="b"),
    Edit.parse("The capital city of {France} is", "Rome", id="c"),
    Edit.parse("In Paris, {the Eiffel Tower} is in", "Madrid", id="d"),
    Edit.parse("The city of {Warsaw} is of", "Italy", id="e"),
]
FAST = {"steps": 5, "corpus_tokens": 400, "document_tokens": 32, "clamp": 3.0, "jitter": 1e-3}

# name, layers, settings, largest batch, whether the key's output becomes the target exactly
METHODS = [
    ("rome", (1,), {}, 1, False),
    ("rome", (1,), {"consistent_keys": True}, 1, True),
    ("emmet", (1,), {}, None, True),
    ("memit", (1,), {"ridge": 20.0}, None, False),
    ("memit", (1,), {"ridge": 20.0, "process": "rect"}, None, False),
    ("encore", (1,), {"ridge": 20.0}, None, False),
    ("alphaedit", (1,), {"null_threshold": 1.0, "null_relative": True}, None, False),
    ("lyaplock", (1,), {"ridge": 20.0, "budget": 1.5}, None, False),
    # Not the last block: it cannot reach a prediction behind the subject, and δ would be noise.
    ("memit", (0, 1), {"ridge": 20.0}, None, False),
    ("memit", (0, 1), {"ridge": 20.0, "spread": "forward"}, None, False),
    ("memit", (0, 1), {"ridge": 20.0, "spread": "each"}, None, False),
    ("ultraedit", (1,), {"lr": 1e-3}, None, False),
    ("ultraedit", (0, 1), {"lr": 1e-3, "accumulate": False}, None, False),
    ("finetune", (1,), {}, None, False),
    ("finetune", (0, 1), {"bound": "run"}, None, False),
    ("finetune_lora", (0, 1), {"rank": 2}, None, False),
]


def fast(name):
    """Those of the fast settings that a method has."""
    known = find_method(name).settings()
    return {k: v for k, v in FAST.items() if k in known}


def build(name, layers, settings):
    return find_method(name).build(layers, {**fast(name), **settings})


@pytest.mark.parametrize(("name", "layers", "settings", "most", "exact"), METHODS)
@pytest.mark.parametrize("schedule", ["single", "batch:3", "sequential", "sequential-batch:2"])
def test_runs_under_every_schedule_and_leaves_no_trace(
    name, layers, settings, most, exact, schedule, cache
):
    model, plan = pico(), Schedule.parse(schedule)
    editor = build(name, layers, settings)
    state = editor.setup.begin(model)
    original = model.weights_hash()
    if most is not None and plan.batch_size > most:
        with pytest.raises(InvalidSetting, match="emmet"):
            list(run(model, editor, state, EDITS, plan))
        return
    hashes, written = [], []
    for step in run(model, editor, state, EDITS, plan):
        hashes.append(model.weights_hash())
        written += [edit.id for edit in step.edits]
        assert set(step.update.deltas) == set(layers)
        if exact and not plan.carry:
            site = model.site(layers[0])
            target = step.features.outputs + step.features.targets.delta.double()
            if name == "emmet":
                reached = step.features.keys @ site.weight.double().mT
                assert torch.allclose(reached, target, rtol=1e-4, atol=1e-4)
    assert written == [edit.id for edit in EDITS]
    assert len(set(hashes)) == len(hashes) and original not in hashes
    assert model.weights_hash() == original


@pytest.mark.parametrize(("name", "layers", "settings", "most", "exact"), METHODS)
def test_same_seed_same_bytes(name, layers, settings, most, exact, cache):
    def go():
        chosen = {**fast(name), **settings}
        patch = make(pico(), EDITS[:3], method=name, layers=layers, settings=chosen)
        return [(d.left, d.right) for d in patch.deltas.values()]

    for first, second in zip(go(), go(), strict=True):
        assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


@pytest.mark.parametrize(("name", "layers", "settings", "most", "exact"), METHODS)
def test_order_inside_a_batch_does_not_matter(name, layers, settings, most, exact, cache):
    if most == 1:
        pytest.skip("this method has no batches")
    model = pico(dtype=torch.float64)
    editor = build(name, layers, settings)
    state = editor.setup.begin(model)

    def dense(edits):
        update = editor.solve(model, editor.features(model, edits, state), state)
        return [delta.dense() for delta in update.deltas.values()]

    for one, other in zip(dense(EDITS), dense(EDITS[::-1]), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-4 * one.norm().item())


def test_single_layer_updates_are_the_primal_formulas(cache):
    model = pico(dtype=torch.float64)
    for name, settings in (("emmet", {}), ("memit", {"ridge": 20.0}), ("rome", {})):
        editor = build(name, (1,), settings)
        state = editor.setup.begin(model)
        features = editor.features(model, EDITS[:1] if name == "rome" else EDITS, state)
        update = editor.solve(model, features, state)
        factor = state.memory.preservations[1].whitening.factor
        C = factor @ factor.mT
        delta = features.targets.delta.double()
        wanted = {
            "emmet": lambda C=C, f=features, d=delta: emmet_primal(C, f.keys, d),
            "memit": lambda C=C, f=features, d=delta: memit_primal(C, f.keys, d, 20.0),
            "rome": lambda C=C, f=features, d=delta: rome_primal(C, f.keys[0], f.bare[0], d[0]),
        }[name]()
        assert torch.allclose(update.deltas[1].dense(), wanted, rtol=1e-3, atol=1e-5)


def test_published_rome_holds_at_the_bare_key_and_r_rome_at_the_averaged_one(cache):
    model = pico(dtype=torch.float64)
    for consistent in (False, True):
        editor = build("rome", (1,), {"consistent_keys": consistent})
        state = editor.setup.begin(model)
        features = editor.features(model, EDITS[:1], state)
        update = editor.solve(model, features, state)
        weight = model.site(1).weight.double()
        after = weight + update.deltas[1].dense()
        wanted = features.bare @ weight.mT + features.targets.delta.double()
        held = features.keys if consistent else features.bare
        other = features.bare if consistent else features.keys
        assert torch.allclose(held @ after.mT, wanted, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(other @ after.mT, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("consistent", [False, True])
def test_rome_s_wanted_value_stays_when_the_weights_move_on(consistent, cache):
    """Features of an earlier moment: the same value is reached on later weights."""
    model = pico(dtype=torch.float64)
    editor = build("rome", (1,), {"consistent_keys": consistent})
    state = editor.setup.begin(model)
    first, second = (editor.features(model, [edit], state) for edit in EDITS[:2])
    held = second.keys if consistent else second.bare
    with model.scratch():
        for features in (first, second):
            update = editor.solve(model, features, state)
            model.write(update.deltas)
        reached = held @ model.master(1).double().mT
    wanted = second.outputs + second.targets.delta.double()
    assert torch.allclose(reached, wanted, rtol=1e-5, atol=1e-5)


def test_rome_takes_one_layer():
    with pytest.raises(InvalidSetting, match="one layer only"):
        build("rome", (0, 1), {})
    with pytest.raises(InvalidSetting, match="one layer only"):
        build("memit", (0, 1), {"insertion": "down"})


@pytest.mark.parametrize(
    "wrong",
    [{"together": 0}, {"steps": 0}, {"document_tokens": 0}, {"prefix_tokens": ""}, {"ridge": -1}],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(InvalidSetting, match=next(iter(wrong))):
        find_method("memit").resolve(wrong)


def test_memit_closes_the_gap_layer_by_layer(cache):
    """Keys and residuals are read anew: with a small ridge the last layer's gap all but closes."""
    from retcon.features.contexts import locate
    from retcon.features.keys import read_at_lookup

    model = pico()
    # Without prefixes, keys are those of the bare prompts, at which the gap is measured.
    editor = build("memit", (0, 1, 2), {"ridge": 1e-4, "prefixes": 0})
    state = editor.setup.begin(model)
    features = editor.features(model, EDITS, state)
    update = editor.solve(model, features, state)
    located = [locate(model.tokens, edit, "") for edit in EDITS]
    wanted = features.targets.anchor + features.targets.delta

    def gap():
        block = {2: model.architecture.blocks[2]}
        return (wanted - read_at_lookup(model, located, block, of_input=False)[2]).norm().item()

    gaps = [gap()]
    with model.scratch():
        for layer in (0, 1, 2):
            model.write({layer: update.deltas[layer]})
            gaps.append(gap())
    assert gaps[3] < 1e-2 * gaps[0] and gaps[3] < gaps[2]


def frozen(model, editor, state) -> KeyFeatures:
    return editor.features(model, EDITS, state)


@pytest.mark.parametrize("ridge", [0.0, 5.0, 500.0])
@pytest.mark.parametrize("sizes", [(5,), (1, 1, 1, 1, 1), (2, 3), (3, 1, 1)])
def test_every_batching_and_order_of_frozen_features_gives_the_same_weights(ridge, sizes, cache):
    model = pico(dtype=torch.float64)
    editor = build("memit", (1,), {"ridge": ridge})
    start = editor.setup.begin(model)
    features = frozen(model, editor, start)
    whole = editor.solve(model, features, start)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(sum(sizes[:2])))
    shuffled = KeyFeatures(
        tuple(features.edits[i] for i in order),
        Targets(*(field[order] for field in features.targets[:-1]), True),
        features.keys[order],
        features.bare[order],
        features.outputs[order],
    )
    state, first = start, 0
    with model.scratch():
        before = model.master(1).clone()
        for size in sizes:
            update = editor.solve(model, shuffled.select(slice(first, first + size)), state)
            state = editor.carry(state, update.increment)
            model.write(update.deltas)
            first += size
        carried = model.master(1) - before
    wanted = whole.deltas[1].dense()
    # Factors are kept in float32, so weights agree to its rounding.
    assert (carried - wanted).norm() <= 1e-5 * wanted.norm()
    assert state.written == tuple(edit.id for edit in shuffled.edits)


def test_without_accumulation_batches_differ(cache):
    model = pico(dtype=torch.float64)
    editor = build("memit", (1,), {"ridge": 5.0, "accumulate": False})
    state = editor.setup.begin(model)
    features = frozen(model, editor, state)
    whole = editor.solve(model, features, state)
    with model.scratch():
        before = model.master(1).clone()
        for i in range(5):
            update = editor.solve(model, features.select(slice(i, i + 1)), state)
            state = editor.carry(state, update.increment)
            model.write(update.deltas)
        carried = model.master(1) - before
    assert (carried - whole.deltas[1].dense()).norm() > 1e-2 * carried.norm()
    assert state.written == ()


def test_colliding_edits_are_named(cache):
    twin = dataclasses.replace(EDITS[1], id="twin", target="Berlin")
    model = pico()
    original = model.weights_hash()
    with pytest.raises(CollidingEdits, match=r"'b' \(Marie Curie\).*'twin' \(Marie Curie\)"):
        make(model, [*EDITS, twin], method="emmet", layers=(1,), settings=FAST)
    with pytest.raises(CollidingEdits, match=r"'b' \(Marie Curie\).*'twin' \(Marie Curie\)"):
        make(
            model, [*EDITS, twin], method="emmet", layers=(1,), settings=FAST, schedule="sequential"
        )
    assert model.weights_hash() == original
    settings = {**FAST, "ridge": 1.0}
    assert make(model, [*EDITS, twin], method="emmet", layers=(1,), settings=settings).edits


def test_capacity_is_a_clear_error(cache):
    """A matrix with d_in = 32 takes 32 hard constraints."""
    model = pico("llama-square")
    names = [chr(97 + i) + chr(97 + j) for i in range(6) for j in range(6)]
    edits = [Edit.parse(f"The {{{n}}} is", "English", id=n) for n in names[:33]]
    settings = {**FAST, "steps": 1}
    with pytest.raises(CapacityExceeded, match="d_in = 32"):
        make(model, edits, method="emmet", layers=(1,), settings=settings)


def test_post_norm_models_take_one_layer(cache):
    model = pico("gemma2")
    with pytest.raises(UnsupportedModel, match="one layer"):
        make(model, EDITS, method="memit", layers=(0, 1), settings=FAST)
    patch = make(model, EDITS, method="emmet", layers=(1,), settings=FAST)
    assert patch.deltas[1].norm() > 0


def test_lists_of_edits_are_checked(cache):
    with pytest.raises(InvalidEdit, match="empty"):
        make(pico(), [], method="emmet", layers=(1,), settings=FAST)
    with pytest.raises(InvalidEdit, match="'a'"):
        make(pico(), [EDITS[0], EDITS[0]], method="emmet", layers=(1,), settings=FAST)


def test_names_and_settings_are_checked():
    with pytest.raises(UnknownName, match="Did you mean 'emmet'"):
        find_method("emet")
    memit = find_method("memit")
    with pytest.raises(UnknownName, match="Did you mean 'ridge'"):
        memit.resolve({"rigde": 3})
    with pytest.raises(InvalidSetting, match="ridge='big'"):
        memit.resolve({"ridge": "big"})
    values = memit.resolve({"ridge": "3", "prefix_tokens": "5,10", "accumulate": "false"})
    assert (values["ridge"], values["prefix_tokens"], values["accumulate"]) == (3.0, (5, 10), False)


def test_every_method_has_a_page():
    for entry in methods().values():
        assert entry.paper.startswith("https://arxiv.org/abs/") and len(entry.summary) > 20
        assert entry.build((1,), {}).layers == ((1,) if entry.writes else ())


def test_presets_resolve_and_have_sources():
    for family in families():
        for preset in family.presets:
            find_method(preset.method).resolve(preset.settings)
            assert preset.source and max(preset.layers) < family.shape.blocks


def test_a_model_without_presets_names_layers_to_try():
    with pytest.raises(InvalidSetting, match="--layer 1"):
        resolve(pico().outline)
    with pytest.raises(InvalidSetting, match="--method memit"):
        resolve(pico().outline, method="memit")
    with pytest.raises(InvalidSetting, match="ascending"):
        resolve(pico().outline, method="memit", layers=(2, 1))
    assert resolve(pico().outline, method="memit", layers=(1,)).preset is None


def test_a_rule_for_targets_is_its_settings_and_what_is_given_stands():
    outline, fast = pico().outline, rules()["fast"].settings

    def resolved(**settings):
        return resolve(outline, method="memit", layers=(1,), settings=settings)

    recipe = resolved(rule="fast")
    assert recipe.rule == "fast" and fast.items() <= recipe.settings.items()
    assert recipe == resolved(**fast)
    other = resolved(rule="fast", steps=9)
    assert other.settings["steps"] == 9 and other.settings["descent"] == "sphere"
    assert other.rule is None and resolved().rule is None
    assert resolved(**recipe.settings) == recipe  # every setting given, as in a record
    with pytest.raises(InvalidSetting, match=r"lr does nothing with descent=sphere.*reach"):
        resolved(rule="fast", lr=1.0)
    with pytest.raises(UnknownName, match="'fast'"):
        resolved(rule="fats")
    with pytest.raises(InvalidSetting, match="finetune optimises no targets"):
        resolve(outline, method="finetune", layers=(1,), settings={"rule": "fast"})


def test_turns_on_a_sphere_have_a_length_that_somebody_chose(monkeypatch):
    """A clamp that other descents stop short of is no length: facts before would be lost."""
    outline = pico().outline

    def resolved(method, layer=1, **settings):
        return resolve(outline, method=method, layers=(layer,), settings=settings).settings

    with pytest.raises(InvalidSetting, match=r"as long as its clamp, here 4\.0 times.*--set clamp"):
        resolved("rome", rule="fast")
    assert resolved("rome", rule="fast", clamp=4.0)["clamp"] == 4.0
    toy = next(family for family in families() if family.name == "toyworld")
    monkeypatch.setattr(presets, "family_of", lambda model: toy)
    assert resolved("emmet", 0)["clamp"] == 4.0
    assert resolved("emmet", 0, rule="fast")["clamp"] == 2.0
    assert resolved("emmet", 0, rule="fast", clamp=3.0)["clamp"] == 3.0


def test_every_rule_says_why_a_target_ended():
    settings = {**FAST, "steps": 12, "ridge": 20.0, "rule": "fast", "stop_below": 6.0}
    model = pico()
    recipe = resolve(model.outline, method="memit", layers=(1,), settings=settings)
    method = recipe.build()
    state = method.setup.begin(model)
    told = method.solve(model, method.features(model, EDITS, state), state).report
    assert set(told.edit["stopped"]) == {"loss", "cap"}
    assert told.batch["targets_capped"] == told.edit["stopped"].count("cap")
