"""Second moments of all layers beside those of the deepest layer alone, in one run.

    python benchmarks/moments.py [--tokens 8192]

SmolLM2-135M on sentences of the starter set. The forward pass up to the deepest block is common to
both, so the ratio says what the products k kᵀ of the other layers add to it. The two alternate,
after one pass that is not counted, and medians of three are compared.
"""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from machine import parser_of
from retcon.cli.console import quiet_libraries
from retcon.data.cases import starter_cases
from retcon.features.second_moments import collect_moments
from retcon.model.handle import ModelHandle
from retcon.model.load import load

_SENTENCES_PER_DOCUMENT = 8


def documents() -> list[str]:
    """The sentences of the starter set in documents of about 100 tokens, 10,000 tokens in all."""
    sentences = [
        f"{text} {answer}."
        for case in starter_cases()
        for text, answer in [
            (case.edit.text, case.edit.target),
            *((text, case.edit.target) for text in case.paraphrases),
            *((text, case.edit.target_old) for text in case.neighbours),
        ]
    ]
    step = _SENTENCES_PER_DOCUMENT
    return [" ".join(sentences[i : i + step]) for i in range(0, len(sentences), step)]


def sentences_in(folder: str) -> str:
    """A corpus of these documents, in a file in a folder."""
    corpus = Path(folder) / "corpus.txt"
    corpus.write_text("\n".join(documents()), encoding="utf-8")
    return str(corpus)


def seconds(handle: ModelHandle, texts: Sequence[str], layers: Sequence[int], tokens: int) -> float:
    started = time.perf_counter()
    collect_moments(handle, iter(texts), layers, tokens=tokens, document_tokens=128)
    return time.perf_counter() - started


def moments(handle: ModelHandle, *, tokens: int = 8192) -> dict[str, float]:
    """`covariance_all_layers_ratio`, and the two medians that it is made of."""
    texts = documents()
    every = sorted(handle.architecture.sites)
    variants = {"deepest": every[-1:], "all": every}
    seconds(handle, texts, every, 1)
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(3):
        for name, layers in variants.items():
            taken[name].append(seconds(handle, texts, layers, tokens))
    median = {name: statistics.median(found) for name, found in taken.items()}
    return {
        "covariance_all_layers_ratio": median["all"] / median["deepest"],
        "covariance_all_layers_seconds": median["all"],
        "covariance_deepest_layer_seconds": median["deepest"],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--tokens", type=int, default=8192)
    chosen = parser.parse_args(arguments)
    quiet_libraries()
    for name, value in moments(load(chosen.model), tokens=chosen.tokens).items():
        print(f"{name:40} {value:.4g}")


if __name__ == "__main__":
    main()
