"""The paper's claims, each as a test on the rows of a study."""

from collections.abc import Callable

from retcon.report.arms import Results
from retcon.report.findings.batch import batch_size_costs_neighbours
from retcon.report.findings.claims import Claim, Finding, Verdict
from retcon.report.findings.factors import what_batch_size_is
from retcon.report.findings.layer import best_layer
from retcon.report.findings.sequence import (
    best_sequential_size,
    large_batch_against_small_ones,
    number_against_size,
)
from retcon.report.findings.single import methods_agree
from retcon.study.reading import Study

FINDINGS: tuple[Callable[[Results], Finding], ...] = (
    best_layer,
    batch_size_costs_neighbours,
    large_batch_against_small_ones,
    best_sequential_size,
    methods_agree,
    number_against_size,
    what_batch_size_is,
)

__all__ = ["FINDINGS", "Claim", "Finding", "Verdict", "all_findings"]


def all_findings(study: Study | Results) -> list[Finding]:
    """Every claim, judged as far as the study has got."""
    results = study if isinstance(study, Results) else Results(study)
    return [finding(results) for finding in FINDINGS]
