"""C = E[k kᵀ]: uncentred second moments of the keys of ordinary text, for many layers at once.

One pass over the corpus serves every layer that is asked for and ends at the deepest. Sums are
kept in float64; they merge by addition, so a corpus can be read in parts and a pass that was cut
off goes on where it stopped. What is cached is keyed by everything that changes the value.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
from jaxtyping import Float64
from pydantic import Field
from torch import Tensor

from retcon.algebra.gram import add_gram, all_finite, mirror
from retcon.cache import place, whole
from retcon.data.corpus import Corpus, parse_corpus
from retcon.errors import Damaged, NotFinite, SingularCovariance
from retcon.features.contexts import Seed
from retcon.features.own_text import SelfCorpus
from retcon.files import cache_folder, make_folder
from retcon.locking import locked
from retcon.model import hooks
from retcon.model.forward import run_until
from retcon.model.handle import ModelHandle
from retcon.model.tokens import by_length
from retcon.progress import Progress, silent
from retcon.sealed import Owner
from retcon.sealed_tensors import Tensors, open_tensors, save_tensors

_FORMAT = 4
# Tokens in one forward pass, and seconds between two savings of the running sums.
_PASS_TOKENS = 512
_PER_SAVE = 20.0
# A saving is not to take more than this share of the time.
_SAVING = 0.05


@dataclass(frozen=True, kw_only=True)
class MomentOptions:
    """Settings of second moments: the text that C is read from, and its length.

    Attributes:
        corpus: `self`, a file, or `hub:…`.
        corpus_tokens: how many tokens; 0 takes `tokens_per_dimension` times d_in.
        corpus_seed: of the sampling of `self`.
        document_tokens: longer documents are cut there.
        jitter: added to C's diagonal, relative to its mean: dead units would make C singular
            otherwise.
    """

    corpus: str = "self"
    corpus_tokens: Annotated[int, Field(ge=0)] = 0
    tokens_per_dimension: Annotated[int, Field(ge=1)] = 20
    corpus_seed: Seed = 0
    document_tokens: Annotated[int, Field(ge=8)] = 128
    jitter: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-8

    def tokens(self, d_in: int) -> int:
        """Number of tokens to read for a layer of this width."""
        return self.corpus_tokens or self.tokens_per_dimension * d_in


@dataclass(frozen=True, kw_only=True)
class SecondMoment:
    """A sum of k kᵀ and how many keys it holds. Two of one layer add up to that of both texts."""

    total: Float64[Tensor, "d_in d_in"]
    tokens: int

    @property
    def mean(self) -> Float64[Tensor, "d_in d_in"]:
        """C."""
        return self.total / self.tokens

    def into_mean(self) -> Float64[Tensor, "d_in d_in"]:
        """C in the memory of the sum, which is gone afterwards."""
        return self.total.div_(self.tokens)


def collect_moments(
    model: ModelHandle,
    texts: Iterator[str],
    layers: Sequence[int],
    *,
    tokens: int,
    document_tokens: int,
    progress: Progress = silent,
    resume: Path | None = None,
) -> dict[int, SecondMoment]:
    """Read at least `tokens` tokens of the texts, or all, and sum k kᵀ at each layer.

    Every token counts, the first of a document too.

    Args:
        resume: a file that keeps the running sums, and from which a pass that was cut off
            continues.

    Raises:
        NotFinite: NaN or infinity in an activation.
    """
    sums = _Sums.start(model, layers, resume)
    modules = {layer: model.site(layer).module for layer in layers}
    deepest = modules[max(layers)]
    for number, batch in enumerate(_passes(model, texts, document_tokens, tokens)):
        if number < sums.passes:
            continue
        progress("collecting second moments", min(sums.tokens, tokens), tokens)
        padded = model.tokens.pad(batch)
        mask = padded.attention_mask.bool()

        def keep(layer: int, x: Tensor, mask: Tensor = mask) -> None:
            keys = x[mask.to(x.device)]
            add_gram(sums.total[layer], keys if keys.dtype == torch.float64 else keys.float())

        with hooks.read_inputs(modules, len(batch), keep):
            run_until(model, deepest, padded.input_ids, padded.attention_mask)
        sums.tokens += int(mask.sum())
        sums.passes = number + 1
        if resume is not None and sums.due:
            sums.save(resume)
    progress("collecting second moments", tokens, tokens)
    return sums.finish(model)


def load_moments(
    model: ModelHandle,
    layers: Sequence[int],
    options: MomentOptions,
    progress: Progress = silent,
) -> Iterator[tuple[int, SecondMoment]]:
    """Second moments layer by layer: from the cache, or collected in one pass and cached.

    What is missing is collected before the first is handed out; then each is read as it is asked
    for, so that a caller who lets go of one before the next holds a single d_in × d_in matrix.

    Raises:
        SingularCovariance: the corpus has fewer tokens than the matrix has input dimensions.
    """
    folder, corpus, tokens = _entry(model, layers, options, progress)

    def collect(layers: Sequence[int]) -> None:
        # Who only reads needs no lock, and may read a cache that she may not write.
        if not _missing(folder, layers):
            return
        with locked(make_folder(folder) / "lock"):
            missing = _missing(folder, layers)
            if missing:
                _collect_into(folder, model, corpus, missing, tokens, options, progress)

    def read(layer: int) -> SecondMoment:
        file = moment_file(folder, layer)
        moment = whole(file, load_moment)
        if moment is None:
            collect([layer])
            moment = load_moment(file, place(file))
        return moment

    collect(layers)
    return ((layer, read(layer)) for layer in layers)


def _missing(folder: Path, layers: Sequence[int]) -> list[int]:
    return [layer for layer in layers if not moment_file(folder, layer).exists()]


def moment_folder(model: ModelHandle, layers: Sequence[int], options: MomentOptions) -> Path:
    """The folder of the cache in which these layers' second moments are, or would be."""
    return _entry(model, layers, options, silent)[0]


