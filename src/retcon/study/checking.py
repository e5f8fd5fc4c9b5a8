"""Check a study's methods, settings and schedules before a model is known.

`spec` knows the keys of the file; this asks the methods that the file names. Layers that a model
does not have, and facts that there are not, are found by `planning`.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from retcon.errors import InvalidStudy, RetconError, UnknownName
from retcon.method.base import check_batch
from retcon.method.entries import MethodEntry, find_method
from retcon.model.load import find_dtype
from retcon.run.driver import check_rule
from retcon.run.schedule import Refresh
from retcon.scoring.metrics import observers
from retcon.study.planning import schedule_of
from retcon.study.spec import GridEntry, Spec, located
from retcon.study.tuning import candidates_of


def check(spec: Spec, path: Path) -> None:
    """Refuse what the methods would refuse.

    Raises:
        InvalidStudy: a method, setting, dtype, refresh rule or schedule does not exist, or they do
            not go together; the message says on which line.
    """
    known: set[str] = set()
    blocks = {block.name: index for index, block in enumerate(spec.blocks)}
    for entry in spec.entries:
        # Facts and their order are no matter of the method's.
        named = repr([v for k, v in vars(entry).items() if k not in ("n", "seed", "order")])
        if named not in known:
            known.add(named)
            _Check(spec, path, blocks[entry.block]).check(entry)


@dataclass(frozen=True)
class _Check:
    """A block of a study, by its number, and where that stands."""

    spec: Spec
    path: Path
    index: int

    def check(self, entry: GridEntry) -> None:
        """Look at everything that a place of the block names."""
        with self._at("method"):
            method = find_method(entry.method)
        with self._at("dtype"):
            find_dtype(entry.dtype)
        with self._at("refresh"):
            Refresh.parse(entry.refresh)
        with self._at("settings", "ridge"):
            candidates = candidates_of(entry, self.spec)
        settings: dict[str, object] = dict(entry.settings)
        if candidates:
            settings["ridge"] = candidates[0]
        self._check_settings(method, settings)
        with self._at("metrics"):
            observers(entry.metrics)
        with self._at("settings"):
            built = method.build(entry.layers or (0,), settings)
        with self._at("schedule"):
            check_batch(built, entry.batch_size)
            check_rule(built, schedule_of(entry))

    def _check_settings(self, method: MethodEntry, settings: dict[str, object]) -> None:
        known = method.settings()
        for name, value in settings.items():
            with self._at("settings", name):
                if name not in known:
                    raise UnknownName.among(f"setting of {method.name}", name, known)
                known[name].read(name, value)

    @contextmanager
    def _at(self, key: str, name: str | None = None) -> Generator[None, None, None]:
        """Say on which line of the file it is that something was refused."""
        try:
            yield
        except RetconError as error:
            block = self.spec.blocks[self.index]
            place = self._place(key, name)
            where = located(self.path, self.spec.text, place)
            raise InvalidStudy(f"{where}: block {block.name!r}: {error}") from error

    def _place(self, key: str, name: str | None) -> tuple[int | str, ...]:
        """Find where a key stands: in the block, in the defaults, or at the file's top."""
        own, shared = self.spec.blocks[self.index], self.spec.defaults
        inner = () if name is None else (name,)
        for place, axes in ((("blocks", self.index), own), (("defaults",), shared)):
            value = getattr(axes, key, None)
            if value is not None and (name is None or name in value):
                return (*place, key, *inner)
        return (key,) if key in self.spec.model_fields_set else ("blocks", self.index)
