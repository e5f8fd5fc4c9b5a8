"""Charts of scores against each other: ranks of conditions, and how alike two scores rank."""

from retcon.report.agreement import Agreement, title_of, told
from retcon.report.charts.panels import Record
from retcon.report.charts.style import Chart, Spec, titled
from retcon.report.conditions import Condition
from retcon.report.ranking import Ranking
from retcon.scoring.metrics import METRICS

# Text on a cell, which is as light by night.
_DARK, _LIGHT = "#1b1f24", "#ffffff"
_MOST_ROWS = 30
# Of a cell, in pixels, and of all of a row.
_WIDTH, _HEIGHT, _WIDEST = 58, 27, 580
_ACROSS: Spec = {"labelAngle": -38, "labelLimit": 190, "orient": "top", "labelPadding": 6}
_CELL: Spec = {"type": "rect", "stroke": "white", "strokeWidth": 2, "cornerRadius": 3}


def ranks(agreement: Agreement) -> Chart | None:
    """The rank of each condition (rows) under each score (columns)."""
    data = ranked(agreement)
    if len({record["score"] for record in data}) < 2:
        return None
    scores = list(dict.fromkeys(record["score"] for record in data))
    settings = list(dict.fromkeys(record["setting"] for record in data))
    colour: Spec = {
        "field": "place",
        "type": "quantitative",
        "scale": {"domain": [0, 1], "range": ["#0b4a6f", "#4f93b8", "#e3ecf0"]},
        "legend": None,
    }
    tooltip: list[Spec] = [
        {"field": "setting"},
        {"field": "score"},
        {"field": "rank"},
        {"field": "value"},
        {"field": "against", "title": "against the best"},
    ]
    body = _heat_map(data, ("score", scores), ("setting", settings), colour, tooltip)
    when, n = agreement.comparison.ranking.when, agreement.comparison.n
    return titled(
        "by-score",
        "Does the answer depend on the score?",
        f"Rank of each condition under each score, {when}, {n:,} facts; free generation first. "
        "Bold: best, or statistically indistinguishable from it.",
        body,
    )


def ranked(agreement: Agreement) -> list[Record]:
    """A record for each condition and score: its rank, and how it stands to the best."""
    comparison = agreement.comparison
    order = [*comparison.ranking.scores][:_MOST_ROWS]
    return [
        {
            "setting": comparison.names[condition],
            "score": title_of(name),
            "rank": place,
            "place": (place - 1) / (len(one.scores) - 1),
            "text": f"{place}",
            "bold": condition == one.best or condition in one.tied,
            "value": METRICS.find(name).scale.told(one.scores[condition]),
            "against": _against(one, condition),
        }
        for condition in order
        for name, one in agreement.rankings.items()
        if condition in one.scores
        for place in [_rank(one, condition)]
    ]


def _rank(ranking: Ranking[Condition], condition: Condition) -> int:
    """Its rank; those of the same mean share the first of theirs."""
    means = [score.mean for score in ranking.scores.values()]
    return means.index(ranking.scores[condition].mean) + 1


def _against(ranking: Ranking[Condition], condition: Condition) -> str:
    if condition == ranking.best:
        return "is the best"
    tied = "statistically indistinguishable from it"
    return tied if condition in ranking.tied else "worse"


def alike(agreement: Agreement) -> Chart | None:
    """Kendall's τ of every two scores, as a square."""
    names = list(dict.fromkeys(name for pair in agreement.correlations for name in pair))
    data: list[Record] = [
        {
            "one": title_of(one),
            "other": title_of(other),
            "tau": tau.mean,
            "text": f"{tau.mean:+.2f}".replace("-", "−"),
            "bold": False,
            "told": told(tau),
            "conditions": tau.cases,
        }
        for one in names
        for other in names
        if (tau := agreement.of(one, other)) is not None
    ]
    if not data:
        return None
    titles = [title_of(name) for name in names]
    colour: Spec = {
        "field": "tau",
        "type": "quantitative",
        "scale": {"domain": [-1, 0, 1], "range": ["#b3430a", "#f4f1ea", "#0b4a6f"]},
        "legend": None,
    }
    tooltip: list[Spec] = [{"field": f} for f in ("one", "other", "told", "conditions")]
    body = _heat_map(data, ("other", titles), ("one", titles), colour, tooltip)
    return titled(
        "rank-correlations",
        "Which scores rank alike",
        "Kendall’s τ between the rankings of the same conditions by two scores: 1 the same order, "
        "0 none in common, −1 reversed.",
        body,
    )


def _heat_map(
    data: list[Record],
    across: tuple[str, list[str]],
    down: tuple[str, list[str]],
    colour: Spec,
    tooltip: list[Spec],
) -> Spec:
    """Cells with their text in them, on a colour that is dark at the ends that stand out."""
    x: Spec = {"field": across[0], "type": "nominal", "sort": across[1], "title": None}
    y: Spec = {"field": down[0], "type": "nominal", "sort": down[1], "title": None}
    place: Spec = {
        "x": {**x, "axis": {**_ACROSS, "domain": False, "ticks": False}},
        "y": {**y, "axis": {"labelLimit": 420, "domain": False, "ticks": False}},
    }
    dark = "datum.place < 0.6" if "place" in data[0] else "abs(datum.tau) > 0.55"
    ink: Spec = {"condition": {"test": dark, "value": _LIGHT}, "value": _DARK}
    words: list[Spec] = [
        {
            "transform": [{"filter": f"{'' if bold else '!'}datum.bold"}],
            "mark": {"type": "text", "fontSize": 12, "fontWeight": 700 if bold else 400},
            "encoding": {**place, "text": {"field": "text"}, "color": ink},
        }
        for bold in (True, False)
    ]
    cells: Spec = {"mark": _CELL, "encoding": {**place, "color": colour, "tooltip": tooltip}}
    return {
        "data": {"values": data},
        "width": min(_WIDTH * len(across[1]), _WIDEST),
        "height": _HEIGHT * len(down[1]),
        "layer": [cells, *words],
    }
