"""`retcon edit`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from rich.markup import escape

from retcon.cli import choices
from retcon.cli.choices import EditChoice, ModelChoice
from retcon.cli.console import bars, number, out, table, warn, write_json
from retcon.cli.foreseen import print_interference
from retcon.cli.plan import print_plan
from retcon.environment import environment
from retcon.errors import Collapsed, InvalidEdit, InvalidSetting, NotSaid
from retcon.files import check_writable
from retcon.progress import Progress

if TYPE_CHECKING:
    from retcon.data.cases import FactFile
    from retcon.edits import Case, Edit
    from retcon.model.handle import ModelHandle
    from retcon.patch.patch import Patch
    from retcon.run.outcomes import PatchOutcome
    from retcon.run.repair import Repaired

Fact = Annotated[
    tuple[str, str] | None,
    typer.Option(
        "--fact",
        metavar="PROMPT TARGET",
        show_default=False,
        help="One fact; its subject in braces: 'The capital of {France} is' Rome.",
    ),
]
Facts = Annotated[
    Path | None,
    typer.Option(
        "--facts",
        help="Many facts: JSON lines, CounterFact, or the set `everyday`.",
        show_default=False,
    ),
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Save the patch to this file.")]
Schedule = Annotated[
    str | None,
    typer.Option(
        help="sequential, sequential-batch:B, adaptive-aimd:B or adaptive-energy:B. "
        "Default: one batch of all."
    ),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Exit with code 2 where a fact is not said.")
]
UntilSaid = Annotated[
    int,
    typer.Option(
        "--until-said",
        metavar="N",
        help="Try facts that are not said again, harder, in at most N rounds.",
        min=0,
        max=10,
        show_default="none",
    ),
]
Edits = Annotated[
    int | None,
    typer.Option(
        help="With --plan: number of facts to plan for (no file needed).", min=1, show_default=False
    ),
]
Interference = Annotated[
    str | None,
    typer.Option(
        "--interference",
        metavar="FILE|-",
        help="Print which facts would disturb which, and stop. FILE.csv: every pair, a heat map.",
        show_default=False,
    ),
]


def edit(
    model: choices.Model,
    fact: Fact = None,
    facts: Facts = None,
    skip_bad: choices.SkipBad = False,
    output: Output = None,
    method: choices.Method = None,
    layer: choices.Layer = None,
    layers: choices.Layers = None,
    set: choices.Set = None,
    fast: choices.Fast = False,
    schedule: Schedule = None,
    refresh: choices.Refresh = "each-batch",
    guard: choices.Guard = "off",
    until_said: UntilSaid = 0,
    strict: Strict = False,
    interference: Interference = None,
    plan: choices.Plan = False,
    edits: Edits = None,
    gflops: choices.Rate = None,
    revision: choices.Revision = None,
    dtype: choices.Dtype = "float32",
    device: choices.Device = "cpu",
    json: choices.Json = None,
) -> None:
    """Rewrite facts: make the patch, ask for each fact, show what is said, and save it with -o.

    Where --guard stop or rollback ends the run before all facts are in, what is in is shown and
    saved, and the exit code is 2. It watches the facts' probes, too. Facts that --until-said does
    not bring about are left out.
    """
    source = ModelChoice(name=model, revision=revision, dtype=dtype, device=device)
    scheduled = "off" if schedule is None else guard
    choice = EditChoice.parse(method, layer, layers, set, schedule, refresh, scheduled, fast)
    if plan:
        if interference is not None:
            raise InvalidSetting("--plan and --interference each end the command: give one.")
        planned = _planned(fact, facts, skip_bad, edits)
        print_plan(source, choice, planned, gflops=gflops, json=json)
        return
    if (edits, gflops) != (None, None):
        raise InvalidSetting("--edits and --gflops say what --plan is to reckon with: add --plan.")
    cases, skipped, _ = _facts(fact, facts, skip_bad)
    if interference is not None:
        print_interference(source, choice, [case.edit for case in cases], interference, json)
        return
    _check_until_said(until_said, schedule, guard)
    choice = choice.watched(guard, cases)
    check_writable(json)
    check_writable(output)
    result = _run(source, choice, cases, until_said)
    _print(result)
    if output is not None:
        _save(result.patch, output)
    left_out = _left_out(result.patch, cases)
    asked = {"asked": len(cases), "skipped": [str(bad) for bad in skipped], "left_out": left_out}
    write_json(json, {"model": model, **_described(result, asked)})
    if left_out and not until_said:
        raise _unfinished(left_out, len(cases), output)
    if strict and result.outcome.shortfall:
        raise NotSaid(result.outcome.shortfall)


def _planned(
    fact: tuple[str, str] | None, facts: Path | None, skip_bad: bool, edits: int | None
) -> "int | list[Edit]":
    """The facts to plan for, or their number alone."""
    if edits is None:
        return [case.edit for case in _facts(fact, facts, skip_bad).cases]
    if (fact, facts) != (None, None):
        raise InvalidSetting("--edits stands in the place of --fact and --facts: give one of them.")
    return edits


def _check_until_said(until_said: int, schedule: str | None, guard: str) -> None:
    """Refuse what does not go with trying again."""
    if until_said and (schedule, guard) != (None, "off"):
        raise InvalidSetting(
            "--until-said writes all facts in one batch, and watches the probes by itself: leave "
            "--schedule and --guard out."
        )


class _Result(NamedTuple):
    """A patch that was made, how it was repaired where that was asked for, and what it comes to."""

    outcome: "PatchOutcome"
    repair: "Repaired | None"

    @property
    def patch(self) -> "Patch":
        return self.outcome.patch

    @property
    def remarks(self) -> list[str]:
        """Notes for the user: who was left out, what is not said, which probes changed."""
        return [*([self.repair.told()] if self.repair else []), *self.outcome.told()]

    @property
    def record(self) -> dict[str, object]:
        """The rounds of repair, the probes, and the model's own words, for JSON."""
        repair = {"repair": self.repair.record()} if self.repair else {}
        own = self.outcome.remarks.record()
        return {"probes": self.outcome.harm.record(), "own_words": own, **repair}


