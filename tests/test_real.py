"""The real model and real data: skipped, with the reason, where they are absent."""

import pytest

from oracles import scores_by_loop
from pico import says_target
from retcon.data.cases import load_cases, starter_cases, take
from retcon.edits import Edit
from retcon.method.presets import describe, resolve
from retcon.run.edit import edit as make
from retcon.scoring.metrics import summarise
from retcon.scoring.score import score_cases

pytestmark = pytest.mark.real


def test_structure_and_preset(smollm2):
    found = describe(smollm2.outline)
    assert (found["d_in"], found["d_out"], found["layers"]) == (1536, 576, "0 to 29")
    assert resolve(smollm2.outline).name == "emmet"


def test_scores_of_the_unedited_model_are_the_literature_s(smollm2, data):
    cases = take(load_cases(data / "counterfact" / "counterfact_uniform.json.gz"), 16, 0)
    got = summarise(score_cases(smollm2, cases, when="pre"))
    assert (got["ES"], got["PS"], got["NS"]) == (37.5, 37.5, 56.25)
    few = summarise(score_cases(smollm2, cases[:3], when="pre"))
    wanted = scores_by_loop(smollm2, cases[:3])
    assert {name: few[name] for name in wanted} == pytest.approx(wanted)


def test_the_model_knows_the_starter_set(smollm2):
    cases = take(starter_cases(), 24, 0)
    known = [
        (row.kind, row.hits_old / row.n_old) for row in score_cases(smollm2, cases, when="pre")
    ]

    def mean(kind):
        found = [share for k, share in known if k == kind]
        return sum(found) / len(found)

    assert mean("rewrite") >= 0.8 and mean("neighbour") >= 0.6


def test_one_edit_is_said_and_undone(smollm2, cache, data):
    """Small second moments, so that this stays a matter of seconds."""
    edit = Edit.parse("The mother tongue of {Danielle Darrieux} is", "English")
    corpus = str(data / "corpus" / "wikitext2_valid.txt.gz")
    original = smollm2.weights_hash()
    patch = make(smollm2, [edit], settings={"corpus": corpus, "corpus_tokens": 4000})
    with patch.applied(smollm2):
        assert says_target(smollm2, [edit]) == [True]
        assert smollm2.weights_hash() != original
    assert says_target(smollm2, [edit]) == [False]
    assert smollm2.weights_hash() == original
