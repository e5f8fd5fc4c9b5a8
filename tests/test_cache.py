"""Remembered targets, keys, prefixes, scores, texts: the same to the last bit, never another's."""

import copy
import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch
from tokenizers import normalizers

import retcon
from pico import pico, tokenizer
from retcon.algebra.delta import LowRankDelta
from retcon.cache import Recalled, clear, limit, recall, usage
from retcon.edits import Case, Edit
from retcon.errors import InvalidSetting, RetconWarning, UnknownName
from retcon.features import remember as remembered
from retcon.features.contexts import ContextOptions, sample_prefixes
from retcon.features.remember import recall_keys, recall_prefixes, recall_targets
from retcon.features.target_options import TargetOptions
from retcon.model.tokens import Tokens
from retcon.run.evaluate import evaluate
from retcon.scoring.score import score_cases

EDITS = [
    Edit.parse("The mother tongue of {Danielle Darrieux} is", "English", id="a"),
    Edit.parse("{Marie Curie} was born in the city of", "London", id="b"),
    Edit.parse("The capital city of {France} is", "Rome", id="c"),
]
PREFIXES = ("", "I think that. ")
OPTIONS = TargetOptions(steps=3, together=2)
WEIGHTS = torch.stack([ContextOptions().weights(2), torch.eye(2, dtype=torch.float64)[0]])
CASES = [
    Case(
        edit=Edit.parse("The city of {Paris} is in", "Italy", id="1", target_old="France"),
        paraphrases=("I think Paris is a city of",),
        neighbours=("The Eiffel Tower is in",),
    ),
    Case(edit=Edit.parse("{Rome} is", "a", id="2")),
]
SETTINGS = {"steps": 2, "corpus_tokens": 400, "document_tokens": 32, "jitter": 1e-3}


@pytest.fixture
def computed(monkeypatch):
    """What was computed and not recalled: edits or cases, counted by kind."""
    counts = dict.fromkeys(("targets", "keys", "scores"), 0)

    def count(kind, path):
        module, name = path.rsplit(".", 1)
        original = getattr(sys.modules[module], name)

        def counting(handle, what, *more, **named):
            counts[kind] += len(what)
            return original(handle, what, *more, **named)

        monkeypatch.setattr(path, counting)

    count("targets", "retcon.features.remember.optimise_targets")
    count("keys", "retcon.features.remember.read_keys")
    count("scores", "retcon.scoring.score._score_all")
    return counts


def targets(model, edits=EDITS, prefixes=PREFIXES, layer=1, options=OPTIONS):
    return recall_targets(model, edits, prefixes, layer, options)


def keys(model, edits=EDITS, prefixes=PREFIXES, layer=1, weights=WEIGHTS):
    return recall_keys(model, edits, prefixes, layer, weights)


def scores(model, cases=CASES):
    return score_cases(model, cases, when="pre")


def nudge(model):
    """A change of one layer, too small for the fingerprint to show."""
    site = model.site(1)
    return {1: LowRankDelta(left=torch.full((1, site.d_out), 1e-9), right=torch.ones(1, site.d_in))}


def test_a_hit_is_the_same_to_the_last_bit_and_computes_nothing(entries, computed):
    model = pico()
    first = targets(model), keys(model), scores(model)
    assert computed == {"targets": 3, "keys": 3, "scores": 2}
    again = targets(model), keys(model), scores(model)
    assert computed == {"targets": 3, "keys": 3, "scores": 2}
    for name, value in first[0]._asdict().items():
        if name not in ("cached", "short"):
            assert torch.equal(value, getattr(again[0], name)), name
            assert value.dtype == getattr(again[0], name).dtype
    assert not first[0].cached.any() and again[0].cached.all()
    assert again[0].short == first[0].short and (again[0].seconds > 0).all()
    assert torch.equal(first[1], again[1])
    assert first[2] == again[2]


