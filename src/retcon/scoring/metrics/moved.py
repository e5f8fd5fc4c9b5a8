"""Divergence from the untouched model: how far the next word has moved, whatever is true.

    KL(p₀ ‖ p) = Σ p₀ log(p₀ / p)        TV(p₀, p) = ½ Σ |p₀ − p|

p₀ is the next-token distribution before any edit, p the one now; `top` is whether the most probable
token is the same. NS compares two answers and may stay as it is while everything beside them moves
(arXiv:2601.17343); these need no truth. They are read at three places:

    neighbours   behind the prompts of an edit's neighbours
    subject      behind prompts of other relations about the subject of the edit: locality probes of
                 its own, and two prompts of the run's other relations, drawn by the case's id
    text         at every token of ordinary text that comes with the package; once for the model

No distribution is kept, but the input of the output head that it is made of, from the time before
the edits: edits write nothing behind it. It is some hundred times smaller, and one pass gives both
distributions. An observation holds the mean over its tokens (`value`). Before the edits there is
nothing to compare with. Where facts are put before prompts, the prompts of other relations are left
out: nobody has put facts before these.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from retcon.edits import Case
from retcon.progress import Progress, silent
from retcon.scoring.metrics import Observer, metric
from retcon.scoring.metrics.whole_model import WHOLE
from retcon.scoring.observations import Moment, Observation
from retcon.scoring.scales import Amount, Share

if TYPE_CHECKING:
    from torch import Tensor

    from retcon.model.overlay import Overlay
    from retcon.scoring.score import Look

NEIGHBOUR, SUBJECT, ORDINARY = "neighbours", "subject", "text"
MEASURES = ("KL", "TV", "top")
# Prompts of other relations for each subject; passages of ordinary text, and their tokens.
_OTHERS = 2
_PASSAGES, _LENGTH = 32, 128
# Tokens in one pass, each with two distributions.
_TOKENS = 256


class _Name(NamedTuple):
    """Name of a text."""

    case: str
    place: str
    index: int


class _Text(NamedTuple):
    """A text, and from which token on the next one is predicted."""

    name: _Name
    relation: str | None
    ids: tuple[int, ...]
    start: int
    moment: Moment
    owner: int = 0


# Inputs of the output head before the edits.
_States = dict[_Name, "Tensor"]


def _comparing(prompts: Callable[[Case], list[tuple[str, str]]]) -> Observer:
    """Make an observer of the prompts of cases, each with its place."""
    states: _States = {}

    def compare(
        overlay: "Overlay", looks: "Sequence[Look]", progress: Progress = silent
    ) -> list[Observation]:
        tokens = overlay.model.tokens
        texts: list[_Text] = []
        for owner, look in enumerate(looks):
            for case in look.cases:
                for index, (place, prompt) in enumerate(prompts(case)):
                    name, ids = _Name(case.edit.id, place, index), tokens.prompt(prompt)
                    moment = Moment(look.when, look.step)
                    texts.append(_Text(name, case.relation, ids, len(ids) - 1, moment, owner))
        return _compare(overlay, texts, states, progress)

    return Observer(together=compare, prepare=lambda cases: _comparing(_about_other_things(cases)))


def _about_other_things(cases: Sequence[Case]) -> Callable[[Case], list[tuple[str, str]]]:
    """Prompts of a case that its edit is not about, among some cases."""
    templates: dict[str, set[str]] = {}
    for case in cases:
        if case.relation is not None:
            templates.setdefault(case.relation, set()).add(case.edit.prompt)
    ordered = {relation: sorted(texts) for relation, texts in templates.items()}
    own = {case.edit.id: case.edit.prompt for case in cases}

    def prompts(case: Case) -> list[tuple[str, str]]:
        chosen = [(NEIGHBOUR, text) for text in case.neighbours]
        chosen += [(SUBJECT, probe.prompt) for probe in case.locality]
        if own.get(case.edit.id) == case.edit.prompt:
            drawn = _drawn(case, ordered)
            chosen += [(SUBJECT, text.replace("{}", case.edit.subject)) for text in drawn]
        return chosen

    return prompts


def _drawn(case: Case, templates: dict[str, list[str]]) -> list[str]:
    """A prompt of each of some other relations."""

    def place(text: str) -> bytes:
        return hashlib.sha256(f"{case.edit.id}:{text}".encode()).digest()

    relations = sorted(set(templates) - {case.relation}, key=place)[:_OTHERS]
    return [min(templates[relation], key=place) for relation in relations]


def _reading() -> Observer:
    """Make an observer of ordinary text."""
    states: _States = {}

    def read(
        model: Any, cases: Sequence[Case], moment: Moment, progress: Progress = silent
    ) -> list[Observation]:
        from retcon.data.held_out import held_out
        from retcon.model.overlay import Overlay

        del cases
        passages = held_out(passages=_PASSAGES).texts
        rows = [model.tokens.document(text, _LENGTH) for text in passages]
        texts = [
            _Text(_Name(f"passage {i}", ORDINARY, i), None, ids, 0, moment)
            for i, ids in enumerate(rows)
            if ids
        ]
        return _compare(Overlay(model=model), texts, states, progress)

    return Observer(observe=read, at=WHOLE, whole=True, prepare=lambda _cases: _reading())


PROMPTS = _comparing(lambda _case: [])
TEXT = _reading()


def _compare(
    overlay: "Overlay", texts: Sequence[_Text], states: _States, progress: Progress
) -> list[Observation]:
    """Keep the states of untouched texts, and compare others with those that were kept."""
    from retcon.model.tokens import by_length

    known = [text for text in texts if text.moment.when == "pre" or text.name in states]
    compared: dict[tuple[_Name, int], dict[str, float]] = {}
    done = 0
    for group in by_length([len(text.ids) for text in known], _TOKENS):
        progress("comparing with the untouched model", done, len(known))
        done += len(group)
        part = [known[i] for i in group]
        if part[0].moment.when == "pre":
            states |= _states(overlay, part)
            continue
        for text, values in zip(part, _divergences(overlay, part, states), strict=True):
            compared[text.name, text.owner] = values
    progress("comparing with the untouched model", done, len(known))
    return [
        Observation(
            text.name.case,
            text.relation,
            f"{measure} {text.name.place}",
            text.name.index,
            *text.moment,
            value=value,
        )
        for text in known
        for measure, value in compared.get((text.name, text.owner), {}).items()
    ]


def _places(texts: Sequence[_Text]) -> list[tuple[int, int]]:
    """Row and position of every token behind which the next one is predicted."""
    return [(i, at) for i, text in enumerate(texts) for at in range(text.start, len(text.ids))]


def _states(overlay: "Overlay", texts: Sequence[_Text]) -> _States:
    """The inputs of the output head at what is read of each text."""
    import torch

    from retcon.model.forward import head_inputs_at

    with torch.no_grad(), overlay.over([text.owner for text in texts]):
        rows = head_inputs_at(overlay.model, [text.ids for text in texts], _places(texts))
    parts = rows.split([len(text.ids) - text.start for text in texts])
    return {text.name: part for text, part in zip(texts, parts, strict=True)}


def _divergences(
    overlay: "Overlay", texts: Sequence[_Text], states: _States
) -> Iterator[dict[str, float]]:
    """Each measure of each text: the mean over its tokens."""
    import torch

    from retcon.model.forward import in_full, logits_beside

    before = torch.cat([states[text.name] for text in texts])
    with torch.no_grad(), overlay.over([text.owner for text in texts]):
        logits = logits_beside(overlay.model, [text.ids for text in texts], _places(texts), before)
    after, before = in_full(logits).log_softmax(-1).split(len(before))
    gap = before.exp() - after.exp()
    same = before.argmax(-1) == after.argmax(-1)
    # Rounding may leave a KL below zero, which there is not.
    kl = (before.exp() * (before - after)).sum(-1).clamp_min(0.0)
    measured = torch.stack([kl, gap.abs().sum(-1) / 2, same.double()], -1)
    for part in measured.split([len(text.ids) - text.start for text in texts]):
        yield dict(zip(MEASURES, part.mean(0).tolist(), strict=True))


def moved(row: Observation) -> float | None:
    """Distance of the next word from the untouched model's; of the top one, if it is the same."""
    return row.value


_ABOUT = {NEIGHBOUR: "neighbours", SUBJECT: "same subject", ORDINARY: "ordinary text"}
_TITLES = {"KL": "KL from the untouched model", "TV": "Total variation", "top": "Top word kept"}
_SCALES: dict[str, Amount] = {"KL": Amount(unit="nats", digits=3), "TV": Share(), "top": Share()}
for _rank, (_place, _about) in enumerate(_ABOUT.items()):
    for _second, _measure in enumerate(MEASURES):
        metric(
            f"{_measure}_{_place}",
            title=f"{_TITLES[_measure]}, {_about}",
            kind=f"{_measure} {_place}",
            scale=_SCALES[_measure],
            better="higher" if _measure == "top" else "lower",
            rank=40 + 3 * _rank + _second,
            observer=TEXT if _place == ORDINARY else PROMPTS,
        )(moved)
