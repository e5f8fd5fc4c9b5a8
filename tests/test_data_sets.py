"""The literature's data sets: which field is written, what is asked, and what is left out."""

import hashlib
import json
from pathlib import Path

import pytest

from retcon.data.cases import load_cases, parse_fact, starter_cases
from retcon.edits import Case, Edit, Probe
from retcon.errors import InvalidData, InvalidEdit, RetconWarning

EVALUATION = {
    "subject": "Bad Robot", "src": "Which industry is Bad Robot in?", "pred": "video games",
    "rephrase": "What does Bad Robot do?", "alt": "film", "answers": ["television", "radio"],
    "loc": "nq question: where does the brazos river start", "loc_ans": "Llano Estacado",
    "portability": {"Recalled Relation": "(film, ...)", "New Question": "Who founded the film "
                    "company Bad Robot?", "New Answer": "J.J. Abrams"},
}  # fmt: skip
TRAINING = {
    "case_id": 7, "subject": "Fukrey", "src": "Which place is Fukrey in?", "rephrase": "Where is "
    "Fukrey?", "alt": "Delhi", "loc": "nq question: who is bo?", "loc_ans": "Garrett Hedlund",
}  # fmt: skip
LISTS = {
    "prompt": "The name of the country of Leo is", "subject": "Leo", "target_new": "Syria",
    "portability": {"Subject_Aliasing": {"prompt": ["The country of L."],
                                         "ground_truth": ["Syria"]}},
    "locality": {"Relation_Specificity": {"prompt": ["His mother is", "His child is"],
                                          "ground_truth": ["Irmelin", ""]}},
}  # fmt: skip
NESTED = {
    "prompt": "The gender of Ann is", "subject": "Ann", "target_new": "female", "portability": {},
    "locality": {"A": [{"prompt": "Born in", "ground_truth": [["USSR", "SU"], ["Riga"]]}],
                 "B": [{"prompt": "Won", "ground_truth": [[], ["the Cross"]]},
                       {"prompt": "Child", "ground_truth": [[], []]}]},
}  # fmt: skip


def rewrite(subject: str, target: str, relation: str = "P27") -> dict[str, object]:
    return {
        "prompt": "{} is of", "relation_id": relation, "subject": subject,
        "target_new": {"str": target, "id": "Q1"}, "target_true": {"str": "Old", "id": "Q2"},
        "question": f"Of what is {subject}?",
    }  # fmt: skip


def chain(number: int, *facts: tuple[str, str]) -> dict[str, object]:
    return {
        "case_id": number, "requested_rewrite": [rewrite(*fact) for fact in facts],
        "questions": [f"q{number}a", f"q{number}b", f"q{number}c"], "answer": "English",
        "new_answer": "Arabic", "new_answer_alias": ["ar"],
    }  # fmt: skip


def write(folder: Path, *records: dict[str, object], name: str = "set.jsonl") -> Path:
    path = folder / name
    lines = [json.dumps(record) for record in records]
    text = "\n".join(lines) if ".jsonl" in name else f"[{','.join(lines)}]"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["zsre_mend_eval.json", "zsre.jsonl"])
def test_zsre_writes_its_first_answer(name, tmp_path):
    first, second = load_cases(write(tmp_path, EVALUATION, EVALUATION, name=name))
    assert (first.edit.id, second.edit.id) == ("0", "1")
    assert first.edit.prompt == "Which industry is {} in?"
    assert (first.edit.target, first.edit.target_old) == ("television", None)
    assert first.paraphrases == ("What does Bad Robot do?",) and first.neighbours == ()


def test_zsre_portability_is_about_the_counterfactual_and_comes_only_with_it(tmp_path):
    path = write(tmp_path, EVALUATION)
    (written,), (other,) = load_cases(path), load_cases(path, options={"target": "alt"})
    assert written.portability == () and other.edit.target == "film"
    assert other.portability == (
        Probe(prompt="Who founded the film company Bad Robot?", answer="J.J. Abrams"),
    )
    assert written.locality == other.locality


def test_zsre_without_answers_has_only_a_true_one(tmp_path):
    path = write(tmp_path, TRAINING)
    (case,) = load_cases(path)
    assert (case.edit.id, case.edit.target) == ("7", "Delhi")
    with pytest.raises(InvalidData, match=r"line 1.*no counterfactual"):
        load_cases(path, options={"target": "alt"})


def test_zsre_locality_ends_in_one_question_mark_and_keeps_its_prefix(tmp_path):
    for record, text in (
        (EVALUATION, "nq question: where does the brazos river start?"),
        (TRAINING, "nq question: who is bo?"),
    ):
        (case,) = load_cases(write(tmp_path, record))
        assert [probe.prompt for probe in case.locality] == [text]


