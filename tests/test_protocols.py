"""Token accuracy on zsRE and its traps; what follows from edits and what must not change."""

from math import isclose

import pytest
import torch

from oracles import accuracy_by_retokenising, says_one_of
from pico import FAMILIES, pico
from retcon.edits import Case, Edit, Probe
from retcon.scoring.exact_match import continuations
from retcon.scoring.metrics import metrics, summarise
from retcon.scoring.score import score_cases, score_targets
from retcon.scoring.teacher_forced import Prediction

QUESTION = "What is the mother tongue of Danielle Darrieux?"
OTHER = "nq question: where is the Eiffel Tower?"
FOLLOWS = "What is the capital city of France?"


def words(model, text: str, count: int = 1) -> str:
    """What a model says behind a text: answers of which it gets some tokens right."""
    (said,) = continuations(model, [text], new_tokens=count)
    return " ".join(said.split()) or "x"


def question(model, **changes) -> Case:
    """A case in zsRE's form, with answers partly said and partly not."""
    edit = Edit.parse("What is the mother tongue of {Danielle Darrieux}?", "Italian", id="0")
    fields = {
        "edit": Edit(**{**vars(edit), "target": f"{words(model, QUESTION)} Polish"}),
        "paraphrases": ("Which tongue is that of Danielle Darrieux?",),
        "portability": (Probe(prompt=FOLLOWS, answer=f"{words(model, FOLLOWS)} Rome"),),
        "locality": (Probe(prompt=OTHER, answer=f"{words(model, OTHER, 2)} in Paris"),),
    }
    return Case(**{**fields, **changes})


@pytest.mark.parametrize("family", FAMILIES)
def test_token_accuracy_is_the_literature_s(family):
    model = pico(family)
    case = question(model)
    scores = summarise(score_cases(model, [case], when="pre"))
    (follows,), (kept,) = case.portability, case.locality
    wanted = {
        "token_accuracy": (QUESTION, case.edit.target),
        "paraphrase_token_accuracy": (case.paraphrases[0], case.edit.target),
        "portability_token_accuracy": (follows.prompt, follows.answer),
        "locality_token_accuracy": (kept.prompt, kept.answer),
    }
    for name, (prompt, answer) in wanted.items():
        assert scores[name] == pytest.approx(100 * accuracy_by_retokenising(model, prompt, answer))


def test_the_oracle_sees_right_and_wrong_tokens():
    found = [
        accuracy_by_retokenising(model, QUESTION, question(model).edit.target)
        for model in map(pico, FAMILIES)
    ]
    assert any(0 < share < 1 for share in found)


def test_a_bos_token_shifts_nothing():
    """Where a tokenizer adds BOS, the first id of each decoded token is BOS, and none is right."""
    hits = 0
    for model in (pico(family, bos=True) for family in FAMILIES):
        tok, said = model.tokens.tokenizer, words(model, QUESTION, 2)
        ids, start = model.tokens.continuation(QUESTION, said)
        assert {tok(tok.decode([piece]))["input_ids"][0] for piece in ids[start:]} == {0}
        with torch.no_grad():
            top = model.model(input_ids=torch.tensor([ids])).logits[0].argmax(-1).tolist()
        right = sum(top[t - 1] == ids[t] for t in range(start, len(ids)))
        (score,) = score_targets(model, [(QUESTION, said)])
        assert (score.tokens, score.hits) == (len(ids) - start, right)
        hits += right
    assert hits > 0


def test_characters_of_several_tokens_can_be_right(monkeypatch):
    """Half a character decodes to none, which the released code then looks for in vain."""
    model = pico()
    tokens = model.tokens.continuation(QUESTION, "Évry").target
    tok = model.tokens.tokenizer
    assert any(tok(tok.decode([piece]))["input_ids"][0] != piece for piece in tokens)

    def all_right(_overlay, asks, _progress=None):
        return [Prediction((0.0,) * (len(a.ids) - a.start), a.ids[a.start :]) for a in asks]

    monkeypatch.setattr("retcon.scoring.score.predict", all_right)
    (score,) = score_targets(model, [(QUESTION, "Évry")])
    assert score.hits == score.tokens == len(tokens)


