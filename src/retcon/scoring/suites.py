"""Read ordinary text and common tasks off a model, at one time."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from retcon.data.held_out import HeldOut
from retcon.data.tasks import Task
from retcon.edits import Case
from retcon.model.handle import ModelHandle
from retcon.progress import Progress, silent
from retcon.scoring.ability import answer_items
from retcon.scoring.metrics import Observer
from retcon.scoring.metrics.whole_model import WHOLE
from retcon.scoring.observations import Moment, Observation
from retcon.scoring.perplexity import LENGTH, read_passages


@dataclass(frozen=True, kw_only=True)
class General:
    """Held-out text, cut to `length` tokens a passage, and tasks: what edits should leave alone."""

    text: HeldOut | None = None
    tasks: Sequence[Task] = ()
    length: int = LENGTH

    @property
    def asked(self) -> bool:
        """True if there is anything to read."""
        return self.text is not None or bool(self.tasks)

    @property
    def identity(self) -> str:
        """Hash of the passages and items themselves."""
        text = None if self.text is None else self.text.texts
        asked = json.dumps([text, self.tasks, self.length])
        return hashlib.sha256(asked.encode()).hexdigest()[:16]

    @property
    def size(self) -> int:
        """About how many tokens are read: a quarter of the characters."""
        passages = () if self.text is None else self.text.texts
        options = [option for task in self.tasks for item in task.items for option in item.options]
        read = sum(min(len(text) // 4, self.length) for text in passages)
        return read + sum(len(o.context) + len(o.continuation) for o in options) // 4

    @property
    def observer(self) -> Observer:
        """The observer that reads them."""
        return Observer(observe=self.observe, at=WHOLE, whole=True)

    def observe(
        self,
        model: ModelHandle,
        cases: Sequence[Case],
        moment: Moment,
        progress: Progress = silent,
    ) -> list[Observation]:
        """Read it off the model as it is.

        Raises:
            NotFinite: a log-probability is NaN.
        """
        del cases
        rows: list[Observation] = []
        if self.text is not None:
            texts = self.text.texts
            rows += read_passages(model, texts, moment, length=self.length, progress=progress)
        if self.tasks:
            rows += answer_items(model, self.tasks, moment, progress=progress)
        return rows
