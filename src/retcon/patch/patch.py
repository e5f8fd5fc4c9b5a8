"""A patch: an edit as an object, with its factors, its facts, and the model that it is for.

A patch file is a safetensors file: per layer the factors `layer.{L}.left` (n, d_out) and
`layer.{L}.right` (n, d_in), one row per edit, in float32; in its header one JSON text with the
edits, the method with all settings, and the base model's fingerprint. Where a change was made by
all its edits together the header says that rows are `shared`, and there are at most min(d_out,
d_in) of them. Where it names no edits (an adapter that was trained elsewhere), rows belong to none
and each layer has its own rank. Loading a file runs no code, and checks every shape against the
header before it reads a tensor. Files are sealed: what is not what was saved is refused.
"""

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    ValidationError,
    model_serializer,
)

from retcon import __version__
from retcon.algebra.delta import LowRankDelta
from retcon.edits import Edit
from retcon.errors import Damaged, InvalidEdit, InvalidPatch, PatchMismatch
from retcon.model.fingerprints import Weights
from retcon.model.handle import ModelHandle
from retcon.progress import Progress, silent
from retcon.sealed import Owner
from retcon.sealed_tensors import Tensors, open_tensors, save_tensors

if TYPE_CHECKING:
    from retcon.patch.export import Exported

FORMAT = 1
# Whose a patch is, its base says; a file may be copied anywhere.
OWNER: Owner = {"kind": "patch"}

# Fields that are not saved at these values, so that older readers, which know no such keys, accept
# the file.
_OMITTED_DEFAULTS = (
    ("rows", "edits"),
    ("refresh", "each-batch"),
    ("digest", None),
    ("verdict", None),
    ("tries", 0),
)

# How an edited model answers when it is asked for a fact: see `retcon.run.asked`.
VerdictWord = Literal["said", "partly", "not said"]


class EditRecord(BaseModel):
    """An edit as it stands in a patch's header.

    Attributes:
        verdict: how the edited model answered when the fact was asked for; only written down where
            it was.
        tries: which try, harder than the settings say, its target is of; only those above 0 are
            written down.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: str
    prompt: str
    subject: str
    target: str
    target_old: str | None = None
    verdict: VerdictWord | None = None
    tries: int = 0

    @property
    def edit(self) -> Edit:
        """The edit itself."""
        return Edit(**self.model_dump(exclude={"verdict", "tries"}))

    @model_serializer(mode="wrap")
    def _named(self, dump: Callable[[object], dict[str, object]]) -> dict[str, object]:
        return {k: v for k, v in dump(self).items() if (k, v) not in _OMITTED_DEFAULTS}


class Provenance(BaseModel):
    """Origin of a patch: enough to make it again.

    Attributes:
        base: fingerprint of the model's weights.
        digest: of all of them, where it was recorded.
        model: what it was called.
        layers: those written, with their widths.
        settings: every setting of the method, defaults included.
        rows: whether row i of every factor belongs to edit i, or rows are no edit's own; only the
            latter is written down.
        refresh: by which rule targets were made anew; only another than `each-batch` is written
            down.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: Literal[1] = FORMAT
    retcon: str = __version__
    model: str
    base: str
    digest: str | None = None
    method: str
    layers: tuple[int, ...]
    schedule: str
    settings: dict[str, object]
    edits: tuple[EditRecord, ...]
    rows: Literal["edits", "shared"] = "edits"
    refresh: str = "each-batch"

    @property
    def scheduled(self) -> str:
        """The schedule for a reader, with its refresh rule where that is written down."""
        return scheduled(self.schedule, self.refresh)

    @model_serializer(mode="wrap")
    def _named(self, dump: Callable[[object], dict[str, object]]) -> dict[str, object]:
        return {k: v for k, v in dump(self).items() if (k, v) not in _OMITTED_DEFAULTS}


def scheduled(schedule: str, refresh: object = None) -> str:
    """A schedule and a refresh rule for a reader; where it is the usual one, the schedule alone."""
    usual = refresh is None or ("refresh", refresh) in _OMITTED_DEFAULTS
    return schedule if usual else f"{schedule}, refresh {refresh}"


@dataclass(frozen=True, kw_only=True)
class Patch:
    """Changes of some matrices of one base model.

    Row i of every factor belongs to edit i, where the patch is `divisible`. Without edits (an
    imported adapter) the rows belong to none.

    Attributes:
        notes: what a guard has seen while the patch was made, and what adaptive batches came to;
            they are not saved.
    """

    deltas: Mapping[int, LowRankDelta]
    about: Provenance
    notes: tuple[str, ...] = ()

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The edits that the patch makes."""
        return tuple(record.edit for record in self.about.edits)

    @property
    def divisible(self) -> bool:
        """True if each edit has a row of its own, so that some can be taken out."""
        return self.about.rows == "edits"

    @contextmanager
    def applied(self, model: ModelHandle) -> Generator[ModelHandle, None, None]:
        """The model with this patch in its weights; afterwards its own weights, bit for bit.

        Raises:
            PatchMismatch: the patch is for another model.
        """
        self.check(model)
        with model.scratch():
            model.write(self.deltas)
            yield model

    def apply(self, model: ModelHandle) -> None:
        """Write the patch for good. Inside `model.scratch()` it is undone at the end.

        Raises:
            PatchMismatch: the patch is for another model.
        """
        self.check(model)
        model.write(self.deltas)

    def check(self, model: ModelHandle) -> None:
        """Raise PatchMismatch unless the patch was made for this model's weights."""
        if not model.answers_to(self.about.base, self.about.digest):
            raise PatchMismatch(
                f"{mismatch(self.about, model.name, model.weights)} Load the model it was made "
                f"for, without other edits saved into its weights; in float16 by retcon.load, "
                f"since a model that is cast afterwards has other weights."
            )

    def export(
        self,
        form: str,
        folder: Path | str,
        *,
        model: str | None = None,
        revision: str | None = None,
        progress: Progress = silent,
        **options: object,
    ) -> "Exported":
        """Write the patch in a form that other programs read.

        Args:
            form: `peft`, `gguf`, `merged`, `delta`, or another that a plugin has entered.
            folder: a new one.
            model: the base model, by name or folder; the patch's own if nothing is said.
            options: of the form, by name, as `max_rank=64` of `peft`.

        Raises:
            UnknownName, InvalidSetting: no such form, or an option that it does not have.
            NotExportable, PatchMismatch: the patch cannot be written so, or not for that model.
            StorageError: there is something in the folder already, no space, or no permission.
        """
        from retcon.patch.export import export

        return export(
            self,
            form,
            Path(folder),
            model=model or self.about.model,
            revision=revision,
            progress=progress,
            options=options,
        )

    def save(self, path: Path | str) -> None:
        """Write the patch to one file, whole or not at all.

        Raises:
            StorageError: no space or no permission.
        """
        tensors = {
            f"layer.{layer}.{name}": getattr(delta, name)
            for layer, delta in self.deltas.items()
            for name in ("left", "right")
        }
        save_tensors(Path(path), tensors, OWNER, self.about.model_dump(mode="json"))


