"""`retcon patch export` and `retcon patch import`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer
from rich.markup import escape

from retcon.cli import options
from retcon.cli.console import bars, number, out, quiet_libraries, table, warn, write_json
from retcon.cli.options import ModelChoice
from retcon.errors import InvalidSetting
from retcon.files import check_writable, whole_folder

if TYPE_CHECKING:
    from retcon.edits import Case
    from retcon.model.structure import Outline
    from retcon.patch.export.lora import Lora
    from retcon.patch.export.whole import Rounding
    from retcon.patch.patch import Patch
    from retcon.run.shipping import Efficacy

Form = Literal["peft", "merged", "delta", "gguf"]


class _Request(NamedTuple):
    """What is to be exported, of which model, and how."""

    patch: "Patch"
    model: str
    revision: str | None
    folder: Path
    dtype: str | None
    max_rank: int | None


def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="PATCH", help="A patch file, a ledger, or LEDGER@N.", show_default=False
        ),
    ],
    to: Annotated[Form, typer.Option("--to", help="The form.", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A new folder.", show_default=False)
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="MODEL", help="The base model.", show_default="the patch's"
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Of what is written.", show_default="float32; merged: as the base"),
    ] = None,
    max_rank: Annotated[
        int | None, typer.Option(help="peft, gguf: the largest rank.", show_default="all rows")
    ] = None,
    cases: Annotated[
        str | None,
        typer.Option(help="merged: what to score.", show_default="the patch's facts"),
    ] = None,
    skip_bad: options.SkipBad = False,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="merged: score what was written.")
    ] = True,
    revision: options.Revision = None,
    json: options.Json = None,
) -> None:
    """Write a patch in a form that other programs read.

    peft: a LoRA adapter. gguf: one for llama.cpp. merged: the whole model, a new checkpoint.
    delta: ΔW of each matrix.
    """
    from retcon.patch.sources import read_source

    if max_rank is not None and to in ("merged", "delta"):
        raise InvalidSetting("--max-rank is for --to peft and --to gguf; matrices have all ranks.")
    if cases is not None and (to != "merged" or not check):
        raise InvalidSetting("--cases says what to score after merging: use --to merged --check.")
    check_writable(json)
    quiet_libraries()
    patch = read_source(source)
    request = _Request(patch, model or patch.about.model, revision, output, dtype, max_rank)
    if to == "merged":
        said = _merged(request, _cases(patch, cases, skip_bad) if check else [])
    else:
        said = _delta(request) if to == "delta" else _lora(request, to)
    files = {file.name: file.stat().st_size for file in sorted(output.iterdir())}
    rows = [[name, _size(size)] for name, size in files.items()]
    out.print(table(str(output), ["file", "size"], rows))
    write_json(json, {"form": to, "model": request.model, "files": files, **said})


def import_(
    model: options.Model,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A PEFT LoRA adapter.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Save the patch here.", show_default=False)
    ],
    revision: options.Revision = None,
) -> None:
    """Read a PEFT LoRA adapter of MODEL's MLP down-projections as a patch."""
    check_writable(output)
    quiet_libraries()
    with bars() as progress:
        from retcon.model.checkpoint import Checkpoint
        from retcon.patch.export.peft import read_peft

        checkpoint = Checkpoint.open(model, revision=revision, progress=progress)
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


def _lora(request: _Request, to: Form) -> dict[str, object]:
    from retcon.model.load import find_dtype
    from retcon.patch.export.gguf import write_gguf
    from retcon.patch.export.lora import lora_of
    from retcon.patch.export.peft import write_peft

    dtype = find_dtype(request.dtype or "float32")
    structure = _outline(request)
    lora = lora_of(request.patch, structure, dtype=dtype, max_rank=request.max_rank)
    write = write_peft if to == "peft" else write_gguf
    with whole_folder(request.folder) as work:
        write(work, request.patch, lora, structure, dtype)
    _print_lora(lora, served_by_vllm=to == "peft")
    return {"rank": lora.rank, "errors": {str(k): v for k, v in lora.errors.items()}}


