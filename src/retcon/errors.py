"""Every mistake that Retcon can explain: what happened, why, and what to do about it.

One class per kind of mistake. The command line prints the message and exits with code 2; a
library user catches `RetconError` or the class that matters to her.
"""

import difflib
from collections.abc import Iterable, Sequence


class RetconError(Exception):
    """Base of all errors that Retcon raises on purpose."""


class RetconWarning(UserWarning):
    """Warning that the work goes on but may not do what was meant; the command line prints it."""


class InvalidEdit(RetconError):
    """An edit that cannot be read: no subject, no target, or a prompt without its placeholder."""


class InvalidData(RetconError):
    """A data file that does not hold what it should; the message names file and line."""


class InvalidSetting(RetconError):
    """A setting with a value of the wrong type or out of range."""


class InvalidPlugin(RetconError):
    """A plugin that cannot be loaded, or that takes a name which is taken."""


class InvalidVerdict(RetconError):
    """A judge's verdict that is neither True nor False nor None."""


class UnknownName(RetconError):
    """A method, layer, setting or alias that does not exist; the message lists what does."""

    @classmethod
    def among(cls, kind: str, name: str, known: Iterable[str]) -> "UnknownName":
        """The error for `name`, with the nearest of the `known` names and then all of them."""
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return cls(f"Unknown {kind} {name!r}.{hint} Available: {', '.join(names) or 'none'}.")


class ModelNotFound(RetconError):
    """A model that is not on this machine and could not be fetched."""


class UnsupportedModel(RetconError):
    """A model, or a layer of it, that cannot be edited; the message gives the structural reason."""


class HeldElsewhere(RetconError):
    """Something that another process is changing just now; the message says which process."""


class NotFinite(RetconError):
    """NaN or infinity in weights, activations or scores."""


class SingularCovariance(RetconError):
    """Second moments that cannot be inverted: too few tokens, or too small a jitter."""


class CollidingEdits(RetconError):
    """Two edits with the same key: a hard constraint cannot write two values at one key."""


class CapacityExceeded(RetconError):
    """More hard constraints than input dimensions: at most d_in facts fit in one matrix."""


class Collapsed(RetconError):
    """Edits that the model does not survive, so that a guard has ended the run early."""


class NotSaid(RetconError):
    """Facts that the edited model does not say when it is asked for them."""


class InvalidPatch(RetconError):
    """A patch file that is truncated, hostile, or not a patch at all."""


class PatchMismatch(RetconError):
    """A patch made for another base model."""


class InvalidLedger(RetconError):
    """A ledger's folder that cannot be used: there is none, it is damaged, or it was changed."""


class NotExportable(RetconError):
    """A patch that a format cannot hold, or a checkpoint that it cannot be merged into."""


class InvalidAdapter(RetconError):
    """A LoRA adapter that is damaged, hostile, or changes what a patch cannot hold."""


class HubRefused(RetconError):
    """The hub could not be reached, or did not do what was asked of it."""


class InvalidMoments(RetconError):
    """A file of second moments that is damaged, or not of the model and layer it should be of."""


class StorageError(RetconError):
    """A file that could not be written: no space, or no permission."""


class Damaged(RetconError):
    """A file that is not the one that was written, or is another's."""


class InvalidStudy(RetconError):
    """A study's file or folder that cannot be used; the message says where and what is wrong."""


class DamagedCell(RetconError):
    """A cell of a study whose files are not those that were written."""


class MissingExtra(RetconError):
    """A package of an optional extra that is not installed; the message names the extra."""


def first_few(names: Sequence[str], most: int = 5) -> str:
    """The first of some names as a sentence has them, and how many others there are."""
    more = f" and {len(names) - most:,} others" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"
