"""A Markdown table from the JSON files of `retcon eval`.

python benchmarks/scores_table.py docs/results/first-scores/*.json
"""

import json
import sys
from pathlib import Path

SCORES = ("ES", "PS", "NS", "S", "token_accuracy", "exact_match")


def cell(found: dict[str, float | None], spans: dict[str, list[float] | None], name: str) -> str:
    value, span = found[name], spans.get(name)
    if value is None:
        return "–"
    return f"{value:.1f}" if span is None else f"{value:.1f} ({span[0]:.0f}–{span[1]:.0f})"


def main() -> None:
    print("| method | schedule | when | " + " | ".join(SCORES) + " | s/edit |")
    print("|---|---|---|" + "---|" * (len(SCORES) + 1))
    for path in map(Path, sys.argv[1:]):
        record = json.loads(path.read_text(encoding="utf-8"))
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
            scores = " | ".join(cell(record[when], spans, score) for score in SCORES)
            seconds = record.get("seconds_per_edit")
            took = f"{seconds:.1f}" if seconds else "–"
            print(f"| {name} | {record.get('schedule', '')} | {when} | {scores} | {took} |")


if __name__ == "__main__":
    main()
