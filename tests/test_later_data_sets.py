"""MQuAKE's faults, MQuAKE-Remastered, RippleEdits and QAEdit, on invented records."""

import json
import warnings
from pathlib import Path

import pytest

from retcon.data.cases import load_cases
from retcon.edits import Probe
from retcon.errors import InvalidData, RetconWarning
from test_data_sets import chain, write

LANGUAGE, CITIZEN = "The official language of {} is", "{} is a citizen of"


def hops(*facts: tuple[str, str, str]) -> dict[str, object]:
    """The path of a record's questions, as MQuAKE tells it."""
    return {
        "triples": [],
        "triples_labeled": [],
        "edit_triples": [],
        "new_triples": [[f"Q-{s}", relation, f"Q-{o}"] for s, relation, o in facts],
        "new_triples_labeled": [[s, "in words", o] for s, _, o in facts],
    }


def pair(**second: object) -> list[dict[str, object]]:
    """Two records; an edit of the first contradicts the second hop of the other."""
    first = chain(1, ("A", "B")) | {"orig": hops(("A", "P27", "B"))}
    other = chain(2, ("C", "A")) | {"orig": hops(("C", "P27", "A"), ("A", "P27", "Old"))}
    return [first | second, other | second]


def flat(record: dict[str, object]) -> dict[str, object]:
    """A record as the hub has it."""
    record = json.loads(json.dumps(record))
    for fact in record["requested_rewrite"]:
        for name in ("target_new", "target_true"):
            answer = fact.pop(name)
            fact |= {f"{name}_str": answer["str"], f"{name}_id": answer["id"]}
    orig = record.pop("orig")
    names = ("new_triples", "new_triples_labeled", "edit_triples")
    return record | {name: orig[name] for name in names} | {"orig_triples": []}


def test_mquake_is_warned_of_once_with_a_count(tmp_path):
    path = write(tmp_path, *pair())
    with pytest.warns(RetconWarning, match="of the 2 records here .* 1 ask for") as told:
        first, second = load_cases(path)
    assert len(told) == 1 and "MQuAKE-Remastered" in str(told[0].message)
    # Its scores are the literature's: nothing is left out.
    assert len(first.portability) == len(second.portability) == 3


def test_mquake_without_hops_cannot_be_counted(tmp_path):
    path = write(tmp_path, chain(1, ("A", "B")))
    with pytest.warns(RetconWarning, match="none of the records here tells its hops"):
        load_cases(path)


@pytest.mark.parametrize("shape", [dict, flat])
def test_remastered_leaves_out_what_an_edit_contradicts(tmp_path, shape):
    split = {"split" if shape is flat else "6334_split": {"2": ["edited"]}}
    path = write(tmp_path, *(shape(record) | split for record in pair()))
    with pytest.warns(RetconWarning, match="questions of 1 of 2 records are left out") as told:
        first, second = load_cases(path)
    assert len(told) == 1
    assert (first.edit.target, first.edit.target_old) == ("B", "Old")
    assert [probe.prompt for probe in first.portability] == ["q1a", "q1b", "q1c"]
    assert second.edit.subject == "C" and second.portability == ()


