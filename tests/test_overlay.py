"""Updates laid over rows of shared batches, against writing each into the weights."""

import math
from functools import partial

import pytest
import torch

from oracles import mean_nll
from pico import FAMILIES, INNER_FLOAT32, UNUSUAL, pico, says_target, tokenizer, unusual
from retcon.algebra.delta import LowRankDelta
from retcon.edits import Case, Edit
from retcon.errors import NotFinite
from retcon.model import generate
from retcon.model.generate import greedy
from retcon.model.handle import ModelHandle
from retcon.model.overlay import Overlay
from retcon.model.positions import Positions
from retcon.run.evaluate import evaluate
from retcon.scoring.exact_match import exact_matches
from retcon.scoring.score import Look, score_cases, score_looks

CASES = [
    Case(
        edit=Edit.parse("The city of {Paris} is in", "Italy", id="1", target_old="France"),
        paraphrases=("I think Paris is a city of",),
        neighbours=("The Eiffel Tower is in", "French is of"),
        relation="P17",
    ),
    Case(
        edit=Edit.parse("{Marie Curie} was born in", "London", id="2", target_old="Warsaw is"),
        neighbours=("The capital is", "French is of"),
    ),
    Case(edit=Edit.parse("{Rome} is", "a", id="3")),
]


def update(model, layers, rank, seed):
    """A random change that is large enough to show."""
    generator = torch.Generator().manual_seed(seed)

    def factor(width):
        return torch.randn(rank, width, generator=generator) / width**0.5

    return {
        layer: LowRankDelta(
            left=3 * factor(model.site(layer).d_out), right=factor(model.site(layer).d_in)
        )
        for layer in layers
    }


def looks_at(model, ranks=(1, 2, 1)):
    """Several updates of different ranks and layers, and the model as it is between them."""
    layers = [(1,), (0, 2), (0, 1, 2)]
    looks = [
        Look(CASES, "immediate", i + 1, update(model, at, rank, i))
        for i, (at, rank) in enumerate(zip(layers, ranks, strict=True))
    ]
    return [looks[0], Look(CASES[:2], "pre"), *looks[1:]]


def written(model, looks):
    """The same rows by writing each update into the weights."""
    rows = []
    for look in looks:
        with model.scratch():
            model.write(look.deltas)
            rows += score_cases(model, look.cases, when=look.when, step=look.step)
    return rows


def assert_same(rows, wanted, tolerance):
    for got, row in zip(rows, wanted, strict=True):
        for name, value in row._asdict().items():
            near = name.startswith("nll") and value is not None
            wanted_value = pytest.approx(value, abs=tolerance, rel=tolerance) if near else value
            assert getattr(got, name) == wanted_value, (name, got, row)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-9)])
def test_scores_under_updates_are_those_of_edited_weights(family, dtype, tolerance):
    model = pico(family, dtype=dtype)
    before = model.weights_hash()
    looks = looks_at(model)
    rows = score_looks(model, looks)
    assert model.weights_hash() == before
    assert_same(rows, written(model, looks), max(tolerance, INNER_FLOAT32.get(family, 0.0)))
    assert len({row.nll_new for row in rows if (row.case, row.kind) == ("1", "rewrite")}) == 4


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma2"])
def test_generation_under_updates_is_that_of_edited_weights(family):
    model = pico(family, dtype=torch.float64)
    looks = looks_at(model)
    overlay = Overlay(model=model, updates=[look.deltas for look in looks])
    prompts = [model.tokens.encode(case.edit.text) for _ in looks for case in CASES]
    owners = [owner for owner in range(len(looks)) for _ in CASES]
    said = greedy(overlay, prompts, [6] * len(prompts), owners)
    for owner, look in enumerate(looks):
        with model.scratch():
            model.write(look.deltas)
            alone = greedy(Overlay(model=model), prompts[:3], [6] * 3, [0] * 3)
        assert said[3 * owner : 3 * owner + 3] == alone


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("left", [True, False])
def test_prompts_of_unlike_length_are_continued_as_each_is_alone(family, left, monkeypatch):
    """Together where the model may be padded on the left, and else those of one length."""
    model = pico(family, dtype=torch.float64)
    if not left:
        monkeypatch.setattr("retcon.model.generate.pads_left", lambda _model: False)
    updates = [update(model, (1,), 1, seed) for seed in (1, 2)]
    overlay = Overlay(model=model, updates=updates)
    texts = ["The city of Paris is in", "Rome is", "I think that you know the way to the", "We"]
    prompts = [model.tokens.prompt(text) for text in texts] * 2
    wanted = [12, 1, 7, 12] * 2
    owners = [0, 1, 0, 1, 1, 0, 1, 0]
    together = greedy(overlay, prompts, wanted, owners)
    assert len({len(prompt) for prompt in prompts}) == 4
    for prompt, count, owner, said in zip(prompts, wanted, owners, together, strict=True):
        (alone,) = greedy(overlay, [prompt], [count], [owner])
        # One that ends is filled up beside others.
        assert said[: len(alone)] == alone and set(said[len(alone) :]) <= {1}
        assert len(said) <= count


@pytest.mark.parametrize("kind", UNUSUAL)
def test_unusual_blocks_continue_prompts_together_as_alone(kind):
    """Recurrent networks and convolutions, which read padding unless it is masked."""
    model = ModelHandle(unusual(kind), tokenizer(), name=kind)
    prompts = [(40, 9, 13, 5, 7, 21, 60), (5, 9), (200, 9, 13), (33, 8)]
    together = greedy(Overlay(model=model), prompts, [8] * 4, [0] * 4)
    for prompt, said in zip(prompts, together, strict=True):
        (alone,) = greedy(Overlay(model=model), [prompt], [8], [0])
        assert said[: len(alone)] == alone