def test_one_space_stands_before_an_answer_and_between_its_words():
    model = pico()
    assert score_targets(model, [(QUESTION, " Rome")]) == score_targets(model, [(QUESTION, "Rome")])
    ids, start = model.tokens.continuation(QUESTION, "Rome Paris London")
    assert model.tokens.decode(ids[start:]) == " Rome Paris London"


def test_locality_is_against_the_true_answer_not_against_what_was_said_before():
    model = pico()
    kept = Probe(prompt=OTHER, answer="qqqq")
    scores = summarise(score_cases(model, [question(model, locality=(kept,))], when="pre"))
    assert scores["locality_token_accuracy"] == 0


def test_protocols_share_no_column():
    """Without an old answer nothing is compared, and no probe enters another's score."""
    model = pico()
    case = question(model)
    scores = summarise(score_cases(model, [case], when="pre"))
    for name in ("ES", "PS", "NS", "S", "neighbour_token_accuracy"):
        assert scores[name] is None
    bare = summarise(score_cases(model, [question(model, portability=(), locality=())], when="pre"))
    probes = {"portability_token_accuracy", "portability_exact_match", "locality_token_accuracy"}
    # Other texts beside them move the rest by rounding only.
    same = {
        name
        for name, one in scores.items()
        if one == bare[name]
        or (None not in (one, bare[name]) and isclose(one, bare[name], rel_tol=1e-5))
    }
    assert scores.keys() - same == probes
    assert all(bare[name] is None for name in probes)
    read = [(metric.kind, metric.value) for metric in metrics() if metric.of_prompts]
    assert len(set(read)) == len(read)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_follows_may_be_said_in_any_of_its_ways(family):
    model = pico(family)
    said = words(model, FOLLOWS, 6)
    if not said.isascii():  # half a character reads otherwise when more follows
        said = "x"
    for answer, *aliases in (
        ["qqqq"],
        ["qqqq", said],
        ["Rome", "qqqq", said[: len(said) // 2 + 1].strip()],
        [said],
        ["q", f"{said} and more words than were said"],
    ):
        probe = Probe(prompt=FOLLOWS, answer=answer, aliases=tuple(aliases))
        rows = score_cases(model, [question(model, portability=(probe,))], when="pre")
        (row,) = [row for row in rows if row.kind == "portability"]
        assert row.exact is says_one_of(model, FOLLOWS, [answer, *aliases], 24)
        assert (row.nll_old, row.n_old, row.hits_old) == (None, None, None)


def chain(model) -> list[Case]:
    probe = Probe(prompt=FOLLOWS, answer="Rome", needs=("0",))
    second = Edit.parse("{Rome} is", "Paris", id="1")
    return [question(model, portability=()), Case(edit=second, portability=(probe,))]


def test_what_needs_several_edits_is_asked_only_where_all_are_judged():
    model = pico()
    first, second = chain(model)
    kinds = [row.kind for row in score_cases(model, [first, second], when="final")]
    assert kinds.count("portability") == 1
    assert [row.kind for row in score_cases(model, [second], when="immediate")] == ["rewrite"]


def test_remembered_probes_are_the_same_and_no_others(entries, monkeypatch):
    model = pico()
    cases = [question(model), *chain(model)[1:]]
    said = words(model, FOLLOWS)

    def asked(*aliases):
        probe = Probe(prompt=FOLLOWS, answer="qqqq", aliases=aliases)
        rows = score_cases(model, [question(model, portability=(probe,))], when="pre")
        return [row.exact for row in rows if row.kind == "portability"]

    fresh = score_cases(model, cases, when="pre")
    monkeypatch.setattr("retcon.scoring.score.predict", None)
    assert score_cases(model, cases, when="pre") == fresh
    monkeypatch.undo()
    monkeypatch.setenv("RETCON_CACHE", str(entries))
    assert asked() == [False]
    assert asked(said) == [says_one_of(model, FOLLOWS, [said], 12)]