def moment_file(folder: Path, layer: int) -> Path:
    """The file of one layer's."""
    return folder / f"layer-{layer}.safetensors"


def _entry(
    model: ModelHandle, layers: Sequence[int], options: MomentOptions, progress: Progress
) -> tuple[Path, Corpus, int]:
    """The folder of these layers' moments, the text they are of, and how many tokens of it."""
    corpus, tokens = corpus_of(model, layers, options, progress)
    key = _key(model, corpus, tokens, options.document_tokens)
    return cache_folder() / "moments" / key, corpus, tokens


def corpus_of(
    model: ModelHandle, layers: Sequence[int], options: MomentOptions, progress: Progress = silent
) -> tuple[Corpus, int]:
    """The text that moments of these layers are of, and how many tokens of it."""
    tokens = options.tokens(max(model.site(layer).d_in for layer in layers))
    if options.corpus != "self":
        return parse_corpus(options.corpus), tokens
    own = SelfCorpus(
        model=model,
        tokens=tokens,
        seed=options.corpus_seed,
        document_tokens=options.document_tokens,
        progress=progress,
    )
    return own, tokens


def _collect_into(
    folder: Path,
    model: ModelHandle,
    corpus: Corpus,
    layers: list[int],
    tokens: int,
    options: MomentOptions,
    progress: Progress,
) -> None:
    """Collect the second moments of some layers in one pass, and cache them."""
    what = hashlib.sha256(json.dumps(layers).encode()).hexdigest()[:16]
    resume = folder / f"partial-{what}.safetensors"
    collected = collect_moments(
        model,
        corpus.texts(),
        layers,
        tokens=tokens,
        document_tokens=options.document_tokens,
        progress=progress,
        resume=resume,
    )
    for layer, moment in collected.items():
        _check_size(model, layer, moment, options)
        save_moment(moment_file(folder, layer), moment)
    resume.unlink(missing_ok=True)


def _passes(
    model: ModelHandle, texts: Iterator[str], document_tokens: int, tokens: int
) -> Iterator[list[tuple[int, ...]]]:
    """Tokenised documents in batches of similar length, until there are enough tokens."""
    window: list[tuple[int, ...]] = []
    seen = 0
    for text in texts:
        window.append(model.tokens.document(text, document_tokens))
        seen += len(window[-1])
        full = sum(len(document) for document in window) >= 16 * _PASS_TOKENS
        if full or seen >= tokens:
            for group in by_length([len(document) for document in window], _PASS_TOKENS):
                yield [window[i] for i in group]
            window = []
        if seen >= tokens:
            return
    for group in by_length([len(document) for document in window], _PASS_TOKENS):
        yield [window[i] for i in group]


