"""`retcon patch audit`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from retcon.cli import choices
from retcon.cli.choices import ModelChoice
from retcon.cli.commands.shipping import cases_of
from retcon.cli.console import bars, out, quiet_libraries, table, write_json
from retcon.cli.general import finite
from retcon.environment import environment
from retcon.errors import InvalidEdit, InvalidSetting
from retcon.files import check_writable

if TYPE_CHECKING:
    from retcon.edits import Edit
    from retcon.patch.audit import Audit
    from retcon.run.scorecard import Scorecard

Candidates = Annotated[
    Path | None,
    typer.Option(
        help="Whom to look for: a file of facts; or .txt, a name or a prompt with {braces} a line.",
        show_default="the patch's facts",
    ),
]
Card = Annotated[
    Path | None,
    typer.Option(help="Score the patch too, and write all of it to this file as Markdown."),
]
Cases = Annotated[
    str | None, typer.Option(help="With --card: what to score.", show_default="the patch's facts")
]
# So many candidates are printed.
_SHOWN = 20


def audit(
    source: choices.Source,
    model: choices.Base = None,
    candidates: Candidates = None,
    card: Card = None,
    cases: Cases = None,
    skip_bad: choices.SkipBad = False,
    revision: choices.Revision = None,
    dtype: choices.Dtype = "float32",
    device: choices.Device = "cpu",
    json: choices.Json = None,
) -> None:
    """Show what a patch file gives away: which subjects its rows point to, without its header."""
    from retcon.patch.ledger import read_source

    if cases is not None and card is None:
        raise InvalidSetting("--cases says what to score for a card: add --card FILE.md.")
    check_writable(json)
    check_writable(card)
    quiet_libraries()
    patch = read_source(source)
    guesses = None if candidates is None else _guesses(candidates, skip_bad)
    asked = cases_of(patch, cases, skip_bad) if card is not None else []
    if card is not None and not asked:
        raise InvalidSetting("This patch lists no facts to score. Say which: --cases FILE.")
    base = ModelChoice(
        name=model or patch.about.model, revision=revision, dtype=dtype, device=device
    )
    with bars() as progress:
        from retcon.patch.audit import audit as look
        from retcon.run.scorecard import scorecard

        handle = base.load(progress)
        seen = look(handle, patch, guesses, progress)
        scored = scorecard(handle, patch, seen, asked, progress) if asked else None
    _print(source, seen, scored)
    if card is not None and scored is not None:
        _write(card, scored.markdown())
    write_json(json, {"patch": source, **_described(seen, scored), "versions": environment()})


def _print(source: str, seen: "Audit", scored: "Scorecard | None") -> None:
    from retcon.patch.audit import COLUMNS

    for sentence in seen.sentences():
        out.print(escape(sentence), soft_wrap=True)
    title = f"{source}: {len(seen.candidates):,} candidates against {seen.decoys:,} decoys"
    out.print(table(title, list(COLUMNS), seen.lines()[:_SHOWN]))
    if scored is not None:
        title = f"Scores over {scored.facts:,} facts"
        out.print(table(title, ["[95 % interval]", "without", "with"], scored.lines()))


def _write(card: Path, text: str) -> None:
    from retcon.files import write_whole

    write_whole(card, lambda work: work.write_text(text, encoding="utf-8"))
    out.print(f"Saved [bold]{escape(str(card))}[/].", soft_wrap=True)


def _guesses(file: Path, skip_bad: bool) -> "list[Edit]":
    """Read the facts of a file, or the names and prompts of one that ends in .txt."""
    from retcon.data.cases import load_cases
    from retcon.data.text import read_text

    if file.suffix != ".txt":
        return [case.edit for case in load_cases(file, skip_bad=skip_bad)]
    lines = [line.strip() for line in read_text(file).splitlines()]
    guesses = [_guess(line, number) for number, line in enumerate(lines, start=1) if line]
    if not guesses:
        raise InvalidEdit(f"{file} holds no names.")
    return guesses


def _guess(line: str, number: int) -> "Edit":
    """A name, or a prompt with its subject in braces; what would follow does not matter."""
    from retcon.edits import Edit

    prompt = line if "{" in line else f"{{{line}}}"
    return Edit.parse(prompt, "?", id=f"line {number}")


def _described(seen: "Audit", scored: "Scorecard | None") -> dict[str, object]:
    audited: dict[str, object] = {
        "facts_in_clear": seen.in_clear,
        "ranks": {str(layer): list(rank) for layer, rank in seen.ranks.items()},
        "decoys": seen.decoys,
        "auc": dict(seen.auc),
        "candidates": [
            {**one._asdict(), "edit": one.edit.id, "head": one.edit.head} for one in seen.candidates
        ],
    }
    if scored is None:
        return audited
    levels = {
        when: {
            name: [finite(value) for value in (one.mean, one.low, one.high)]
            for name, one in scored.scores.scores(when).items()
        }
        for when in scored.scores.times
    }
    return {**audited, "scores": levels}
