"""Export a patch as whole matrices: merged into a checkpoint, or as ΔW itself.

Both are written a tensor at a time, so that neither needs the model in memory. Merging in half
precision rounds the edited matrices, and the part of ΔW below a rounding step is lost; how much
that is, is measured here, and what it does to the facts is a matter of scoring the result.
"""

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from shutil import copyfile
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from retcon.algebra.delta import LowRankDelta
from retcon.errors import NotExportable, PatchMismatch
from retcon.model.checkpoint import (
    FLOATS,
    CheckpointFiles,
    Piece,
    Shard,
    copy_piece,
    piece_of,
    write_safetensors,
    write_tensor,
)
from retcon.model.load import CHECKPOINT_FILES, find_dtype
from retcon.model.structure import Outline
from retcon.patch.export import Exported, ExportTable, Job, export_form
from retcon.patch.export.card import write_card
from retcon.patch.export.lora import check_shapes
from retcon.patch.patch import Patch, mismatch
from retcon.progress import Progress, silent

DELTA = "delta.safetensors"
_MERGING = "merging, in tensors"
# Rows of ΔW that are multiplied out at a time hold at most this many float64 numbers (128 MiB).
_CHUNK = 2**24


class Rounding(NamedTuple):
    """Effect of rounding on the edit of one layer.

    Attributes:
        lost: how far the change that was written is from the one that was wanted, ‖round(W + ΔW) −
            round(W) − ΔW‖ / ‖ΔW‖.
        unmoved: share of the matrix's numbers that are what they would be without the edit.
    """

    dtype: str
    lost: float
    unmoved: float


class _Edited(NamedTuple):
    """A stored tensor that changes, and by what."""

    layer: int
    transposed: bool
    delta: LowRankDelta


def write_merged(
    folder: Path,
    patch: Patch,
    checkpoint: CheckpointFiles,
    dtype: torch.dtype | None = None,
    progress: Progress = silent,
) -> dict[int, Rounding]:
    """Write the checkpoint with the patch in its weights; by layer, what rounding lost.

    The sum is taken in float64, and rounded to float32 and then to the dtype, as in a model that
    is loaded and edited.

    Args:
        dtype: of all float tensors; None: each as it is stored, and shards without an edited matrix
            are copied.

    Raises:
        PatchMismatch: the checkpoint is not the base model of the patch.
        NotExportable: an edited matrix that is not stored in floats.
    """
    check_shapes(patch, checkpoint.outline)
    if not checkpoint.weights.answers_to(patch.about.base, patch.about.digest):
        said = mismatch(patch.about, str(checkpoint.folder), checkpoint.weights)
        raise PatchMismatch(f"{said} Name the model it was made for.")
    edited = _edited(patch, checkpoint)
    lost: dict[int, Rounding] = {}
    total, before = sum(len(shard.pieces) for shard in checkpoint.shards), 0
    for shard in checkpoint.shards:

        def advance(done: int, before: int = before) -> None:
            progress(_MERGING, before + done, total)

        advance(0)
        ours = {name: edit for (file, name), edit in edited.items() if file == shard.file}
        target = folder / shard.file.name
        if ours or dtype is not None:
            lost |= _write_shard(target, shard, ours, dtype, advance)
        else:
            copyfile(shard.file, target)
        before += len(shard.pieces)
    progress(_MERGING, total, total)
    _copy_rest(checkpoint.folder, folder, dtype)
    use = [
        "from transformers import AutoModelForCausalLM",
        "",
        'model = AutoModelForCausalLM.from_pretrained(".")',
    ]
    write_card(folder, patch, relation="finetune", library="transformers", use=use)
    return dict(sorted(lost.items()))


def write_delta(folder: Path, patch: Patch, outline: Outline) -> None:
    """Write ΔW of each layer in float32, under the name and in the layout of the parameter."""
    check_shapes(patch, outline)
    sites = {outline.site(layer).path: outline.site(layer) for layer in patch.deltas}
    pieces = {
        path: piece_of(
            (site.d_in, site.d_out) if site.transposed else (site.d_out, site.d_in), torch.float32
        )
        for path, site in sites.items()
    }

    def write(path: str, stream: BinaryIO) -> None:
        site = sites[path]
        delta = patch.deltas[site.layer]
        _write_rows(delta, site.transposed, lambda _rows, change: change.float(), stream)

    header = {"format": "pt", "retcon": patch.about.model_dump_json()}
    write_safetensors(folder / DELTA, pieces, write, header)


def _edited(patch: Patch, checkpoint: CheckpointFiles) -> dict[tuple[Path, str], _Edited]:
    """The stored tensors that change, by file and name."""
    edited: dict[tuple[Path, str], _Edited] = {}
    for layer, delta in patch.deltas.items():
        site = checkpoint.outline.site(layer)
        shard, name = checkpoint.home(site.path)
        if shard.pieces[name].code not in FLOATS:
            raise NotExportable(
                f"{name} is stored as {shard.pieces[name].code}, to which nothing can be added. "
                f"Serve the edit beside it: --to peft, or --to gguf."
            )
        edited[shard.file, name] = _Edited(layer, site.transposed, delta)
    return edited


