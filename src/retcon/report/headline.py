"""The report in a few sentences: which condition is best, and which differ from it."""

from collections.abc import Iterator, Sequence

from retcon.report.findings import Finding
from retcon.report.numbers import share, spanned
from retcon.report.ranking import Comparison
from retcon.report.results import Results
from retcon.report.verdicts import FIRST_WRITTEN, Verdict

TIMES = {
    "immediate": "Right after each fact’s own batch",
    "final": "After the last batch",
}
_VERDICTS: tuple[Verdict, ...] = ("reproduced", "not reproduced", "inconclusive")
# Comparisons that are told of, and conditions that are named in a sentence.
MOST_LINES, _MOST_NAMES = 4, 4


def headline(comparisons: Sequence[Comparison]) -> list[str]:
    """The first comparisons in sentences; the others are in the table of all."""
    return [in_words(one, comparisons) for one in comparisons[:MOST_LINES]]


def in_brief(comparisons: Sequence[Comparison]) -> list[str]:
    """The same in a sentence each: the best, and how many others may be as good, or are worse."""
    return [f"{_best(one, comparisons)}{_counted(one)}." for one in comparisons[:MOST_LINES]]


def in_words(comparison: Comparison, among: Sequence[Comparison]) -> str:
    """A comparison in sentences: the best, those that may be as good, those that are worse."""
    best = f"{_best(comparison, among)}."
    if len(comparison.ranking.scores) == 1:
        return best
    return " ".join([best, *_others(comparison)])


def _best(comparison: Comparison, among: Sequence[Comparison]) -> str:
    ranking, names = comparison.ranking, comparison.names
    several = len({one.model for one in among}) > 1
    where = f", {comparison.model}" if several else ""
    score = f"{ranking.metric.replace('_', ' ')} {share(ranking.scores[ranking.best])}"
    place = f"{TIMES[ranking.when]}, {comparison.n:,} facts{where}: {names[ranking.best]}"
    return f"{place} has {score}" if len(ranking.scores) == 1 else f"{place} is best, {score}"


def _counted(comparison: Comparison) -> str:
    counts = {
        "statistically indistinguishable from it": len(comparison.ranking.tied),
        "worse": len(comparison.ranking.worse),
    }
    known = ((n, "is" if n == 1 else "are", words) for words, n in counts.items() if n)
    return "".join(f"; {n:,} {be} {words}" for n, be, words in known)


def _others(comparison: Comparison) -> Iterator[str]:
    ranking, names = comparison.ranking, comparison.names
    effects = {key: f"{names[key]} ({spanned(d)})" for key, d in ranking.differences.items()}
    if ranking.tied:
        tied = _listed([effects[key] for key in ranking.tied])
        yield f"Statistically indistinguishable from it: {tied}."
    if ranking.worse:
        yield f"Worse, in points: {_listed([effects[key] for key in ranking.worse])}."
    apart = len(ranking.scores) - 1 - len(ranking.differences)
    if apart:
        yield f"{apart} more share no scored fact with it, and cannot be compared."
    if comparison.usual:
        yield f"Unless named: {comparison.usual}."
    if comparison.partial:
        yield f"Here {FIRST_WRITTEN}: they stand for no others."


def _listed(texts: Sequence[str]) -> str:
    """Join some texts; of many the first few, the last, and how many lie between."""
    if len(texts) <= _MOST_NAMES:
        return "; ".join(texts)
    shown = texts[: _MOST_NAMES - 1]
    return f"{'; '.join(shown)}; {len(texts) - len(shown) - 1} more, down to {texts[-1]}"


def reading(results: Results) -> str:
    """Say how scores are to be read: which of them are of what the model says."""
    known = {
        metric.name: metric
        for when in TIMES
        for metric in results.measured(results.arms, when, "headline", "table")
    }
    compared = (
        "ES, PS and NS compare two answers, neither of which the model need say"
        if "ES" in known
        else "Token accuracies read each token of an answer behind the true ones"
    )
    free = [metric for metric in known.values() if metric.freely]
    if any(not metric.of_prompts for metric in free):
        return f"First stands what the model writes by itself. {compared}."
    but = f" but for {' and '.join(metric.title for metric in free)}" if free else ""
    return f"{compared}. Nothing here was said freely{but}."


def tallies(findings: Sequence[Finding]) -> list[str]:
    """Count claims by verdict: a sentence for each time, and one for claims without data."""
    lines = [line for when in TIMES if (line := _tally(findings, when))]
    pending = [finding.key for finding in findings if not finding.times]
    return [*lines, f"Claims without data yet: {', '.join(pending)}."] if pending else lines


def _tally(findings: Sequence[Finding], when: str) -> str:
    judged = [finding for finding in findings if when in finding.times]
    counts = [
        f"{len(keys)} {verdict} ({', '.join(keys)})"
        for verdict in _VERDICTS
        if (keys := [one.key for one in judged if one.verdict_at(when) == verdict])
    ]
    return f"Claims by {when} scores: {', '.join(counts)}." if counts else ""
