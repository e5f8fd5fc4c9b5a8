"""The corpus `self`: text that the model itself writes, so that nothing has to be downloaded.

Second moments are statistics of the keys of ordinary text, and a language model is a sampler of
ordinary text. Documents are sampled at temperature 1 from the whole distribution, each batch
behind a different opening, under a seed, and kept in the cache.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from retcon.cache import place, whole
from retcon.errors import Damaged
from retcon.locking import locked
from retcon.model.handle import ModelHandle
from retcon.model.sampling import sample
from retcon.progress import Progress, silent
from retcon.sealed import Owner, load_text, save_text
from retcon.storage import cache_folder, make_folder

# Openings of ordinary documents. Each is continued many times.
_OPENINGS = (
    "The", "In", "A", "It", "He", "She", "This", "After", "During", "When", "On", "At", "For",
    "As", "With", "One", "Many", "By", "From", "According to",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SelfCorpus:
    """At least `tokens` tokens of sampled text, in documents of `document_tokens`."""

    handle: ModelHandle
    tokens: int
    seed: int = 0
    document_tokens: int = 128
    batch: int = 64
    progress: Progress = silent

    @property
    def identity(self) -> str:
        """Everything that determines the texts."""
        what = [
            "self-2", self.handle.live_digest, str(self.handle.dtype),
            self.handle.tokens.identity, self.tokens, self.seed, self.document_tokens, self.batch,
            *_OPENINGS,
        ]  # fmt: skip
        return f"self:{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:24]}"

    def texts(self) -> Iterator[str]:
        """The documents: sampled on first use, read from the cache afterwards."""
        path = cache_folder() / "corpora" / f"{self.identity.replace(':', '-')}.jsonl"
        found = whole(path, _load)
        if found is None:
            make_folder(path.parent)
            with locked(Path(f"{path}.lock")):
                found = whole(path, _load)  # another process may have been quicker
                if found is None:
                    found = self._sample()
                    lines = "".join(json.dumps({"text": text}) + "\n" for text in found)
                    save_text(path, lines, place(path))
        yield from found

    def _sample(self) -> list[str]:
        documents: list[str] = []
        tokens = rounds = 0
        # A document may end early; a model that ends all of them at once is given up on.
        while tokens < self.tokens and rounds < 10 * self._rounds:
            self.progress("sampling the corpus `self` (once)", tokens, self.tokens)
            opening = self.handle.tokens.encode(_OPENINGS[rounds % len(_OPENINGS)])
            texts = sample(
                self.handle,
                opening,
                count=self.batch,
                new_tokens=self.document_tokens - len(opening),
                seed=self.seed * 1_000_000 + rounds,
            )
            documents += texts
            tokens += sum(len(self.handle.tokens.encode(text)) for text in texts if text)
            rounds += 1
        self.progress("sampling the corpus `self` (once)", self.tokens, self.tokens)
        return documents

    @property
    def _rounds(self) -> int:
        """How many batches of whole documents hold the tokens."""
        return -(-self.tokens // (self.document_tokens * self.batch))


def _load(path: Path, owner: Owner) -> list[str]:
    """The documents in a file of the cache."""
    try:
        lines = load_text(path, owner).value.splitlines()
        return [str(json.loads(line)["text"]) for line in lines]
    except (ValueError, KeyError, TypeError) as error:  # of a file without a seal
        raise Damaged(f"{path} is damaged: {error}.") from error
