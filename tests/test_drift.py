"""Perplexity on held-out text: against a loop, on the same passages, never on the corpus."""

import gzip
import json
import math
from pathlib import Path

import pytest
import torch

from oracles import perplexity_by_loop
from pico import FAMILIES, pico
from retcon.data.held_out import BUILT_IN, check_apart, held_out
from retcon.errors import InvalidData, InvalidSetting, NotFinite
from retcon.scoring.metrics import change, estimate
from retcon.scoring.observations import PASSAGE, Observation
from retcon.scoring.perplexity import read_passages

PARAGRAPHS = [f"This is paragraph {i}, and it goes on for long enough. " * 3 for i in range(12)]


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt.gz"
    text = "\n".join(["= A heading, which is long enough to be a paragraph = " * 2, *PARAGRAPHS])
    path.write_bytes(gzip.compress(text.encode()))
    return path


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bos", [False, True])
def test_perplexity_equals_the_loop(family, bos):
    model = pico(family, bos=bos)
    texts = [*held_out(passages=3).texts, "The city of Paris", "x"]
    rows = read_passages(model, texts, length=40)
    wanted = perplexity_by_loop(model, texts, 40)
    assert estimate(rows, "perplexity").mean == pytest.approx(wanted, rel=1e-4)
    assert max(row.n_new for row in rows) == 39


def test_passages_are_seeded_nested_and_no_headings(lines):
    few, more = held_out(str(lines), passages=3), held_out(str(lines), passages=8)
    assert more.texts[:3] == few.texts and more.identity == few.identity
    assert held_out(str(lines), passages=3, seed=1).texts != few.texts
    everything = held_out(str(lines), passages=100).texts
    assert sorted(everything) == sorted(text.strip() for text in PARAGRAPHS)


def test_what_has_no_passages_is_an_error(tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("too short\n= heading =\n", encoding="utf-8")
    with pytest.raises(InvalidData, match="no paragraph"):
        held_out(str(short))
    with pytest.raises(InvalidData, match="nowhere"):
        held_out(str(tmp_path / "nowhere.txt"))
    with pytest.raises(InvalidSetting, match="at least 1"):
        held_out(passages=0)
    with pytest.raises(InvalidSetting, match="nothing to predict"):
        read_passages(pico(), ["x"])
    with pytest.raises(InvalidSetting, match="at least 2"):
        read_passages(pico(), PARAGRAPHS, length=1)


def test_text_of_the_second_moments_is_refused(lines, tmp_path):
    """Also where it is another edition, or stands inside of a longer document."""
    text = held_out(str(lines), passages=4)
    mixed = tmp_path / "mixed.jsonl"
    inside = {"text": f"First another thing. {text.texts[2].replace(',', ' ,')}", "source": "test"}
    mixed.write_text(json.dumps(inside) + "\n", encoding="utf-8")
    with pytest.raises(InvalidSetting, match=r"1 of 4 passages.*second moments"):
        check_apart(text, str(mixed))
    mixed.write_text(json.dumps({"text": "Something else."}) + "\n", encoding="utf-8")
    assert check_apart(text, str(mixed)) is True
    assert check_apart(text, "self") is True and check_apart(held_out(), str(mixed)) is True
    assert check_apart(text, "hub:owner/name") is None


def test_built_in_text_is_ordinary_paragraphs():
    text = held_out(BUILT_IN, passages=100)
    assert len(text.texts) == 24 and len(set(text.texts)) == 24
    assert all(len(passage.split()) > 40 for passage in text.texts)


def test_a_ratio_has_a_paired_interval():
    before, after = (
        [
            Observation(f"{i}", None, PASSAGE, i, when, 0, factor * (30 + i) / (10 + i), 10 + i)
            for i in range(8)
        ]
        for when, factor in (("pre", 1.0), ("final", 1.1))
    )
    same, found = (change(before, rows, "perplexity") for rows in (before, after))
    assert same == (1, 1, 1, 8)
    values = [estimate(rows, "perplexity").mean for rows in (before, after)]
    assert values[0] == pytest.approx(math.exp(sum(range(30, 38)) / sum(range(10, 18))))
    assert found.mean == pytest.approx(values[1] / values[0])
    assert found.low < found.mean < found.high < 1.4
    # Of passages that were read once nothing is known.
    assert change(before[:4], after, "perplexity").cases == 4


def test_a_destroyed_model_has_no_perplexity_and_a_bad_one_an_infinite_one():
    model = pico()
    model.model.lm_head.weight.data.mul_(1e6)
    assert estimate(read_passages(model, PARAGRAPHS), "perplexity").mean == math.inf
    model.model.model.norm.weight.data.fill_(torch.nan)
    with pytest.raises(NotFinite, match="ordinary text"):
        read_passages(model, PARAGRAPHS)


@pytest.mark.real
def test_real_text(data: Path):
    corpus = data / "corpus"
    assert len(held_out(str(corpus / "me_ppl_10000.jsonl.gz"), passages=50).texts) == 50
    test = held_out(str(corpus / "wikitext103_raw_test.txt.gz"), passages=8)
    valid = held_out(str(corpus / "wikitext2_valid.txt.gz"), passages=8)
    mixed = str(corpus / "wikipedia_en_mixed.jsonl.gz")
    assert check_apart(valid, mixed) is True
    with pytest.raises(InvalidSetting, match="8 of 8"):
        check_apart(test, mixed)
