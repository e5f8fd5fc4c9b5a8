"""Combine patches: drop some facts, stack several patches, compare two."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from retcon.algebra.delta import LowRankDelta
from retcon.edits import Edit
from retcon.errors import InvalidPatch, PatchMismatch
from retcon.patch.patch import EditRecord, Patch, Provenance

# What the provenance of several patches in one calls its method and schedule.
STACK = "stack"


class LayerDifference(NamedTuple):
    """Difference at one layer: ‖ΔW‖ in each patch, of their difference, and their cosine."""

    first: float
    second: float
    difference: float
    cosine: float | None


class Difference(NamedTuple):
    """Facts in one patch only, facts with another target, settings with another value, layers."""

    only_first: tuple[Edit, ...]
    only_second: tuple[Edit, ...]
    retargeted: tuple[tuple[Edit, Edit], ...]
    settings: Mapping[str, tuple[object, object]]
    layers: Mapping[int, LayerDifference]


def check_rows(patch: Patch) -> Patch:
    """The patch, if each of its rows belongs to one fact.

    Raises:
        InvalidPatch: the rows of its factors are not those of its edits.
    """
    facts = len(patch.about.edits)
    if not facts or any(delta.rank != facts for delta in patch.deltas.values()):
        raise InvalidPatch(
            f"The rows of this patch ({patch.about.method}) do not belong to single facts, so no "
            f"fact can be taken out of it. Take back the whole patch, or edit again without it "
            f"(in a ledger: retcon patch undo --resolve)."
        )
    return patch


def check_apart(patch: Patch, ids: Collection[str]) -> None:
    """Refuse to take out some of the facts that were given one target, and so have one row.

    Raises:
        InvalidPatch: a fact stays whose row would go, or the other way round.
    """
    for edits in _merged(patch.about.settings, patch.edits):
        staying = {edit.head: edit.id for edit in edits if edit.id not in ids}
        for edit in edits:
            if edit.id in ids and edit.head in staying:
                raise InvalidPatch(
                    f"{edit.id!r} and {staying[edit.head]!r} have one key and were given one "
                    f"target, so that neither goes or comes back by itself. Name all facts of that "
                    f"subject, or, to take some of them back, solve again for those that stay: "
                    f"retcon patch undo --resolve."
                )


def _merged(settings: Mapping[str, object], edits: Sequence[Edit]) -> Iterator[Sequence[Edit]]:
    """The edits that were made together, of each part of a patch in which some share a row."""
    parts = settings.get(STACK)
    if not isinstance(parts, list):
        if True in (settings.get("merge_subjects"), settings.get("tie_subjects")):
            yield [edit.whole for edit in edits] if settings.get("lookup") == "prompt" else edits
        return
    first = 0
    for part in parts:
        count = int(part["facts"])
        yield from _merged(part["settings"], edits[first : first + count])
        first += count


def without(patch: Patch, ids: Collection[str]) -> Patch:
    """The patch with the rows of some facts dropped; what the others wrote stays to the bit.

    *Removed*, not re-solved: rows of facts that were solved together took each other into account,
    and those that stay go on doing so.

    Raises:
        InvalidPatch: its rows do not belong to single facts.
    """
    if not ids:
        return patch
    check_rows(patch)
    staying = [i for i, record in enumerate(patch.about.edits) if record.id not in ids]
    about = patch.about.model_copy(update={"edits": tuple(patch.about.edits[i] for i in staying)})
    deltas = (
        {layer: delta.select(staying) for layer, delta in patch.deltas.items()} if staying else {}
    )
    if not staying:
        about = about.model_copy(update={"layers": ()})
    return Patch(deltas=deltas, about=about)


def stack(patches: Mapping[str, Patch], *, base: str, model: str) -> Patch:
    """Several patches as one, in their order; the sum of their changes.

    Args:
        patches: by a short name of each, which goes before an id that two of them share.
        base, model: what the sum is for, and what it is called where there are no patches.

    Raises:
        PatchMismatch: two patches write matrices of different shapes.
        InvalidPatch: patches with facts beside one without.
    """
    parts = {name: patch for name, patch in patches.items() if patch.deltas}
    if len(parts) == 1:
        (only,) = parts.values()
        named = {"base": base, "digest": _digest(parts, base)}
        return replace(only, about=only.about.model_copy(update=named))
    layers = tuple(sorted({layer for patch in parts.values() for layer in patch.deltas}))
    if any(patch.about.edits for patch in parts.values()):
        for patch in parts.values():
            check_rows(patch)
        deltas = {layer: _sum(layer, parts, fill=True) for layer in layers}
    else:
        deltas = {layer: _sum(layer, parts, fill=False) for layer in layers}
    about = Provenance(
        model=model,
        base=base,
        digest=_digest(parts, base),
        method=STACK,
        layers=layers,
        schedule=STACK,
        settings={STACK: [_summary(name, patch.about) for name, patch in parts.items()]},
        edits=tuple(_records(parts)),
    )
    return Patch(deltas=deltas, about=about)


def _digest(patches: Mapping[str, Patch], base: str) -> str | None:
    """The digest of a base's weights, where the patches that were made on it agree on one."""
    found = {patch.about.digest for patch in patches.values() if patch.about.base == base}
    return found.pop() if len(found) == 1 else None


