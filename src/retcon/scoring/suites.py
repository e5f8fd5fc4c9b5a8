"""What an edit should leave alone altogether: ordinary text and common tasks, at one time."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from retcon.data.held_out import HeldOut
from retcon.data.tasks import Task
from retcon.model.handle import ModelHandle
from retcon.progress import Progress, silent
from retcon.scoring.ability import ability
from retcon.scoring.perplexity import LENGTH, perplexity
from retcon.scoring.readings import Reading


@dataclass(frozen=True, kw_only=True)
class General:
    """What is to be read: held-out text, cut to `length` tokens a passage, and tasks."""

    text: HeldOut | None = None
    tasks: Sequence[Task] = ()
    length: int = LENGTH

    @property
    def asked(self) -> bool:
        """Whether anything is."""
        return self.text is not None or bool(self.tasks)

    @property
    def identity(self) -> str:
        """What names the passages and items themselves."""
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

    def read(self, model: ModelHandle, progress: Progress = silent) -> Reading:
        """Read it off the model as it is.

        Raises:
            NotFinite: a log-probability is NaN.
        """
        found = None
        if self.text is not None:
            found = perplexity(model, self.text.texts, length=self.length, progress=progress)
        tasks = ability(model, self.tasks, progress=progress) if self.tasks else ()
        return Reading(found, tuple(tasks))
