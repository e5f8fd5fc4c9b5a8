"""Tasks of general ability: what is read, which option is chosen, and what the harness says."""

import json
import math
from pathlib import Path

import pytest

from lm_eval_oracle import harness_ability
from oracles import mean_nll
from pico import pico
from retcon.data.tasks import TASKS, Item, Option, Task, load_task, load_tasks
from retcon.errors import InvalidData, InvalidSetting, UnknownName
from retcon.scoring.ability import answer_items
from retcon.scoring.exact_match import continuations
from retcon.scoring.metrics import change, estimate
from retcon.scoring.observations import Observation

RECORDS = {
    "lambada": {"text": "The capital city of France is Paris"},
    "arc_easy": {"question": "What is it?", "choices": ["Rome", "Paris is in France"], "answer": 1},
    "boolq": {"question": "is it so", "title": "T", "answer": True, "passage": "It is."},
    "piqa": {"goal": "Know", "sol1": "because you think", "sol2": "you", "label": 0},
    "winogrande": {"question": "Rome and Paris: _ is a city.", "choices": ["Rome", "Paris"],
                   "answer": 1},
    "openbookqa": {"question": "The city of ", "choices": ["Rome", "Madrid", "Berlin is"],
                   "answer": 2},
    "mmlu": {"question": "Which?", "subject": "world_facts", "choices": ["a", "b", "c", "d"],
             "answer": 3, "split": "test"},
}  # fmt: skip
CITIES = ("Rome", "Paris", "Madrid", "London", "Berlin", "the capital city of Italy")


