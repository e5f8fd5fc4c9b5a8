"""What a user names where a patch is wanted: a patch file, a ledger, or a ledger at some point."""

from pathlib import Path

from retcon.patch.ledger import Ledger
from retcon.patch.patch import Patch, load_patch


def read_source(source: Path | str) -> Patch:
    """A patch file, or the stack of a ledger; `LEDGER@N` is its stack after event N.

    Raises:
        InvalidPatch, InvalidLedger: there is neither, or it is damaged.
        UnknownName: there is no such event.
    """
    text = str(source)
    folder, at, point = text.rpartition("@")
    if at and point.isdecimal() and len(point) < 7 and Path(folder).is_dir():
        return Ledger(Path(folder)).stack(int(point))
    if Path(text).is_dir():
        return Ledger(Path(text)).stack()
    return load_patch(text)