def test_zsre_subject_must_be_in_the_question_once(tmp_path):
    twice = EVALUATION | {"src": "Is Bad Robot the Bad Robot?"}
    with pytest.raises(InvalidData, match=r"line 2.*exactly once"):
        load_cases(write(tmp_path, EVALUATION, twice))


def test_knowedit_in_both_shapes(tmp_path):
    first, second = load_cases(write(tmp_path, LISTS, NESTED))
    assert first.edit.prompt == "The name of the country of {} is" and first.edit.id == "0"
    assert first.portability == (Probe(prompt="The country of L.", answer="Syria"),)
    assert first.locality == (Probe(prompt="His mother is", answer="Irmelin"),)
    assert second.locality == (
        Probe(prompt="Born in", answer="USSR", aliases=("SU", "Riga")),
        Probe(prompt="Won", answer="the Cross"),
    )


def test_knowedit_with_an_answer_too_few(tmp_path):
    wrong = LISTS | {"locality": {"A": {"prompt": ["a", "b"], "ground_truth": ["a"]}}}
    with pytest.raises(InvalidData, match=r"line 2.*2 prompts.*1 answers"):
        load_cases(write(tmp_path, LISTS, wrong))


FLAT = {
    "case_id": 4, "prompt": "The capital of France is", "target_new": "Rome", "subject": "France",
    "ground_truth": "Paris", "rephrase_prompt": "France has its capital in", "relation_id": "P36",
    "locality_prompt": ["The capital of Italy is", "In Spain it is"],
    "locality_ground_truth": ["Rome", "Madrid"], "cond": "Paris >> Rome",
    "portability_prompt": "The Colosseum is in the capital of",
    "portability_ground_truth": "France",
}  # fmt: skip
QUESTIONS = {
    "subject": "France", "prompt": "What is the capital of France?", "target_new": "Rome",
    "ground_truth": ["Rome", " ", "Paris", "Lutetia"], "rephrase": ["Which is it?", "Name it."],
    "locality": {"Specificity": [{"prompt": "Its continent is", "ground_truth": ["Europe"]}]},
    "portability": {"Reasoning": [{"prompt": "Paris is in", "ground_truth": [["Italy", "IT"]]}],
                    "Other": {"prompt": "It is", "ground_truth": "big"}},
}  # fmt: skip


def test_flat_records_of_toolkits_are_read_whole(tmp_path):
    first, second = load_cases(write(tmp_path, FLAT, QUESTIONS))
    assert (first.edit.id, first.edit.prompt) == ("4", "The capital of {} is")
    assert (first.edit.target, first.edit.target_old) == ("Rome", "Paris")
    assert first.paraphrases == ("France has its capital in",) and first.relation == "P36"
    assert first.locality == (
        Probe(prompt="The capital of Italy is", answer="Rome"),
        Probe(prompt="In Spain it is", answer="Madrid"),
    )
    assert first.portability == (
        Probe(prompt="The Colosseum is in the capital of", answer="France"),
    )
    # The first old answer that is one, and is not the new one.
    assert (second.edit.id, second.edit.target_old) == ("1", "Paris")
    assert second.paraphrases == ("Which is it?", "Name it.")
    assert second.locality == (Probe(prompt="Its continent is", answer="Europe"),)
    assert second.portability == (
        Probe(prompt="Paris is in", answer="Italy", aliases=("IT",)),
        Probe(prompt="It is", answer="big"),
    )


@pytest.mark.parametrize("nothing", [None, "", [], "<|endoftext|>", "Rome"])
def test_an_old_answer_that_is_none_is_missing(tmp_path, nothing):
    record = QUESTIONS | {"ground_truth": nothing, "portability": None}
    (case,) = load_cases(write(tmp_path, record))
    assert case.edit.target_old is None and case.portability == ()


def test_the_requests_of_released_code_are_read(tmp_path):
    request = {"prompt": "{} plays", "subject": "LeBron", "target_new": {"str": "football"},
               "target_true": {"str": "basketball"}}  # fmt: skip
    (case,) = load_cases(write(tmp_path, request))
    assert case.edit.fact == "{LeBron} plays"
    assert (case.edit.target, case.edit.target_old) == ("football", "basketball")


def test_a_question_that_was_added_to_counterfact_is_asked(tmp_path):
    record = chain(3, ("A", "B")) | {
        "requested_rewrite": rewrite("A", "B"), "paraphrase_prompts": [],
        "neighborhood_prompts": [],
        "portability": {"Recalled Relation": "(…)", "New Question": "Who?", "New Answer": "C"},
    }  # fmt: skip
    for key in ("questions", "answer", "new_answer", "new_answer_alias"):
        del record[key]
    record["requested_rewrite"].pop("question")
    (case,) = load_cases(write(tmp_path, record))
    assert case.portability == (Probe(prompt="Who?", answer="C"),)


