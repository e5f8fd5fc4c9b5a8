"""A monitor: a few cheap numbers that tell whether a model still holds up while edits go into it.

They are read on the model as it is: ordinary text, facts written earlier, facts written now.
"""

import hashlib
from collections.abc import Sequence
from math import isfinite

from retcon.data.held_out import held_out
from retcon.edits import Edit, Probe
from retcon.errors import NotFinite
from retcon.features.own_text import SelfCorpus
from retcon.model.handle import ModelHandle
from retcon.run.signals import Signals
from retcon.scoring.metrics import level
from retcon.scoring.perplexity import read_passages
from retcon.scoring.score import score_targets

# Passages of ordinary text, their tokens, and earlier facts that are asked again.
_PASSAGES, _LENGTH, _RESERVOIR = 12, 64, 48


class Monitor:
    """Ordinary text and a sample of earlier facts, chosen by hashes, so that all runs ask alike.

    model: the model before its first edit. Where it does not know the words of the text that comes
    with the package, it is given text that it has written itself. probes: of these, it is asked
    again for those that it answers right.
    """

    def __init__(self, model: ModelHandle, probes: Sequence[Probe] = ()) -> None:
        self._model = model
        right = self._right(probes)
        self._probes = [probe for probe, so in zip(probes, right, strict=True) if so]
        self._texts = held_out(passages=_PASSAGES).texts
        if not _known(model, self._texts):
            # Other text than second moments are from, which have the seed 0.
            own = SelfCorpus(
                model=model, tokens=_PASSAGES * _LENGTH, seed=1, document_tokens=_LENGTH
            )
            self._texts = tuple(own.texts())[:_PASSAGES]

    def measure(self, batch: Sequence[Edit], earlier: Sequence[Edit], step_norm: float) -> Signals:
        """Signals of the model as it is.

        Args:
            batch: edits in it that are new.
            earlier: the others.
        """
        # Of a fact that was edited again, the last target counts.
        now = {edit.fact: edit for edit in batch}
        latest = {edit.fact: edit for edit in earlier if edit.fact not in now}
        reservoir = sorted(latest.values(), key=_place)[:_RESERVOIR]
        try:
            passages = read_passages(self._model, self._texts, length=_LENGTH)
            efficacy = self._share(sorted(now.values(), key=_place)[:_RESERVOIR])
            retention = self._share(reservoir)
            changed = len(self._probes) - sum(self._right(self._probes))
        except NotFinite:
            return Signals(float("inf"), 0.0, 0.0, step_norm)
        read = level(passages, "perplexity")
        text = read.value if read is not None and isfinite(read.value) else float("inf")
        return Signals(
            text, efficacy, retention, step_norm, changed=changed, probes=len(self._probes)
        )

    def _right(self, probes: Sequence[Probe]) -> list[bool]:
        """Tell of each probe whether every token of its answer is the most probable one."""
        if not probes:
            return []
        scores = score_targets(self._model, [(one.prompt, one.answer) for one in probes])
        return [score.hits == score.tokens for score in scores]

    def _share(self, edits: Sequence[Edit]) -> float | None:
        """Share of facts whose target beats the old one, or, without one, all other tokens."""
        if not edits:
            return None
        prompts = [(edit.text, target) for edit in edits for target in _targets(edit)]
        scores = iter(score_targets(self._model, prompts))
        winning = 0
        for edit in edits:
            new, *old = (next(scores) for _ in _targets(edit))
            winning += new.nll < old[0].nll if old else new.hits == new.tokens
        return winning / len(edits)


def _known(model: ModelHandle, texts: Sequence[str]) -> bool:
    """True if the tokenizer knows most of the words of some texts."""
    ids = [i for text in texts for i in model.tokens.encode(text)]
    return sum(one == model.tokens.unknown for one in ids) <= len(ids) / 2


def _targets(edit: Edit) -> list[str]:
    return [edit.target] if edit.target_old is None else [edit.target, edit.target_old]


def _place(edit: Edit) -> str:
    return hashlib.sha256(edit.fact.encode()).hexdigest()