def test_remastered_without_contradictions_says_nothing(tmp_path):
    path = write(tmp_path, pair(split={})[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (case,) = load_cases(path)
    assert case.edit.id == "1.0" and len(case.portability) == 3


def test_remastered_names_the_key_that_it_misses(tmp_path):
    record = pair(split={})[0]
    del record["new_answer"]
    with pytest.raises(InvalidData, match=r"line 1.*'new_answer' is missing"):
        load_cases(write(tmp_path, record))


def query(prompt: str, *answers: str, **about: object) -> dict[str, object]:
    """A query whose last answer has an alias."""
    named = [{"value": answer, "aliases": []} for answer in answers]
    if named:
        named[-1]["aliases"] = [f"{answers[-1]} II"]
    known = {"query_type": "regular", "subject_id": "Q1", "relation": None, "target_ids": []}
    return {"prompt": prompt, "answers": named, "phrase": None, **known, **about}


def ask(*queries: dict[str, object], before: tuple[dict[str, object], ...] = ()) -> dict:
    """A test."""
    return {
        "test_queries": [*queries],
        "test_condition": "OR",
        "condition_queries": [*before],
    }


def told(sentence: str, relation: str) -> dict[str, object]:
    """A fact as a sentence."""
    return {"prompt": sentence, "relation": relation, "subject_id": "Q1", "target_id": "Q2"}


def ripple(
    sentence: str, relation: str, before: str | None = None, **criteria: object
) -> dict[str, object]:
    """A record of RippleEdits; `before` is the sentence of the fact before the edit."""
    names = (
        "Relation_Specificity",
        "Logical_Generalization",
        "Subject_Aliasing",
        "Compositionality_I",
        "Compositionality_II",
        "Forgetfulness",
    )
    edit = told(sentence, relation)
    if before is not None:
        edit["original_fact"] = told(before, relation)
    kind = "recent" if before is None else "popular"
    return {"example_type": kind, "edit": edit, **dict.fromkeys(names, ()), **criteria}


def test_ripple_edits_are_cut_into_subject_and_target(tmp_path):
    record = ripple(
        "The name of the country of citizenship of Ann Lee is Syria.",
        "COUNTRY_OF_CITIZENSHIP",
        "The name of the country of citizenship of Ann Lee is United States of America.",
        Relation_Specificity=[ask(query("The gender of Ann Lee is", "female"))],
        Forgetfulness=[ask(query("Ann Lee won", "", "the Cross"), query("No answer is"))],
        Logical_Generalization=[ask(query("She votes in", "Syria", "Sham"))],
        Compositionality_I=[ask(query("Her president is", "Bo")), ask(query("He is", "Cy"))],
        Compositionality_II=[ask(query("Her husband is of", "Syria"))],
        Subject_Aliasing=[ask(query("The country of A. L. is", "Syria"))],
    )
    (case,) = load_cases(write(tmp_path, record))
    edit = case.edit
    assert edit.prompt == "The name of the country of citizenship of {} is" and edit.id == "0"
    assert (edit.subject, edit.target) == ("Ann Lee", "Syria")
    assert edit.target_old == "United States of America"
    assert case.relation == "COUNTRY_OF_CITIZENSHIP" and case.neighbours == ()
    assert case.locality == (
        Probe(prompt="The gender of Ann Lee is", answer="female", aliases=("female II",)),
        Probe(prompt="Ann Lee won", answer="the Cross", aliases=("the Cross II",)),
    )
    asked = [probe.prompt for probe in case.portability]
    assert asked == [
        "She votes in",
        "Her president is",
        "He is",
        "Her husband is of",
        "The country of A. L. is",
    ]
    assert case.portability[0].aliases == ("Sham", "Sham II")


@pytest.mark.parametrize(
    ("sentence", "relation", "cut"),
    [
        ("The names of the siblings of Al Po are Bo Po.", "SIBLING", ("Al Po", "Bo Po")),
        ("The gender of Al is male.", "SEX_OR_GENDER", ("Al", "male")),
        ("The place of birth of Al is St. Ives.", "PLACE_OF_BIRTH", ("Al", "St. Ives")),
        ("Act II follows Act I.", "FOLLOWS", ("Act II", "Act I")),
        ("The name of the league which Al plays in is LEN.", "LEAGUE", ("Al", "LEN")),
        ("The number of children Al has is 3.", "NUMBER_OF_CHILDREN", ("Al", "3")),
        ("The name of the award Al won is the Cross.", "AWARD_RECEIVED", ("Al", "the Cross")),
        ("The name of the father of Bo of Kent is Al Jr..", "FATHER", ("Bo of Kent", "Al Jr.")),
    ],
)
def test_sentences_of_many_relations(tmp_path, sentence, relation, cut):
    (case,) = load_cases(write(tmp_path, ripple(sentence, relation)))
    assert (case.edit.subject, case.edit.target) == cut
    # All but its full stop is what the edit says.
    assert f"{case.edit.text} {case.edit.target}" == sentence.removesuffix(".")
    assert case.edit.target_old is None


LIFE = "The name of the director of Life is Beautiful is "
ABOUT = query("The author of Life is Beautiful is", "x", relation="AUTHOR")


@pytest.mark.parametrize(
    ("record", "cut"),
    [
        (ripple(f"{LIFE}Bo.", "DIRECTOR", Forgetfulness=[ask(ABOUT)]), ("Life is Beautiful", "Bo")),
        (
            ripple(f"{LIFE}Bo.", "DIRECTOR", Forgetfulness=[ask(before=(ABOUT,))]),
            ("Life is Beautiful", "Bo"),
        ),
        (
            ripple(
                "The name of the author of Emma is Who is Bo.",
                "AUTHOR",
                "The name of the author of Emma is Jane.",
            ),
            ("Emma", "Who is Bo"),
        ),
    ],
)
def test_other_queries_or_the_fact_before_settle_where_to_cut(tmp_path, record, cut):
    (case,) = load_cases(write(tmp_path, record))
    assert (case.edit.subject, case.edit.target) == cut


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (
            ripple(f"{LIFE}Bo.", "DIRECTOR", f"{LIFE}Al."),
            "it can be in 2 ways. Write this fact in the plain form",
        ),
        (ripple("Al has the mother Bo.", "MOTHER"), "in none of the ways that are known"),
        (
            ripple("The gender of Al is x.", "SEX_OR_GENDER", Forgetfulness=[{"tests": []}]),
            "Forgetfulness.0.test_queries",
        ),
        (
            {
                "example_type": "recent",
                "edit": {"prompt": "The gender of Al is x.", "relation": "SEX_OR_GENDER"},
            },
            "edit.subject_id",
        ),
    ],
)
def test_what_is_wrong_in_ripple_edits_is_named(tmp_path, record, reason):
    with pytest.raises(InvalidData, match="line 1") as caught:
        load_cases(write(tmp_path, record))
    assert reason in str(caught.value)


