"""The tables of docs/results/evaluation.md, from the study in results/evaluation.

    python benchmarks/every_score.py [results/evaluation] [--facts 64]

Conditions of a finished study under every score: at the end where facts are carried, else right
after they are written; paired differences between some of them; and the first facts of the sample
(where CounterFact is there) in plain text, as a question and in a chat. 95 % intervals, clustered
by relation.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from machine import cases
from retcon.report.conditions import Arm, names_of
from retcon.report.results import Results
from retcon.scoring.intervals import Estimate, differences
from retcon.scoring.metrics import METRICS, estimate
from retcon.scoring.observations import Observation
from retcon.study.study import Study, read_study

TABLES: dict[str, tuple[str, ...]] = {
    "What it says": ("said", "said_paraphrase", "stays", "said_question", "said_chat"),
    "Beside it": ("said_truth", "leaks", "top_neighbours", "KL_neighbours", "KL_subject"),
    "Comparisons": ("ES", "PS", "NS", "S", "token_accuracy"),
    "The rest": ("contradicts", "repeats", "negated", "KL_text", "perplexity"),
}
DIFFERENCES = (
    "said", "said_paraphrase", "said_question", "said_chat", "token_accuracy", "ES", "PS", "NS",
    "top_neighbours", "KL_neighbours",
)  # fmt: skip
# A score by each way of asking, and beside them what the model says of all.
WAYS = {
    "said": ("said", "said_question", "said_chat"),
    "said and stayed with": ("stays", "stays_question", "stays_chat"),
    "target preferred": ("ES", "preferred_question", "preferred_chat"),
}
_EMPTY = {"as a question": "free question", "in a chat": "free chat"}


def last(results: Results, arm: Arm) -> str:
    """The last time at which an arm was scored."""
    times = ("final", "immediate", "pre")
    return next(when for when in times if results.has(arm, when, "ES"))


def told(found: Estimate, name: str) -> str:
    return "–" if found.mean is None else METRICS.find(name).scale.told(found)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table as Markdown."""
    print("\n| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


def levels(results: Results) -> None:
    """Every condition under every score, and the untouched model under those that it has."""
    names = names_of(results.arms)
    first = next((arm for arm in results.arms if results.has(arm, "pre", "ES")), None)
    for title, scores in TABLES.items():
        rows = [
            (names[arm.condition], f"{arm.condition.n:,}", last(results, arm))
            for arm in results.arms
        ]
        filled = [
            (*row, *(told(results.estimate(arm, row[2], score), score) for score in scores))
            for row, arm in zip(rows, results.arms, strict=True)
        ]
        if first is not None:
            before = (told(results.estimate(first, "pre", score), score) for score in scores)
            filled.insert(0, ("untouched", "0", "pre", *before))
        table([title, "N", "when", *scores], filled)


def pairs(results: Results) -> None:
    """Every condition minus each one before it, over the facts that both have."""
    names = names_of(results.arms)
    for place, other in enumerate(results.arms[:-1]):
        rows = [
            (names[arm.condition], *(difference(results, arm, other, x) for x in DIFFERENCES))
            for arm in results.arms[place + 1 :]
        ]
        table([f"minus {names[other.condition]}", *DIFFERENCES], rows)


def difference(results: Results, one: Arm, other: Arm, name: str) -> str:
    """One condition minus another, each at its last time."""
    mine, theirs = (results.pooled(arm, last(results, arm), name) for arm in (one, other))
    if mine is None or theirs is None or not set(mine.values) & set(theirs.values):
        return "–"
    scale = METRICS.find(name).scale
    return scale.change_told(scale.change(differences(theirs, mine)))


def ways(study: Study, results: Results, count: int) -> None:
    """The first facts of the sample, written singly, in three ways; and how often nothing came."""
    first = {case.edit.id for case in cases(count, seed=0)}
    for arm in results.arms:
        if arm.condition.carried or arm.condition.batch_size != 1:
            continue
        own = study.rows(arm.runs[0].cell).filter(pl.col("case").is_in(first))
        for when in ("pre", "immediate"):
            at = own.filter(pl.col("when") == when)
            rows = [Observation(*row) for row in at.select(Observation._fields).iter_rows()]
            number = at["case"].n_unique()
            table(
                [f"{number} facts, {when}", "in plain text", "as a question", "in a chat"],
                [
                    (title, *(told(estimate(rows, name), name) for name in names))
                    for title, names in WAYS.items()
                ],
            )
            for title, kind in _EMPTY.items():
                texts = at.filter(pl.col("kind") == kind)["text"]
                if len(texts):
                    empty = (texts.str.strip_chars() == "").sum()
                    print(f"{title}: nothing is said in {empty} of {len(texts)}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(__file__).parents[1] / "results" / "evaluation"
    parser.add_argument("folder", type=Path, nargs="?", default=default)
    parser.add_argument("--facts", type=int, default=64)
    chosen = parser.parse_args(arguments)
    study = read_study(chosen.folder)
    results = Results(study)
    levels(results)
    pairs(results)
    ways(study, results, chosen.facts)


if __name__ == "__main__":
    main()
