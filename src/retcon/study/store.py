"""Write a cell's folder: batch by batch while it runs, as a whole when it is done.

A batch is one file, written whole, synced, and named by its own hash, so that a run which dies at
any moment leaves finished batches and nothing else. What they hold is enough to go on: factors and
the metric's memory where edits are carried, and the rows and records taken so far.
"""

import json
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import polars as pl

from retcon.environment import environment
from retcon.errors import Damaged, StorageError
from retcon.files import make_folder, storing, sweep, write_whole
from retcon.locking import claimed
from retcon.run.looks import Stage
from retcon.scoring.observations import Observation, table
from retcon.sealed import digest_of, save_record
from retcon.study.cells import Cell
from retcon.study.finished import (
    CELL,
    DONE,
    ENVIRONMENT,
    EXAMPLES,
    FAILED,
    ROWS,
    STEPS,
    cell_of,
)
from retcon.study.parts import End, Part, load_part, part_of, write_part


@dataclass(frozen=True)
class CellFolder:
    """The folder of one cell.

    Attributes:
        path: where it is.
        identity: the cell's, where the folder is called something else.
    """

    path: Path
    identity: str | None = None

    @property
    def cell(self) -> str:
        """Id of the cell that everything in here has to be of."""
        return self.identity or self.path.name

    @property
    def done(self) -> bool:
        """True if the cell has been finished."""
        return (self.path / DONE).exists()

    @contextmanager
    def claimed(self) -> Generator[bool, None, None]:
        """Keep other processes off the cell; false where one is at work on it.

        The lock goes with the process that holds it, however that ends.
        """
        check_there(self.path.parent)
        with claimed(self.lock) as mine:
            yield mine

    @property
    def lock(self) -> Path:
        """The file that a process holds while it is at work on the cell."""
        return self.path.with_name(f".{self.path.name}.lock")

    def begin(self, cell: Cell) -> None:
        """Say what will be in here."""
        check_there(self.path.parent)
        make_folder(self.path)
        self._write(CELL, cell.model_dump_json(indent=2))

    def commit(
        self,
        first: int,
        seen: Stage,
        *,
        carried: bool,
        end: End | None,
    ) -> Part:
        """Keep steps and what was seen of them.

        Args:
            first: the index of the first of them.
            seen: the steps, with rows and records.
            carried: False where later batches meet the untouched model.
            end: in the last part, where edits are carried.

        Raises:
            StorageError: no space; what was committed before is as it was.
        """
        check_there(self.path)
        target = self.path / f"step-{first:06d}.safetensors"
        return write_part(target, part_of(self.cell, first), seen, carried=carried, end=end)

    def parts(self, device: str = "cpu") -> tuple[list[Part], str | None]:
        """Load the parts of an unfinished run, and say what is wrong with one that is damaged.

        That one and those behind it are removed: their batches will be run again.

        Args:
            device: on which the run goes on.
        """
        parts: list[Part] = []
        expected = 0
        files = sorted(self.path.glob("step-*.safetensors"))
        for number, path in enumerate(files):
            try:
                first, part = load_part(path, self.cell, device)
                if first != expected:
                    raise ValueError(f"batch {expected} is missing before it")
            except (Damaged, OSError, ValueError) as error:
                with storing(self.path):
                    for later in files[number:]:
                        later.unlink(missing_ok=True)
                return parts, f"{path} is damaged ({error}): run again from its first batch."
            expected += len(part.records)
            parts.append(part)
        return parts, None

    def finish(self, parts: Sequence[Part], pre: Sequence[Observation], device: str) -> None:
        """Put the parts together, and mark the cell as done.

        Args:
            parts: of the whole run.
            pre: rows of the untouched model.
            device: that the model was on.
        """
        check_there(self.path)
        rows = pl.concat([table(pre), *(part.rows for part in parts)])
        write_whole(self.path / ROWS, rows.write_parquet, sync=True)
        lines = [json.dumps(record) for part in parts for record in part.records]
        self._write(STEPS, "\n".join(lines) + "\n")
        self._write(ENVIRONMENT, json.dumps({**environment(), "device": device}, indent=2))
        names = [CELL, ROWS, STEPS, ENVIRONMENT]
        end = parts[-1].end
        if end is not None:
            self._write(EXAMPLES, json.dumps(end.examples, indent=2, ensure_ascii=False))
            names.append(EXAMPLES)
        files = {name: digest_of(self.path / name) for name in names}
        done = {"files": files, "weights": None if end is None else end.weights}
        save_record(self.path / DONE, done, cell_of(self.cell), sync=True)
        self.clear_parts()

    def note_failure(self, message: str, trace: str | None = None) -> None:
        """Keep why the cell could not be finished; what it has seen so far stays in its parts.

        Args:
            message: for the user.
            trace: of an error that nobody has foreseen.
        """
        record = {"error": message, "trace": trace}
        save_record(self.path / FAILED, record, cell_of(self.cell), sync=True)

    def set_aside(self) -> Path:
        """Move a damaged cell out of the way; nothing of it is lost."""
        aside = (self.path.with_name(f"{self.path.name}.damaged-{n}") for n in count(1))
        target = next(path for path in aside if not path.exists())
        with storing(target):
            return self.path.rename(target)

    def clear_parts(self) -> None:
        """Remove what a finished cell no longer needs."""
        sweep(self.path)
        with storing(self.path):
            for path in [*self.path.glob("step-*.safetensors"), self.path / FAILED]:
                path.unlink(missing_ok=True)  # another process may be about it too

    def _write(self, name: str, text: str) -> None:
        check_there(self.path)
        target = self.path / name
        write_whole(target, lambda work: work.write_text(text, encoding="utf-8"), sync=True)


def check_there(folder: Path) -> None:
    """Raise StorageError where a study, or a part of it, has been moved away: it is not made again.

    Raises:
        StorageError: the folder is not there.
    """
    gone = [path for path in (folder, *folder.parents) if not path.exists()]
    if gone:
        raise StorageError(
            f"{gone[-1]} is gone: it was renamed or removed while the study was being run. It was "
            f"not made again; what was finished is where it was moved to. Go on there with `retcon "
            f"study resume`."
        )