def _print_lora(lora: "Lora", *, served_by_vllm: bool) -> None:
    rows = [
        [str(layer), str(lora.rank), number(100 * error, 2)] for layer, error in lora.errors.items()
    ]
    out.print(table("Factors", ["layer", "rank", "lost by the rank cap, in % of ‖ΔW‖"], rows))
    if not served_by_vllm:
        return
    if lora.vllm_rank is None:
        warn(f"vLLM serves ranks up to 512; this is {lora.rank}. --max-rank 512 cuts it down.")
    else:
        out.print(f"vLLM: --enable-lora --max-lora-rank {lora.vllm_rank}", soft_wrap=True)


def _delta(request: _Request) -> dict[str, object]:
    from retcon.patch.export.whole import write_delta

    if request.dtype not in (None, "float32"):
        raise InvalidSetting("--to delta is written in float32, in which nothing is lost.")
    with whole_folder(request.folder) as work:
        write_delta(work, request.patch, _outline(request))
    return {}


def _merged(request: _Request, cases: "list[Case]") -> dict[str, object]:
    from retcon.model.checkpoint import Checkpoint
    from retcon.model.load import find_dtype
    from retcon.patch.export.whole import write_merged

    dtype = None if request.dtype is None else find_dtype(request.dtype)
    with bars() as progress:
        progress("reading the base model", 0, 1)
        checkpoint = Checkpoint.open(request.model, revision=request.revision, progress=progress)
        with whole_folder(request.folder) as work:
            lost = write_merged(work, request.patch, checkpoint, dtype, progress)
        progress("reading the base model", 1, 1)
    _print_rounding(lost)
    kind = next(iter(lost.values())).dtype
    found = _efficacy(request, cases, kind) if cases else None
    if found is not None:
        _print_efficacy(found, len(cases), kind)
    return {
        "rounding": {str(k): r._asdict() for k, r in lost.items()},
        "efficacy": None if found is None else found._asdict(),
    }


def _print_rounding(lost: "Mapping[int, Rounding]") -> None:
    rows = [
        [str(layer), r.dtype, number(100 * r.lost, 2), number(100 * r.unmoved, 1)]
        for layer, r in lost.items()
    ]
    columns = ["layer", "stored as", "rounding, in % of ‖ΔW‖", "numbers left as they were, in %"]
    out.print(table("Merged", columns, rows))


def _efficacy(request: _Request, cases: "list[Case]", dtype: str) -> "Efficacy":
    """Score base and patch, then what was written; never two models at a time."""
    from retcon.model.load import load
    from retcon.run.shipping import efficacy, native_rows

    with bars() as progress:
        base = ModelChoice(name=request.model, revision=request.revision).load(progress)
        pre, native = native_rows(base, request.patch, cases, progress)
        del base
        merged = load(str(request.folder), dtype=dtype)
        return efficacy(pre, native, merged, cases, progress)


def _print_efficacy(found: "Efficacy", facts: int, dtype: str) -> None:
    forms = list(found.scores)
    rows = [
        [name, *(number(found.scores[form][name]) for form in forms)]
        for name, score in found.scores["merged"].items()
        if score is not None
    ]
    out.print(table("Scores after rounding, in %", ["", *forms], rows))
    if found.lost:
        shown = ", ".join(found.lost[:5]) + (" …" if len(found.lost) > 5 else "")
        warn(
            f"{len(found.lost)} of {facts} facts are lost by rounding to {dtype}: {shown}. "
            f"Export --to peft, which keeps the edit apart, or merge with --dtype float32."
        )


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count > 1e6 else f"{count / 1e3:.1f} kB"


def _cases(patch: "Patch", file: str | None, skip_bad: bool) -> "list[Case]":
    """The cases of a file, or the patch's own facts."""
    from retcon.data.cases import load_cases
    from retcon.edits import Case

    if file is None:
        return [Case(edit=edit) for edit in patch.edits]
    return load_cases(file, skip_bad=skip_bad)


def _outline(request: _Request) -> "Outline":
    from retcon.model.load import outline

    return outline(request.model, revision=request.revision)
