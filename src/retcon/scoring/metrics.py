"""Scores from rows: every formula in one place, with its source. Needs no model and no torch.

All are means over a case's prompts first, then over cases, times 100, as in ROME's evaluation
(arXiv:2202.05262 §3.4). Intervals are 95 %, from standard errors clustered by relation: cases of
one relation share their template and are not independent (`scoring.intervals`). None is "not
scored", and is left out and counted, never taken for 0.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import exp, sqrt
from typing import NamedTuple

from retcon.scoring.intervals import (
    CaseMeans,
    Estimate,
    Statistic,
    harmonic_mean,
    mean,
)
from retcon.scoring.rows import Kind, Row

Value = Callable[[Row], float | None]


def _won(row: Row) -> float | None:
    """ES, PS: 1 where the target is more probable per token than target_old. Ties fail."""
    return None if row.nll_old is None else float(row.nll_old > row.nll_new)


def _kept(row: Row) -> float | None:
    """NS: 1 where, about a neighbour, target_old (its truth) is still more probable. Ties fail."""
    return None if row.nll_old is None else float(row.nll_old < row.nll_new)


def _margin(row: Row) -> float | None:
    """Magnitude of ES, PS: difference of probabilities, each exp(−mean NLL per token)."""
    return None if row.nll_old is None else exp(-row.nll_new) - exp(-row.nll_old)


def _kept_margin(row: Row) -> float | None:
    """Magnitude of NS: the same, the other way round."""
    return None if row.nll_old is None else exp(-row.nll_old) - exp(-row.nll_new)


def _accuracy(row: Row) -> float | None:
    """Token accuracy: share of the target's tokens that are argmax under teacher forcing."""
    return row.hits_new / row.n_new


def _old_accuracy(row: Row) -> float | None:
    """The same of target_old: about neighbours, what is still known."""
    return None if row.hits_old is None or not row.n_old else row.hits_old / row.n_old


def _exact(row: Row) -> float | None:
    """Exact match: free greedy generation begins with the target, or an alias of it."""
    return None if row.exact is None else float(row.exact)


def _probability(row: Row) -> float | None:
    """Probability of the target: exp(−mean NLL per token)."""
    return exp(-row.nll_new)


class Metric(NamedTuple):
    """Which prompts a score is over, what it is of one, and the least it can be, in per cent."""

    kind: Kind
    value: Value
    least: float = 0.0


METRICS: Mapping[str, Metric] = {
    "ES": Metric("rewrite", _won),
    "PS": Metric("paraphrase", _won),
    "NS": Metric("neighbour", _kept),
    "ES_magnitude": Metric("rewrite", _margin, -100.0),
    "PS_magnitude": Metric("paraphrase", _margin, -100.0),
    "NS_magnitude": Metric("neighbour", _kept_margin, -100.0),
    "token_accuracy": Metric("rewrite", _accuracy),
    "paraphrase_token_accuracy": Metric("paraphrase", _accuracy),
    "neighbour_token_accuracy": Metric("neighbour", _old_accuracy),
    "exact_match": Metric("rewrite", _exact),
    "target_probability": Metric("rewrite", _probability),
    "portability_token_accuracy": Metric("portability", _accuracy),
    "portability_exact_match": Metric("portability", _exact),
    "locality_token_accuracy": Metric("locality", _accuracy),
}


def case_means(rows: Iterable[Row], metric: str) -> CaseMeans:
    """One metric of each case, in per cent: the mean over its prompts.

    Of m prompts each that may be won or lost by itself, a case changes by about 100/√m.
    """
    kind, value, _ = METRICS[metric]
    values: dict[str, list[float]] = defaultdict(list)
    clusters: dict[str, str] = {}
    for row in rows:
        found = value(row) if row.kind == kind else None
        if found is not None:
            values[row.case].append(100 * found)
            clusters[row.case] = row.relation if row.relation is not None else f"case {row.case}"
    prompts = [len(found) for found in values.values()]
    flip = 100 * sqrt(sum(1 / m for m in prompts) / len(prompts)) if prompts else 0.0
    means = {case: sum(found) / len(found) for case, found in values.items()}
    return CaseMeans(means, clusters, flip)


def estimate(rows: Iterable[Row], metric: str) -> Estimate:
    """One metric over some rows, in per cent."""
    found = mean(case_means(rows, metric))
    if found is None:
        return Estimate(None, None, None, 0)
    return found.share(METRICS[metric].least)


def score(rows: Iterable[Row]) -> Statistic | None:
    """S with what its error is made of; None where one of its parts was not scored."""
    rows = list(rows)
    parts = [mean(case_means(rows, name)) for name in ("ES", "PS", "NS")]
    known = [part for part in parts if part is not None]
    return harmonic_mean(known) if len(known) == len(parts) else None


def harmonic(scores: Sequence[float | None]) -> float | None:
    """S: harmonic mean of the data-set means of ES, PS and NS; None where one is missing."""
    known = [score for score in scores if score is not None]
    if len(known) < len(scores):
        return None
    return 0.0 if 0 in known else len(known) / sum(1 / score for score in known)


def summarise(rows: Sequence[Row]) -> dict[str, float | None]:
    """Every metric's mean, and S."""
    means = {name: estimate(rows, name).mean for name in METRICS}
    score = harmonic([means["ES"], means["PS"], means["NS"]])
    ordered = {name: means[name] for name in ("ES", "PS", "NS")}
    return {**ordered, "S": score, **{k: v for k, v in means.items() if k not in ordered}}


def intervals(rows: Sequence[Row]) -> dict[str, tuple[float, float] | None]:
    """Every metric's 95 % interval."""
    found = {name: estimate(rows, name) for name in METRICS}
    return {
        name: None if e.low is None or e.high is None else (e.low, e.high)
        for name, e in found.items()
    }
