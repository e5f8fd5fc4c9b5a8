"""Find facts with one key: their texts are equal up to the subject's end, so one value serves all.

A key is made of the tokens up to the subject's end, and of nothing behind it. Two facts that share
it ("{X} was founded in" and "{X} is made by") ask for two values in one place. A hard constraint
cannot write them, which is refused; with a ridge what is written is a mean of them, or the last of
them, which is said before the minutes of work. Where a patch is made they get one target for all of
them, by themselves, if the method can do that (`merge_subjects`). Edits of one fact are not meant
where the last of them counts.
"""

import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from typing import NamedTuple

from retcon.edits import Edit
from retcon.errors import CollidingEdits, RetconWarning, first_few
from retcon.features.contexts import locate
from retcon.method.base import WritesKeys
from retcon.method.presets import Recipe
from retcon.model.tokens import Tokens
from retcon.run.schedule import Schedule

# So many groups, and so many facts of each, are named.
_GROUPS, _FACTS = 3, 4


class Clash(NamedTuple):
    """Edits with one key that get into each other's way.

    Attributes:
        refused: a hard constraint cannot write them.
        batches: in how many they are written.
    """

    edits: tuple[Edit, ...]
    refused: bool
    batches: int


def check_keys(
    tokens: Tokens, method: object, edits: Sequence[Edit], schedule: Schedule
) -> tuple[Clash, ...]:
    """The facts that a run writes over one another.

    Raises:
        CollidingEdits: the constraint is hard, so that they cannot be written at all.
    """
    conflicts = clashes(method, edits, schedule, _by_tokens(tokens, edits))
    hard = [clash for clash in conflicts if clash.refused]
    if hard:
        raise CollidingEdits(
            f"{named(hard)} A hard constraint (ridge 0) cannot write two values at one key. Drop "
            f"one of them, put them into different batches without accumulation, or set a "
            f"ridge > 0 (--set ridge=…, which is memit)."
        )
    return conflicts


def merged_where_shared(
    tokens: Tokens, recipe: Recipe, edits: Sequence[Edit], schedule: Schedule
) -> Recipe:
    """The recipe, with `merge_subjects` where facts have one key and that lets all of them stand.

    A `RetconWarning` names them. Edits of one fact again are left as they are.
    """
    merging = recipe._replace(settings={**recipe.settings, "merge_subjects": True})
    groups = _by_tokens(tokens, edits)
    left = {clash.edits for clash in clashes(merging.build(), edits, schedule, groups)}
    solved = [
        clash
        for clash in clashes(recipe.build(), edits, schedule, groups)
        if clash.edits not in left and len({edit.fact for edit in clash.edits}) > 1
    ]
    if not solved:
        return recipe
    warnings.warn(
        f"{named(solved)} One target is made for all facts of a key, by their joint loss, and "
        f"written once (merge_subjects=true). With merge_subjects=false each has its own.",
        RetconWarning,
        stacklevel=3,
    )
    return merging


def warned_of(method: object, conflicts: tuple[Clash, ...]) -> tuple[Clash, ...]:
    """Warn of conflicts, if there are any, and return them."""
    if conflicts:
        warnings.warn(explained(method, conflicts), RetconWarning, stacklevel=3)
    return conflicts


def _by_tokens(tokens: Tokens, edits: Sequence[Edit]) -> list[list[int]]:
    """The places of edits with one key, as a model's tokens have it."""

    def key(edit: Edit) -> Hashable:
        located = locate(tokens, edit, "")
        return located.ids[: located.lookup + 1]

    return grouped(edits, key)


def grouped(edits: Sequence[Edit], key: Callable[[Edit], Hashable]) -> list[list[int]]:
    """The places of edits with one key, where there are several.

    The tokens decide; before a model is known the text up to the subject's end stands for them.

    Args:
        key: by what it is known.
    """
    places: defaultdict[Hashable, list[int]] = defaultdict(list)
    for place, edit in enumerate(edits):
        places[key(edit)].append(place)
    return [group for group in places.values() if len(group) > 1]


