"""A Markdown table from the JSON files of `retcon eval`, or from one with a record a line (.jsonl).

    python benchmarks/scores_table.py docs/results/first-scores.jsonl [--relations 28]

--relations: so many there are among the facts, and the records' intervals are earlier ones (before
November 2026: symmetric, cut at 0 and 100, and empty where all facts are won). Their standard error
is read from them, and intervals are those of today.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retcon.scoring.intervals import Statistic, t_quantile

# Prompts of a fact that each score is over.
PROMPTS = {"PS": 2, "NS": 10}
SCORES = ("ES", "PS", "NS", "S", "token_accuracy", "exact_match")


def of_today(name: str, value: float, span: list[float], facts: int, relations: int) -> list[float]:
    """The interval of a share whose standard error an earlier interval tells."""
    half = max(value - span[0], span[1] - value)
    error = half / t_quantile(relations - 1)
    # One relation stands for all: it is the sum of squares that counts.
    influence = dict.fromkeys(map(str, range(relations)), 0.0)
    influence["0"] = error * ((relations - 1) / relations) ** 0.5
    flip = 100 / PROMPTS.get(name, 1) ** 0.5 / facts
    one = Statistic(value, influence, facts, {name: flip}).share()
    assert one.low is not None and one.high is not None
    return [one.low, one.high]


def cell(
    found: dict[str, float | None],
    spans: dict[str, list[float] | None],
    name: str,
    facts: int,
    relations: int,
) -> str:
    value, span = found[name], spans.get(name)
    if value is None:
        return "–"
    if span is not None and relations:
        span = of_today(name, value, span, facts, relations)
    return f"{value:.1f}" if span is None else f"{value:.1f} ({span[0]:.0f}–{span[1]:.0f})"


def records_of(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    return [json.loads(one) for one in (text.splitlines() if path.suffix == ".jsonl" else [text])]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("records", type=Path, nargs="+")
    parser.add_argument("--relations", type=int, default=0)
    chosen = parser.parse_args(arguments)
    print("| method | schedule | when | " + " | ".join(SCORES) + " | s/edit |")
    print("|---|---|---|" + "---|" * (len(SCORES) + 1))
    for record in (record for path in chosen.records for record in records_of(path)):
        times = ("pre",) if "method" not in record else ("immediate", "final")
        for when in times:
            if record[when] is None:
                continue
            layers = ",".join(map(str, record.get("layers", ())))
            settings = record.get("settings", {})
            name = record.get("method", "unedited") + (f", layer {layers}" if layers else "")
            name += f", ρ = {settings['ridge']:g}" if settings.get("ridge") else ""
            name += ", one key" if settings.get("consistent_keys") else ""
            corpus = Path(str(settings.get("corpus", "self"))).name.split(".")[0]
            name += "" if corpus == "self" else f", C from {corpus}"
            spans = record["intervals"][when]
            scores = " | ".join(
                cell(record[when], spans, score, record["n"], chosen.relations) for score in SCORES
            )
            seconds = record.get("seconds_per_edit")
            took = f"{seconds:.1f}" if seconds else "–"
            print(f"| {name} | {record.get('schedule', '')} | {when} | {scores} | {took} |")


if __name__ == "__main__":
    main()
