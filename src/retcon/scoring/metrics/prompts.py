"""Scores of prompts: whether an edit is said, however it is asked, and nothing else is changed.

ES, PS, NS and S as in ROME (arXiv:2202.05262 §3.4), portability and locality as in KnowEdit
(arXiv:2401.01286).
"""

from math import exp

from retcon.scoring.metrics import METRICS, Metric, metric
from retcon.scoring.observations import Observation
from retcon.scoring.scales import Share

_MARGIN = Share(least=-100.0)


@metric("ES", title="ES", kind="rewrite", shown="headline", rank=0)
@metric("PS", title="PS", kind="paraphrase", shown="headline", rank=1)
def won(row: Observation) -> float | None:
    """1 where the target is more probable per token than target_old. Ties fail."""
    if row.nll_old is None or row.nll_new is None:
        return None
    return float(row.nll_old > row.nll_new)


@metric("NS", title="NS", kind="neighbour", shown="headline", rank=2)
def kept(row: Observation) -> float | None:
    """1 where, about a neighbour, target_old (its truth) is still more probable. Ties fail."""
    if row.nll_old is None or row.nll_new is None:
        return None
    return float(row.nll_old < row.nll_new)


def harmonic(row: Observation) -> None:
    """Harmonic mean of ES, PS and NS; of an observation it has nothing."""
    del row


METRICS.enter(
    "S",
    Metric(
        name="S",
        title="S",
        kind="",
        value=harmonic,
        shown="headline",
        rank=3,
        parts=("ES", "PS", "NS"),
    ),
)


@metric(
    "portability_token_accuracy",
    title="portability",
    kind="portability",
    shown="headline",
    rank=4,
)
@metric("locality_token_accuracy", title="locality", kind="locality", shown="headline", rank=5)
@metric("token_accuracy", title="token accuracy", kind="rewrite", rank=0)
@metric("paraphrase_token_accuracy", title="paraphrase token accuracy", kind="paraphrase", rank=1)
def accuracy(row: Observation) -> float | None:
    """Share of the target's tokens that are the most probable one under teacher forcing."""
    return None if row.hits_new is None or not row.n_new else row.hits_new / row.n_new


@metric("neighbour_token_accuracy", title="neighbour token accuracy", kind="neighbour", rank=2)
def old_accuracy(row: Observation) -> float | None:
    """The same of target_old: about neighbours, what is still known."""
    return None if row.hits_old is None or not row.n_old else row.hits_old / row.n_old


@metric("exact_match", title="exact match", kind="rewrite", shown="headline", rank=10)
@metric("portability_exact_match", title="portability exact match", kind="portability", rank=10)
def exact(row: Observation) -> float | None:
    """1 where free greedy generation begins with the target, or an alias of it."""
    return None if row.exact is None else float(row.exact)


@metric("target_probability", title="target probability", kind="rewrite", rank=4)
def probability(row: Observation) -> float | None:
    """Probability of the target: exp(−mean NLL per token)."""
    return None if row.nll_new is None else exp(-row.nll_new)


@metric("ES_magnitude", title="ES magnitude", kind="rewrite", scale=_MARGIN, shown="record", rank=0)
@metric(
    "PS_magnitude", title="PS magnitude", kind="paraphrase", scale=_MARGIN, shown="record", rank=1
)
def margin(row: Observation) -> float | None:
    """Difference of probabilities, target minus target_old, each exp(−mean NLL per token)."""
    if row.nll_old is None or row.nll_new is None:
        return None
    return exp(-row.nll_new) - exp(-row.nll_old)


@metric(
    "NS_magnitude", title="NS magnitude", kind="neighbour", scale=_MARGIN, shown="record", rank=2
)
def kept_margin(row: Observation) -> float | None:
    """The same, the other way round."""
    if row.nll_old is None or row.nll_new is None:
        return None
    return exp(-row.nll_old) - exp(-row.nll_new)
