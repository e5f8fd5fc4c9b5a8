"""A patch as a LoRA adapter for llama.cpp: one GGUF file, `llama-server -m BASE.gguf --lora FILE`.

The base may be quantised; the edit is not.
"""

import logging
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from retcon.errors import InvalidSetting, MissingExtra, NotExportable
from retcon.model.load import find_dtype
from retcon.model.structure import Outline
from retcon.patch.export import Exported, Job, export_form
from retcon.patch.export.lora import Lora, Rank, lora_of, recorded, told
from retcon.patch.patch import Patch

FILE = "adapter.gguf"
# What llama.cpp calls an architecture, where it is not what transformers calls it.
_NAMES = {
    "gemma3_text": "gemma3",
    "gpt_neox": "gptneox",
    "mistral": "llama",
    "smollm3": "smollm3",
}


def write_gguf(
    folder: Path, patch: Patch, lora: Lora, outline: Outline, dtype: torch.dtype
) -> None:
    """Write the adapter into a folder.

    Raises:
        MissingExtra: the package gguf is not installed.
        NotExportable: llama.cpp has no name for the model's architecture or its matrices.
        InvalidSetting: a dtype that llama.cpp does not take here.
    """
    try:
        import gguf
    except ImportError as error:
        raise MissingExtra(
            "Writing a GGUF adapter needs the package gguf: pip install 'retcon-llm[gguf]'."
        ) from error
    if dtype not in (torch.float32, torch.float16):
        raise InvalidSetting("A GGUF adapter is written in float32 or float16.")
    kind = str(outline.model.config.get_text_config(decoder=True).model_type)
    architecture = _NAMES.get(kind, kind)
    known = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    if architecture not in known:
        raise NotExportable(
            f"llama.cpp, as gguf {version('gguf')} knows it, has no architecture {kind!r}. Export "
            f"--to peft, and convert that with llama.cpp's convert_lora_to_gguf.py."
        )
    names = gguf.get_tensor_name_map(known[architecture], outline.layers)
    # The writer tells every key that it adds.
    logging.getLogger("gguf.gguf_writer").setLevel(logging.WARNING)
    writer = gguf.GGUFWriter(folder / FILE, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(lora.rank))
    writer.add_name(f"{len(patch.about.edits)} facts rewritten in {patch.about.model}")
    writer.add_string("retcon.base", patch.about.base)
    numbers = np.float32 if dtype == torch.float32 else np.float16
    for layer, delta in lora.deltas.items():
        path = outline.site(layer).path
        # llama.cpp knows a multimodal model by its language model alone.
        alone = path.replace("language_model.", "")
        name = names.get_name(alone, try_suffixes=(".weight",))
        if name is None:
            raise NotExportable(
                f"llama.cpp has no name for {path!r} of {kind!r}. Export --to peft, and convert "
                f"that with llama.cpp's convert_lora_to_gguf.py."
            )
        writer.add_tensor(f"{name}.lora_a", delta.right.cpu().numpy().astype(numbers))
        writer.add_tensor(
            f"{name}.lora_b", delta.left.mT.contiguous().cpu().numpy().astype(numbers)
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@export_form("gguf")
def gguf_adapter(job: Job, *, dtype: str = "float32", max_rank: Rank = None) -> Exported:
    """A LoRA adapter for llama.cpp.

    Args:
        dtype: of the factors, float32 or float16.
        max_rank: the largest rank; by default all rows.
    """
    kind, structure = find_dtype(dtype), job.outline()
    lora = lora_of(job.patch, structure, dtype=kind, max_rank=max_rank)
    write_gguf(job.folder, job.patch, lora, structure, kind)
    use = f"llama.cpp: llama-server -m BASE.gguf --lora {FILE}"
    return Exported(tables=[told(lora)], notes=[use], record=recorded(lora))
