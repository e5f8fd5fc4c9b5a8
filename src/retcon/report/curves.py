"""What the charts show, as plain records. Missing is left out, never drawn as 0."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from retcon.report.arms import SCORES, Arm, Results, describe, varying
from retcon.report.findings.batch import closest, name_of, shared, size_families
from retcon.report.findings.claims import Finding, strangeness
from retcon.report.findings.sequence import carried
from retcon.report.layers import sweeps
from retcon.report.titles import called
from retcon.scoring.metrics import estimate
from retcon.scoring.rows import Row
from retcon.study.points import carries

Record = dict[str, Any]


def scored(results: Results, arm: Arm, when: str, **about: object) -> Iterator[Record]:
    """ES, PS, NS and S of an arm at one time; with NS goes that of the untouched model."""
    for metric in SCORES:
        found = results.estimate(arm, when, metric)
        if found.mean is None:
            continue
        before = results.estimate(arm, "pre", metric).mean if metric == "NS" else None
        yield {
            "metric": metric, "score": found.mean, "low": found.low, "high": found.high,
            "cases": found.cases, "untouched": before, "when": when, "load": arm.load, **about,
        }  # fmt: skip


def by_layer(results: Results) -> list[Record]:
    """Single edits, by layer and method; of each model and method the largest sweep."""
    swept = {(next(iter(s.values())).setting.model, next(iter(s.values())).setting.method): s
             for s in reversed(sweeps(results))}  # fmt: skip
    return [
        record
        for (model, method), sweep in sorted(swept.items())
        for layers, arm in sweep.items()
        if len(layers) == 1
        for record in scored(
            results, arm, "immediate", layer=layers[0], series=_who(model, method, swept)
        )
    ]


def _who(model: str, method: str, among: Iterable[tuple[str, str]]) -> str:
    several = len({name for name, _ in among}) > 1
    return f"{called(method)}, {model}" if several else called(method)


def by_batch(results: Results) -> list[Record]:
    """Each batch on the untouched model, by batch size."""
    curves = closest(size_families(results, carried=False, when="immediate"))
    return _sizes(results, curves, "immediate")


def by_sequential_size(results: Results, when: str) -> list[Record]:
    """Carried edits at the largest N, by batch size, nearest to the paper's setting."""
    return _sizes(results, closest(_fullest(carried(results, when))), when)


def by_factor(results: Results) -> list[Record]:
    """Carried edits by batch size, one line for each state of the factors."""
    return _sizes(results, _states([c for c in carried(results, "final") if len(c) > 1]), "final")


def _states(curves: list[dict[int, Arm]]) -> list[dict[int, Arm]]:
    """One family for each state of the factors, of one N and one method.

    Of several orders of the facts the first: what order does is among the effects.
    """
    found = _richest(curves)
    first = min((shared(curve).order for curve in found), default=0, key=str)
    methods = {shared(curve).method for curve in found}
    chosen = "memit" if "memit" in methods else min(methods, default="")
    return [c for c in found if (shared(c).order, shared(c).method) == (first, chosen)]


def _fullest(curves: list[dict[int, Arm]]) -> list[dict[int, Arm]]:
    most = max((shared(curve).n for curve in curves), default=0)
    return [curve for curve in curves if shared(curve).n == most]


def _richest(curves: list[dict[int, Arm]]) -> list[dict[int, Arm]]:
    """The families of the N of which there are most; of the larger N where they are as many."""
    count = Counter(shared(curve).n for curve in curves)
    chosen = max(count, key=lambda n: (count[n], n), default=0)
    return [curve for curve in curves if shared(curve).n == chosen]


def _sizes(results: Results, curves: list[dict[int, Arm]], when: str) -> list[Record]:
    return [
        record
        for curve in curves
        for size, arm in curve.items()
        for record in scored(
            results,
            arm,
            when,
            batch_size=size,
            n=arm.setting.n,
            d_in=arm.point.capacity,
            series=name_of(curve, curves),
        )
    ]