def clashes(
    method: object, edits: Sequence[Edit], schedule: Schedule, groups: Sequence[list[int]]
) -> tuple[Clash, ...]:
    """Find edits that get into each other's way, among groups with one key."""
    if not isinstance(method, WritesKeys):
        return ()
    if method.reads_prompt:
        own = [[edits[place].text for place in group] for group in groups]
        groups = [
            [place for place, text in zip(group, texts, strict=True) if text == one]
            for group, texts in zip(groups, own, strict=True)
            for one in dict.fromkeys(texts)
            if texts.count(one) > 1
        ]
    met = [part for group in groups for part in _meeting(group, schedule)]
    found = [_clash(method, edits, part, schedule) for part in met]
    return tuple(clash for clash in found if clash is not None)


def _meeting(places: list[int], schedule: Schedule) -> Iterator[list[int]]:
    """Yield the edits, among some, that come into one model."""
    if schedule.carry:
        yield places
        return
    for batch in dict.fromkeys(place // schedule.batch_size for place in places):
        yield [place for place in places if place // schedule.batch_size == batch]


def _clash(
    method: WritesKeys, edits: Sequence[Edit], places: list[int], schedule: Schedule
) -> Clash | None:
    """Clash of edits with one key in one model; None where none gets in another's way."""
    chosen = tuple(edits[place] for place in places)
    # Batches that adapt may part any two.
    size = 1 if schedule.adapts else schedule.batch_size
    batches = len({place // size for place in places})
    merged = method.shares_targets and len({edit.head for edit in chosen}) == 1
    # Of those in one batch, a merged target is written once.
    solved = batches if merged else len(chosen)
    remembered = schedule.carry and method.accumulate
    if method.ridge == 0 and solved > (1 if remembered else batches):
        return Clash(chosen, True, batches)
    made = len({place // schedule.refresh.ahead(size) for place in places})
    if len({edit.fact for edit in chosen}) == 1 or (merged and made == 1):
        return None
    return Clash(chosen, False, batches)


def explained(method: object, conflicts: Collection[Clash]) -> str:
    """Explain clashes: which facts, what becomes of them, and what to do."""
    assert isinstance(method, WritesKeys)
    if any(clash.refused for clash in conflicts):
        return f"{named(conflicts)} A hard constraint (ridge 0) cannot write two values at one key."
    if method.shares_targets:
        return (
            f"{named(conflicts)} There is one target for those whose targets are made "
            f"together, and these are in several batches, of which the last counts. Put them into "
            f"one batch, or make all targets first (refresh never)."
        )
    lost = (
        "What is written is a mean of what they ask for, and as a rule none of them is said "
        "afterwards."
        if method.accumulate or any(clash.batches < len(clash.edits) for clash in conflicts)
        else "The last of them counts, and those before it are lost."
    )
    return (
        f"{named(conflicts)} {lost} Write them in one batch with merge_subjects=true, which makes "
        f"one target for all of them (memit, emmet, encore, alphaedit, lyaplock), or begin their "
        f"prompts with different words, as in 'The founder of {{X}} is'."
    )


def named(conflicts: Collection[Clash]) -> str:
    """The facts, the first of them by name."""
    groups = [_group(clash.edits) for clash in list(conflicts)[:_GROUPS]]
    more = (
        f"; and {len(conflicts) - _GROUPS:,} more such groups" if len(conflicts) > _GROUPS else ""
    )
    count = sum(len(clash.edits) for clash in conflicts)
    return (
        f"{count:,} facts have the same key as others, because their texts are equal up to the "
        f"subject's end: {'; '.join(groups)}{more}."
    )


def _group(edits: Sequence[Edit]) -> str:
    return first_few([f"{edit.id!r} ({edit.subject})" for edit in edits], _FACTS)