def test_targets_that_do_not_stop_when_said_are_found_under_their_first_names(monkeypatch):
    named: list[object] = []

    def remember(kind, names, compute, *, together=None):
        named.extend(name["options"]["stop_when_said"] for name in names)
        return [Recalled(entry, False) for entry in compute([*range(len(names))])]

    monkeypatch.setattr(remembered, "recall", remember)
    for hits in (0, 1, 2):
        targets(pico(), EDITS[:1], options=dataclasses.replace(OPTIONS, stop_when_said=hits))
    # It was a yes or no once, and most entries say no.
    assert json.dumps(named) == "[false, 1, 2]"


def test_an_edit_s_id_and_place_do_not_matter(entries, computed):
    model = pico()
    first = targets(model)
    renamed = [dataclasses.replace(edit, id=f"other-{edit.id}") for edit in EDITS[::-1]]
    assert torch.equal(targets(model, renamed).delta, first.delta.flip(0))
    assert computed["targets"] == 3


def of_another_structure():
    """The same weights, and so the same fingerprint, and another model."""
    model = pico("llama-tied")
    model.model.config.rms_norm_eps = 1e-2
    return model


def spelling_otherwise():
    """The same weights, and the same tokens of these texts, but not of all."""
    model = pico("llama-tied")
    other = copy.deepcopy(tokenizer())
    other.backend_tokenizer.normalizer = normalizers.NFC()
    model.tokens = Tokens(other)
    return model


OTHER_EDIT = [dataclasses.replace(EDITS[0], target="Polish")]
MISSES = {
    "prefixes": lambda model: targets(model, prefixes=("", "You know. ")),
    "layer": lambda model: targets(model, layer=0),
    "target": lambda model: targets(model, OTHER_EDIT),
    "prompt": lambda model: targets(model, [dataclasses.replace(EDITS[0], prompt="{} was a")]),
    "steps": lambda model: targets(model, options=dataclasses.replace(OPTIONS, steps=2)),
    "insertion": lambda model: targets(
        model, options=dataclasses.replace(OPTIONS, insertion="down")
    ),
    "together": lambda model: targets(model, options=dataclasses.replace(OPTIONS, together=3)),
    "weights": lambda _: targets(pico(seed=1)),
    "dtype": lambda _: targets(pico(dtype=torch.float64)),
    "tokenizer": lambda _: targets(pico(bos=True)),
    "normal-form": lambda _: targets(spelling_otherwise()),
    "structure": lambda _: targets(of_another_structure()),
    "keys": lambda model: keys(model, weights=WEIGHTS.flip(0)),
    "keys-layer": lambda model: keys(model, layer=0),
    "scores-weights": lambda _: scores(pico(seed=1)),
    "scores-normal-form": lambda _: scores(spelling_otherwise()),
    "scores-dtype": lambda _: scores(pico(dtype=torch.float64)),
    "scores-prompts": lambda model: scores(
        model, [dataclasses.replace(CASES[0], neighbours=("French is of",))]
    ),
}


@pytest.mark.parametrize("change", MISSES)
def test_whatever_changes_a_value_is_a_miss(change, entries, computed):
    model = pico("llama-tied")
    _ = targets(model), keys(model), scores(model)
    before = sum(computed.values())
    MISSES[change](model)
    assert sum(computed.values()) > before


def test_edited_weights_neither_read_nor_keep(entries, computed):
    model = pico()
    fresh = scores(model)
    _ = targets(model), keys(model)
    kept = usage()
    with model.scratch():
        model.write(nudge(model))
        assert model.live_fingerprint == model.fingerprint
        _ = targets(model), keys(model), scores(model)
    assert computed == {"targets": 6, "keys": 6, "scores": 4}
    assert usage() == kept
    assert scores(model) == fresh and computed["scores"] == 4


def test_edits_with_one_key_share_its_bits_whoever_read_it(entries, computed):
    model = pico()
    twin = dataclasses.replace(EDITS[0], id="z", target="Polish", prompt=EDITS[0].prompt + " not")
    alone = keys(model, [EDITS[0]])
    among = keys(model, [EDITS[1], twin, EDITS[2]])
    assert torch.equal(alone[:, 0], among[:, 1]) and computed["keys"] == 3


