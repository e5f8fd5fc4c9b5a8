"""Whether a ledger is whole: every file that its history names, and the model that it is for."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from retcon.errors import RetconError
from retcon.model.handle import ModelHandle
from retcon.patch import journal
from retcon.patch.format import Patch, load_patch
from retcon.patch.journal import Added, Event, TakenBack
from retcon.patch.ledger import Ledger


class Finding(NamedTuple):
    """Something that was looked at, and what is wrong with it (None: nothing)."""

    what: str
    problem: str | None


def verify(ledger: Ledger, model: ModelHandle | None = None) -> list[Finding]:
    """Look at all that a ledger holds; with its model, apply the stack and undo it.

    Raises:
        InvalidLedger: the history itself cannot be read.
    """
    history = ledger.history
    named = [(event, sha) for event in history for sha in _patches(event)]
    findings = [Finding(f"history, {len(history)} events", None)]
    findings += [_patch(ledger, event, sha) for event, sha in named]
    findings.append(_attempt("the stack", ledger.stack))
    if model is not None:
        findings.append(_attempt("apply and undo", lambda: _there_and_back(ledger.stack(), model)))
    return findings


def verify_file(file: Path, model: ModelHandle | None = None) -> list[Finding]:
    """Look at a patch file; with its model, apply the patch and undo it."""
    findings = [_attempt("the file", lambda: load_patch(file))]
    if model is not None and findings[0].problem is None:
        patch = load_patch(file)
        findings.append(_attempt("apply and undo", lambda: _there_and_back(patch, model)))
    return findings


def _patches(event: Event) -> list[str]:
    """The patch files that an event names."""
    if isinstance(event.action, Added):
        return [event.action.patch]
    return list(event.action.solved.values()) if isinstance(event.action, TakenBack) else []


def _patch(ledger: Ledger, event: Event, sha: str) -> Finding:
    file = journal.patch_file(ledger.folder, sha)
    if file.is_file() and journal.hash_of(file) != sha:
        problem = f"{file} was changed: its bytes have another hash. Bring it back from a copy."
        return Finding(f"patch of event {event.number}", problem)
    return _attempt(f"patch of event {event.number}", lambda: load_patch(file))


def _there_and_back(patch: Patch, model: ModelHandle) -> None:
    before = model.weights_hash()
    with patch.applied(model):
        pass
    if model.weights_hash() != before:
        raise RetconError("the model's weights are not what they were before it.")


def _attempt(what: str, look: Callable[[], object]) -> Finding:
    try:
        look()
    except RetconError as error:
        return Finding(what, str(error))
    return Finding(what, None)