def difference(first: Patch, second: Patch) -> Difference:
    """Compare two patches of one model.

    Raises:
        PatchMismatch: they are of different models.
    """
    if first.about.base != second.about.base:
        raise PatchMismatch(
            f"The patches are of different models, {first.about.model!r} (fingerprint "
            f"{first.about.base[:12]}…) and {second.about.model!r} ({second.about.base[:12]}…)."
        )
    ours, theirs = ({(e.prompt, e.subject): e for e in p.edits} for p in (first, second))
    shared = [(ours[key], theirs[key]) for key in ours if key in theirs]
    return Difference(
        only_first=tuple(edit for key, edit in ours.items() if key not in theirs),
        only_second=tuple(edit for key, edit in theirs.items() if key not in ours),
        retargeted=tuple(pair for pair in shared if pair[0].target != pair[1].target),
        settings=_other_settings(first.about, second.about),
        layers={
            layer: _layer_difference(first.deltas.get(layer), second.deltas.get(layer))
            for layer in sorted({*first.deltas, *second.deltas})
        },
    )


def _sum(layer: int, patches: Mapping[str, Patch], *, fill: bool) -> LowRankDelta:
    """The changes of one layer one below the other. fill: zero rows for facts without one here."""
    shapes = {
        (patch.deltas[layer].left.shape[1], patch.deltas[layer].right.shape[1])
        for patch in patches.values()
        if layer in patch.deltas
    }
    if len(shapes) > 1:
        raise PatchMismatch(
            f"The patches write matrices of different shapes in layer {layer}: "
            f"{', '.join(f'{out} x {into}' for out, into in sorted(shapes))}. They are of "
            f"different models."
        )
    ((d_out, d_in),) = shapes
    parts: list[LowRankDelta] = []
    for patch in patches.values():
        if layer in patch.deltas:
            parts.append(patch.deltas[layer])
        elif fill:
            rows = len(patch.about.edits)
            parts.append(LowRankDelta(left=torch.zeros(rows, d_out), right=torch.zeros(rows, d_in)))
    return LowRankDelta.stack(parts)


def _records(patches: Mapping[str, Patch]) -> list[EditRecord]:
    """All facts, with the patch's name before an id that is in several."""
    seen = Counter(record.id for patch in patches.values() for record in patch.about.edits)
    return [
        record.model_copy(update={"id": f"{name}:{record.id}"}) if seen[record.id] > 1 else record
        for name, patch in patches.items()
        for record in patch.about.edits
    ]


def _summary(name: str, about: Provenance) -> dict[str, object]:
    """Describe how a part of a stack was made."""
    named = {"method", "layers", "schedule", "refresh", "settings"}
    kept = about.model_dump(mode="json", include=named)
    return {"name": name, **kept, "facts": len(about.edits)}


def parts_of(about: Provenance) -> dict[str, dict[str, object]]:
    """Describe the parts of a stack by their names; empty for a patch that is no stack."""
    parts = about.settings.get(STACK)
    if about.method != STACK or not isinstance(parts, list):
        return {}
    return {str(part.get("name")): part for part in parts if isinstance(part, dict)}


def _other_settings(first: Provenance, second: Provenance) -> dict[str, tuple[object, object]]:
    ours, theirs = (_flat(about) for about in (first, second))
    return {
        name: (ours.get(name), theirs.get(name))
        for name in dict.fromkeys([*ours, *theirs])
        if ours.get(name) != theirs.get(name)
    }


def _flat(about: Provenance) -> dict[str, object]:
    """Method, schedule and settings by name; in a stack each behind the name of its part."""
    flat: dict[str, object] = {k: getattr(about, k) for k in ("method", "schedule", "refresh")}
    parts = parts_of(about)
    if not parts:
        return {**flat, **about.settings}
    for name, part in parts.items():
        settings = part.get("settings")
        named = ("method", "layers", "schedule", "refresh")
        flat |= {f"{name}: {key}": part.get(key) for key in named}
        if isinstance(settings, dict):
            flat |= {f"{name}: {key}": value for key, value in settings.items()}
    return flat


def _layer_difference(first: LowRankDelta | None, second: LowRankDelta | None) -> LayerDifference:
    if first is None or second is None:
        ours, theirs = (0.0 if delta is None else delta.norm() for delta in (first, second))
        return LayerDifference(ours, theirs, max(ours, theirs), None)
    ours, theirs = first.norm(), second.norm()
    if torch.equal(first.left, second.left) and torch.equal(first.right, second.right):
        return LayerDifference(ours, theirs, 0.0, 1.0)
    minus = LowRankDelta(left=-second.left, right=second.right)
    inner = float(
        (
            (first.left.double() @ second.left.double().mT)
            * (first.right.double() @ second.right.double().mT)
        ).sum()
    )
    cosine = inner / (ours * theirs) if ours and theirs else None
    return LayerDifference(ours, theirs, LowRankDelta.stack([first, minus]).norm(), cosine)