def test_an_interrupted_run_keeps_the_groups_that_were_done(entries, monkeypatch):
    from retcon.features import remember as remembered

    original, calls = remembered.optimise_targets, []

    def interrupted(handle, edits, *more, **named):
        calls.append([edit.id for edit in edits])
        if calls == [["a", "b"], ["c"]]:
            raise KeyboardInterrupt
        return original(handle, edits, *more, **named)

    monkeypatch.setattr(remembered, "optimise_targets", interrupted)
    with pytest.raises(KeyboardInterrupt):
        targets(pico())
    assert targets(pico()).cached.tolist() == [True, True, False]
    assert calls[2:] == [["c"]]


def remember(names, value=1.0, size=1000, **more):
    """Entries of `size` numbers; which were there already."""
    made = recall(
        "targets",
        [{"name": name} for name in names],
        lambda group: [{"x": torch.full((size,), value)} for _ in group],
        **more,
    )
    return [found.cached for found in made]


@pytest.mark.parametrize("damage", ["empty", "cut", "foreign", "folder"])
def test_a_damaged_or_foreign_file_is_made_again(damage, entries):
    remember(["one", "two"])
    one, two = sorted(entries.rglob("*.safetensors"))
    if damage == "folder":
        one.unlink()
        one.mkdir()
        with pytest.warns(RetconWarning, match="made anew"):
            assert sorted(remember(["one", "two"])) == [False, True]
        return
    content = {"empty": b"", "cut": one.read_bytes()[:-7], "foreign": two.read_bytes()}[damage]
    one.write_bytes(content)
    with pytest.warns(RetconWarning, match="made anew"):
        assert sorted(remember(["one", "two"])) == [False, True]
    assert remember(["one", "two"]) == [True, True]


def test_many_that_are_damaged_are_said_in_one_line(entries):
    remember("abcd")
    for file in entries.rglob("*.safetensors"):
        file.write_bytes(b"")
    with pytest.warns(RetconWarning) as said:
        assert remember("abcd") == [False] * 4
    assert len(said) == 1 and "So are 3 more of the targets" in str(said[0].message)


def test_what_is_not_finite_is_not_kept(entries):
    remember(["nan"], value=float("nan"))
    assert remember(["nan"], value=float("inf")) == [False]
    assert usage("targets")[0].files == 0


def test_the_least_recently_read_go_first(entries, monkeypatch):
    monkeypatch.setenv("RETCON_CACHE_LIMIT", "20000")  # four entries of 4 kB
    for age, name in enumerate("abcd"):
        remember([name])
        (path,) = (p for p in entries.rglob("*.safetensors") if p.stat().st_mtime > 10_000)
        os.utime(path, (age, age))
    (entries / "moments").mkdir()
    (entries / "moments" / "large").write_bytes(bytes(30000))
    assert remember("a") == [True]
    assert remember("e") == [False]
    assert remember("ae") == [True, True]
    assert remember("b") == [False]
    total = sum(one.bytes for one in usage("entries"))
    assert total <= 20000 and (entries / "moments" / "large").exists()


def test_a_limit_of_nothing_turns_entries_off(entries, monkeypatch):
    assert remember(["a"]) == [False] and limit() == 2**31
    monkeypatch.setenv("RETCON_CACHE_LIMIT", "0")
    assert remember(["a"]) == [False]
    monkeypatch.setenv("RETCON_CACHE_LIMIT", "2 GB")
    with pytest.raises(InvalidSetting, match="bytes"):
        remember(["a"])


def test_a_cache_that_cannot_be_written_costs_no_result(entries):
    entries.mkdir()
    (entries / "targets").write_text("a file where a folder should be", encoding="utf-8")
    assert targets(pico()).steps.tolist() == [3, 3, 3]
    assert targets(pico()).cached.tolist() == [False, False, False]


