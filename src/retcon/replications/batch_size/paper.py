"""The paper whose claims these are: its setting, and the set they make up."""

from collections.abc import Sequence
from functools import partial

from retcon.report.charts import sizes, weights
from retcon.report.conditions import Condition
from retcon.report.findings import Finding, FindingSet
from retcon.report.headline import TIMES
from retcon.report.numbers import points

# Of Llama-3-8B's 32 blocks, counted from 0.
PAPERS_LAYER = (1,)
PAPERS_SIZE = 1024


def distance(condition: Condition) -> tuple[object, ...]:
    """Distance of a condition from the paper's; the nearest is the least.

    The paper forgets past keys, makes targets anew for each batch, and has one λ a batch.
    """
    return (
        bool(condition.accumulate),
        condition.refresh not in (None, "each-batch"),
        condition.ridge_batch != 0,
        condition.first_written,
        str(condition.order),  # the first number before others, and before orders by keys
        condition.dtype != "float32",
        condition.method not in ("memit", "emmet"),
    )


def answers(findings: Sequence[Finding]) -> list[str]:
    """Answers to the paper's title: by S one for each time (b2), and by all scores (g)."""
    known = {finding.key: finding for finding in findings if finding.times}
    by_s = known.get("b2")
    answers = [_answer(by_s, when) for when in by_s.times] if by_s else []
    if "g" in known:
        answers += known["g"].outcome.summary.splitlines()
    return ["Is a bigger edit batch better here?", *answers] if answers else []


def _answer(finding: Finding, when: str) -> str:
    effects = "; ".join(points(effect.estimate) for effect in finding.deciding(when))
    return f"{TIMES[when]}: {_in_words(finding, when)} (S {effects})."


def _in_words(finding: Finding, when: str) -> str:
    """The verdict on one large batch, as an answer: the claim is that it is worse."""
    verdict = finding.verdict_at(when)
    if verdict == "reproduced":
        return "no, one large batch is worse"
    if verdict == "inconclusive":
        return "it cannot be told yet"
    lows = [effect.estimate.low for effect in finding.deciding(when)]
    if all(low is not None and low > 0 for low in lows):
        return "yes, one large batch is better"
    return "no worse and hardly better" if len(lows) == 1 else "not for every method or model"


BATCH_SIZE = FindingSet(
    name="batch-size",
    title="What became of the paper's claims",
    introduction=(
        "Each claim of “Is Bigger Edit Batch Size Always Better?” (arXiv:2405.00664, Llama-3-8B) "
        "as a test on this study’s rows. Immediate scores were taken right after each fact’s own "
        "batch, which is most likely what the paper shows; final scores after the last batch, "
        "which is the harder test. The two are judged apart. The setting nearest to the paper’s "
        "decides, for each model and method."
    ),
    headline=answers,
    charts=tuple(
        partial(draw, rank=distance) for draw in (sizes.retention, weights.pareto, weights.norms)
    ),
)
