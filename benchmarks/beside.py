"""Methods beside one another on one batch of CounterFact, fact by fact.

    python benchmarks/beside.py [--sample check] [--edits 64] [--methods emmet memit …] [--layer L]
                                [--set NAME=VALUE]

Each by its preset for SmolLM2-135M, or at one layer; scored right after the batch. The first method
as its scores, each other one as its differences from it, in points, with 95 % intervals clustered
by relation.
"""

from collections.abc import Sequence

from equal_scores import SAMPLES, SCORES, facts, sample_of
from machine import parser_of
from retcon.cli.choices import parse_settings
from retcon.cli.console import quiet_libraries
from retcon.method.entries import methods
from retcon.model.load import load
from retcon.report.numbers import spanned
from retcon.run.evaluate import evaluate
from retcon.scoring.metrics import METRICS, change, estimate
from targets import MICRO_BATCH


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--sample", choices=SAMPLES, default="check")
    parser.add_argument("--edits", type=int, default=64)
    parser.add_argument("--methods", nargs="+", choices=methods(), default=["emmet", "memit"])
    parser.add_argument("--layer", type=int, help="that of each method; none: its preset's")
    parser.add_argument("--set", action="append", help="a setting of the last method")
    chosen = parser.parse_args(arguments)
    quiet_libraries()
    model = load(chosen.model)
    cases = sample_of(chosen.sample, facts(chosen.model))[: chosen.edits]
    layers = None if chosen.layer is None else [chosen.layer]
    print(f"| | {' | '.join(SCORES)} |", f"|---|{'---:|' * len(SCORES)}", sep="\n")
    first = None
    for name in chosen.methods:
        own = parse_settings(chosen.set) if name == chosen.methods[-1] else {}
        run = evaluate(
            model, cases, method=name, layers=layers, settings={"micro_batch": MICRO_BATCH, **own},
            schedule=f"batch:{len(cases)}", metrics=["said"],
        )  # fmt: skip
        rows = run.at("immediate")
        if first is None:
            first = rows
            told = [METRICS.find(score).scale.told(estimate(rows, score)) for score in SCORES]
        else:
            told = [spanned(change(first, rows, score)) for score in SCORES]
        print(f"| {name} | {' | '.join(told)} |", flush=True)


if __name__ == "__main__":
    main()