def test_what_reads_padding_is_not_padded(monkeypatch):
    """The masks of padding are lost: that is seen, and prompts of one length run together."""
    model, masks = pico(), []
    made = generate._padded_left

    def unmasked(model, prompts):
        given = made(model, prompts)
        masks.append(given["attention_mask"].clone())
        return {**given, "attention_mask": torch.ones_like(masks[-1])}

    monkeypatch.setattr(generate, "_padded_left", unmasked)
    assert not generate.pads_left(model) and not masks[-1].all()
    masks.clear()
    greedy(Overlay(model=model), [(5, 9), (7, 8, 9), (6, 7)], [3] * 3, [0] * 3)
    assert [mask.shape for mask in masks] == [(2, 2), (1, 3)] and all(m.all() for m in masks)


def test_positions_of_a_table_are_not_overrun(monkeypatch):
    model = pico("gpt2")
    few = pico("gpt2")
    few.tokens.positions = Positions(8, table=True)
    assert not generate.pads_left(few)
    monkeypatch.setattr(generate, "pads_left", lambda _model: True)
    count = model.tokens.positions.count
    prompts = [(5,) * (count - 2), (7, 8), (7, 9)]
    said = greedy(Overlay(model=model), prompts, [4] * 3, [0] * 3)
    assert [len(ids) for ids in said] == [2, 4, 4]


@pytest.mark.parametrize(("dtype", "rank"), [(torch.float32, 9), (torch.bfloat16, 1)])
def test_updates_of_high_rank_or_into_rounded_weights_are_written(dtype, rank, monkeypatch):
    model = pico(dtype=dtype)
    looks = looks_at(model, (rank, 1, 1))
    writes = []
    write = model.write
    monkeypatch.setattr(model, "write", lambda deltas: (writes.append(1), write(deltas)))
    before = model.weights_hash()
    rows = score_looks(model, looks)
    assert len(writes) == len(looks) and model.weights_hash() == before
    assert_same(rows, written(model, looks), 0)


def test_updates_that_could_not_be_written_are_refused():
    model = pico()
    broken = update(model, (1,), 1, 0)
    broken[1].left[0, 0] = math.nan
    with pytest.raises(NotFinite, match="layer 1"):
        score_looks(model, [Look(CASES, "immediate", 1, broken)])


@pytest.mark.parametrize("family", FAMILIES)
def test_drafts_decide_what_generation_says(family, monkeypatch):
    """Targets that are said, cut short in a word, go wrong late, or are not said at all."""
    model = pico(family)
    edits, by_drafts, generated = [], [], []
    for text in ("The city of {Paris} is in", "{Rome} is", "I think that {you} know"):
        prompt = model.tokens.encode(text.replace("{", "").replace("}", ""))
        (said,) = greedy(Overlay(model=model), [prompt], [5], [0])
        spoken = model.tokens.decode(said).strip()
        for target in (spoken[:2], spoken[:5], spoken, f"{spoken[:4]}q", "French", "is"):
            if target.strip():
                edits.append(Edit.parse(text, target))
    for edit in edits:
        by_drafts += says_target(model, [edit])
    piecewise = "retcon.model.tokens.Tokens.decodes_piecewise"
    monkeypatch.setattr(piecewise, property(lambda _: False))
    for edit in edits:
        generated += says_target(model, [edit])
    assert by_drafts == generated
    assert exact_matches(Overlay(model=model), [], [], []) == []


def test_a_prompt_is_run_once_and_not_at_all_where_it_begins_another(monkeypatch):
    from retcon.scoring import teacher_forced as predictions

    model, run = pico(dtype=torch.float64), []
    logits = predictions._logits
    monkeypatch.setattr(
        predictions, "_logits", lambda o, rows, places: run.extend(rows) or logits(o, rows, places)
    )
    texts = [
        (p, t) for p in ("The city is", "The city is of Paris") for t in ("a", "of Paris", "a")
    ]
    asks = [predictions.Ask(*model.tokens.continuation(*pair)) for pair in texts]
    found = predictions.predict(Overlay(model=model), asks)
    assert len(run) == 1
    for pair, seen in zip(texts, found, strict=True):
        assert -sum(seen.logp) / len(seen.logp) == pytest.approx(mean_nll(model, *pair))


@pytest.mark.parametrize(
    ("method", "layers", "schedule"),
    [("rome", (1,), "single"), ("memit", (0, 1), "single"), ("emmet", (1,), "batch:2")],
)
def test_a_trial_scores_the_same_laid_over_or_written(method, layers, schedule, cache, monkeypatch):
    settings = {"steps": 3, "corpus_tokens": 400, "document_tokens": 32, "jitter": 1e-3}
    if method == "memit":
        settings["ridge"] = 20.0
    trial = partial(
        evaluate, cases=CASES, method=method, layers=layers, settings=settings, schedule=schedule
    )
    laid_over = trial(pico(dtype=torch.float64))
    monkeypatch.setattr("retcon.model.overlay._MOST_RANK", 0)
    by_writing = trial(pico(dtype=torch.float64))
    assert_same(laid_over.rows, by_writing.rows, 1e-6)
    assert [s.index for s in laid_over.steps] == [s.index for s in by_writing.steps]
    assert {row.step for row in laid_over.at("immediate")} == {s.index + 1 for s in laid_over.steps}