def by_number(results: Results, when: str) -> list[Record]:
    """Carried edits, by N, one line for each batch size, in the setting nearest to the paper's."""
    groups: dict[tuple[object, ...], dict[tuple[int, int], Arm]] = defaultdict(dict)
    for arm in sorted(results.arms, key=lambda arm: strangeness(arm.setting)):
        if arm.setting.carried and results.has(arm, when):
            place = arm.setting.n, arm.setting.batch_size
            groups[arm.setting.across_n()].setdefault(place, arm)
    several = [[*arms.values()] for arms in groups.values() if _in_line([*arms.values()])]
    return [
        record
        for arms in several[:1]
        for arm in sorted(arms, key=lambda arm: (arm.setting.batch_size, arm.setting.n))
        for record in scored(
            results, arm, when, n=arm.setting.n, batch_size=arm.setting.batch_size,
            d_in=arm.point.capacity,
        )
    ]  # fmt: skip


def _in_line(arms: Sequence[Arm]) -> bool:
    """Whether a batch size has been run at two N: dots alone show no trend."""
    sizes = Counter(arm.setting.batch_size for arm in arms)
    return max(sizes.values()) > 1


def retained(results: Results) -> list[Record]:
    """Older facts again: ES, PS, NS by how many facts were written since (powers of two)."""
    found: list[Record] = []
    for arm in _kept(results):
        groups: dict[int, list[Row]] = defaultdict(list)
        for run in arm.runs:
            for since, row in _aged(results, run.cell, arm.setting.batch_size):
                case, relation = f"{run.name} {row.case}", row.relation or f"case {row.case}"
                groups[since].append(row._replace(case=case, relation=relation))
        for since, rows in sorted(groups.items()):
            for metric in SCORES[:3]:
                one = estimate(rows, metric)
                if one.mean is not None:
                    found.append({
                        "metric": metric, "score": one.mean, "low": one.low, "high": one.high,
                        "cases": one.cases, "since": since, "batch_size": arm.setting.batch_size,
                        "when": "retention", "untouched": None,
                    })  # fmt: skip
    return found


def _kept(results: Results) -> list[Arm]:
    """The arms with retention, in the setting nearest to the paper's."""
    asked = [
        {size: arm for size, arm in curve.items() if "retention" in arm.point.when}
        for curve in _fullest(carried(results, "immediate"))
    ]
    return next((list(curve.values()) for curve in asked if curve), [])


def _aged(results: Results, cell: str, size: int) -> Iterator[tuple[int, Row]]:
    """Rows of retention, each with the facts written since its own batch, as a power of two."""
    own = {row.case: row.step for row in results.study.scored(cell, "immediate")}
    for row in results.study.scored(cell, "retention"):
        if row.case in own and row.step > own[row.case]:
            since = (row.step - own[row.case]) * size
            yield 1 << (since.bit_length() - 1), row


def norms(results: Results) -> list[Record]:
    """‖W − W₀‖ as a share of ‖W₀‖ by edits written, for each state of the factors."""
    shown = _states(carried(results, "final"))
    arms = [arm for curve in shown for arm in curve.values()]
    fields = varying(arms, "batch_size", "method", "score")
    found: list[Record] = []
    for curve in shown:
        for size, arm in curve.items():
            setting = describe(shared(curve), fields) or "all"
            steps = results.study.steps(arm.runs[0].cell)
            found += [
                {"edits": step["at"], "moved": share, "batch_size": size, "setting": setting}
                for step in _thinned(steps)
                if (share := moved(step)) is not None
            ]
    return found


