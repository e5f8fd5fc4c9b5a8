"""Scales: how the mean of a metric, and its change, are told with their 95 % intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, sqrt
from statistics import NormalDist

from retcon.scoring.intervals import CaseMeans, Estimate, Statistic, mean, wilson

_Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Amount:
    """Numbers without bounds. Intervals are Student's.

    Attributes:
        unit: in words.
        factor: by which what is observed is multiplied.
        digits: behind the point, where it is shown.
    """

    unit: str = ""
    factor: float = 1.0
    digits: int = 2

    @property
    def of_shares(self) -> bool:
        """True if what is averaged is won or lost: intervals then allow for unseen flips."""
        return False

    def level(self, mean: Statistic) -> Estimate:
        """A mean with its interval."""
        return mean.estimate()

    def change(self, differences: CaseMeans) -> Estimate:
        """Estimate a change, from the differences of the same cases at two times."""
        moved = mean(differences)
        return Estimate(None, None, None, 0) if moved is None else moved.estimate()

    def told(self, estimate: Estimate) -> str:
        """A mean as it is shown: `2.31 [2.20, 2.42]`."""
        return self._spanned(estimate, "")

    def change_told(self, estimate: Estimate) -> str:
        """A change as it is shown: `+0.12 [−0.01, +0.25]`."""
        return self._spanned(estimate, "+")

    def _spanned(self, estimate: Estimate, sign: str) -> str:
        if estimate.mean is None:
            return "–"
        form = f"{sign}.{self.digits}f"
        text = f"{estimate.mean:{form}}"
        if estimate.low is not None and estimate.high is not None:
            text += f" [{estimate.low:{form}}, {estimate.high:{form}}]"
        return text.replace("-", "−")


@dataclass(frozen=True)
class Share(Amount):
    """Per cent of what can be won. Intervals are Wilson's, on an effective number of cases.

    Attributes:
        least: the smallest that there is.
    """

    unit: str = "%"
    factor: float = 100.0
    digits: int = 1
    least: float = 0.0

    @property
    def of_shares(self) -> bool:
        """See `Amount`."""
        return True

    def level(self, mean: Statistic) -> Estimate:
        """A share with its interval, which is inside the bounds."""
        return mean.share(self.least)


@dataclass(frozen=True)
class ExactAnswers(Share):
    """Per cent of questions that are answered rightly, each of which stands for itself.

    Intervals are Wilson's for a binomial share; of changes Agresti and Min's for paired shares
    (2005, Stat. Med. 24), which are not empty where no answer has changed.
    """

    @property
    def of_shares(self) -> bool:
        """No: these intervals reckon with it themselves."""
        return False

    def level(self, mean: Statistic) -> Estimate:
        """A share with its interval."""
        low, high = wilson(mean.value / 100, float(mean.cases), _Z)
        return Estimate(mean.value, 100 * low, 100 * high, mean.cases)

    def change(self, differences: CaseMeans) -> Estimate:
        """Right after minus right before, in points."""
        return _paired(list(differences.values.values()))


@dataclass(frozen=True)
class Exponential(Amount):
    """e to the mean of logarithms; changes are ratios, and 1 is none."""

    def level(self, mean: Statistic) -> Estimate:
        """The exponential of a mean, and of the ends of its interval."""
        return _exponential(mean.estimate())

    def change(self, differences: CaseMeans) -> Estimate:
        """After over before."""
        return _exponential(super().change(differences))

    def change_told(self, estimate: Estimate) -> str:
        """A ratio as it is shown: `× 1.12 [1.05, 1.20]`."""
        return f"× {Amount(digits=3).told(estimate)}"


def _paired(moved: Sequence[float]) -> Estimate:
    """A mean of −100, 0 and 100."""
    n = len(moved)
    if not n:
        return Estimate(None, None, None, 0)
    won, lost = sum(value > 0 for value in moved), sum(value < 0 for value in moved)
    difference = (won - lost) / (n + 2)
    error = sqrt((won + lost + 1) / (n + 2) - difference**2) / sqrt(n + 2)
    share = (won - lost) / n
    low, high = min(difference - _Z * error, share), max(difference + _Z * error, share)
    return Estimate(100 * share, 100 * max(-1.0, low), 100 * min(1.0, high), n)


def _exponential(estimate: Estimate) -> Estimate:
    return Estimate(_exp(estimate.mean), _exp(estimate.low), _exp(estimate.high), estimate.cases)


def _exp(x: float | None) -> float | None:
    return None if x is None else exp(x) if x < 700 else float("inf")