def test_two_processes_may_make_the_same_entries(entries):
    code = (
        "import torch; from retcon.cache import recall\n"
        "for again in range(30):\n"
        "    names = [{'again': again, 'name': name} for name in range(4)]\n"
        "    make = lambda group: [{'x': torch.arange(500.)} for _ in group]\n"
        "    found = recall('keys', names, make, together=1)\n"
        "    assert all(one.entry['x'].equal(torch.arange(500.)) for one in found)\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    assert usage("keys")[0].files == 120
    assert not [path for path in entries.rglob(".*") if path.is_file()]


def test_a_trial_records_what_the_work_costs_and_what_was_cached(entries, computed):
    model = pico()
    cases = [Case(edit=edit) for edit in EDITS]

    def trial(method, schedule, **settings):
        return evaluate(
            model, cases, method=method, layers=[1], settings={**SETTINGS, **settings},
            schedule=schedule,
        )  # fmt: skip

    first = trial("emmet", "single")
    before = dict(computed)
    again = trial("memit", "batch:2", ridge=20.0)
    assert {kind: computed[kind] - count for kind, count in before.items()} == {
        "targets": 0, "keys": 0, "scores": 3,  # those after the edits
    }  # fmt: skip
    assert [step.cached for step in first.steps] == [0, 0, 0]
    assert [step.cached for step in again.steps] == [2, 1]
    assert first.at("pre") == again.at("pre")
    assert again.describe()["steps"][0]["cached"] == 2


def test_a_cached_target_costs_what_it_took(entries, monkeypatch):
    from retcon.features import remember as remembered

    original = remembered.optimise_targets

    def slow(*args, **named):
        made = original(*args, **named)
        return made._replace(seconds=torch.full_like(made.seconds, 100.0))

    monkeypatch.setattr(remembered, "optimise_targets", slow)
    model, settings = pico(), {**SETTINGS, "prefixes": 0}

    def seconds(edits):
        cases = [Case(edit=edit) for edit in edits]
        trial = evaluate(model, cases, method="emmet", layers=[1], settings=settings)
        return [step.seconds for step in trial.steps]

    # What this clock says goes for the whole, of which 100 s were claimed for the target.
    assert seconds(EDITS[:1])[0] < 100
    assert 100 < seconds(EDITS[:1])[0] < 200


def test_carried_edits_use_entries_only_before_the_first_is_written(entries, computed):
    model, cases = pico(), [Case(edit=edit) for edit in EDITS]
    for _ in range(2):
        trial = evaluate(
            model, cases, method="emmet", layers=[1], settings=SETTINGS, schedule="sequential"
        )
    assert [step.cached for step in trial.steps] == [1, 0, 0]
    assert computed["targets"] == 3 + 2 and usage("targets")[0].files == 1


def test_clearing_takes_entries_unless_another_kind_is_named(entries):
    remember(["a"])
    for large in ("moments", "corpora", "models"):
        (entries / large).mkdir()
        (entries / large / "file").write_bytes(b"1234")
    assert [(one.kind, one.files) for one in clear()] == [
        ("targets", 1),
        ("keys", 0),
        ("prefixes", 0),
        ("scores", 0),
        ("texts", 0),
        ("sensitivity", 0),
    ]
    assert remember(["a"]) == [False]
    assert [(one.kind, one.bytes) for one in clear("moments")] == [("moments", 4)]
    assert not (entries / "moments").exists() and (entries / "corpora").exists()
    clear("all")
    assert list(entries.iterdir()) == []
    with pytest.raises(UnknownName, match="Did you mean 'targets'"):
        clear("target")


def test_the_command_shows_and_clears(entries, monkeypatch, capsys, tmp_path):
    from retcon.cli.main import run

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["retcon", "cache", *words])
        try:
            run()
        except SystemExit as stop:
            return int(stop.code or 0), capsys.readouterr()
        return 0, capsys.readouterr()

    monkeypatch.setenv("COLUMNS", "250")
    remember(["a", "b"])
    code, said = call("--json", str(tmp_path / "c.json"))
    assert code == 0 and "targets" in said.out and "RETCON_CACHE_LIMIT" in said.out
    result = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))
    assert result["folder"] == str(entries) and result["limit"] == 2**31
    assert result["kinds"]["targets"]["files"] == 2 and result["kinds"]["models"]["bytes"] == 0
    code, said = call("clear", "targets")
    assert code == 0 and str(entries / "targets") in said.out
    assert usage("targets")[0].files == 0
    assert call("show", "moments")[0] == 0 and call("clear")[0] == 0
    code, said = call("clear", "target")
    assert code == 2 and "Did you mean 'targets'" in said.err


