"""What a reader wants first: is the bigger batch better here, and how many claims held."""

from collections.abc import Sequence
from typing import NamedTuple

from retcon.report.findings.claims import Finding, Verdict, points

TIMES = {
    "immediate": "Right after each fact’s own batch",
    "final": "After the last batch",
}
_ORDER: tuple[Verdict, ...] = ("reproduced", "not reproduced", "inconclusive")


class Headline(NamedTuple):
    """answers: to the paper's title, one for each time. tallies: the claims by verdict."""

    answers: tuple[str, ...]
    tallies: tuple[str, ...]


def headline(findings: Sequence[Finding]) -> Headline:
    """Answers and tallies; no answer where one large batch was not set against small ones."""
    asked = next((f for f in findings if f.key == "b2"), None)
    answers = tuple(_answer(asked, when) for when in asked.times) if asked else ()
    tallies = tuple(t for when in TIMES if (t := _tally(findings, when)))
    open_ = [f.key for f in findings if not f.times]
    more = (f"Claims without data yet: {', '.join(open_)}.",) if open_ else ()
    return Headline(answers, (*tallies, *more))


def _answer(finding: Finding, when: str) -> str:
    primary = [c for c in finding.claims if c.primary and c.when == when]
    effects = "; ".join(points(claim.effect) for claim in primary)
    return f"{TIMES[when]}: {_said(finding, when)} (S {effects})."


def _said(finding: Finding, when: str) -> str:
    """The verdict on one large batch, as an answer: the claim is that it is worse."""
    verdict = finding.verdict_at(when)
    if verdict == "reproduced":
        return "no, one large batch is worse"
    if verdict == "inconclusive":
        return "it cannot be told yet"
    primary = [c for c in finding.claims if c.primary and c.when == when]
    if all(c.effect.low is not None and c.effect.low > 0 for c in primary):
        return "yes, one large batch is better"
    return "no worse and hardly better" if len(primary) == 1 else "not for every method or model"


def _tally(findings: Sequence[Finding], when: str) -> str:
    judged = [f for f in findings if when in f.times]
    if not judged:
        return ""
    parts: list[str] = []
    for verdict in _ORDER:
        keys = [f.key for f in judged if f.verdict_at(when) == verdict]
        if keys:
            parts.append(f"{len(keys)} {verdict} ({', '.join(keys)})")
    return f"Claims by {when} scores: {', '.join(parts)}."
