"""Registries: what can be added to Retcon, each by a file that enters itself under a name.

The entries of a registry are the modules of one of this package's folders, those of other packages
that name themselves under the entry points `retcon`, and those of plain files: `load_plugin`, which
is `--plugin` and `plugins:` of a study, and the environment variable RETCON_PLUGINS.
"""

import hashlib
import importlib
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Generic, TypeVar

from retcon.errors import InvalidPlugin, UnknownName

# Plain files that are run before anything is looked up, as in PATH.
PLUGINS = "RETCON_PLUGINS"
_LOADED: dict[str, Path] = {}
T = TypeVar("T")
Made = TypeVar("Made")


class Registry(Generic[T]):
    """Entries by name.

    Args:
        kind: what they are, in words, for messages.
        package: the folder whose modules are imported before anything is looked up.
    """

    def __init__(self, kind: str, package: str) -> None:
        self._kind, self._package = kind, package
        self._entries: dict[str, T] = {}
        self._whole = False

    def enter(self, name: str, entry: T) -> None:
        """Add an entry.

        Raises:
            InvalidPlugin: another one has the name.
        """
        if name in self._entries:
            raise InvalidPlugin(
                f"There is a {self._kind} {name!r} already. Give yours another name."
            )
        self._entries[name] = entry

    def all(self) -> dict[str, T]:
        """Every entry, in the order of their names."""
        if not self._whole:
            self._whole = True
            folder = importlib.import_module(self._package)
            for module in pkgutil.iter_modules(folder.__path__):
                importlib.import_module(f"{self._package}.{module.name}")
            _load_installed()
        return dict(sorted(self._entries.items()))

    def find(self, name: str) -> T:
        """The entry of a name.

        Raises:
            UnknownName: there is none; the error lists what exists.
        """
        known = self.all()
        if name not in known:
            raise UnknownName.among(self._kind, name, known)
        return known[name]


def entered(registry: Registry[T], name: str, entry: Callable[[Made], T]) -> Callable[[Made], Made]:
    """A decorator that adds an entry and leaves what it decorates as it is.

    Args:
        entry: makes the entry of it.
    """

    def enter(made: Made) -> Made:
        registry.enter(name, entry(made))
        return made

    return enter


@cache
def _load_installed() -> None:
    """Import the plugins that are installed as packages, and run those of the environment."""
    for point in entry_points(group="retcon"):
        point.load()
    for path in filter(None, os.environ.get(PLUGINS, "").split(os.pathsep)):
        load_plugin(Path(path))


def loaded_plugins() -> dict[str, Path]:
    """Every plain file that was run in this process, by its name without `.py`."""
    return dict(_LOADED)


def plugin_digest(stem: str) -> str:
    """The sha256 of a plain file that was run, by its name without `.py`."""
    return vars(sys.modules[f"retcon_plugin_{stem}"])["DIGEST"]


def load_plugin(path: Path) -> str:
    """Run a plain file, so that what it enters is there; the sha256 of the file.

    A file is run once in a process.

    Raises:
        InvalidPlugin: there is no such file, or it fails.
    """
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InvalidPlugin(f"The plugin {path} cannot be read: {error.strerror}.") from error
    name = f"retcon_plugin_{path.stem}"
    if path.stem in _LOADED:
        if plugin_digest(path.stem) != digest:
            raise InvalidPlugin(
                f"Another plugin is called {path.stem}, or it was changed since it was loaded. "
                f"Rename one of them, or start again."
            )
        return digest
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InvalidPlugin(f"The plugin {path} is no Python file: its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise InvalidPlugin(
            f"The plugin {path} fails: {type(error).__name__}: {error}. It is a Python file that "
            f"enters methods, data sets, metrics, batch rules, export forms or findings."
        ) from error
    vars(module)["DIGEST"] = digest
    _LOADED[path.stem] = path.absolute()
    return digest
