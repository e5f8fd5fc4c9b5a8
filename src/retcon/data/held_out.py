"""Ordinary text that no edit and no second moment has seen, for perplexity.

Passages are whole paragraphs of a file, or of a text that comes with the package, chosen by a seed
alone, so that every model reads the same ones. Second moments of the same text would protect it
from edits, and hide drift: whoever measures says from which corpus they are.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from retcon.data.corpus import FileCorpus, parse_corpus
from retcon.errors import InvalidData, InvalidSetting

BUILT_IN = "built-in"

# Shorter ones are headings, or have no context to be predicted from.
_LEAST_CHARACTERS = 80
# By so many letters and digits of its beginning a passage is known again.
_KNOWN_BY = 80
_OTHER = re.compile(r"[\W_]+|<unk>")


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Passages of a source under a seed.

    Attributes:
        identity: as of a corpus, names the source's content.
    """

    source: str
    identity: str
    seed: int
    texts: tuple[str, ...]


def held_out(source: str = BUILT_IN, *, passages: int = 64, seed: int = 0) -> HeldOut:
    """At most so many passages, the first in the order of sha256("{seed}:{text}").

    Args:
        source: `built-in`, or the path of a text file (a paragraph a line) or of JSON lines with
            the field `text` or `Text`, plain or gzipped.

    Raises:
        InvalidData: no such file, it is damaged, or it has no paragraph of 80 characters.
        InvalidSetting: passages < 1.
    """
    if passages < 1:
        raise InvalidSetting(f"{passages} passages cannot be measured. Take at least 1.")
    identity, texts = _built_in() if source == BUILT_IN else _file(Path(source))
    long = {text for text in texts if len(text) >= _LEAST_CHARACTERS and text[0] != "="}
    if not long:
        raise InvalidData(
            f"{source} has no paragraph of {_LEAST_CHARACTERS} characters to measure perplexity on."
        )

    def place(text: str) -> str:
        return hashlib.sha256(f"{seed}:{text}".encode()).hexdigest()

    chosen = tuple(sorted(long, key=place)[:passages])
    return HeldOut(source=source, identity=identity, seed=seed, texts=chosen)


def check_apart(text: HeldOut, corpus: str) -> bool | None:
    """Check that second moments are from other text; None where the text is on a hub, unseen.

    Args:
        corpus: the method's setting of that name.

    Raises:
        InvalidSetting: a passage begins as some document of the corpus does, or stands in it.
    """
    if corpus == "self" or text.source == BUILT_IN:
        return True
    if corpus.startswith("hub:"):
        return None
    passages = [_known_by(passage) for passage in text.texts]
    documents = [_plain(document) for document in parse_corpus(corpus).texts()]
    shared = sum(any(key in document for document in documents) for key in passages)
    if shared:
        raise InvalidSetting(
            f"{shared} of {len(passages)} passages of {text.source} are also in {corpus}, from "
            f"which the second moments are: they protect them, and drift would be hidden. Measure "
            f"it on another text."
        )
    return True


def _built_in() -> tuple[str, Iterable[str]]:
    text = (files("retcon.data") / "held_out.txt").read_text(encoding="utf-8")
    return f"text:{hashlib.sha256(text.encode()).hexdigest()[:24]}", text.splitlines()


def _file(path: Path) -> tuple[str, Iterable[str]]:
    if not path.is_file():
        raise InvalidData(
            f"There is no text {str(path)!r} to measure perplexity on. Give a text or JSON-lines "
            f"file, or {BUILT_IN!r}."
        )
    corpus = FileCorpus(path=path)
    return corpus.identity, corpus.texts()


def _known_by(text: str) -> str:
    return _plain(text)[:_KNOWN_BY]


def _plain(text: str) -> str:
    """Letters and digits only: editions of one text differ in spaces and signs."""
    return _OTHER.sub("", text).lower()
