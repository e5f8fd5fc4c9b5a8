"""`retcon patch export` and `retcon patch import`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from retcon.cli import choices
from retcon.cli.choices import ModelChoice
from retcon.cli.console import bars, number, out, quiet_libraries, table, warn, write_json
from retcon.errors import InvalidSetting
from retcon.files import check_writable

if TYPE_CHECKING:
    from retcon.edits import Case
    from retcon.patch.export import Exported
    from retcon.patch.patch import Patch
    from retcon.run.rounding import Efficacy


To = Annotated[str, typer.Option("--to", help="peft, gguf, merged or delta.", show_default=False)]
Output = Annotated[Path, typer.Option("--output", "-o", help="A new folder.", show_default=False)]
Dtype = Annotated[
    str | None,
    typer.Option(help="Of what is written.", show_default="float32; merged: as the base"),
]
Rank = Annotated[
    int | None, typer.Option(help="peft, gguf: the largest rank.", show_default="all rows")
]
Cases = Annotated[
    str | None, typer.Option(help="merged: what to score.", show_default="the patch's facts")
]
FormOption = Annotated[
    list[str] | None,
    typer.Option("--option", help="An option of the form, name=value. May be repeated."),
]
Check = Annotated[bool, typer.Option("--check/--no-check", help="merged: score what was written.")]


def export(
    source: choices.Source,
    to: To,
    output: Output,
    model: choices.Base = None,
    dtype: Dtype = None,
    max_rank: Rank = None,
    cases: Cases = None,
    option: FormOption = None,
    skip_bad: choices.SkipBad = False,
    check: Check = True,
    revision: choices.Revision = None,
    json: choices.Json = None,
) -> None:
    """Write a patch in a form that other programs read.

    peft: a LoRA adapter. gguf: one for llama.cpp. merged: the whole model, a new checkpoint.
    delta: ΔW of each matrix.
    """
    from retcon.patch.export import EXPORT_FORMS
    from retcon.patch.ledger import read_source

    scored = EXPORT_FORMS.find(to).is_model and check
    if cases is not None and not scored:
        raise InvalidSetting("--cases says what to score after merging: use --to merged --check.")
    check_writable(json)
    quiet_libraries()
    patch = read_source(source)
    base = ModelChoice(name=model or patch.about.model, revision=revision)
    given = {"dtype": dtype, "max_rank": max_rank, **choices.parse_settings(option, "--option")}
    chosen = {name: value for name, value in given.items() if value is not None}
    edited = cases_of(patch, cases, skip_bad) if scored else []
    with bars() as progress:
        done = patch.export(
            to, output, model=base.name, revision=revision, progress=progress, **chosen
        )
    _print(done)
    dtype = done.dtype or "float32"
    efficacy = _efficacy(base, patch, output, edited, dtype) if edited else None
    files = {file.name: file.stat().st_size for file in sorted(output.iterdir())}
    rows = [[name, _size(size)] for name, size in files.items()]
    out.print(table(str(output), ["file", "size"], rows))
    record = {
        **done.record,
        **({"efficacy": efficacy and efficacy._asdict()} if done.dtype else {}),
    }
    write_json(json, {"form": to, "model": base.name, "files": files, **record})


def _print(done: "Exported") -> None:
    for one in done.tables:
        out.print(table(one.title, list(one.columns), [list(row) for row in one.rows]))
    for note in done.notes:
        out.print(note, soft_wrap=True)
    for warning in done.warnings:
        warn(warning)


def import_(
    model: choices.Model,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A PEFT LoRA adapter.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Save the patch here.", show_default=False)
    ],
    revision: choices.Revision = None,
) -> None:
    """Read a PEFT LoRA adapter of MODEL's MLP down-projections as a patch."""
    check_writable(output)
    quiet_libraries()
    with bars() as progress:
        from retcon.model.checkpoint import CheckpointFiles
        from retcon.patch.export.peft import read_peft

        checkpoint = CheckpointFiles.open(model, revision=revision, progress=progress)
        weights = checkpoint.weights
        patch = read_peft(
            folder, checkpoint.outline, base=weights.fingerprint, digest=weights.digest
        )
    patch.save(output)
    facts = f"{len(patch.about.edits)} facts" if patch.about.edits else "no single facts"
    out.print(
        f"Saved [bold]{escape(str(output))}[/]: {facts}, layers "
        f"{', '.join(map(str, patch.about.layers))}. Look at it: retcon patch show "
        f"{escape(str(output))}",
        soft_wrap=True,
    )


def _efficacy(
    source: ModelChoice, patch: "Patch", folder: Path, cases: "list[Case]", dtype: str
) -> "Efficacy":
    """Score base and patch, then what was written; never two models at a time."""
    from retcon.model.load import load
    from retcon.run.rounding import efficacy, native_rows

    with bars() as progress:
        base = source.load(progress)
        pre, native = native_rows(base, patch, cases, progress)
        del base
        merged = load(str(folder), dtype=dtype)
        found = efficacy(pre, native, merged, cases, progress)
    _print_efficacy(found, len(cases), dtype)
    return found


def _print_efficacy(efficacy: "Efficacy", facts: int, dtype: str) -> None:
    forms = list(efficacy.scores)
    rows = [
        [name, *(number(efficacy.scores[form][name]) for form in forms)]
        for name, score in efficacy.scores["merged"].items()
        if score is not None
    ]
    out.print(table("Scores after rounding, in %", ["", *forms], rows))
    if efficacy.lost:
        shown = ", ".join(efficacy.lost[:5]) + (" …" if len(efficacy.lost) > 5 else "")
        warn(
            f"{len(efficacy.lost)} of {facts} facts are lost by rounding to {dtype}: {shown}. "
            f"Export --to peft, which keeps the edit apart, or merge with --dtype float32."
        )


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count > 1e6 else f"{count / 1e3:.1f} kB"


def cases_of(patch: "Patch", file: str | None, skip_bad: bool) -> "list[Case]":
    """The cases of a file, or the patch's own facts."""
    from retcon.data.cases import load_cases
    from retcon.edits import Case

    if file is None:
        return [Case(edit=edit) for edit in patch.edits]
    return load_cases(file, skip_bad=skip_bad)
