"""(g) The score: for how many of them the answer to the paper's title is the same."""

from collections import Counter
from collections.abc import Iterable, Sequence
from math import inf
from typing import Literal, NamedTuple

from retcon.replications.batch_size.charts import in_favour
from retcon.replications.batch_size.paper import BATCH_SIZE, distance
from retcon.report.charts.style import COLOURS, VERDICTS
from retcon.report.conditions import Arm
from retcon.report.families import Family, carried_by_size, leading, name_with_number
from retcon.report.findings import Outcome, finding, needs
from retcon.report.numbers import spanned
from retcon.report.ranking import turned
from retcon.report.results import Results
from retcon.report.tables import Table
from retcon.report.verdicts import (
    Effect,
    Judge,
    Verdict,
    effect_of,
    judge_equal,
    judge_higher,
    judge_lower,
)
from retcon.scoring.intervals import Estimate, Statistic
from retcon.scoring.metrics import Metric

TIMES = ("immediate", "final")
Says = Literal["bigger", "smaller", "alike", "undecided"]
# Who is right, as the judge of a bigger batch's score minus a smaller one's.
_JUDGES: dict[Says, Judge] = {"bigger": judge_higher, "smaller": judge_lower, "alike": judge_equal}
_WORDS: dict[Says, str] = {
    "bigger": "a bigger batch is better",
    "smaller": "a bigger batch is worse",
    "alike": "it makes no difference",
    "undecided": "it cannot be told",
}
_COLOURS: dict[Says, str] = {
    "bigger": VERDICTS["reproduced"],
    "smaller": VERDICTS["not reproduced"],
    "alike": COLOURS[0],
    "undecided": VERDICTS["inconclusive"],
}
_WORST_FIRST: tuple[Verdict, ...] = ("not reproduced", "inconclusive", "reproduced")


class ByScore(NamedTuple):
    """The effect of a bigger batch by one score, and what one who reads only this score learns."""

    metric: Metric
    statistic: Statistic
    says: Says

    def towards(self, comparisons: int = 1) -> Estimate:
        """The effect as a gain: turned round where less is better.

        Args:
            comparisons: of how many scores this one was chosen.
        """
        return _turned(self.statistic.estimate(comparisons), self.metric)


@finding(
    "g",
    set=BATCH_SIZE,
    title="One answer, whatever the score",
    claim="The answer to the title is the same by every score that was taken.",
    source="Not in the paper, which answers by S, ES, PS and NS. Elsewhere rankings of methods "
    "change with the metric and with the batch size (arXiv:2507.05937).",
    measured="For each score in per cent: that of the largest batches minus the mean over all "
    "smaller ones, paired over the same facts. By a score a bigger batch is better or worse "
    "where this one's interval leaves 0 out, it makes no difference where the interval is "
    "within ±1 point, and else cannot be told: that is what one learns who reads this score alone. "
    "What decides is the score that agrees least with the answer that most of them give, its "
    "interval widened for all scores. S is made of ES, PS and NS, and token accuracies follow "
    "them, so that scores are not as many witnesses.",
)
def answers_by_score(results: Results) -> Outcome:
    """The largest batches against smaller ones, by every score."""
    effects: list[Effect] = []
    sentences: list[str] = []
    for when in TIMES:
        curves = leading(carried_by_size(results, when, distance))
        for curve in curves:
            scores = by_score(results, curve, when)
            if scores:
                name = name_with_number(curve, curves)
                effects += _effects(scores, curve, when, name)
                sentences.append(f"{when.capitalize()}, {name}: {_sentence(scores)}")
    if not effects:
        return needs("carried edits of the same facts in two batch sizes or more")
    chart = in_favour(effects, {_WORDS[says]: colour for says, colour in _COLOURS.items()})
    return Outcome(effects, "\n".join(sentences), charts=[chart], tables=[_table(effects)])


def by_score(results: Results, curve: Family, when: str) -> list[ByScore]:
    """The answer of every score in per cent that the largest and smaller batches have."""
    largest, *smaller = (arm for _, arm in sorted(curve.items(), reverse=True))
    if not smaller:
        return []
    terms = [(1.0, largest), *((-1 / len(smaller), arm) for arm in smaller)]
    stands_for_all = not any(arm.condition.first_written for arm in curve.values())
    return [
        ByScore(metric, found, _says(found, metric) if stands_for_all else "undecided")
        for metric in results.telling(curve.values(), when)
        if metric.scale.unit == "%"
        if (found := results.contrast(terms, when, metric.name)) is not None
    ]