def write(folder: Path, name: str, *records: object) -> None:
    folder.mkdir(exist_ok=True)
    text = "\n".join(json.dumps(record) for record in records)
    (folder / f"{name}_test_{len(records)}.jsonl").write_text(text, encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, record in RECORDS.items():
        write(tmp_path / "capability", name, *[record] * 3)
    return tmp_path


def test_prompts(folder):
    tasks = {task.name: task for task in load_tasks(folder, n=1)}
    assert tuple(tasks) == TASKS == tuple(RECORDS)

    def options(name):
        item = tasks[name].items[0]
        return [tuple(option) for option in item.options], item.answer

    assert options("lambada") == ([("The capital city of France is", "Paris")], 0)
    assert options("arc_easy")[0][1] == ("Question: What is it?\nAnswer:", "Paris is in France")
    assert options("boolq") == (
        [("It is.\nQuestion: is it so?\nAnswer:", word) for word in ("no", "yes")], 1
    )  # fmt: skip
    assert options("winogrande") == (
        [(f"Rome and Paris: {name}", "is a city.") for name in ("Rome", "Paris")], 1
    )  # fmt: skip
    assert options("openbookqa")[0][0] == ("The city of", "Rome")
    (context, letter), *_ = options("mmlu")[0]
    assert letter == "A" and context.endswith("Which?\nA. a\nB. b\nC. c\nD. d\nAnswer:")
    assert "about world facts." in context


def test_samples_are_nested_and_seeded(tmp_path):
    records = [RECORDS["arc_easy"] | {"question": f"q{i}?"} for i in range(30)]
    write(tmp_path, "arc_easy", *records)
    few, more = load_task(tmp_path, "arc_easy", n=5), load_task(tmp_path, "arc_easy", n=12)
    assert more.items[:5] == few.items
    assert load_task(tmp_path, "arc_easy", n=5, seed=1).items != few.items
    assert len(load_task(tmp_path, "arc_easy", n=99).items) == 30
    assert [f"q{item.number - 1}?" in item.options[0].context for item in few.items] == [True] * 5


def test_what_is_wrong_is_named(tmp_path, folder):
    with pytest.raises(InvalidData, match="has no file of a task"):
        load_tasks(tmp_path / "empty", n=1)
    with pytest.raises(UnknownName, match="arc_easy"):
        load_task(folder, "arc_hard", n=1)
    with pytest.raises(InvalidSetting, match="at least 1"):
        load_tasks(folder, n=0)
    for record in ({"question": "?"}, RECORDS["arc_easy"] | {"answer": 4}, [1]):
        write(tmp_path / "bad", "arc_easy", RECORDS["arc_easy"], record)
        with pytest.raises(InvalidData, match="line 2: not a record of arc_easy"):
            load_task(tmp_path / "bad", "arc_easy", n=2)


def choosing(rule, count: int = 12) -> Task:
    items = [
        Item(i, tuple(Option(f"I think that {i} is in", city) for city in CITIES), i % len(CITIES))
        for i in range(count)
    ]
    return Task("cities", rule, tuple(items))


@pytest.mark.parametrize("rule", ["sum", "per character"])
def test_the_most_probable_option_is_chosen(rule):
    model = pico()
    task = choosing(rule)
    rows = answer_items(model, [task])
    for item, row in zip(task.items, rows, strict=True):
        values = []
        for context, city in item.options:
            tokens = len(model.tokens.continuation(context, city).target)
            value = -mean_nll(model, context, city) * tokens
            values.append(value / len(city) if rule == "per character" else value)
        assert row.exact is (values.index(max(values)) == item.answer)
    assert 0 < sum(row.exact for row in rows) < len(rows)


def test_a_last_word_is_right_where_greedy_generation_says_it():
    model = pico()
    (said,) = continuations(model, ["The city of Paris is in"], new_tokens=1)
    items = [
        Item(i, (Option("The city of Paris is in", word),), 0)
        for i, word in enumerate((said.strip(), "qqqq"))
    ]
    rows = answer_items(model, [Task("lambada", "greedy", tuple(items))])
    assert [row.exact for row in rows] == [True, False]
    assert {row.kind for row in rows} == {"item:lambada"}


@pytest.mark.parametrize(("right", "n"), [(0, 10), (5, 10), (10, 10), (37, 50)])
def test_intervals_are_wilson_s(right, n):
    """Where the share p would have to be for the seen one to be 1.96 standard errors away."""
    mean, low, high, cases = estimate(answers(right, n), "tasks")
    assert mean == pytest.approx(100 * right / n) and cases == n
    for bound in (low / 100, high / 100):
        if 1e-9 < bound < 1 - 1e-9:
            error = math.sqrt(bound * (1 - bound) / n)
            assert abs(right / n - bound) == pytest.approx(1.959964 * error, rel=1e-5)


def test_a_change_is_paired():
    before = answers(60, 100)
    same = change(before, before, "tasks")
    # Half an item more in each cell: two of 102 that changed, one each way.
    half = 100 * 1.959964 / 102
    assert same == (0, pytest.approx(-half), pytest.approx(half), 100)
    worse = change(before, answers(50, 100), "tasks")
    assert worse.mean == -10 and -17 < worse.low < -10 < worse.high < -3
    assert change(before[:50], before, "tasks").cases == 50


def answers(right, n):
    """Items of a task, the first of which are answered rightly."""
    return [Observation(f"t {i}", None, "item:t", i, "pre", 0, exact=i < right) for i in range(n)]


def has_harness() -> bool:
    try:
        import lm_eval  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        return False
    return True


@pytest.mark.skipif(not has_harness(), reason="lm-eval is not installed (pip install lm-eval)")
@pytest.mark.filterwarnings("ignore")
def test_the_harness_agrees(folder):
    model = pico()
    (said,) = continuations(model, ["The city of Paris is in"], new_tokens=1)
    words = (said.strip(), "qqqq", said.strip())
    greedy = [Item(i, (Option("The city of Paris is in", w),), 0) for i, w in enumerate(words)]
    tasks = [
        choosing("per character"),
        Task("letters", "sum", choosing("sum").items),
        Task("last", "greedy", tuple(greedy)),
        *(task for task in load_tasks(folder, n=3) if task.name == "winogrande"),
    ]
    assert harness_ability(model, tasks) == answer_items(model, tasks)


@pytest.mark.real
@pytest.mark.skipif(not has_harness(), reason="lm-eval is not installed (pip install lm-eval)")
@pytest.mark.filterwarnings("ignore")
def test_the_harness_agrees_on_real_tasks(smollm2, data):
    tasks = [load_task(data, name, n=6) for name in ("arc_easy", "winogrande", "lambada")]
    assert harness_ability(smollm2, tasks) == answer_items(smollm2, tasks)


@pytest.mark.real
def test_the_real_model_is_able(smollm2, data):
    """Far above the chance of one in four."""
    rows = answer_items(smollm2, [load_task(data, "arc_easy", n=24)])
    assert sum(row.exact for row in rows) >= 10