def _write_shard(
    target: Path,
    shard: Shard,
    edited: dict[str, _Edited],
    dtype: torch.dtype | None,
    advance: Callable[[int], None],
) -> dict[int, Rounding]:
    """Write a shard with some tensors changed and all floats in a dtype.

    advance: is told how many of its tensors are written.
    """
    from safetensors import safe_open

    lost: dict[int, Rounding] = {}
    number = count()
    pieces = {name: _recast(piece, dtype) for name, piece in shard.pieces.items()}
    with safe_open(shard.file, framework="pt") as source:

        def write(name: str, stream: BinaryIO) -> None:
            advance(next(number))
            if name in edited:
                made = FLOATS[pieces[name].code]
                merging = _Merging(source.get_tensor(name), edited[name].transposed, made)
                _write_rows(edited[name].delta, edited[name].transposed, merging.rows, stream)
                lost[edited[name].layer] = merging.rounding(edited[name].delta)
            elif pieces[name].code == shard.pieces[name].code:
                copy_piece(shard, name, stream)
            else:
                write_tensor(source.get_tensor(name).to(FLOATS[pieces[name].code]), stream)

        write_safetensors(target, pieces, write, shard.metadata)
    return lost


class _Merging:
    """One matrix on its way from what is stored to what is written, with what rounding does."""

    def __init__(self, stored: Tensor, transposed: bool, dtype: torch.dtype) -> None:
        self.weight = stored.mT if transposed else stored
        self.dtype = dtype
        self.squared = 0.0
        self.unmoved = 0

    def rows(self, rows: slice, change: Tensor) -> Tensor:
        """W + ΔW for some rows of W, rounded."""
        exact = self.weight[rows].double() + change
        master = exact if self.dtype == torch.float64 else exact.float()
        rounded = master.to(self.dtype)
        without = self.weight[rows].to(self.dtype)
        self.squared += float((rounded.double() - without.double() - change).square().sum())
        self.unmoved += int((rounded == without).sum())
        return rounded

    def rounding(self, delta: LowRankDelta) -> Rounding:
        """Measure how much of ΔW rounding has lost."""
        norm = delta.norm()
        share = self.unmoved / self.weight.numel()
        name = str(self.dtype).removeprefix("torch.")
        return Rounding(name, self.squared**0.5 / norm if norm else 0.0, share)


def _write_rows(
    delta: LowRankDelta,
    transposed: bool,
    make: Callable[[slice, Tensor], Tensor],
    stream: BinaryIO,
) -> None:
    """Write a matrix made from rows of ΔW; a transposed layout is put together before."""
    d_out, d_in = delta.left.shape[1], delta.right.shape[1]
    height = max(1, _CHUNK // d_in)
    parts: list[Tensor] = []
    for start in range(0, d_out, height):
        rows = slice(start, start + height)
        edited = make(rows, delta.dense(rows))
        if transposed:
            parts.append(edited)
        else:
            write_tensor(edited, stream)
    if parts:
        write_tensor(torch.cat(parts).mT, stream)


def _recast(piece: Piece, dtype: torch.dtype | None) -> Piece:
    """Describe a tensor as it is in a file whose floats have a dtype."""
    if dtype is None or piece.code not in FLOATS:
        return piece
    return piece_of(piece.shape, dtype)


def _copy_rest(source: Path, target: Path, dtype: torch.dtype | None) -> None:
    """Copy configuration and tokenizer, but no weights, no code, and no other model's card."""
    for file in sorted(source.iterdir()):
        wanted = file.suffix in CHECKPOINT_FILES and file.suffix != ".safetensors"
        if not file.is_file() or not wanted or file.name.startswith("."):
            continue
        if file.name == "config.json" and dtype is not None:
            config = json.loads(file.read_bytes())
            config.pop("torch_dtype", None)
            config["dtype"] = str(dtype).removeprefix("torch.")
            text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
            (target / file.name).write_text(text, encoding="utf-8")
        elif file.name == "model.safetensors.index.json" and dtype is not None:
            _write_index(file, target)
        else:
            copyfile(file, target / file.name)


def _write_index(file: Path, target: Path) -> None:
    """The index of shards, with the size that they have now."""
    index = json.loads(file.read_bytes())
    size = sum(part.stat().st_size for part in target.glob("*.safetensors"))
    index["metadata"] = {**index.get("metadata", {}), "total_size": size}
    (target / file.name).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


@export_form("merged", is_model=True)
def merged(job: Job, *, dtype: str | None = None) -> Exported:
    """The whole model with the patch in its weights, a new checkpoint.

    Args:
        dtype: of all float tensors; by default each stays as it is stored.
    """
    kind = None if dtype is None else find_dtype(dtype)
    job.progress("reading the base model", 0, 1)
    checkpoint = CheckpointFiles.open(job.model, revision=job.revision, progress=job.progress)
    lost = write_merged(job.folder, job.patch, checkpoint, kind, job.progress)
    job.progress("reading the base model", 1, 1)
    rows = [
        [str(layer), one.dtype, f"{100 * one.lost:.2f}", f"{100 * one.unmoved:.1f}"]
        for layer, one in lost.items()
    ]
    columns = ["layer", "stored as", "rounding, in % of ‖ΔW‖", "numbers left as they were, in %"]
    return Exported(
        tables=[ExportTable("Merged", columns, rows)],
        record={"rounding": {str(layer): one._asdict() for layer, one in lost.items()}},
        dtype=next(iter(lost.values())).dtype,
    )


@export_form("delta")
def delta(job: Job) -> Exported:
    """ΔW of each matrix, in float32, in which nothing is lost."""
    write_delta(job.folder, job.patch, job.outline())
    return Exported(record={})