def _says(statistic: Statistic, metric: Metric) -> Says:
    gain = _turned(statistic.estimate(), metric)
    for says, judge in _JUDGES.items():
        if judge(gain) == "reproduced":
            return says
    return "undecided"


def _turned(estimate: Estimate, metric: Metric) -> Estimate:
    if turned(metric.name) > 0 or estimate.mean is None:
        return estimate
    low = None if estimate.high is None else -estimate.high
    high = None if estimate.low is None else -estimate.low
    return Estimate(-estimate.mean, low, high, estimate.cases)


def most_common(scores: Sequence[ByScore]) -> Says:
    """The answer that most scores give; of several the first; undecided where none gives any."""
    count: Counter[Says] = Counter(one.says for one in scores if one.says != "undecided")
    return count.most_common(1)[0][0] if count else "undecided"


def hardest(scores: Sequence[ByScore]) -> tuple[ByScore, Verdict]:
    """The score that agrees least with the answer that most of them give, and its verdict."""
    answer = most_common(scores)
    if answer == "undecided":
        return scores[0], "inconclusive"
    gains = [one.towards(len(scores)) for one in scores]
    judged: list[tuple[ByScore, Verdict]] = [
        (one, _JUDGES[answer](gain)) for one, gain in zip(scores, gains, strict=True)
    ]
    leads = [
        (_WORST_FIRST.index(verdict), _lead(answer, gain))
        for (_, verdict), gain in zip(judged, gains, strict=True)
    ]
    return judged[leads.index(min(leads))]


def _lead(answer: Says, gain: Estimate) -> float:
    """The nearer end of an effect's interval, as a distance on the side of an answer."""
    low = -inf if gain.low is None else gain.low
    high = inf if gain.high is None else gain.high
    return {"bigger": low, "smaller": -high}.get(answer, -max(-low, high))


def _effects(scores: Sequence[ByScore], curve: Family, when: str, name: str) -> list[Effect]:
    """The one that decides, and the effect by every score."""
    arms: Iterable[Arm] = curve.values()
    sizes = sorted(curve)
    gap = f"of batches of {sizes[-1]:,} − mean of the smaller sizes ({len(sizes) - 1})"
    decider, verdict = hardest(scores)
    deciding = effect_of(
        f"{name}: {decider.metric.title} {gap}, of {len(scores)} scores the one that decides",
        when,
        decider.metric.name,
        decider.statistic.estimate(len(scores)),
        verdict,
        arms,
        decides=True,
    )
    each = [
        effect_of(
            f"{name}: {one.metric.title} {gap}",
            when,
            one.metric.name,
            one.statistic.estimate(),
            None,
            arms,
        )._replace(about=_about(one, name))
        for one in scores
    ]
    return [deciding, *each]


def _about(one: ByScore, name: str) -> dict[str, object]:
    gain = one.towards()
    return {
        "setting": name,
        "score": one.metric.title,
        "answer": _WORDS[one.says],
        "gain": gain.mean,
        "gain_low": gain.low,
        "gain_high": gain.high,
    }


def _sentence(scores: Sequence[ByScore]) -> str:
    """For how many scores the answer is the same, and what the others say."""
    first = most_common(scores)
    if first == "undecided":
        return f"by none of {len(scores)} scores can it be told."
    order: list[Says] = [first, *(says for says in _WORDS if says != first)]
    titles: dict[Says, list[str]] = {
        says: [one.metric.title for one in scores if one.says == says] for says in order
    }
    same, *others = (
        f"{_WORDS[says]} ({', '.join(known)})" for says, known in titles.items() if known
    )
    number = f"for {len(titles[first])} of {len(scores)} scores the answer is the same"
    return f"{'; '.join([f'{number}, {same}', *others])}."


def _table(effects: Sequence[Effect]) -> Table:
    rows = [
        (
            str(effect.about["setting"]),
            effect.when,
            str(effect.about["score"]),
            str(effect.about["answer"]),
            spanned(effect.estimate),
        )
        for effect in effects
        if effect.about
    ]
    columns = ("setting", "scores", "score", "answer", "largest batches − smaller ones, points")
    return Table("Is a bigger batch better, by score", "", columns, tuple(rows))
