"""Tell how a study was made, and how to make it again."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from retcon.escaping import fenced
from retcon.report.tables import Table
from retcon.study.study import FILE, Study, read_file


class Reproduction(NamedTuple):
    """The makers of the numbers, the commands that make them again, and the study's file."""

    facts: Table
    environments: Table
    commands: str
    spec: str

    def markdown(self) -> str:
        """Tables, commands and study file, for a file."""
        return "\n".join(
            [
                self.facts.markdown(),
                self.environments.markdown(),
                f"{fenced(self.commands, 'sh')}\n",
                f"{fenced(self.spec, 'yaml')}\n",
            ]
        )


def provenance(study: Study, findings: Sequence[str] | None = None) -> Reproduction:
    """Gather it from the study's record and from the environment of each finished cell.

    Args:
        study: live or packed.
        findings: those that the report was asked for in place of the study file's.
    """
    record = study.record
    seeds = sorted({point.seed for point in study.points})
    done = len({point.cell for point in study.finished()})
    known = {p.cell for p in study.points if p.cell is not None}
    rows = [
        ("cells done", f"{done:,} of {len(known):,}"),
        ("seeds", ", ".join(map(str, seeds))),
        ("threads", str(record.threads)),
        (
            "facts",
            f"{record.data.cases}, {record.data.facts:,} usable"
            f"{f', {record.data.skipped:,} bad ones skipped' if record.data.skipped else ''}"
            f"{', one a subject' if record.data.unique_subjects else ''}",
        ),
        ("sha256 of the facts", record.data.sha256),
        *(
            (
                f"model {m.name}",
                f"{m.dtype}, {m.blocks} blocks, d_in {m.d_in:,}, fingerprint {m.fingerprint}",
            )
            for m in record.models
        ),
        *(("warned of", said) for said in record.warnings),
    ]
    facts = Table("What it is of", "", ("", "value"), tuple(rows))
    spec = read_file(study.folder) if (study.folder / FILE).exists() else ""
    return Reproduction(facts, _environments(study), _commands(study, findings or ()), spec)


def _environments(study: Study) -> Table:
    """The different environments that cells were made in, and how many cells in each."""
    cells = sorted({point.cell for point in study.finished() if point.cell is not None})
    counts = Counter(json.dumps(study.environment(cell), sort_keys=True) for cell in cells)
    rows = [
        (f"{count:,}", ", ".join(f"{k} {v}" for k, v in json.loads(text).items()))
        for text, count in counts.most_common()
    ]
    return Table("Environments", "", ("cells", "made with"), tuple(rows))


def _commands(study: Study, findings: Sequence[str]) -> str:
    """The commands that make the study and this report again."""
    cells = [point.cell for point in study.finished() if point.cell is not None]
    environment = study.environment(cells[0]) if cells else {}
    version = str(environment.get("retcon", ""))
    pinned = f"retcon-llm[report]=={version}" if version else "retcon-llm[report]"
    return "\n".join(
        [
            f"pip install '{pinned}'",
            "# study.yaml is the file below; where the data are: --data FOLDER, or RETCON_DATA",
            "retcon study run study.yaml --out STUDY",
            " ".join(["retcon study report STUDY", *(f"--findings {name}" for name in findings)]),
        ]
    )
