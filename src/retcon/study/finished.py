"""A finished cell: what is kept of it, and how its own folder is read. No torch here."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from retcon.errors import Damaged, DamagedCell
from retcon.sealed import Owner, digest_of, load_record
from retcon.study.cells import Cell
from retcon.study.earlier import observations

if TYPE_CHECKING:
    import polars as pl

ROWS, STEPS, DONE, CELL = "rows.parquet", "steps.jsonl", "done.json", "cell.json"
EXAMPLES, ENVIRONMENT, FAILED = "examples.json", "environment.json", "failed.json"
# Of earlier versions.
GENERAL, GENERATIONS = "general.json", "generations.parquet"

_REMEDY = "Resume the study: it is run again, and every other cell stays as it is."


@runtime_checkable
class FinishedCell(Protocol):
    """A cell that was run to its end, in a folder of its own or in a pack.

    Each of these raises DamagedCell, or InvalidStudy for a pack, where a file is not the one that
    was written.
    """

    def resolved(self) -> dict[str, Any]:
        """The fields of its `Cell`."""
        ...

    def environment(self) -> dict[str, object]:
        """Versions, threads, platform and commit that made it."""
        ...

    def weights(self) -> str | None:
        """The sha256 of the edited matrices, where edits were carried."""
        ...

    def rows(self) -> "pl.DataFrame":
        """Observations of the cell, in the columns of `Observation`."""
        ...

    def steps(self) -> list[dict[str, Any]]:
        """The record of each batch (`run.record.StepRecord`)."""
        ...

    def examples(self) -> list[dict[str, str | None]]:
        """Facts with the model's continuations before and after; empty where none were kept."""
        ...

    def sealed(self) -> bool:
        """True if it was written with a seal, which older versions did not have."""
        ...

    def check(self) -> bool:
        """Check every file against its digest; True if the cell is sealed."""
        ...


@dataclass(frozen=True)
class LiveCell:
    """A finished cell in a folder of its own."""

    folder: Path

    @property
    def done(self) -> bool:
        """True if it has been finished."""
        return (self.folder / DONE).exists()

    def resolved(self) -> dict[str, Any]:
        """See `FinishedCell`."""
        return self._json(CELL)

    def environment(self) -> dict[str, object]:
        """See `FinishedCell`."""
        return self._json(ENVIRONMENT)

    def weights(self) -> str | None:
        """See `FinishedCell`."""
        return _done(self.folder)[0].get("weights")

    def rows(self) -> "pl.DataFrame":
        """See `FinishedCell`."""
        import polars as pl

        rows = pl.read_parquet(checked(self.folder, ROWS))
        general, texts = (self.folder / name for name in (GENERAL, GENERATIONS))
        return observations(
            rows,
            self._json(GENERAL) if general.exists() else (),
            pl.read_parquet(checked(self.folder, GENERATIONS)) if texts.exists() else None,
            self.steps() if general.exists() else (),
        )

    def steps(self) -> list[dict[str, Any]]:
        """See `FinishedCell`."""
        lines = checked(self.folder, STEPS).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def examples(self) -> list[dict[str, str | None]]:
        """See `FinishedCell`."""
        return self._json(EXAMPLES) if (self.folder / EXAMPLES).exists() else []

    def sealed(self) -> bool:
        """See `FinishedCell`."""
        return _done(self.folder)[1]

    def check(self) -> bool:
        """See `FinishedCell`."""
        why = damage(self.folder)
        if why is not None:
            raise DamagedCell(why)
        return self.sealed()

    def _json(self, name: str) -> Any:
        return json.loads(checked(self.folder, name).read_text(encoding="utf-8"))


def cell_of(identity: str) -> Owner:
    """Owner of the records of a cell."""
    return {"kind": "cell", "cell": identity}


def damage(cell: Path) -> str | None:
    """Name the file of a finished cell that is not the one that was written; None where all are."""
    try:
        for name in _files(cell):
            checked(cell, name)
    except DamagedCell as error:
        return str(error).removesuffix(f" {_REMEDY}")
    return None


def checked(cell: Path, name: str) -> Path:
    """A finished cell's file, after its sha256 was checked.

    Raises:
        DamagedCell: it is not the one that was written.
    """
    path, wanted = cell / name, _files(cell)
    try:
        digest = digest_of(path)
    except OSError as error:
        raise DamagedCell(f"{path} cannot be read: {error.strerror}. {_REMEDY}") from error
    if digest != wanted.get(name):
        raise DamagedCell(f"{path} is not the file that was written. {_REMEDY}")
    return path


def _files(cell: Path) -> dict[str, str]:
    """The files of a finished cell, and their sha256."""
    record, _ = _done(cell)
    try:
        return {str(name): str(digest) for name, digest in record["files"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedCell(f"{cell / DONE} cannot be read: {error}. {_REMEDY}") from error


def _done(cell: Path) -> tuple[dict[str, Any], bool]:
    """The record of a finished cell, which is seen to be this one, and whether it is sealed."""
    path = cell / DONE
    try:
        record, sealed = load_record(path, cell_of(cell.name))
        if not sealed:
            _check_identity(cell)
    except Damaged as error:
        raise DamagedCell(f"{error} {_REMEDY}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCell(f"{path} cannot be read: {error}. {_REMEDY}") from error
    return record, sealed


def _check_identity(cell: Path) -> None:
    """Raise Damaged unless a folder holds the cell that it is named by."""
    resolved = Cell.model_validate_json((cell / CELL).read_bytes())
    if resolved.id != cell.name:
        raise Damaged(f"{cell} holds another cell: by its {CELL} it is {resolved.id}.")
