"""Audit a patch: how far it gives away its facts to one who has it and the base model.

A patch lists its facts in its header, in clear. Its factors tell of them without that list too
(arXiv:2602.10134): the rows A = G⁻¹ K M⁻¹ of a change have the span of M⁻¹K, whatever the residuals
and the ridge are, and also where batches were carried. Who guesses a subject can compute its key k:

    span    ‖P a‖² / ‖a‖²    the share of the whitened key a = L⁻¹k that lies in the span of A's
                             whitened rows: 1 for what was written, about rank / d_in for the rest
    moved   ‖ΔW k‖ / ‖k‖     against the median of decoys; needs no second moments

Decoys are the facts of the starter set that are neither in the patch nor guesses. What is left of a
patch whose header was taken away is what this measures: the header is asked only for the method's
settings, of which there are few to try, and to say which guesses were right.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from retcon.algebra.delta import LowRankDelta
from retcon.algebra.whitening import Whitening
from retcon.data.cases import starter_cases
from retcon.edits import Edit
from retcon.errors import InvalidPatch, InvalidSetting
from retcon.features.contexts import locate
from retcon.features.keys import read_keys
from retcon.method.entries import methods
from retcon.method.locate_then_edit import LocateThenEdit
from retcon.method.presets import resolve
from retcon.model.handle import ModelHandle
from retcon.patch.combine import parts_of
from retcon.patch.patch import Patch, Provenance
from retcon.progress import Progress, silent

# Directions weaker than this share of the strongest are rounding of the factors.
_ROUNDING = 1e-6


class Candidate(NamedTuple):
    """A guess, and how far the patch points to it.

    Attributes:
        listed: the header names its subject.
        span: share of its whitened key in the span of the rows; the mean over layers.
        moved: what ΔW does to it, in units of the median decoy; the mean over layers.
        chance: share of the decoys that have at least its span, itself counted among them.
    """

    edit: Edit
    listed: bool
    span: float
    moved: float
    chance: float


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Result of an audit.

    Attributes:
        in_clear: how many facts the header lists.
        ranks: by layer, how many directions of the keys the change has, and how many there are.
        candidates: the guesses, those to which the patch points most first.
        decoys: how many facts the guesses were compared with.
        auc: of `span` and `moved`, the chance that a subject of the header is above another fact;
            None where there are not both.
    """

    in_clear: int
    ranks: Mapping[int, tuple[int, int]]
    candidates: tuple[Candidate, ...]
    decoys: int
    auc: Mapping[str, float | None]

    def sentences(self) -> list[str]:
        """Say in words what the file gives away, and what it would without its header."""
        clear = (
            f"The header of the file lists its facts ({self.in_clear:,}) in clear: prompts, "
            f"subjects, old and new answers, method and settings. Whoever gets it can read them."
            if self.in_clear
            else "The header of the file lists no facts."
        )
        ranks = ", ".join(
            f"{rank:,} of {width:,} at layer {layer}" for layer, (rank, width) in self.ranks.items()
        )
        rows = (
            f"Without its header there are still its factors, which have so many directions of the "
            f"keys: {ranks}. Who has the base model can try subjects against them."
        )
        span, moved = self.auc["span"], self.auc["moved"]
        if span is None or moved is None:
            return [clear, rows, "How well that finds facts is not known: the header names none."]
        told = (
            f"Of all pairs of a subject of the header and another one, the factors point more to "
            f"the former in {100 * span:.1f} % by the share in their span, in {100 * moved:.1f} % "
            f"by what the change does to a key; at 50 % they tell nothing."
        )
        return [clear, rows, told]

    def lines(self) -> list[list[str]]:
        """A row for each candidate, as under COLUMNS."""
        return [
            [
                str(place),
                one.edit.head,
                "yes" if one.listed else "no",
                f"{100 * one.span:.1f}",
                f"{one.moved:.2f}",
                f"{100 * one.chance:.1f}",
            ]
            for place, one in enumerate(self.candidates, start=1)
        ]


COLUMNS = ("", "candidate", "in the header", "span, %", "moved, ×", "decoys as high, %")


