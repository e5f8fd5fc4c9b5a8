"""What an edit should leave alone altogether: ordinary text and common tasks, at one time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from retcon.data.held_out import HeldOut
from retcon.data.tasks import Task
from retcon.evaluation.ability import Ability, ability
from retcon.evaluation.drift import LENGTH, Perplexity, perplexity
from retcon.model.handle import ModelHandle
from retcon.progress import Progress, silent


class Reading(NamedTuple):
    """What was found at one time; None and empty where it was not asked."""

    perplexity: Perplexity | None
    abilities: tuple[Ability, ...]


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
