"""What a finding is, and the rule by which it is judged. The page prints this rule.

Directional claims: reproduced where the 95 % interval lies on the paper's side of zero; not where
it lies on the other side, or wholly within ± the smallest effect of interest. Claims that two
things are equal: reproduced where the interval lies within ± that margin, not where it lies wholly
outside. Claims that one of several is best: reproduced where it is not worse than any other by the
margin, not where any other is better. Everything else is inconclusive, and so is whatever rests on
the facts that were written first. Cells whose NLLs are the same are one measurement (`sameness`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Literal, NamedTuple, TypeVar

from retcon.report.arms import Arm, Evidence, Results, Setting, evidence
from retcon.scoring.intervals import Estimate

T = TypeVar("T")
Verdict = Literal["reproduced", "not reproduced", "inconclusive", "no data"]

# The smallest effect of interest, in points of a score.
MARGIN = 1.0

# Narrower than this is no interval: sums of equal numbers in another order.
_NONE = 1e-9

# Why nothing follows from some runs about all of their facts.
FIRST_WRITTEN = "only the facts that were written first are scored"


class Claim(NamedTuple):
    """One number that a claim stands or falls with. verdict None: measured, and not judged.

    primary: decides the finding's verdict. about: what a chart needs beside the words.
    """

    text: str
    when: str
    metric: str
    effect: Estimate
    verdict: Verdict | None
    primary: bool
    evidence: tuple[Evidence, ...]
    about: Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A claim of the paper as a test on this study's rows.

    claim: as it is tested. paper: what the paper shows. effect: the result in a sentence.
    missing: what would have to be run for it, None where nothing is missing.
    """

    key: str
    name: str
    claim: str
    paper: str
    effect: str = ""
    explanation: str = ""
    claims: tuple[Claim, ...] = ()
    missing: str | None = None
    charts: tuple[str, ...] = field(default=())

    def needs(self, what: str) -> "Finding":
        """The same without data, saying what would have to be run."""
        return replace(self, missing=f"Needs {what}.")

    @property
    def times(self) -> tuple[str, ...]:
        """The times at which it is judged; the first is the paper's, as far as can be told."""
        return tuple(dict.fromkeys(c.when for c in self.claims if c.primary))

    def verdict_at(self, when: str) -> Verdict:
        """What its claims of one time come to: the worst of the primary ones."""
        found = [c.verdict for c in self.claims if c.primary and c.when == when and c.verdict]
        if not found:
            return "no data"
        if "not reproduced" in found:
            return "not reproduced"
        return "inconclusive" if "inconclusive" in found else "reproduced"

    @property
    def verdict(self) -> Verdict:
        """The verdict at the paper's time of scoring, where there is one; else at the first."""
        return self.verdict_at(self.times[0]) if self.times else "no data"

    @property
    def leading(self) -> Claim | None:
        """The first of the claims that decide."""
        return next((claim for claim in self.claims if claim.primary), None)

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        """All rows behind it, once each."""
        return tuple(dict.fromkeys(item for claim in self.claims for item in claim.evidence))


def towards(effect: Estimate, sign: int) -> Verdict:
    """Whether the effect is on the side of zero that sign says."""
    if effect.low is None or effect.high is None:
        return "inconclusive"
    low, high = (effect.low, effect.high) if sign > 0 else (-effect.high, -effect.low)
    if low > 0:
        return "reproduced"
    return "not reproduced" if high < 0 or _within(low, high) else "inconclusive"


def equal(effect: Estimate) -> Verdict:
    """Whether the effect is too small to be of interest."""
    if effect.low is None or effect.high is None:
        return "inconclusive"
    if _within(effect.low, effect.high):
        return "reproduced"
    outside = effect.low > MARGIN or effect.high < -MARGIN
    return "not reproduced" if outside else "inconclusive"


def not_worse(effect: Estimate) -> Verdict:
    """Whether a thing is as good as another one, give or take the margin."""
    if effect.low is None or effect.high is None:
        return "inconclusive"
    if effect.low > -MARGIN:
        return "reproduced"
    return "not reproduced" if effect.high < 0 else "inconclusive"


