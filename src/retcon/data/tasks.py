"""Multiple-choice tasks of general ability, read from local files.

    lambada      the last word of a passage                            (arXiv:1606.06031)
    arc_easy     science questions, an answer of four                  (arXiv:1803.05457)
    boolq        yes or no, about a passage                            (arXiv:1905.10044)
    piqa         which of two ways reaches a goal                      (arXiv:1911.11641)
    winogrande   which of two names a sentence goes on about           (arXiv:1907.10641)
    openbookqa   science questions, an answer of four                  (arXiv:1809.02789)
    mmlu         questions of many subjects, by the letter of an answer (arXiv:2009.03300)

A file `NAME*.jsonl[.gz]` holds a record a line. Prompts are those of the literature's common
harness, without examples.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from retcon.data.parsing import parsed
from retcon.data.text import read_text
from retcon.errors import InvalidData, InvalidSetting, UnknownName

# greedy: the continuation is what greedy generation says. Else the most probable option is
# chosen: by its log-probability, or by that per character, where options differ in length.
Rule = Literal["greedy", "sum", "per character"]

_LETTERS = "ABCDEFGHIJ"


class Option(NamedTuple):
    """A text and how it goes on, after one space."""

    context: str
    continuation: str


class Item(NamedTuple):
    """A question: its options, and the index of the right one.

    Attributes:
        number: its record in the file.
    """

    number: int
    options: tuple[Option, ...]
    answer: int


class Task(NamedTuple):
    """Some items of a task, and by which rule an option is chosen."""

    name: str
    rule: Rule
    items: tuple[Item, ...]


class _Form(NamedTuple):
    """Form of a task: how a record becomes options, which is right, and how one is chosen."""

    rule: Rule
    read: Callable[[Mapping[str, Any]], tuple[list[Option], int]]


def _lambada(record: Mapping[str, Any]) -> tuple[list[Option], int]:
    context, _, word = record["text"].strip().rpartition(" ")
    return [Option(context, word)], 0


def _arc(record: Mapping[str, Any]) -> tuple[list[Option], int]:
    context = f"Question: {record['question']}\nAnswer:"
    return [Option(context, choice) for choice in record["choices"]], record["answer"]


def _boolq(record: Mapping[str, Any]) -> tuple[list[Option], int]:
    context = f"{record['passage']}\nQuestion: {record['question']}?\nAnswer:"
    return [Option(context, "no"), Option(context, "yes")], int(record["answer"])


def _piqa(record: Mapping[str, Any]) -> tuple[list[Option], int]:
    context = f"Question: {record['goal']}\nAnswer:"
    return [Option(context, record["sol1"]), Option(context, record["sol2"])], record["label"]


def _winogrande(record: Mapping[str, Any]) -> tuple[list[Option], int]:
    """Read a record; the text after the gap is scored behind either name (arXiv:1806.02847)."""
    before, _, after = record["question"].partition("_")
    return [Option(before + name, after.strip()) for name in record["choices"]], record["answer"]


def _openbookqa(record: Mapping[str, Any]) -> tuple[list[Option], int]:
    context = record["question"].rstrip()
    return [Option(context, choice) for choice in record["choices"]], record["answer"]


def _mmlu(record: Mapping[str, Any]) -> tuple[list[Option], int]:
    subject, choices = record["subject"].replace("_", " "), record["choices"]
    letters = _LETTERS[: len(choices)]
    listed = "".join(f"{a}. {choice}\n" for a, choice in zip(letters, choices, strict=True))
    head = f"The following are multiple choice questions (with answers) about {subject}."
    context = f"{head}\n\n{record['question'].strip()}\n{listed}Answer:"
    return [Option(context, letter) for letter in letters], record["answer"]


_FORMS: Mapping[str, _Form] = {
    "lambada": _Form("greedy", _lambada),
    "arc_easy": _Form("per character", _arc),
    "boolq": _Form("sum", _boolq),
    "piqa": _Form("per character", _piqa),
    "winogrande": _Form("sum", _winogrande),
    "openbookqa": _Form("per character", _openbookqa),
    "mmlu": _Form("sum", _mmlu),
}
TASKS: tuple[str, ...] = tuple(_FORMS)


def load_tasks(folder: Path, *, n: int, seed: int = 0) -> list[Task]:
    """Load the tasks of which the folder, or its subfolder `capability`, has a file.

    Raises:
        InvalidData: there is none, or a file is wrong; the message says where.
        InvalidSetting: n < 1.
    """
    names = [name for name in TASKS if _file(folder, name) is not None]
    if not names:
        raise InvalidData(
            f"{folder} has no file of a task. Looked there and in its folder `capability` for "
            f"NAME*.jsonl or NAME*.jsonl.gz, with a NAME of {', '.join(TASKS)}."
        )
    return [load_task(folder, name, n=n, seed=seed) for name in names]


def load_task(folder: Path, name: str, *, n: int, seed: int = 0) -> Task:
    """Some items of a task, n or all where it has fewer, in the order of sha256("{seed}:{record}").

    Raises:
        UnknownName: there is no such task.
        InvalidData: the folder has no file of it, or a record of it is wrong.
        InvalidSetting: n < 1.
    """
    if name not in _FORMS:
        raise UnknownName.among("task", name, TASKS)
    if n < 1:
        raise InvalidSetting(f"{n} items of a task cannot be scored. Take at least 1.")
    path = _file(folder, name)
    if path is None:
        raise InvalidData(f"{folder} has no file {name}*.jsonl or {name}*.jsonl.gz.")
    numbered = enumerate(read_text(path).split("\n"), start=1)
    lines = [(number, line) for number, line in numbered if line.strip()]

    def place(line: tuple[int, str]) -> str:
        return hashlib.sha256(f"{seed}:{line[0]}".encode()).hexdigest()

    chosen = sorted(lines, key=place)[:n]
    items = tuple(_item(name, number, line, f"{path}, line {number}") for number, line in chosen)
    return Task(name, _FORMS[name].rule, items)


def _file(folder: Path, name: str) -> Path | None:
    places = (folder, folder / "capability")
    found = [path for place in places for path in sorted(place.glob(f"{name}*.jsonl*"))]
    return found[0] if found else None


def _item(name: str, number: int, line: str, where: str) -> Item:
    record = parsed(line, where)
    try:
        options, answer = _FORMS[name].read(record)
        return Item(number, tuple(options), range(len(options))[answer])
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise InvalidData(f"{where}: not a record of {name} ({error!r}).") from error
