"""The registry of export forms: each a function that writes a patch for another program.

A form's options are the keyword arguments of its function.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from retcon.files import whole_folder
from retcon.model.load import outline
from retcon.model.structure import Outline
from retcon.patch.patch import Patch
from retcon.progress import Progress
from retcon.registry import Registry, entered
from retcon.settings import Settings, chosen_of


@dataclass(frozen=True)
class Job:
    """A patch that is to be written.

    Attributes:
        patch: the patch.
        model: the base model, by name or folder, and its revision.
        folder: where to write; it becomes the folder that was asked for once all is there.
        progress: is called while work goes on.
    """

    patch: Patch
    model: str
    revision: str | None
    folder: Path
    progress: Progress

    def outline(self) -> Outline:
        """The structure of the base model, without its weights."""
        return outline(self.model, revision=self.revision)


class ExportTable(NamedTuple):
    """Table that shows what was written."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """Result of an export, in words and numbers.

    Attributes:
        tables, notes, warnings: to be shown.
        record: numbers for a record, by name.
        dtype: of a folder that is a whole model, what to load it in.
    """

    tables: Sequence[ExportTable] = ()
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()
    record: Mapping[str, object]
    dtype: str | None = None


Write = Callable[..., Exported]


class ExportForm(NamedTuple):
    """An entry of the registry: an export form.

    Attributes:
        name: what `--to` takes.
        write: fills a folder: `write(job, **options)`.
        is_model: whether the folder is a model that can be loaded, and so be scored.
    """

    name: str
    write: Write
    is_model: bool


EXPORT_FORMS: Registry[ExportForm] = Registry("export form", "retcon.patch.export")


def export_form(name: str, *, is_model: bool = False) -> Callable[[Write], Write]:
    """Enter a form under a name."""
    return entered(EXPORT_FORMS, name, lambda write: ExportForm(name, write, is_model))


def export(
    patch: Patch,
    form: str,
    folder: Path,
    *,
    model: str,
    revision: str | None,
    progress: Progress,
    options: Settings,
) -> Exported:
    """Write a patch into a new folder, whole or not at all: see `Patch.export`."""
    entry = EXPORT_FORMS.find(form)
    chosen = chosen_of(f"the export form {form}", entry.write, options)
    with whole_folder(folder) as work:
        return entry.write(Job(patch, model, revision, work, progress), **chosen)