def _run(source: ModelChoice, choice: EditChoice, cases: "list[Case]", until_said: int) -> _Result:
    with bars() as progress:
        model = source.load(progress)
        from retcon.run.outcomes import check_outcome, outcome_of

        check_outcome(model, cases)
        # The patch first: an option that does not fit should not cost the minutes of scoring.
        patch, repair = _made(model, choice, cases, until_said, progress)
        return _Result(outcome_of(model, cases, patch, progress), repair)


def _made(
    model: "ModelHandle",
    choice: EditChoice,
    cases: "list[Case]",
    until_said: int,
    progress: Progress,
) -> "tuple[Patch, Repaired | None]":
    """The patch, and how it was repaired where that was asked for."""
    from retcon.run.edit import edit as make
    from retcon.run.repair import edit_until_said

    if until_said:
        repair = edit_until_said(
            model,
            cases,
            rounds=until_said,
            method=choice.method,
            layers=choice.layers,
            settings=choice.settings,
            progress=progress,
        )
        return repair.patch, repair
    patch = make(
        model,
        [case.edit for case in cases],
        method=choice.method,
        layers=choice.layers,
        settings=choice.settings,
        schedule=choice.schedule,
        progress=progress,
    )
    return patch, None


def _described(result: _Result, asked: Mapping[str, object]) -> dict[str, object]:
    """Record of a patch, of what was asked for, and of the scores."""
    return {
        **result.patch.about.model_dump(mode="json"),
        **asked,
        "notes": list(result.patch.notes),
        "facts": [verdict.record() for verdict in result.outcome.verdicts],
        **result.record,
        **result.outcome.scores,
        "versions": environment(),
    }


def _left_out(patch: "Patch", cases: "list[Case]") -> list[str]:
    """Ids of the facts that a guard has left out of a patch."""
    written = {record.id for record in patch.about.edits}
    return [case.edit.id for case in cases if case.edit.id not in written]


def _unfinished(left_out: list[str], number: int, output: Path | None) -> Collapsed:
    """Make the error for a run that did not write all facts."""
    shown = ", ".join(left_out[:5]) + (" …" if len(left_out) > 5 else "")
    saved = "" if output is None else f" Those that are written are saved in {output}."
    return Collapsed(
        f"The guard has ended the run, for the reason above: written {number - len(left_out)} of "
        f"{number} facts, left out {shown}.{saved} Write the others with smaller batches, a larger "
        f"ridge or another layer, or all of them with --guard warn, which goes on whatever it sees."
    )


def _print(result: _Result) -> None:
    outcome = result.outcome
    shown = outcome.verdicts[: len(outcome.before)]
    lines = [
        [
            one.prompt,
            one.target,
            _short(outcome.before[one.prompt]),
            _short(one.text),
            one.word,
            f"{one.others.right} of {one.others.of}" if one.others.of else "–",
        ]
        for one in shown
    ]
    columns = ["prompt", "asked for", "before", "after", "verdict", "other ways"]
    out.print(table("What the model says", columns, lines))
    if len(shown) < len(outcome.verdicts):
        out.print(f"Shown: {len(shown)} of {len(outcome.verdicts)} facts, those not said first.")
    pre, final = outcome.scores["pre"], outcome.scores["final"]
    rows = [
        [name, number(pre[name]), number(score)]
        for name, score in final.items()
        if score is not None
    ]
    out.print(table("Scores, in %", ["", "pre", "final"], rows))
    for remark in result.remarks:
        warn(remark)


def _save(patch: "Patch", file: Path) -> None:
    patch.save(file)
    size = file.stat().st_size / 1e3
    name = escape(str(file))
    out.print(
        f"Saved [bold]{name}[/] ({size:.1f} kB). Look at it: retcon patch show {name}",
        soft_wrap=True,
    )


def _facts(fact: tuple[str, str] | None, facts: Path | None, skip_bad: bool) -> "FactFile":
    """Read the facts to be edited, from one of the two options."""
    from retcon.data.cases import FactFile, read_facts
    from retcon.edits import Case, Edit

    if fact is not None and facts is None:
        return FactFile([Case(edit=Edit.parse(fact[0], fact[1]))])
    if facts is not None and fact is None:
        return read_facts(facts, skip_bad=skip_bad)
    raise InvalidEdit(
        f"Say what to edit: one fact with --fact PROMPT TARGET, or --facts FILE; "
        f"{'neither was' if fact is None else 'both were'} given."
    )


def _short(text: str) -> str:
    return " ".join(text.split())[:40]