@dataclass
class _Sums:
    """Running sums of a pass, of which the upper triangles count, and how far it has come."""

    total: dict[int, Tensor]
    tokens: int = 0
    passes: int = 0

    def __post_init__(self) -> None:
        # When they were last saved, and how long that took.
        self._saved, self._took = time.monotonic(), 0.0

    @classmethod
    def start(cls, model: ModelHandle, layers: Sequence[int], resume: Path | None) -> "_Sums":
        begun = None if resume is None else whole(resume, cls.load)
        widths = {layer: model.site(layer).d_in for layer in layers}
        homes = _homes(model, widths)
        if begun is not None:
            begun.total = {layer: sums.to(homes[layer]) for layer, sums in begun.total.items()}
            return begun
        return cls(
            {
                layer: torch.zeros(d, d, dtype=torch.float64, device=homes[layer])
                for layer, d in widths.items()
            }
        )

    @classmethod
    def load(cls, path: Path, owner: Owner) -> "_Sums":
        with open_tensors(path, owner) as opened:
            tokens, passes = _counts(opened, "tokens", "passes")
            total = {int(layer): sums for layer, sums in opened.read_all().items()}
        return cls(total, tokens, passes)

    @property
    def due(self) -> bool:
        """True if enough was added since the last save that the sums should be saved again."""
        return time.monotonic() - self._saved > max(_PER_SAVE, self._took / _SAVING)

    def save(self, path: Path) -> None:
        started = time.monotonic()
        about = {"tokens": self.tokens, "passes": self.passes}
        tensors = {str(layer): total for layer, total in self.total.items()}
        save_tensors(path, tensors, place(path), about)
        self._saved = time.monotonic()
        self._took = self._saved - started

    def finish(self, model: ModelHandle) -> dict[int, SecondMoment]:
        for layer, total in self.total.items():
            mirror(total)
            if not all_finite(total):
                raise NotFinite(
                    f"The keys of layer {layer} hold NaN or infinity on ordinary text: "
                    f"{model.name}'s activations overflow in {model.dtype}. Try --dtype float32."
                )
        return {
            layer: SecondMoment(total=total, tokens=self.tokens)
            for layer, total in self.total.items()
        }


def _homes(model: ModelHandle, widths: Mapping[int, int]) -> dict[int, torch.device]:
    """Device on which the sums of each layer are added up.

    On the layer's own GPU where all sums take less than half of what is free there: a product does
    not have to leave it then. In main memory otherwise.
    """
    devices = {layer: model.site(layer).device for layer in widths}
    need = 8 * sum(width**2 for width in widths.values())
    free = {
        device: torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
        for device in {*devices.values()}
    }
    main = torch.device("cpu")
    return {layer: device if 2 * need < free[device] else main for layer, device in devices.items()}


def _key(model: ModelHandle, corpus: Corpus, tokens: int, document_tokens: int) -> str:
    """Name of a cache entry: model, dtype, corpus, and how much of it is read how."""
    what = {
        "format": _FORMAT,
        "model": model.live_digest,
        "dtype": str(model.dtype),
        "corpus": corpus.identity,
        "tokens": tokens,
        "document_tokens": document_tokens,
        "tokens_of": model.tokens.identity,
        "pass_tokens": _PASS_TOKENS,
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]


def _check_size(
    model: ModelHandle, layer: int, moment: SecondMoment, options: MomentOptions
) -> None:
    d_in = model.site(layer).d_in
    if moment.tokens < d_in:
        raise SingularCovariance(
            f"The corpus {options.corpus!r} gave {moment.tokens} tokens, but the second moments of "
            f"layer {layer} need at least d_in = {d_in} to be invertible, and 10 times as many to "
            f"be good. Give a larger corpus, or ask for more of it with corpus_tokens (0: enough)."
        )


def save_moment(path: Path, moment: SecondMoment) -> None:
    """Keep a layer's second moments in the cache."""
    save_tensors(path, {"total": moment.total}, place(path), {"tokens": moment.tokens})


def load_moment(path: Path, owner: Owner) -> SecondMoment:
    """A layer's second moments, from a file of the cache, or one that is to become that.

    Raises:
        Damaged: it is not what was written, or another's.
        FileNotFoundError: there is none.
    """
    with open_tensors(path, owner) as opened:
        (tokens,) = _counts(opened, "tokens")
        return SecondMoment(total=opened.read("total"), tokens=tokens)


def _counts(opened: Tensors, *names: str) -> tuple[int, ...]:
    """The numbers that are all a header holds."""
    about = opened.about
    if not isinstance(about, dict) or {*about} != {*names}:
        raise Damaged(f"{opened.path} is damaged: its header is not that of second moments.")
    return tuple(int(about[name]) for name in names)


def describe(options: MomentOptions, tokens: Mapping[int, int]) -> dict[str, object]:
    """Describe second moments for a run's record: the options, and each layer's tokens."""
    return {**asdict(options), "tokens": {str(layer): count for layer, count in tokens.items()}}
