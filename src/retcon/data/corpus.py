"""Ordinary text, from a file or a hub data set, for second moments and for perplexity."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from retcon.data.parsing import parsed
from retcon.data.text import read_lines
from retcon.errors import InvalidData, InvalidSetting, ModelNotFound


@runtime_checkable
class Corpus(Protocol):
    """Texts in a fixed order. `identity` names their content: equal identity, equal texts."""

    @property
    def identity(self) -> str: ...

    def texts(self) -> Iterator[str]: ...


@dataclass(frozen=True, kw_only=True)
class FileCorpus:
    """A text file (one document a line) or JSON lines (`text` or `Text`), plain or gzipped."""

    path: Path

    @property
    def identity(self) -> str:
        """Name of the corpus: how the file is read, and the start of the sha256 of its bytes."""
        with self.path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()[:24]
        return f"{'lines' if self._json_lines else 'text'}:{digest}"

    @property
    def _json_lines(self) -> bool:
        return ".jsonl" in self.path.name

    def texts(self) -> Iterator[str]:
        """Non-empty documents.

        Raises:
            InvalidData: not text, not gzip, or a line that is no JSON object with a `text`.
        """
        for number, line in enumerate(read_lines(self.path), start=1):
            text = self._document(line, number) if self._json_lines else line
            if text.strip():
                yield text.strip()

    def _document(self, line: str, number: int) -> str:
        where = f"{self.path}, line {number}"
        record = parsed(line, where) if line.strip() else {"text": ""}
        try:
            text = record["text"] if "text" in record else record["Text"]
        except (KeyError, TypeError) as error:
            raise InvalidData(f"{where}: expected a JSON object with a field 'text'.") from error
        if not isinstance(text, str):
            raise InvalidData(f"{where}: the field 'text' is not a string.")
        return text


@dataclass(frozen=True, kw_only=True)
class HubCorpus:
    """A streamed data set of the Hugging Face hub: name, configuration, split and revision."""

    name: str
    config: str | None = None
    split: str = "train"

    @property
    def identity(self) -> str:
        """The names that select the texts; pin a revision in `name` as `owner/name@revision`."""
        return f"hub:{self.name}:{self.config or ''}:{self.split}"

    def texts(self) -> Iterator[str]:
        """The field `text` of each record.

        Raises:
            InvalidSetting: the package `datasets` is missing.
            ModelNotFound: the data set cannot be reached.
        """
        try:
            import datasets  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise InvalidSetting(
                "A corpus from the hub needs the package `datasets`: pip install "
                "'retcon-llm[datasets]'."
            ) from None
        name, _, revision = self.name.partition("@")
        try:
            records = datasets.load_dataset(
                name, self.config, split=self.split, revision=revision or None, streaming=True
            )
            for record in records:
                if record["text"].strip():
                    yield record["text"].strip()
        except (OSError, ValueError, KeyError) as error:
            raise ModelNotFound(f"The data set {self.name!r} cannot be read: {error}") from error


def parse_corpus(text: str) -> Corpus:
    """`hub:owner/name[@revision][:config[:split]]`, or the path of a file.

    Raises:
        InvalidData: there is no such file.
    """
    if text.startswith("hub:"):
        name, *rest = text.removeprefix("hub:").split(":")
        config = rest[0] if rest and rest[0] else None
        return HubCorpus(name=name, config=config, split=rest[1] if len(rest) > 1 else "train")
    path = Path(text)
    if not path.is_file():
        raise InvalidData(
            f"There is no corpus {text!r}. Give a text or JSON-lines file, `hub:owner/name`, or "
            f"`self` for text sampled from the model itself."
        )
    return FileCorpus(path=path)