def than_any(effects: Mapping[T, Estimate]) -> tuple[T, Verdict]:
    """Whether a thing is as good as every rival, by its differences to them; and who decides that.

    It is the one that is better; else the one to which the difference may be the largest.
    """

    def lead(rival: T) -> tuple[bool, float]:
        effect = effects[rival]
        low = -inf if effect.low is None else effect.low
        return not_worse(effect) != "not reproduced", low

    hardest = min(effects, key=lead)
    return hardest, not_worse(effects[hardest])


def so_far(verdict: Verdict, waiting: int) -> Verdict:
    """The best of those that are done need not be the best of all: not yet reproduced."""
    return "inconclusive" if waiting and verdict == "reproduced" else verdict


def _within(low: float, high: float) -> bool:
    return low >= -MARGIN and high <= MARGIN


def contrast(
    results: Results,
    terms: Sequence[tuple[float, Arm]],
    when: str,
    metric: str,
    comparisons: int = 1,
) -> Estimate | None:
    """Σ wⱼ scoreⱼ over the cases that all arms share, with its interval."""
    found = results.contrast(terms, when, metric)
    return found.estimate(comparisons) if found else None


def make(
    text: str,
    when: str,
    metric: str,
    effect: Estimate,
    verdict: Verdict | None,
    arms: Iterable[Arm],
    *,
    primary: bool = False,
    algebra: bool = False,
    **about: object,
) -> Claim:
    """A claim, with the rows of its arms as evidence.

    algebra: it is about what holds of any facts, whichever are scored. One measurement against
    itself is so, too.
    """
    arms = list(arms)
    same = effect.low is not None and effect.high is not None and effect.high - effect.low < _NONE
    if not (algebra or same) and any(arm.setting.first_written for arm in arms):
        text = f"{text} ({FIRST_WRITTEN})"
        verdict = None if verdict is None else "inconclusive"
    return Claim(
        text, when, metric, effect, verdict, primary, evidence(arms, when, metric), about
    )  # fmt: skip


def against_all(
    results: Results,
    one: Arm,
    others: Mapping[T, Arm],
    when: str,
    place: Callable[[T], str],
    *,
    waiting: int,
    primary: bool,
) -> list[Claim]:
    """S of an arm minus that of each other one: first the claim that decides, then all of them.

    waiting: how many others have still to be run. place: of one of the others, the claim's text.
    """
    effects = {
        name: effect
        for name, arm in others.items()
        if (effect := contrast(results, [(1.0, one), (-1.0, arm)], when, "S", len(others)))
    }
    if not effects:
        return []
    rival, verdict = than_any(effects)
    text = f"{place(rival)}, of all others the one that decides"
    arms = [one, *(others[name] for name in effects)]
    verdict = so_far(verdict, waiting)
    leading = make(text, when, "S", effects[rival], verdict, arms, primary=primary)
    rest = [
        make(place(name), when, "S", effect, not_worse(effect), [one, others[name]])
        for name, effect in effects.items()
    ]
    return [leading, *rest]


def strangeness(setting: Setting) -> tuple[object, ...]:
    """How far a setting is from the paper's: least first."""
    return (
        bool(setting.accumulate),
        setting.refresh not in (None, "each-batch"),
        setting.ridge_batch != 0,
        setting.first_written,
        str(setting.order),  # the first number before others, and before orders by keys
        setting.dtype != "float32",
        setting.method not in ("memit", "emmet"),
    )


def spanned(effect: Estimate) -> str:
    """An effect with its interval: −3.2 [−4.1, −2.3]."""
    if effect.mean is None or effect.low is None:
        return signed(effect.mean)
    return f"{signed(effect.mean)} [{signed(effect.low)}, {signed(effect.high)}]"


def points(effect: Estimate) -> str:
    """An effect in words: −3.2 points [−4.1, −2.3]."""
    if effect.mean is None:
        return "–"
    span = "" if effect.low is None else f" [{signed(effect.low)}, {signed(effect.high)}]"
    return f"{signed(effect.mean)} points{span}"


def signed(value: float | None) -> str:
    """A number with its sign, a true minus; a dash where there is none."""
    if value is None:
        return "–"
    text = f"{value:+.1f}".replace("-", "−")
    return "0.0" if text in ("+0.0", "−0.0") else text


def share(score: Estimate) -> str:
    """A score with its interval: 83.1 [81.0, 85.2]."""
    if score.mean is None:
        return "–"
    span = (
        "" if score.low is None or score.high is None else f" [{score.low:.1f}, {score.high:.1f}]"
    )
    return f"{score.mean:.1f}{span}"