def _thinned(steps: Sequence[Mapping[str, Any]], most: int = 60) -> list[Mapping[str, Any]]:
    every = max(1, len(steps) // most)
    kept = list(steps[::every])
    return kept if kept and kept[-1] is steps[-1] else [*kept, *steps[-1:]]


def moved(step: Mapping[str, Any]) -> float | None:
    """Over all layers of a step: root of the sum of squares, per cent of the weights' own."""
    total = sum(float(v) ** 2 for v in step.get("total_norm", {}).values())
    weight = sum(float(v) ** 2 for v in step.get("weight_norm", {}).values())
    return 100 * (total / weight) ** 0.5 if weight else None


def seconds_per_edit(results: Results, arm: Arm) -> float | None:
    """Features and solve, as if nothing had been cached; mean over seeds and batches."""
    steps = [step for run in arm.runs for step in results.study.steps(run.cell)]
    edits = sum(int(str(step["edits"])) for step in steps)
    return sum(float(str(step["seconds"])) for step in steps) / edits if edits else None


def trade_offs(results: Results) -> list[Record]:
    """Final precision (harmonic mean of ES and PS) against NS at the largest N, with seconds."""
    curves = _fullest(carried(results, "final"))
    arms = list({arm.setting: arm for curve in curves for arm in curve.values()}.values())
    fields = ("method", *(f for f in varying(arms, "batch_size", "score") if f != "method"))
    return priced(results, [(arm, describe(arm.setting, fields)) for arm in arms])


def priced(results: Results, named: Sequence[tuple[Arm, str]]) -> list[Record]:
    """What arms have of either, and in seconds; `front`: nothing beats them in both."""
    found: list[Record] = []
    for arm, name in named:
        es, ps, ns = (results.estimate(arm, "final", metric) for metric in SCORES[:3])
        if es.mean and ps.mean and ns.mean is not None:
            found.append({
                "precision": 2 / (1 / es.mean + 1 / ps.mean), "preservation": ns.mean,
                "low": ns.low, "high": ns.high, "batch_size": arm.setting.batch_size,
                "seconds": seconds_per_edit(results, arm), "setting": name, "when": "final",
            })  # fmt: skip
    return _on_front(found)


def _on_front(found: list[Record]) -> list[Record]:
    """Marks those that nothing beats in both precision and preservation."""
    ordered = sorted(found, key=lambda r: (-r["preservation"], -r["precision"]))
    best = [-1.0, *accumulate((r["precision"] for r in ordered), max)]
    return [
        {**record, "front": record["precision"] > before}
        for record, before in zip(ordered, best, strict=False)
    ]


def tuning(results: Results) -> list[Record]:
    """S by ridge, for each ridge that was tuned."""
    tuned = results.study.tuned
    return [
        {
            "ridge": ridge, "score": score, "chosen": ridge == one.ridge,
            "series": f"{called(one.method)}, batches of {one.batch_size:,}"
            f"{', carried' * carries(one.schedule)}, seed {one.seed}",
            "model": one.model, "n": one.n,
        }
        for one in tuned
        for ridge, score in zip(one.ridges, one.scores, strict=True)
        if score is not None
    ]  # fmt: skip


def effects(findings: Iterable[Finding], key: str, **about: object) -> list[Record]:
    """The claims of a finding whose `about` says so, as points with intervals."""
    return [
        {
            **claim.about, "metric": claim.metric, "effect": claim.effect.mean,
            "low": claim.effect.low, "high": claim.effect.high, "when": claim.when,
            "text": claim.text,
        }
        for finding in findings
        if finding.key == key
        for claim in finding.claims
        if claim.effect.mean is not None
        and all(claim.about.get(name) == value for name, value in about.items())
    ]  # fmt: skip


def deciding(findings: Iterable[Finding]) -> list[Record]:
    """All claims that decide a verdict, as points with intervals."""
    return [
        {
            "claim": f"({finding.key}) {claim.text}", "effect": claim.effect.mean,
            "low": claim.effect.low, "high": claim.effect.high, "when": claim.when,
            "verdict": claim.verdict,
        }
        for finding in findings
        for claim in finding.claims
        if claim.primary and claim.effect.mean is not None
    ]  # fmt: skip
