"""The corpus `self`: text that the model itself writes, so that nothing has to be downloaded.

Second moments are statistics of the keys of ordinary text, and a language model is a sampler of
ordinary text. Documents are sampled at temperature 1 from the whole distribution, each batch
behind a different opening, under a seed, and kept in the cache.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from retcon.cache import place, whole
from retcon.errors import Damaged
from retcon.files import cache_folder, make_folder
from retcon.locking import locked
from retcon.model.generate import sample
from retcon.model.handle import ModelHandle
from retcon.progress import Progress, silent
from retcon.sealed import Owner, load_text, save_text

# Openings of ordinary documents. Each is continued many times.
_OPENINGS = (
    *("The", "In", "A", "It", "He", "She", "This", "After", "During", "When", "On", "At", "For"),
    *("As", "With", "One", "Many", "By", "From", "According to"),
)
_TASK = "sampling the corpus `self` (once), in tokens"


@dataclass(frozen=True, kw_only=True)
class SelfCorpus:
    """At least `tokens` tokens of sampled text, in documents of `document_tokens`."""

    model: ModelHandle
    tokens: int
    seed: int = 0
    document_tokens: int = 128
    batch: int = 64
    progress: Progress = silent

    @property
    def identity(self) -> str:
        """Everything that determines the texts."""
        what = [
            "self-2",
            self.model.live_digest,
            str(self.model.dtype),
            self.model.tokens.identity,
            self.tokens,
            self.seed,
            self.document_tokens,
            self.batch,
            *_OPENINGS,
        ]
        return f"self:{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:24]}"

    def texts(self) -> Iterator[str]:
        """The documents: sampled on first use, read from the cache afterwards."""
        path = cache_folder() / "corpora" / f"{self.identity.replace(':', '-')}.jsonl"
        corpus = whole(path, _load)
        if corpus is None:
            make_folder(path.parent)
            with locked(Path(f"{path}.lock")):
                corpus = whole(path, _load)  # another process may have been quicker
                if corpus is None:
                    corpus = self._sample(path.with_suffix(".partial.jsonl"))
                    _save(path, corpus)
                    path.with_suffix(".partial.jsonl").unlink(missing_ok=True)
        yield from corpus

    def _sample(self, partial: Path) -> list[str]:
        """All documents. partial: keeps those of the batches that are done."""
        documents = whole(partial, _load) or []
        tokens = self._tokens(documents)
        # A document may end early; a model that ends all of them at once is given up on.
        while tokens < self.tokens and len(documents) < 10 * self._rounds * self.batch:
            if documents:
                _save(partial, documents)
            texts = self._batch(len(documents) // self.batch, tokens)
            documents += texts
            tokens += self._tokens(texts)
        self.progress(_TASK, self.tokens, self.tokens)
        return documents

    def _batch(self, number: int, before: int) -> list[str]:
        """The documents of a batch. before: tokens of earlier ones."""
        opening = self.model.tokens.encode(_OPENINGS[number % len(_OPENINGS)])
        length = self.document_tokens - len(opening)
        # The last batch is sampled whole, though fewer of its tokens are asked for.
        wanted = min(self.batch * length, self.tokens - before)

        def advance(steps: int) -> None:
            done = before + wanted * steps // length
            self.progress(_TASK, min(done, self.tokens - 1), self.tokens)

        advance(0)
        return sample(
            self.model,
            opening,
            count=self.batch,
            new_tokens=length,
            seed=self.seed * 1_000_000 + number,
            advance=advance,
        )

    def _tokens(self, texts: Sequence[str]) -> int:
        return sum(len(self.model.tokens.encode(text)) for text in texts if text)

    @property
    def _rounds(self) -> int:
        """Number of batches of whole documents that hold the tokens."""
        return -(-self.tokens // (self.document_tokens * self.batch))


def _save(path: Path, documents: Sequence[str]) -> None:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in documents)
    save_text(path, lines, place(path))


def _load(path: Path, owner: Owner) -> list[str]:
    """The documents in a file of the cache."""
    try:
        lines = load_text(path, owner).value.splitlines()
        return [str(json.loads(line)["text"]) for line in lines]
    except (ValueError, KeyError, TypeError) as error:  # of a file without a seal
        raise Damaged(f"{path} is damaged: {error}.") from error
