"""Make a patch of facts, in one call."""

import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from retcon.algebra.delta import LowRankDelta
from retcon.edits import Edit
from retcon.errors import Collapsed, InvalidSetting, RetconWarning, UnsupportedModel
from retcon.features.contexts import check_texts
from retcon.method.base import NONE, Features, Method, Retries, WritesKeys
from retcon.method.presets import Recipe, method_for, resolve
from retcon.model.handle import ModelHandle
from retcon.model.structure import Outline
from retcon.patch.patch import EditRecord, Patch, Provenance
from retcon.progress import Progress, silent
from retcon.run.driver import check, fold
from retcon.run.schedule import Schedule
from retcon.run.shared_keys import check_keys, merged_where_shared, warned_of
from retcon.run.steps import Step

_NOTHING = (
    "Nothing is written: ΔW is 0 in every layer, and the model stays as it is. Either every target "
    "was said already, or no update was made (steps=1 makes none)."
)
_CLOSE = (
    "Most of these facts share their subject with others. {name} writes each of them exactly "
    "(ridge 0) at keys that nearly coincide, which can move everything else: look at what else the "
    "model says, or take --method {better} or memit."
)


def edit(
    model: ModelHandle,
    edits: Sequence[Edit],
    *,
    method: str | None = None,
    layers: Sequence[int] | None = None,
    settings: Mapping[str, object] | None = None,
    schedule: Schedule | str | None = None,
    tries: Mapping[str, int] = NONE,
    progress: Progress = silent,
) -> Patch:
    """Make the patch that writes some facts. The model itself stays as it is.

    What is not given comes from the model's published settings. Where method, layers and settings
    are left open and all facts go into one batch, the facts may choose the method
    (`presets.method_for`), which a `RetconWarning` says. Where the schedule's guard has
    ended the run, the patch holds the facts that were written, and its `notes` say what the guard
    has seen. Facts with one key get one target where the method can do that and the settings leave
    it open; a `RetconWarning` names them, and those that are written over one another all the same.

    Args:
        schedule: how the facts are written, `sequential` or `sequential-batch:B`; all in one batch
            where it is not given (one after the other for methods that write one at a time).
        tries: by id, edits whose targets are those of a further try, as `edit_until_said` has
            recorded them.

    Raises:
        UnknownName, InvalidSetting: a method, layer or setting that does not exist or fit.
        CollidingEdits: two facts have one key and the method writes exactly.
        UnsupportedModel: layers that cannot be edited, or that several devices compute.
        Collapsed: the guard has taken back the first batch, so that nothing is left.
    """
    if (method, layers) == (None, None) and not settings:
        method = asked_for(model.outline, edits, schedule)
    recipe, chosen, plan = prepare(
        model, edits, method=method, layers=layers, settings=settings, schedule=schedule
    )
    state = chosen.setup.begin(model, progress)
    if tries:
        features = features_with(model, chosen, edits, state, tries, progress)
        step = solve_together(model, chosen, features, state, progress)
        return patch_of(model, recipe, plan, [step], tries)
    taken = [step for steps in fold(model, chosen, state, edits, plan, progress) for step in steps]
    if all(step.undone for step in taken):
        raise Collapsed(
            f"The guard has taken back the first batch, so that nothing is written: "
            f"{taken[0].note}. Take smaller batches, a larger ridge or another layer, or the guard "
            f"warn, which writes them whatever it sees."
        )
    return patch_of(model, recipe, plan, taken)


def asked_for(model: Outline, edits: Sequence[Edit], schedule: Schedule | str | None) -> str | None:
    """The method that the facts ask for, which is said; None where batches part them."""
    if schedule is not None and Schedule.of(schedule).batch_size < len(edits):
        return None
    method = method_for(model, edits)
    if method is not None:
        warnings.warn(
            f"Most of these {len(edits):,} facts share their subject with others, which a rewrite "
            f"of one layer tells apart badly. They are written by {method}, which trains small "
            f"changes of many layers for all of them together. To have it otherwise name a method "
            f"(retcon methods).",
            RetconWarning,
            stacklevel=3,
        )
    return method


class Prepared(NamedTuple):
    """All that decides a patch, checked."""

    recipe: Recipe
    method: Method[Any, Any, Any]
    schedule: Schedule


def prepare(
    model: ModelHandle,
    edits: Sequence[Edit],
    *,
    method: str | None = None,
    layers: Sequence[int] | None = None,
    settings: Mapping[str, object] | None = None,
    schedule: Schedule | str | None = None,
) -> Prepared:
    """Fill in what was left open, and refuse what cannot be run before any work is done.

    Raises:
        UnknownName, InvalidSetting, CollidingEdits, UnsupportedModel: as `edit`.
    """
    recipe = writing(model, method=method, layers=layers, settings=settings)
    chosen = recipe.build()
    size = chosen.max_batch or len(edits)
    plan = (
        Schedule(batch_size=max(1, size), carry=True)
        if schedule is None
        else Schedule.of(schedule).carried()
    )
    better = method_for(model.outline, edits)
    hard = isinstance(chosen, WritesKeys) and chosen.ridge == 0
    if hard and better not in (None, recipe.name) and plan.batch_size >= len(edits):
        warnings.warn(_CLOSE.format(name=recipe.name, better=better), RetconWarning, stacklevel=3)
    check(chosen, edits, plan)
    check_texts(model.tokens, edits)
    if "merge_subjects" in recipe.settings and "merge_subjects" not in (settings or {}):
        recipe = merged_where_shared(model.tokens, recipe, edits, plan)
        chosen = recipe.build()
    warned_of(chosen, check_keys(model.tokens, chosen, edits, plan))
    return Prepared(recipe, chosen, plan)


