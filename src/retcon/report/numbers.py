"""Numbers as a report writes them: with a true minus, and beside their 95 % intervals."""

from retcon.scoring.intervals import Estimate

MISSING = "–"


def fixed(value: float | None, digits: int) -> str:
    """Write a number with so many digits. A dash where there is none."""
    return MISSING if value is None else f"{value:.{digits}f}"


def signed(value: float | None) -> str:
    """Write a number with its sign: −3.2. A dash where there is none."""
    if value is None:
        return MISSING
    text = f"{value:+.1f}".replace("-", "−")
    return "0.0" if text in ("+0.0", "−0.0") else text


def spanned(effect: Estimate) -> str:
    """Write a difference with its interval: −3.2 [−4.1, −2.3]."""
    if effect.mean is None or effect.low is None:
        return signed(effect.mean)
    return f"{signed(effect.mean)} [{signed(effect.low)}, {signed(effect.high)}]"


def points(effect: Estimate) -> str:
    """Write a difference in words: −3.2 points [−4.1, −2.3]."""
    if effect.mean is None:
        return MISSING
    span = "" if effect.low is None else f" [{signed(effect.low)}, {signed(effect.high)}]"
    return f"{signed(effect.mean)} points{span}"


def share(score: Estimate) -> str:
    """Write a score with its interval: 83.1 [81.0, 85.2]."""
    if score.mean is None:
        return MISSING
    known = score.low is not None and score.high is not None
    return f"{score.mean:.1f} [{score.low:.1f}, {score.high:.1f}]" if known else f"{score.mean:.1f}"
