"""Check that a ledger is whole: every file that its history names, and the model it is for."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from retcon.errors import PatchMismatch, RetconError
from retcon.model.handle import ModelHandle
from retcon.patch.events import Added, Event, TakenBack
from retcon.patch.ledger import Ledger
from retcon.patch.patch import OWNER, Patch, load_about, load_patch
from retcon.sealed_tensors import check

_UNSEALED = "written before there were digests, and cannot be checked"


class Check(NamedTuple):
    """Result of looking at one thing, and what is wrong with it (None: nothing).

    Attributes:
        note: what else is to be said of it.
    """

    what: str
    problem: str | None
    note: str | None = None


def verify(ledger: Ledger, model: ModelHandle | None = None) -> list[Check]:
    """Look at all that a ledger holds; with its model, apply the stack and undo it.

    Raises:
        InvalidLedger: the history itself cannot be read.
    """
    history = ledger.read()
    events = history.events
    named = [(event, sha) for event in events for sha in _patches(event)]
    note = None if history.sealed else f"all or some of it was {_UNSEALED}"
    findings = [Check(f"history, {len(events)} events", None, note)]
    findings += [
        _attempt(f"patch of event {event.number}", lambda sha=sha: load_patch(ledger.file(sha)))
        for event, sha in named
    ]
    findings.append(_attempt("the stack", ledger.stack))
    if model is not None:
        findings += [
            _attempt(f"base of event {event.number}", partial(_made_on, ledger, event, model))
            for event in events
            if isinstance(event.action, Added) and event.action.on
        ]
        findings.append(_attempt("apply and undo", lambda: _there_and_back(ledger.stack(), model)))
    return findings


def verify_file(file: Path, model: ModelHandle | None = None) -> list[Check]:
    """Look at a patch file; with its model, apply the patch and undo it."""
    outcome = _attempt("the file", lambda: load_patch(file))
    if outcome.problem is None and not check(file, OWNER):
        outcome = outcome._replace(note=_UNSEALED)
    findings = [outcome]
    if model is not None and outcome.problem is None:
        patch = load_patch(file)
        findings.append(_attempt("apply and undo", lambda: _there_and_back(patch, model)))
    return findings


def _patches(event: Event) -> list[str]:
    """The patch files that an event names."""
    if isinstance(event.action, Added):
        return [event.action.patch]
    return list(event.action.solved.values()) if isinstance(event.action, TakenBack) else []


def _made_on(ledger: Ledger, event: Event, model: ModelHandle) -> None:
    """Raise PatchMismatch unless a patch was made on the stack that its event names."""
    assert isinstance(event.action, Added)
    about = load_about(ledger.file(event.action.patch))
    with ledger.applied(model, at=event.action.on):
        if about.base != model.live_fingerprint:
            raise PatchMismatch(
                f"it was made on other weights ({about.base[:12]}…) than those of {model.name!r} "
                f"with the stack after event {event.action.on} in them."
            )


def _there_and_back(patch: Patch, model: ModelHandle) -> None:
    before = model.weights_hash()
    with patch.applied(model):
        pass
    if model.weights_hash() != before:
        raise RetconError("the model's weights are not what they were before it.")


def _attempt(what: str, look: Callable[[], object]) -> Check:
    try:
        look()
    except RetconError as error:
        return Check(what, str(error))
    return Check(what, None)
