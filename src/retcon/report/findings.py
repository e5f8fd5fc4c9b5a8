"""Findings: claims that are tested on the results of a study, each by a function of its own.

A claim enters itself under a name with `finding`, from a file of `retcon.replications`, of another
package or of one's own. Those that make up one argument, as the claims of a publication, are a
`FindingSet`. A study file names sets or single claims: `findings: [batch-size]`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from retcon.errors import InvalidStudy, UnknownName
from retcon.registry import Registry, entered
from retcon.report.charts.style import Chart
from retcon.report.results import Evidence, Results
from retcon.report.verdicts import Effect, Verdict

if TYPE_CHECKING:
    from retcon.report.tables import Table

_WORST_FIRST: tuple[Verdict, ...] = ("not reproduced", "inconclusive", "reproduced")
# For a report without any, whatever the study file says.
NO_FINDINGS = "none"


@dataclass(frozen=True)
class Outcome:
    """The outcome of a test of a claim.

    Attributes:
        effects: all that was measured; those that decide have `decides`.
        summary: the result in sentences, one a line.
        missing: what would have to be run; None where nothing is missing.
        charts: shown with it; None among them where there was nothing to draw.
        tables: shown with it, those that have rows.
    """

    effects: Sequence[Effect] = ()
    summary: str = ""
    missing: str | None = None
    charts: Sequence[Chart | None] = ()
    tables: Sequence["Table"] = ()


def needs(what: str, charts: Sequence[Chart | None] = ()) -> Outcome:
    """The outcome without data, with what would have to be run."""
    return Outcome(missing=f"Needs {what}.", charts=charts)


Test = Callable[[Results], Outcome]
Summarise = Callable[[Sequence["Finding"]], Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class FindingSet:
    """Claims that are judged and shown together.

    Attributes:
        name: by which a study file names all of them.
        title: over the table of their verdicts.
        introduction: what they are and where they come from, in the page's words.
        headline: sentences for the top of the report, made of the findings.
        charts: what the report draws in place of its own charts of the same keys.
    """

    name: str
    title: str
    introduction: str
    headline: Summarise = lambda findings: ()
    charts: Sequence[Callable[[Results], Chart | None]] = ()


# Of claims that belong to no other one.
OWN = FindingSet(
    name="own", title="Claims", introduction="Each claim as a test on the rows of this study."
)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim, and how it is tested.

    Attributes:
        key: by which pages and files know it: `b1`.
        title: the claim in a few words.
        claim: the claim in a sentence, as it is tested.
        source: who claims it, and what is shown there; empty where nobody did before.
        measured: how effects are measured, and what speaks for doing so.
        test: gives the outcome for the results of a study.
        set: the set it belongs to.
    """

    key: str
    title: str
    claim: str
    source: str
    measured: str
    test: Test
    set: FindingSet = OWN

    @property
    def name(self) -> str:
        """Name in a study file."""
        return self.key if self.set is OWN else f"{self.set.name}/{self.key}"


class Finding(NamedTuple):
    """A claim with its outcome on one study."""

    claim: Claim
    outcome: Outcome

    @property
    def key(self) -> str:
        """Key in pages and files."""
        return self.claim.key

    @property
    def title(self) -> str:
        """The claim in a few words."""
        return self.claim.title

    @property
    def effects(self) -> Sequence[Effect]:
        """Every effect that was measured."""
        return self.outcome.effects

    @property
    def missing(self) -> str | None:
        """The runs that are missing, in words; None where none are."""
        return self.outcome.missing

    @property
    def charts(self) -> Mapping[str, Chart]:
        """The charts beside it, by key."""
        return {chart.key: chart for chart in self.outcome.charts if chart is not None}

    @property
    def tables(self) -> list["Table"]:
        """The tables beside it."""
        return [table for table in self.outcome.tables if table.rows]

    @property
    def times(self) -> tuple[str, ...]:
        """The times at which it is judged, in the order in which the test names them."""
        return tuple(dict.fromkeys(effect.when for effect in self.effects if effect.decides))

    def deciding(self, when: str) -> list[Effect]:
        """The effects that decide at a time."""
        return [effect for effect in self.effects if effect.decides and effect.when == when]

    def verdict_at(self, when: str) -> Verdict:
        """The worst of the verdicts that decide at a time: all have to hold."""
        verdicts = {effect.verdict for effect in self.deciding(when)}
        known: list[Verdict] = [verdict for verdict in _WORST_FIRST if verdict in verdicts]
        return known[0] if known else "no data"

    @property
    def verdict(self) -> Verdict:
        """The verdict at the first of its times."""
        return self.verdict_at(self.times[0]) if self.times else "no data"

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        """Rows behind it, once each."""
        return tuple(dict.fromkeys(row for effect in self.effects for row in effect.evidence))


def by_set(findings: Sequence[Finding]) -> list[tuple[FindingSet, list[Finding]]]:
    """Findings by the set they belong to, in their order."""
    sets = dict.fromkeys(finding.claim.set.name for finding in findings)
    groups = [[one for one in findings if one.claim.set.name == name] for name in sets]
    return [(group[0].claim.set, group) for group in groups]


FINDINGS: Registry[Claim] = Registry("finding", "retcon.replications")


def finding(
    key: str,
    *,
    title: str,
    claim: str,
    source: str = "",
    measured: str = "",
    set: FindingSet = OWN,
) -> Callable[[Test], Test]:
    """Enter a claim under its key; the function that is decorated tests it.

    Args:
        key, title, claim, source, measured, set: see `Claim`.
    """

    def entry(test: Test) -> Claim:
        return Claim(
            key=key,
            title=title,
            claim=claim,
            source=source,
            measured=measured,
            test=test,
            set=set,
        )

    name = key if set is OWN else f"{set.name}/{key}"
    return entered(FINDINGS, name, entry)


def select(names: Sequence[str]) -> list[Claim]:
    """The claims that sets and names stand for, each once, in the order of the names.

    Raises:
        UnknownName: neither a set nor a claim is called so; the error lists what exists.
        InvalidStudy: two of them have the same key, by which files and pages know them.
    """
    known = FINDINGS.all()
    chosen: dict[str, Claim] = {}
    for name in names:
        if name == NO_FINDINGS:
            continue
        of_set = {full: claim for full, claim in known.items() if claim.set.name == name}
        if not of_set and name not in known:
            sets = {claim.set.name for claim in known.values()}
            raise UnknownName.among("set of findings or finding", name, sorted(sets | {*known}))
        chosen |= of_set or {name: known[name]}
    keys = [claim.key for claim in chosen.values()]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise InvalidStudy(
            f"Two of the findings {', '.join(chosen)} have the key {twice!r}. Take one of them."
        )
    return list(chosen.values())


def select_for(study_names: Sequence[str]) -> list[Claim]:
    """The claims that a study's own file names.

    Raises:
        InvalidStudy: one is not there, as where a plugin brings it that was not named.
    """
    try:
        return select(study_names)
    except UnknownName as error:
        raise InvalidStudy(
            f"The study file names findings that are not there: {error} If they are a plugin's, "
            f"name it: retcon --plugin FILE.py study report DIR. For a report without them: "
            f"--findings {NO_FINDINGS}."
        ) from error


def judge(results: Results, claims: Sequence[Claim]) -> list[Finding]:
    """Test claims on the results of a study, as far as it has got."""
    return [Finding(claim, claim.test(results)) for claim in claims]
