"""Features of the unedited model: read from the cache, or computed now and kept there.

Prefixes, lines, targets and keys: none depends on method, ridge, batch size or order of the
edits, so a study computes each once. An edit's id is no part of an entry's name. On weights that
edits have changed nothing is read or kept: no other run meets those weights again.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch
import transformers
from jaxtyping import Float64
from torch import Tensor

from retcon.cache import CacheEntry, Name, Unfinished, recall
from retcon.edits import Edit
from retcon.features.contexts import (
    ContextOptions,
    draws_of,
    forms_of,
    locate_all,
    sample_prefix,
    sample_prefixes,
)
from retcon.features.keys import read_keys
from retcon.features.lines import Asking, write_lines
from retcon.features.sensitivity import Whitening
from retcon.features.target_options import TargetOptions
from retcon.features.targets import (
    STOPS,
    TASK,
    Targets,
    optimise_targets,
    together,
)
from retcon.model.generate import ends_of
from retcon.model.handle import ModelHandle
from retcon.progress import Progress, silent

# One more whenever other values are computed from the same names.
_FORMAT = 2
# Options that were no part of names once: those that do nothing where δ moves as it did then, and
# those that do nothing at their defaults.
_ON_SPHERE = ("descent", "reach", "largest_turn", "momentum", "power")
_OFF = ("stop_by", "stop_margin", "ending", "whiten")
# Programs whose other version may draw other tokens under one seed.
_DRAWN_BY = {"torch": str(torch.__version__), "transformers": transformers.__version__}
_WRITING = "letting the model write lines"


def recall_prefixes(model: ModelHandle, options: ContextOptions) -> tuple[str, ...]:
    """The texts of `sample_prefixes`: read from the cache, and those sampled that it lacks."""
    if not model.as_loaded:
        return sample_prefixes(model, options)
    draws = draws_of(options)

    def compute(group: list[int]) -> list[CacheEntry]:
        return [_to_text(sample_prefix(model, draws[i])) for i in group]

    names = [{**_sampled_by(model), "draw": draw._asdict()} for draw in draws]
    prefixes = (_of_text(found.entry) for found in recall("prefixes", names, compute))
    return ("", *prefixes, *forms_of(model.tokens, options))


def recall_lines(
    model: ModelHandle, askings: Sequence[Asking], progress: Progress = silent
) -> list[list[str]]:
    """The lines of each asking: read from the cache, and those written that it lacks."""

    def compute(group: list[int]) -> list[CacheEntry]:
        progress(_WRITING, group[0], len(askings))
        return [_to_text("\n".join(write_lines(model, askings[i]))) for i in group]

    if model.as_loaded:
        names = [{**_sampled_by(model), "asking": asking._asdict()} for asking in askings]
        kept = [found.entry for found in recall("texts", names, compute, together=1)]
    else:
        kept = [entry for i in range(len(askings)) for entry in compute([i])]
    progress(_WRITING, len(askings), len(askings))
    return [_of_text(entry).split("\n") for entry in kept]


def recall_targets(
    model: ModelHandle,
    edits: Sequence[Edit],
    prefixes: Sequence[str],
    layer: int,
    options: TargetOptions,
    progress: Progress = silent,
    *,
    whitening: Whitening | None = None,
) -> Targets:
    """Read targets from the cache, and optimise those that it does not have.

    Args:
        whitening: of gradients, where the options' `whiten` asks for it.

    Raises:
        NotFinite: a loss is NaN or infinite.
    """
    if not model.as_loaded:
        return optimise_targets(
            model, edits, prefixes, layer, options, progress, whitening=_matrix(whitening)
        )

    def compute(group: list[int]) -> list[CacheEntry]:
        def advance(task: str, done: int, total: int) -> None:
            del total  # of this group
            progress(task, group[0] * options.steps + done, len(edits) * options.steps)

        chosen = [edits[i] for i in group]
        unfinished = Unfinished("targets", [names[i] for i in group])
        with unfinished.until_done():
            targets = optimise_targets(
                model,
                chosen,
                prefixes,
                layer,
                options,
                advance,
                start=unfinished,
                whitening=_matrix(whitening),
            )
        return [_to_entry(targets.select(slice(i, i + 1))) for i in range(len(chosen))]

    shared = _of_targets(model, prefixes, layer, options, whitening)
    names = [{**shared, "edit": _told(model, edit, options.ending)} for edit in edits]
    recalled = recall("targets", names, compute, together=together(model, layer, options))
    progress(TASK, len(edits), len(edits))
    device = model.site(layer).device
    return Targets.join([_of_entry(entry, options, cached, device) for entry, cached in recalled])


def recall_shared_targets(
    model: ModelHandle,
    edits: Sequence[Edit],
    prefixes: Sequence[str],
    layer: int,
    options: TargetOptions,
    progress: Progress = silent,
    *,
    of: Callable[[Edit], str],
    whitening: Whitening | None = None,
) -> Targets:
    """Read or optimise targets where edits with one name, such as one key, share one δ.

    Of a fact that is edited again only the last edit has a part in it; others get their own.

    Args:
        of: the name that is looked at.
        whitening: of gradients, where the options' `whiten` asks for it.

    Raises:
        NotFinite: a loss is NaN or infinite.
    """
    last = {edit.fact: i for i, edit in enumerate(edits)}
    heads: dict[str, list[int]] = {}
    for i, edit in enumerate(edits):
        name = of(edit) if last[edit.fact] == i else f"{of(edit)}\0{i}"
        heads.setdefault(name, []).append(i)
    order = sorted(heads.values(), key=len)
    alone = [group[0] for group in order if len(group) == 1]
    parts: list[Targets] = []
    if alone:
        own = [edits[i] for i in alone]
        parts.append(
            recall_targets(model, own, prefixes, layer, options, progress, whitening=whitening)
        )
    for group in order[len(alone) :]:
        own = [edits[i] for i in group]
        parts.append(_recall_tied(model, own, prefixes, layer, options, whitening, progress))
    places = [i for group in order for i in group]
    return Targets.join(parts).select([places.index(i) for i in range(len(edits))])


def _recall_tied(
    model: ModelHandle,
    edits: Sequence[Edit],
    prefixes: Sequence[str],
    layer: int,
    options: TargetOptions,
    whitening: Whitening | None,
    progress: Progress,
) -> Targets:
    """Read or optimise the one target that some edits share: an entry of all of them."""
    if not model.as_loaded:
        return optimise_targets(
            model,
            edits,
            prefixes,
            layer,
            options,
            progress,
            tied=True,
            whitening=_matrix(whitening),
        )
    name = {
        **_of_targets(model, prefixes, layer, options, whitening),
        "edits": [_told(model, edit, options.ending) for edit in edits],
    }
    unfinished = Unfinished("targets", [name])

    def compute(_group: list[int]) -> list[CacheEntry]:
        with unfinished.until_done():
            targets = optimise_targets(
                model,
                edits,
                prefixes,
                layer,
                options,
                progress,
                start=unfinished,
                tied=True,
                whitening=_matrix(whitening),
            )
        return [_to_entry(targets)]

    ((entry, cached),) = recall("targets", [name], compute)
    return _of_entry(entry, options, cached, model.site(layer).device)


def recall_keys(
    model: ModelHandle,
    edits: Sequence[Edit],
    prefixes: Sequence[str],
    layer: int,
    weights: Float64[Tensor, "averages contexts"],
    progress: Progress = silent,
) -> Float64[Tensor, "averages edits d_in"]:
    """Read keys at one layer from the cache, and compute those that it does not have.

    Raises:
        NotFinite: NaN or infinity in an activation.
    """
    if not model.as_loaded:
        return read_keys(model, edits, prefixes, [layer], weights, progress)[layer]

    def compute(group: list[int]) -> list[CacheEntry]:
        chosen = [edits[i] for i in group]
        keys = read_keys(model, chosen, prefixes, [layer], weights, progress)[layer]
        return [{"keys": keys[:, i]} for i in range(len(chosen))]

    shared = {**_shared(model, layer), "weights": weights.tolist()}
    names = [{**shared, "heads": _heads(model, edit, prefixes)} for edit in edits]
    device = model.site(layer).device
    # What the cache has is in main memory.
    entries = [found.entry["keys"].to(device) for found in recall("keys", names, compute)]
    return torch.stack(entries, dim=1)


def _matrix(whitening: Whitening | None) -> Tensor | None:
    return None if whitening is None else whitening.matrix


def _sampled_by(model: ModelHandle) -> Name:
    """Part that the names of sampled texts have in common."""
    return {"format": _FORMAT, "model": model.identity, "ends": ends_of(model), "by": _DRAWN_BY}


def _to_text(text: str) -> CacheEntry:
    return {"text": torch.tensor(list(text.encode()), dtype=torch.uint8)}


def _of_text(entry: CacheEntry) -> str:
    return bytes(entry["text"].tolist()).decode()


def _shared(model: ModelHandle, layer: int) -> Name:
    """Part that the names of all entries have in common."""
    return {"format": _FORMAT, "model": model.identity, "layer": layer}


def _of_targets(
    model: ModelHandle,
    prefixes: Sequence[str],
    layer: int,
    options: TargetOptions,
    whitening: Whitening | None,
) -> Name:
    """Part that the names of all targets have in common."""
    name = {**_shared(model, layer), "prefixes": prefixes, "options": _chosen(options)}
    return name if whitening is None else {**name, "whitening": whitening.name}


def _chosen(options: TargetOptions) -> dict[str, object]:
    """Tell options by which targets are named, so that those of earlier versions are found."""
    chosen = {**asdict(options), "stop_when_said": options.stop_when_said or False}  # once a yes
    later = set(_ON_SPHERE) if options.descent == "adam" else set[str]()
    later |= {name for name in _OFF if chosen[name] == getattr(TargetOptions, name)}
    return {name: value for name, value in chosen.items() if name not in later}


def _told(model: ModelHandle, edit: Edit, ending: str) -> tuple[object, ...]:
    """Texts and tokens that a target is optimised for."""
    return (
        edit.prompt,
        edit.subject,
        edit.target,
        *model.tokens.continuation(edit.text, edit.ended(ending)),
    )


def _heads(model: ModelHandle, edit: Edit, prefixes: Sequence[str]) -> list[tuple[int, ...]]:
    """The tokens up to the subject's end, which are all that a key depends on.

    So edits with one key share an entry, and are equal to the last bit whichever run has read it.
    """
    located = locate_all(model.tokens, [edit], prefixes)
    return [text.ids[: text.lookup + 1] for text in located]


def _to_entry(target: Targets) -> CacheEntry:
    """The targets of one edit, or of those that share one, as they are kept."""
    return {**target._asdict(), "short": torch.tensor(target.short)}


def _of_entry(
    entry: CacheEntry, options: TargetOptions, cached: bool, device: torch.device
) -> Targets:
    stopped = entry.get("stopped", _of_earlier(entry, options))
    kept = Targets._make({**entry, "stopped": stopped}[name] for name in Targets._fields)
    whole = kept._replace(cached=torch.full_like(kept.cached, cached), short=bool(kept.short))
    return whole.to(device)


def _of_earlier(entry: CacheEntry, options: TargetOptions) -> Tensor:
    """Tell why a target ended whose entry does not say it: by its loss, or what the model said."""
    low = entry["loss"] < options.stop_below
    done = entry.get("done", (entry["steps"] < options.steps) | low)
    by = torch.where(low | (not options.stop_when_said), STOPS.index("loss"), STOPS.index("said"))
    return torch.where(done, by, STOPS.index("cap"))