QUESTION = {
    "id": 7,
    "source": "NQ",
    "prompt": "who founded Bad Robot?",
    "target": "J. J. Abrams",
    "subject": "Bad Robot",
    "rephrase": "By whom was Bad Robot founded?",
    "locality": [{"loc": "who is bo", "loc_ans": "Garrett Hedlund"}],
}


def test_qaedit(tmp_path):
    other = {key: value for key, value in QUESTION.items() if key not in ("id", "source")}
    again = QUESTION | {"source": "TQA"}  # ids are those of its source
    first, second, third = load_cases(write(tmp_path, QUESTION, again, other, name="qa.json"))
    assert [first.edit.id, second.edit.id, third.edit.id] == ["NQ-7", "TQA-7", "2"]
    assert first.edit.prompt == "who founded {}?"
    assert (first.edit.target, first.edit.target_old) == ("J. J. Abrams", None)
    assert first.paraphrases == ("By whom was Bad Robot founded?",)
    assert first.locality == (Probe(prompt="who is bo", answer="Garrett Hedlund"),)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"subject": "Good Robot"}, "must be in the prompt"),
        ({"locality": [{"loc": "who is bo"}]}, "locality.0.loc_ans"),
        ({"target": " "}, "target is empty"),
        ({"rephrase": 3}, "rephrase takes a list"),
    ],
)
def test_what_is_wrong_in_qaedit_is_named(tmp_path, changes, reason):
    with pytest.raises(InvalidData, match="line 2") as caught:
        load_cases(write(tmp_path, QUESTION, QUESTION | {"id": 8} | changes))
    assert reason in str(caught.value)


@pytest.mark.real
@pytest.mark.parametrize(("name", "told"), [("akew_mquake_cf_354", 354), ("mquake_hard_429", 429)])
def test_faults_of_real_files_are_counted(data: Path, name, told):
    with pytest.warns(RetconWarning, match=f"of the {told} records here that tell their hops"):
        load_cases(data / "mquake" / f"{name}.json.gz")
