"""Two facts in a model as wide as Llama-3-8B, on a machine without a card and with little memory.

    python benchmarks/wide.py [--size two] [--held 7] [--dtype float32] [--minutes 60]
                              [--folder DIR] [--json FILE]

A model with the configuration of Llama-3-8B in bfloat16 (16 GB), of random weights: they take as
long as trained ones. It is written to DIR, a file a block, and loaded with its first blocks in
memory; the others stay on disk, where every pass reads them. It is computed in float32, since
processors without products of bfloat16 take many times as long for those. Parts, as in gpu.py: how
long it takes to look at the model, the keys' pass, and an edit by MEMIT from facts to a file of a
patch: second moments of one layer, targets, a solve at d_in = 14,336 in float64, written, saved,
applied and undone bit for bit. Peaks are of resident memory. Writes benchmarks/results/wide.json,
or another file.
"""

import argparse
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

import gpu
from machine import Figures
from retcon.model.handle import ModelHandle
from retcon.model.load import load

_PARTS = ("model", "keys", "edit")
_INDEX = "model.safetensors.index.json"


def write_model(folder: Path, settings: dict[str, object]) -> None:
    """Write a model of random weights, no more than a block of it in memory at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    config = AutoConfig.for_model("llama", **settings, bos_token_id=0, eos_token_id=1)
    random = torch.Generator().manual_seed(0)
    places: dict[str, str] = {}
    for name, shapes in _files(config):
        tensors = {key: _weight(key, shape, random) for key, shape in shapes.items()}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, name)
    size = sum((folder / name).stat().st_size for name in set(places.values()))
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / _INDEX).write_text(json.dumps(index), encoding="utf-8")
    config.dtype, config.architectures = torch.bfloat16, ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    gpu.tokenizer(config.vocab_size).save_pretrained(folder)


def _files(config: PretrainedConfig) -> Iterator[tuple[str, dict[str, torch.Size]]]:
    """Files of a model, one a block and one for the rest: names, and shapes of what is inside."""
    with torch.device("meta"):
        shapes = {
            k: v.shape for k, v in AutoModelForCausalLM.from_config(config).state_dict().items()
        }
    for block in range(config.num_hidden_layers):
        own = f"model.layers.{block}."
        yield (
            f"block-{block:02}.safetensors",
            {k: v for k, v in shapes.items() if k.startswith(own)},
        )
    rest = {k: v for k, v in shapes.items() if not k.startswith("model.layers.")}
    yield "rest.safetensors", rest


def _weight(name: str, shape: torch.Size, random: torch.Generator) -> Tensor:
    if name.endswith("norm.weight"):
        return torch.ones(shape, dtype=torch.bfloat16)
    return (0.02 * torch.randn(shape, generator=random)).to(torch.bfloat16)


def placed(blocks: int, held: int) -> dict[str, str]:
    """Where each module goes: the first blocks into memory, the others stay on disk."""
    whole = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
    of_blocks = {f"model.layers.{i}": "cpu" if i < held else "disk" for i in range(blocks)}
    return dict.fromkeys(whole, "cpu") | of_blocks


def run(bench: gpu.Bench, folder: Path, held: int, dtype: str) -> None:
    """Every part, one after the other."""
    models: list[ModelHandle] = []

    def made() -> Figures:
        where = placed(int(str(bench.sizes.model["num_hidden_layers"])), held)
        seconds = bench.seconds(
            lambda: models.append(load(str(folder), dtype=dtype, device_map=where))
        )
        return {"model_looked_at_seconds": seconds, "blocks_in_memory": held}

    bench.part("model", 60, made)
    if models:
        (model,) = models
        bench.part("keys", 10, lambda: gpu.keys(bench, model))
        bench.part("edit", 45, lambda: gpu.whole(bench, model, folder))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=gpu.SIZES, default="two")
    parser.add_argument("--held", type=int, default=7, help="blocks that memory holds")
    parser.add_argument("--dtype", default="float32", help="in which it is computed")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--folder", type=Path, help="where the model is kept, or is already")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(arguments)
    bench = gpu.Bench("cpu", gpu.SIZES[chosen.size], chosen.minutes, _PARTS)
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.environ["RETCON_CACHE"] = str(Path(name) / "cache")
        folder = chosen.folder or Path(name) / "model"
        if not (folder / _INDEX).exists():
            write_model(folder, bench.sizes.model)
        run(bench, folder, chosen.held, chosen.dtype)
    record = {
        "figures": {name: {"value": value} for name, value in bench.figures.items()},
        "left out, for want of time": bench.left_out,
        "failed": bench.failed,
        "command": " ".join(["python", *sys.argv]),
        "dtype": chosen.dtype,
        "threads": torch.get_num_threads(),
        "versions": gpu.about(bench.device),
    }
    path = chosen.json or Path(__file__).parent / "results" / "wide.json"
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if bench.failed:
        sys.exit(f"Failed: {', '.join(bench.failed)}")


if __name__ == "__main__":
    main()