def passes_of(model):
    """The model's forward passes from here on, one each."""
    counted: list[int] = []
    model.model.register_forward_pre_hook(lambda *_: counted.append(1))
    return counted


def test_prefixes_are_sampled_once_and_each_is_an_entry(entries):
    model, options = pico(), ContextOptions(prefixes=3, seed=4)
    passes = passes_of(model)
    first = recall_prefixes(model, options)
    sampled = len(passes)
    assert sampled > 0 and usage("prefixes")[0].files == 3
    assert recall_prefixes(model, options) == first and len(passes) == sampled
    # How keys are averaged over prefixes, and how many there are, does not change any.
    uniform = dataclasses.replace(options, prefixes=2, averaging="uniform")
    assert recall_prefixes(model, uniform) == first[:3] and len(passes) == sampled
    assert sample_prefixes(model, options) == first and len(passes) > sampled


def ending_elsewhere():
    """The same model, which stops writing at another token."""
    model = pico()
    model.model.generation_config.eos_token_id = 7
    return model


def drawn_by_another_version(model, monkeypatch):
    monkeypatch.setattr(remembered, "_DRAWN_BY", {"torch": "another"})
    return model


OF_PREFIXES = ContextOptions(prefixes=1, prefix_tokens=(6,))
OTHER_PREFIXES = {
    "seed": lambda model, _: (model, dataclasses.replace(OF_PREFIXES, seed=1)),
    "tokens": lambda model, _: (model, dataclasses.replace(OF_PREFIXES, prefix_tokens=(5,))),
    "more": lambda model, _: (model, dataclasses.replace(OF_PREFIXES, prefixes=2)),
    "weights": lambda *_: (pico(seed=1), OF_PREFIXES),
    "dtype": lambda *_: (pico(dtype=torch.float64), OF_PREFIXES),
    "tokenizer": lambda *_: (pico(bos=True), OF_PREFIXES),
    "ends": lambda *_: (ending_elsewhere(), OF_PREFIXES),
    "version": lambda model, patch: (drawn_by_another_version(model, patch), OF_PREFIXES),
}


@pytest.mark.parametrize("change", OTHER_PREFIXES)
def test_whatever_decides_a_prefix_makes_it_anew(change, entries, monkeypatch):
    recall_prefixes(pico(), OF_PREFIXES)
    model, options = OTHER_PREFIXES[change](pico(), monkeypatch)
    passes = passes_of(model)
    assert recall_prefixes(model, options) == sample_prefixes(model, options)
    assert usage("prefixes")[0].files == 2 and passes


def test_prefixes_of_edited_weights_and_without_a_cache_are_not_kept(entries, monkeypatch):
    model = pico()
    with model.scratch():
        model.write(nudge(model))
        recall_prefixes(model, OF_PREFIXES)
    monkeypatch.setenv("RETCON_CACHE_LIMIT", "0")
    recall_prefixes(model, OF_PREFIXES)
    assert usage("prefixes")[0].files == 0


def test_an_edit_again_samples_no_prefix(entries, monkeypatch):
    drawn = []
    original = remembered.sample_prefix
    monkeypatch.setattr(
        remembered, "sample_prefix", lambda model, draw: drawn.append(draw) or original(model, draw)
    )
    model, cases = pico(), [Case(edit=EDITS[0])]
    first, again = (
        evaluate(model, cases, method="emmet", layers=[1], settings=SETTINGS) for _ in range(2)
    )
    assert len(drawn) == 5
    assert first.describe()["prefixes"] == again.describe()["prefixes"]


def test_what_is_written_freely_depends_on_where_the_model_stops(entries):
    for model in (pico(), pico(), ending_elsewhere()):
        retcon.score(model, CASES, metrics=["said"])
    assert usage("texts")[0].files == 2 * len(
        {*CASES[0].paraphrases, *(c.edit.text for c in CASES)}
    )