def audit(
    model: ModelHandle,
    patch: Patch,
    candidates: Sequence[Edit] | None = None,
    progress: Progress = silent,
) -> Audit:
    """Measure how far a patch points to some guesses; the model is as before afterwards.

    Args:
        model: the base model.
        patch: a patch of it.
        candidates: guesses, of which only the text up to the subject's end counts; None: the facts
            of the header.
        progress: is told what is done.

    Raises:
        PatchMismatch: the patch is of another model.
        InvalidPatch: it changes nothing.
        InvalidSetting: there is nothing to guess: no candidates, and a header without facts; or
            nothing to compare with.
        InvalidEdit: a candidate that this model's tokens cannot tell.
    """
    patch.check(model)
    if not any(delta.norm() for delta in patch.deltas.values()):
        raise InvalidPatch("This patch changes nothing, so there is nothing to audit.")
    guesses = list(patch.edits if candidates is None else candidates)
    if not guesses:
        raise InvalidSetting(
            "The header of this patch lists no facts. Say which subjects to look for: --candidates."
        )
    listed = {edit.subject for edit in patch.edits}
    decoys = _decoys(guesses, listed)
    for edit in guesses:
        locate(model.tokens, edit, "")
    span, moved, ranks = _measured(model, patch, [*guesses, *decoys], progress)
    moved = moved / moved[:, len(guesses) :].median(dim=1, keepdim=True).values
    spans, sizes = span.mean(0), moved.nan_to_num(nan=0.0).mean(0)
    among = torch.tensor([edit.subject in listed for edit in [*guesses, *decoys]])
    others = spans[len(guesses) :]
    scored = [
        Candidate(
            edit=edit,
            listed=edit.subject in listed,
            span=float(spans[i]),
            moved=float(sizes[i]),
            chance=(1 + int((others >= spans[i]).sum())) / (1 + len(others)),
        )
        for i, edit in enumerate(guesses)
    ]
    return Audit(
        in_clear=len(patch.edits),
        ranks=ranks,
        candidates=tuple(sorted(scored, key=lambda one: -one.span)),
        decoys=len(decoys),
        auc={"span": _auc(spans, among), "moved": _auc(sizes, among)},
    )


def _decoys(guesses: Sequence[Edit], listed: Collection[str]) -> list[Edit]:
    """Facts that are not in the patch: of the starter set, else the guesses that are not listed."""
    known = {*listed, *(edit.subject for edit in guesses)}
    starter = [case.edit for case in starter_cases() if case.edit.subject not in known]
    decoys = starter or [edit for edit in guesses if edit.subject not in listed]
    if not decoys:
        raise InvalidSetting(
            "The patch holds all facts of the starter set, with which candidates are compared "
            "otherwise. Give other facts among the candidates: --candidates FILE."
        )
    return decoys


def _measured(
    model: ModelHandle, patch: Patch, edits: Sequence[Edit], progress: Progress
) -> tuple[Tensor, Tensor, dict[int, tuple[int, int]]]:
    """Span and ‖ΔW k‖ / ‖k‖ by layer and edit, and the rank of each layer's change.

    Keys of a layer are read with the changes of those before it written, as they were when the
    patch was made.
    """
    spans: list[Tensor] = []
    moved: list[Tensor] = []
    ranks: dict[int, tuple[int, int]] = {}
    readers = {layer: _reader(model, patch.about, layer) for layer in sorted(patch.deltas)}
    states = {layer: reader.setup.begin(model, progress) for layer, reader in readers.items()}
    with model.scratch():
        for layer, state in states.items():
            delta, contexts = patch.deltas[layer], readers[layer].contexts
            weights = contexts.weights(len(state.prefixes))
            own = [contexts.read(edit) for edit in edits]
            keys = read_keys(model, own, state.prefixes, [layer], weights, progress)[layer]
            whitening = state.memory.preservations[layer].base
            white, basis = whitening.whiten(keys), _directions(delta, whitening)
            inside = (white @ basis.mT).square().sum(-1) / white.square().sum(-1)
            spans.append(inside.nan_to_num(nan=0.0).cpu())
            left, right = delta.left.to(keys), delta.right.to(keys)
            moved.append(((keys @ right.mT @ left).norm(dim=-1) / keys.norm(dim=-1)).cpu())
            ranks[layer] = len(basis), whitening.width
            model.write({layer: delta})
    return torch.stack(spans), torch.stack(moved), ranks


def _directions(delta: LowRankDelta, whitening: Whitening) -> Float64[Tensor, "rank d_in"]:
    """Orthonormal rows that span the whitened rows of ΔW."""
    left = delta.left.to(whitening.like)
    rows = torch.linalg.qr(left.mT, mode="r").R @ whitening.weigh(delta.right.to(whitening.like))
    _, sizes, directions = torch.linalg.svd(rows, full_matrices=False)
    return directions[sizes > _ROUNDING * sizes[0]]


def _reader(model: ModelHandle, about: Provenance, layer: int) -> LocateThenEdit:
    """The method by whose settings keys are read at a layer.

    It is the patch's own, or that of the first part of a stack that reads keys; else MEMIT.
    """
    made: list[tuple[Any, Any]] = [(about.method, about.settings)]
    made += [(part.get("method"), part.get("settings")) for part in parts_of(about).values()]
    for name, settings in made:
        if name in methods():
            recipe = resolve(model.outline, method=name, layers=[layer], settings=settings)
            method = recipe.build()
            if isinstance(method, LocateThenEdit):
                return method
    memit = resolve(model.outline, method="memit", layers=[layer]).build()
    assert isinstance(memit, LocateThenEdit)
    return memit


def _auc(scores: Tensor, chosen: Tensor) -> float | None:
    """The chance that one of the chosen has a higher score than one of the others; ties count ½."""
    ours, theirs = scores[chosen].unsqueeze(1), scores[~chosen].unsqueeze(0)
    if not ours.numel() or not theirs.numel():
        return None
    return float(((ours > theirs).double() + 0.5 * (ours == theirs).double()).mean())
