"""What SmolLM2 knows of the starter set, unedited: token accuracy of the true answers.

    python benchmarks/starter_knowledge.py

The set was chosen for being known, so these are no measure of the model.
"""

from collections.abc import Sequence

from machine import parser_of
from retcon.cli.console import quiet_libraries
from retcon.data.cases import starter_cases
from retcon.model.load import load
from retcon.scoring.observations import Observation
from retcon.scoring.score import score_cases


def accuracy(rows: list[Observation], kind: str) -> float:
    """Mean over facts of the mean over prompts, in per cent."""
    shares: dict[str, list[float]] = {}
    for row in rows:
        if row.kind == kind and row.n_old and row.hits_old is not None:
            shares.setdefault(row.case, []).append(row.hits_old / row.n_old)
    return 100 * sum(sum(found) / len(found) for found in shares.values()) / len(shares)


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = parser_of(__doc__).parse_args(arguments)
    quiet_libraries()
    cases = starter_cases()
    rows = score_cases(load(chosen.model), cases, when="pre")
    print(f"{len(cases)} facts in {len({case.relation for case in cases})} relations")
    for kind in ("rewrite", "paraphrase", "neighbour"):
        print(f"{kind:12} {accuracy(rows, kind):5.1f} % of the true answer's tokens")


if __name__ == "__main__":
    main()
