"""Scores against a loop over single prompts; formulas; invariances."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import many_tokenizers
from oracles import mean_nll, score_one_batch, scores_by_loop
from pico import FAMILIES, pico, says_target
from retcon.edits import Case, Edit
from retcon.errors import NotFinite
from retcon.model.handle import ModelHandle
from retcon.scoring.intervals import t_quantile
from retcon.scoring.metrics import estimate, intervals, summarise
from retcon.scoring.metrics.entropy import generation_entropy
from retcon.scoring.observations import Observation
from retcon.scoring.score import score_cases, score_targets

CASES = [
    Case(
        edit=Edit.parse("The city of {Paris} is in", "Italy", id="1", target_old="France"),
        paraphrases=("I think Paris is a city of", "Paris, the capital of"),
        neighbours=("The Eiffel Tower is in", "The capital city is Paris of", "French is of"),
        relation="P17",
    ),
    Case(
        edit=Edit.parse(
            "{Marie Curie} was born in", "London", id="2", target_old="Warsaw in Poland"
        ),
        paraphrases=("The physicist was of",),
        neighbours=("The capital is", "Polish is of"),
        relation="P19",
    ),
    Case(
        edit=Edit.parse("{Rome} is", "Madrid", id="3", target_old="Rome"),
        paraphrases=("I know that Rome is",),
        neighbours=("Italy is",),
        relation="P17",
    ),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_the_loop(family):
    model = pico(family)
    rows = score_cases(model, CASES, when="pre")
    assert {k: v for k, v in summarise(rows).items() if k in ("ES", "PS", "NS")} == pytest.approx(
        scores_by_loop(model, CASES)
    )
    for row in rows:
        if row.kind == "rewrite":
            case = next(c for c in CASES if c.edit.id == row.case)
            assert row.nll_new == pytest.approx(
                mean_nll(model, case.edit.text, case.edit.target), rel=1e-4
            )


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_those_of_one_padded_batch_per_case(family):
    model = pico(family, dtype=torch.float64)
    wanted = [pair for case in CASES for pair in score_one_batch(model, case)]
    found = [
        pair
        for row in score_cases(model, CASES, when="pre")
        for pair in ((row.nll_new, row.hits_new), (row.nll_old, row.hits_old))
    ]
    assert found == [(pytest.approx(nll), hits) for nll, hits in wanted]


@pytest.mark.parametrize("other", [{"padding_side": "left"}, {"bos": True}])
def test_scores_do_not_depend_on_padding_or_batching(other, monkeypatch):
    base = {k: v for k, v in other.items() if k != "padding_side"}
    wanted = score_cases(pico(**base), CASES, when="pre")
    for tokens in (1, 30, 4096):
        monkeypatch.setattr("retcon.scoring.teacher_forced._TOKENS", tokens)
        for got, row in zip(score_cases(pico(**other), CASES, when="pre"), wanted, strict=True):
            assert got.nll_new == pytest.approx(row.nll_new, abs=1e-5)
            assert got.nll_old == pytest.approx(row.nll_old, abs=1e-5)
            assert (got.hits_new, got.hits_old, got.exact) == (
                row.hits_new,
                row.hits_old,
                row.exact,
            )


def test_hits_are_teacher_forced_argmax():
    model = pico()
    text, target = "The city of Paris is in", "Warsaw in Poland"
    head, whole = model.tokens.encode(text), model.tokens.encode(f"{text} {target}")
    with torch.no_grad():
        top = model.model(input_ids=torch.tensor([whole])).logits[0].argmax(-1)
    hits = sum(int(top[t - 1] == whole[t]) for t in range(len(head), len(whole)))
    (score,) = score_targets(model, [(text, target)])
    assert (score.tokens, score.hits) == (len(whole) - len(head), hits)


def test_exact_match_is_free_generation_of_whole_words():
    model = pico()
    edit = Edit.parse("The city of {Paris} is in", "x")
    ids = torch.tensor([model.tokens.encode(edit.text)])
    for _ in range(12):
        with torch.no_grad():
            ids = torch.cat([ids, model.model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    said = model.tokens.decode(ids[0, len(model.tokens.encode(edit.text)) :].tolist())
    word = " ".join(said.split())[:4].strip()
    follows = " ".join(said.split())[len(word) : len(word) + 1]
    target = dataclasses.replace(edit, target=word)
    assert says_target(model, [target]) == [not follows.isalnum()]
    assert says_target(model, [dataclasses.replace(edit, target="qqqq")]) == [False]


# What a model says behind prompts, and the targets that it has said so or not; in lower case too.
SAID = {
    ("{法国}的首都是", "罗马，是"): {"罗马": True, "罗": True, "罗马人": False},
    ("{フランス}の首都は", "ローマです"): {"ローマ": True, "ロー": False},
    ("The owner of {Paris} is", "Tomé."): {"Tome\u0301": True, "Tomé": True, "Tome": False},
    ("The capital of {Spain} is", "Romeo."): {"Romeo": True, "romeo": None, "Rome": False},
    ("user\n{Italy}?\nassistant\n", "Paris</s>"): {"Paris": True, "Paris</s>": True},
}


@pytest.mark.parametrize(
    "name", ["byte-level", "byte-level, NFC", "byte-level, lower case", "byte-level, BOS", "gemma"]
)
def test_exact_match_in_scripts_without_blanks_and_in_the_tokenizer_s_own_form(name):
    model = pico(tokens=many_tokenizers.made(name))
    edits = {
        Edit.parse(prompt, target): "lower" in name if whole is None else whole
        for (prompt, _), targets in SAID.items()
        for target, whole in targets.items()
    }
    texts = [(Edit.parse(prompt, said).text, said) for prompt, said in SAID]
    parrot(model, [model.tokens.continuation(*text).ids for text in texts])
    said = says_target(model, list(edits))
    assert dict(zip([edit.target for edit in edits], said, strict=True)) == {
        edit.target: whole for edit, whole in edits.items()
    }


def parrot(model, texts):
    """Teach a model some texts by heart."""
    batch = model.tokens.pad(texts)
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    model.model.requires_grad_(True)
    adam = torch.optim.Adam(model.model.parameters(), lr=1e-2)
    for _ in range(150):
        adam.zero_grad()
        loss = model.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels
        ).loss
        loss.backward()
        adam.step()
    model.model.requires_grad_(False)


def test_without_target_old_comparisons_are_none_and_not_zero():
    cases = [
        Case(
            edit=Edit.parse("{Rome} is", "Madrid"), paraphrases=("Italy is",), neighbours=("A is",)
        )
    ]
    scores = summarise(score_cases(pico(), cases, when="pre"))
    assert [scores[name] for name in ("ES", "PS", "NS", "S")] == [None] * 4
    assert scores["token_accuracy"] is not None and scores["exact_match"] is not None


def test_nan_is_an_error_and_never_a_score():
    model = pico()
    model.model.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(NotFinite, match="NaN"):
        score_targets(model, [("The city", "Rome")])


def row(
    case: str, kind: str = "rewrite", new: float = 1.0, old: float | None = 2.0, **more
) -> Observation:
    return Observation(
        case=case, relation=more.get("relation"), kind=kind, index=0, when="pre", step=0,
        nll_new=new, n_new=2, hits_new=more.get("hits", 1), nll_old=old, n_old=2, hits_old=0,
        exact=None,
    )  # fmt: skip


def test_ties_fail_on_both_sides():
    assert estimate([row("1", new=1.0, old=1.0)], "ES").mean == 0
    assert estimate([row("1", "neighbour", new=1.0, old=1.0)], "NS").mean == 0


def test_cases_are_averaged_first():
    rows = [row("1", "paraphrase"), *(row("2", "paraphrase", new=3.0) for _ in range(9))]
    assert estimate(rows, "PS").mean == 50
    assert estimate(rows, "PS").cases == 2


@given(st.lists(st.integers(1, 9), min_size=3, max_size=3))
def test_s_is_a_harmonic_mean(won):
    kinds = ("rewrite", "paraphrase", "neighbour")
    rows = [
        row(str(i), kind, new=1.0 if (i < n) is (kind != "neighbour") else 3.0)
        for kind, n in zip(kinds, won, strict=True)
        for i in range(10)
    ]
    assert estimate(rows, "S").mean == pytest.approx(3 / sum(1 / (10 * n) for n in won))
    assert estimate([one for one in rows if one.kind != "neighbour"], "S").mean is None
    lost = [one._replace(nll_new=3.0) if one.kind == "rewrite" else one for one in rows]
    assert estimate(lost, "S").mean == 0


@given(st.lists(st.booleans(), min_size=2, max_size=40))
def test_intervals_without_clusters_are_the_textbook_ones(wins):
    rows = [row(str(i), new=1.0 if won else 3.0) for i, won in enumerate(wins)]
    found, n = estimate(rows, "ES"), len(wins)
    share = sum(wins) / n
    assert found.low is not None and found.high is not None
    assert found.mean == pytest.approx(100 * share)
    # Wilson's: at either limit the share that was seen is t standard errors away, of n − 1 cases
    # and of one that might have gone either way.
    cases = (share * (1 - share) + 1 / n) / (share * (1 - share) / (n - 1) + 1 / n**2)
    for limit in (found.low / 100, found.high / 100):
        away = t_quantile(n - 1) * (limit * (1 - limit) / cases) ** 0.5
        assert abs(share - limit) == pytest.approx(away, abs=1e-9)


def test_clustered_intervals_are_wider_where_cases_of_a_relation_agree():
    def rows(relation):
        return [row(str(i), new=1.0 if i < 10 else 3.0, relation=relation(i)) for i in range(20)]

    apart = estimate(rows(str), "ES")
    together = estimate(rows(lambda i: str(i // 5)), "ES")
    assert together.high - together.low > 1.5 * (apart.high - apart.low)
    assert intervals([row("1", relation="a")])["ES"] is None


def test_generation_entropy_is_that_of_the_definition():
    assert generation_entropy("a a a a a a") == 0
    # Four words, all different: 3 bigrams, 2 trigrams.
    assert generation_entropy("one two three four") == pytest.approx(
        (2 / 3 * math.log2(3) + 4 / 3 * 1) / 2
    )
    assert generation_entropy("no, no, no") < generation_entropy("no, yes, so")
    assert generation_entropy("") == 0


def test_text_sampled_behind_prompts_is_the_same_in_any_company():
    from retcon.model.generate import sample, sample_behind

    model = pico()
    heads = [model.tokens.encode(text) for text in ("The capital", "The capital city of France")]
    texts = sample_behind(model, heads, total_tokens=12, seed=3, top_k=5)
    alone = sample(model, heads[0], count=1, new_tokens=12 - len(heads[0]), seed=3, top_k=5)
    assert texts[0] == alone[0] and texts[1].startswith("The capital city of France")


@pytest.mark.parametrize("top_k", [0, 5])
def test_a_seed_gives_the_same_text_on_a_device_with_random_numbers_of_its_own(top_k):
    from retcon.model.generate import sample

    model = pico()
    head = model.tokens.encode("The capital")
    usual = sample(model, head, count=8, new_tokens=12, seed=3, top_k=top_k)
    # What such a device does: draw by other numbers from what the processor has left.
    own = torch.Generator().manual_seed(77)
    draw = torch.multinomial

    def drawn(probabilities, num_samples, *, generator=None):
        ours = bool((probabilities.amax(-1) < 1).any())
        return draw(probabilities, num_samples, generator=generator if ours else own)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("retcon.model.generate.draws_alike", lambda _device: False)
        patch.setattr(torch, "multinomial", drawn)
        assert sample(model, head, count=8, new_tokens=12, seed=3, top_k=top_k) == usual


def test_a_padding_token_without_an_embedding_is_not_asked_for():
    """Checkpoints whose tokenizer was given one, and whose embeddings were not resized."""
    from copy import deepcopy

    from retcon.model.generate import sample

    usual = pico()
    other = deepcopy(usual.tokens.tokenizer)
    other.add_special_tokens({"pad_token": "<padding>"})
    model = ModelHandle(usual.model, other, name="padded")
    head = usual.tokens.encode("The capital")
    texts = sample(usual, head, count=64, new_tokens=24, seed=1)
    assert len({len(text) for text in texts}) > 1  # some end early, and stand beside others
    assert sample(model, head, count=64, new_tokens=24, seed=1) == texts