def mismatch(about: Provenance, name: str, weights: Weights) -> str:
    """The sentence that says for which other model a patch was made."""
    if about.base == weights.fingerprint:
        return (
            f"This patch was made for {about.model!r}, which is much like {name!r}, but some "
            f"weights differ (digests {str(about.digest)[:12]}… and {weights.digest[:12]}…)."
        )
    return (
        f"This patch was made for {about.model!r} (fingerprint {about.base[:12]}…), not for "
        f"{name!r} ({weights.fingerprint[:12]}…)."
    )


def load_patch(path: Path | str) -> Patch:
    """Read a patch file.

    Raises:
        InvalidPatch: there is none, or it is truncated, not a patch, or of a newer format.
    """
    path = Path(path)
    with _opened(path) as opened:
        about = read_header(path, opened.metadata, opened.about)
        expected = {f"layer.{layer}.{f}" for layer in about.layers for f in ("left", "right")}
        if {*opened.names} != expected:
            raise InvalidPatch(
                f"{path}: its tensors are not those of its {len(expected) // 2} layers."
            )
        _check_factors(path, about, {name: opened.shape(name) for name in opened.names})
        for name in opened.names:
            if opened.dtype(name) != "F32":
                raise InvalidPatch(f"{path}: the tensor {name} is not finite float32.")
        tensors = opened.read_all()
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise InvalidPatch(f"{path}: the tensor {name} is not finite float32.")
    deltas = {
        layer: LowRankDelta(
            left=tensors[f"layer.{layer}.left"],
            right=tensors[f"layer.{layer}.right"],
            shared=about.rows == "shared",
        )
        for layer in about.layers
    }
    patch = Patch(deltas=deltas, about=about)
    try:
        _ = patch.edits
    except InvalidEdit as error:
        raise InvalidPatch(f"{path}: {error}") from error
    return patch


def load_about(path: Path | str) -> Provenance:
    """Read where a patch file comes from, without its tensors.

    Raises:
        InvalidPatch: there is none, or it is truncated, not a patch, or of a newer format.
    """
    path = Path(path)
    with _opened(path) as opened:
        return read_header(path, opened.metadata, opened.about)


@contextmanager
def _opened(path: Path) -> Generator[Tensors, None, None]:
    if not path.is_file():
        raise InvalidPatch(f"There is no patch file {str(path)!r}.")
    try:
        with open_tensors(path, OWNER) as opened:
            yield opened
    except Damaged as error:
        raise InvalidPatch(
            f"{path} is no patch file, or a damaged one: {error} Bring it back from a copy, or "
            f"make it again."
        ) from error


def read_header(path: Path, metadata: Mapping[str, str], about: object = None) -> Provenance:
    """The provenance in a safetensors header.

    Args:
        about: it, where it has been parsed already.

    Raises:
        InvalidPatch: there is none, or one of a newer format, or something else.
    """
    if "retcon" not in metadata:
        raise InvalidPatch(f"{path} is a safetensors file, but not a Retcon patch.")
    try:
        header = json.loads(metadata["retcon"]) if about is None else about
        version = header.get("format") if isinstance(header, dict) else None
        if isinstance(version, int) and version > FORMAT:
            raise InvalidPatch(
                f"{path} has format {version}; this Retcon reads up to {FORMAT}. Update it."
            )
        return Provenance.model_validate(header)
    except (ValueError, RecursionError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise InvalidPatch(f"{path}: its header is not that of a patch ({first}).") from error


def _check_factors(path: Path, about: Provenance, shapes: Mapping[str, Sequence[int]]) -> None:
    """Every factor is a matrix with one row per edit; of shared rows, not more than it takes.

    Without edits there are as many rows as the partner has.
    """
    for name, shape in shapes.items():
        partner = shapes[name.replace("left", "right")]
        rows = len(about.edits) or (partner[0] if partner else 0)
        if about.rows == "shared":
            rows = min((*partner[:1], *partner[1:], *shape[1:]), default=0)
        if len(shape) != 2 or shape[0] != rows or min(shape) < 1:
            raise InvalidPatch(
                f"{path}: {name} has shape {tuple(shape)}, which does not fit its "
                f"{len(about.edits)} edits."
            )