def writing(
    model: ModelHandle,
    *,
    method: str | None = None,
    layers: Sequence[int] | None = None,
    settings: Mapping[str, object] | None = None,
) -> Recipe:
    """The recipe of a method that writes into this model, whatever the facts.

    Raises:
        UnknownName, InvalidSetting: as `resolve`, or a method that writes no weight.
        UnsupportedModel: several devices compute the layers.
    """
    recipe = resolve(model.outline, method=method, layers=layers, settings=settings)
    if not recipe.entry.writes:
        raise InvalidSetting(
            f"{recipe.name} writes no weight, it puts facts before prompts, so there is no "
            f"patch to make. `retcon eval --method {recipe.name}` measures it; to edit the "
            f"model take another method (`retcon methods`)."
        )
    _check_together(model, recipe.layers)
    return recipe


def features_with(
    model: ModelHandle,
    method: Method[Any, Any, Any],
    edits: Sequence[Edit],
    state: Any,
    tries: Mapping[str, int],
    progress: Progress,
) -> Features:
    """The features of one batch of all edits, some of them of further tries.

    Raises:
        InvalidSetting: as `retrying`.
    """
    chosen = retrying(method, len(edits))
    features = method.features(model, edits, state, progress)
    for times in sorted({*tries.values()} - {0}):
        ids = [id for id, tried in tries.items() if tried == times]
        features = chosen.retried(model, features, ids, times, state, progress)
    return features


def retrying(method: Method[Any, Any, Any], size: int) -> Retries[Any, Any]:
    """The method as one that tries again.

    Raises:
        InvalidSetting: it does not, or cannot write so many facts in one batch.
    """
    if not isinstance(method, Retries) or size > (method.max_batch or size):
        raise InvalidSetting(
            "This method does not try again: it makes no targets that could be given more steps, "
            "or writes one fact at a time. Take emmet or memit, or leave --until-said out."
        )
    return method


def solve_together(
    model: ModelHandle,
    method: Method[Any, Any, Any],
    features: Features,
    state: Any,
    progress: Progress,
) -> Step:
    """The one step of a run that writes all edits in one batch."""
    update = method.solve(model, features, state, progress)
    edits = features.edits
    return Step(0, len(edits), edits, update, features, state, True, None, 0.0, last=True)


def _check_together(model: ModelHandle, layers: Sequence[int]) -> None:
    """Raise UnsupportedModel unless one device computes all edited layers."""
    places = {layer: str(model.site(layer).device) for layer in layers}
    if len(set(places.values())) > 1:
        places_of = ", ".join(f"{layer} on {device}" for layer, device in places.items())
        raise UnsupportedModel(
            f"The layers of {model.name} that are to be edited together are on several devices "
            f"({places_of}), and a residual that is spread over them is solved on one. Edit one "
            f"layer, or load with a device_map that puts these layers together."
        )


def patch_of(
    model: ModelHandle,
    recipe: Recipe,
    schedule: Schedule,
    steps: Sequence[Step],
    tries: Mapping[str, int] = NONE,
) -> Patch:
    """The patch that a run of carried batches has written, with what was noted on the way.

    Args:
        tries: by id, of which try the target of an edit is, where it is not the first.
    """
    notes = tuple(f"at {step.at} facts: {step.note}" for step in steps if step.note)
    steps = [step for step in steps if not step.undone]
    deltas = {
        layer: LowRankDelta.stack([step.update.deltas[layer] for step in steps]).compact()
        for layer in recipe.layers
    }
    records = tuple(
        EditRecord(
            id=e.id,
            prompt=e.prompt,
            subject=e.subject,
            target=e.target,
            target_old=e.target_old,
            tries=tries.get(e.id, 0),
        )
        for step in steps
        for e in step.edits
    )
    about = Provenance(
        model=model.name,
        base=model.live_fingerprint,
        digest=model.live_digest,
        method=recipe.name,
        layers=recipe.layers,
        schedule=str(schedule),
        refresh=str(schedule.refresh),
        settings=json.loads(json.dumps(recipe.settings)),
        edits=records,
        rows="shared" if any(delta.shared for delta in deltas.values()) else "edits",
    )
    if not any(delta.norm() for delta in deltas.values()):
        notes = (*notes, _NOTHING)
    return Patch(deltas=deltas, about=about, notes=notes)