def test_mquake_facts_are_cases_and_questions_need_all_of_their_chain(tmp_path):
    path = write(
        tmp_path, chain(1, ("A", "B")), chain(5, ("A", "B"), ("B", "C")), name="mquake.json"
    )
    with pytest.warns(RetconWarning, match="MQuAKE has faulty records"):
        first, second = load_cases(path)
    assert [first.edit.id, second.edit.id] == ["1.0", "5.1"]
    assert (first.edit.target, first.edit.target_old, first.relation) == ("B", "Old", "P27")
    assert first.paraphrases == ("Of what is A?",)
    assert [probe.prompt for probe in first.portability] == ["q1a", "q1b", "q1c"]
    assert [probe.prompt for probe in second.portability] == ["q5a", "q5b", "q5c"]
    assert first.portability[0].needs == () and second.portability[0].needs == ("1.0",)
    assert second.portability[0].answer == "Arabic" and second.portability[0].aliases == ("ar",)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({key: EVALUATION[key] for key in EVALUATION if key != "loc_ans"}, "loc_ans"),
        (EVALUATION | {"answers": [""]}, "target is empty"),
        (LISTS | {"portability": {"A": ["text"]}}, "portability.A"),
        (chain(1), "requested_rewrite"),
        (LISTS | {"prompt": "The name is"}, "must be in the prompt"),
    ],
)
def test_what_is_wrong_is_named(record, reason, tmp_path):
    with pytest.raises(InvalidData, match="line 1") as caught:
        load_cases(write(tmp_path, record))
    assert reason in str(caught.value)


def test_plain_facts_may_have_probes():
    probe = '{"prompt": "It is", "answer": "x", "aliases": ["y"]}'
    case = parse_fact(f'{{"prompt": "{{A}} is", "target": "x", "portability": [{probe}]}}')
    assert case.portability == (Probe(prompt="It is", answer="x", aliases=("y",)),)
    with pytest.raises(InvalidEdit, match="answer is empty"):
        Probe(prompt="It is", answer=" ")
    with pytest.raises(InvalidEdit, match="alias is empty"):
        Probe(prompt="It is", answer="x", aliases=("y", ""))


def test_cases_without_probes_are_called_what_they_were():
    edit = Edit.parse("{A} is", "x")
    assert repr(Case(edit=edit, relation="r")) == (
        f"Case(edit={edit!r}, paraphrases=(), neighbours=(), openings=(), relation='r')"
    )
    assert repr(Case(edit=edit)) != repr(Case(edit=edit, locality=(Probe(prompt="p", answer="a"),)))
    # Finished cells of studies are found by this.
    assert hashlib.sha256(repr(starter_cases()).encode()).hexdigest().startswith("7613901691f4fa67")


@pytest.mark.real
@pytest.mark.filterwarnings("ignore:MQuAKE has faulty records")
@pytest.mark.parametrize(
    ("name", "cases", "portability", "locality"),
    [
        ("zsre/zsre_mend_eval.jsonl.gz", 700, 0, 700),
        ("zsre/zsre_mend_train_10000.jsonl.gz", 10_000, 0, 10_000),
        ("zsre/zsre_mend_train_fullfields_1000.jsonl.gz", 1000, 0, 1000),
        ("knowedit/knowedit_wiki_counterfact_test_839.jsonl.gz", 839, None, None),
        ("knowedit/knowedit_wiki_recent_train_570.jsonl.gz", 570, None, None),
        ("mquake/akew_mquake_cf_354.json.gz", 337, 3 * 354, 0),
        ("mquake/mquake_hard_429.json.gz", None, 3 * 429, 0),
    ],
)
def test_real_files(name, cases, portability, locality, data: Path):
    found = load_cases(data / name)
    assert cases in (None, len(found))
    assert portability in (None, sum(len(case.portability) for case in found))
    assert locality in (None, sum(len(case.locality) for case in found))
    ids = {case.edit.id for case in found}
    assert all(ids.issuperset(p.needs) for case in found for p in case.portability)


@pytest.mark.real
def test_real_zsre_portability_speaks_of_the_counterfactual(data: Path):
    path = data / "zsre" / "zsre_mend_eval.jsonl.gz"
    cases = load_cases(path, options={"target": "alt"})
    assert all(len(case.portability) == 1 for case in cases)
    answers = [case.edit.target for case in load_cases(path)]

    def mentioned(targets: list[str]) -> int:
        questions = [case.portability[0].prompt.lower() for case in cases]
        return sum(t.lower() in q for t, q in zip(targets, questions, strict=True))

    assert mentioned([case.edit.target for case in cases]) > 5 * mentioned(answers)
