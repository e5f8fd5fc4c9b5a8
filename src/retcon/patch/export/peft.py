"""A patch as a PEFT LoRA adapter, and a PEFT LoRA adapter as a patch.

Written with `retcon` in the safetensors header, where nothing was truncated, so that it can be
read back as the patch that it was. PEFT itself is not needed for either. What is read is two
files, JSON and safetensors, whose names do not come from anywhere else; no code is run.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from retcon.algebra.delta import LowRankDelta
from retcon.errors import InvalidAdapter, InvalidEdit, InvalidPatch
from retcon.files import write_whole
from retcon.model.load import find_dtype, loadable
from retcon.model.structure import Outline
from retcon.patch.export import Exported, Job, export_form
from retcon.patch.export.card import write_card
from retcon.patch.export.lora import Lora, Rank, lora_of, recorded, told
from retcon.patch.patch import Patch, Provenance, read_header

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_LARGEST_CONFIG = 2**20
_FLOATS = ("F32", "F16", "BF16", "F64")


# Entries that concern training, where an adapter came from, or which modules it has factors of,
# which the file of factors says as well. Every other entry may change what the factors mean.
_HARMLESS = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "rank_pattern",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
        "velora_config",
    }
)
# Beginnings after which the base model is what it was.
_UNTOUCHED = (True, False, "gaussian", "eva", "orthogonal", "mica")


class _Config(BaseModel):
    """Settings of an adapter that decide the change it makes."""

    model_config = ConfigDict(extra="allow")
    peft_type: str
    r: int = Field(ge=1)
    lora_alpha: float = Field(allow_inf_nan=False)
    use_rslora: bool = False
    init_lora_weights: bool | str | None = True

    @property
    def others(self) -> dict[str, object]:
        """Entries that are set and not known to be harmless."""
        off = (None, False, "none", "", [], {})
        return {
            name: value
            for name, value in (self.model_extra or {}).items()
            if name not in _HARMLESS and value not in off
        }


class _Pair(NamedTuple):
    """Names of the two factors of a layer, and the rank."""

    a: str
    b: str
    rank: int


def write_peft(
    folder: Path, patch: Patch, lora: Lora, outline: Outline, dtype: torch.dtype
) -> None:
    """Write the adapter's files into a folder."""
    site = next(iter(outline.architecture.sites.values()))
    modules = {layer: outline.site(layer).path.removesuffix(".weight") for layer in lora.deltas}
    tensors: dict[str, torch.Tensor] = {}
    for layer, delta in lora.deltas.items():
        name = _PREFIX + modules[layer]
        tensors[f"{name}.lora_A.weight"] = delta.right.to(dtype).cpu().contiguous()
        tensors[f"{name}.lora_B.weight"] = delta.left.mT.to(dtype).cpu().contiguous()
    metadata = {"format": "pt"}
    if not lora.truncated and dtype == torch.float32:
        metadata["retcon"] = patch.about.model_dump_json()
    write_whole(folder / WEIGHTS, lambda work: save_file(tensors, work, metadata))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": loadable(patch.about.model),
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": lora.rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(modules.values()),
        "fan_in_fan_out": site.transposed,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
    }
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")
    write_card(
        folder,
        patch,
        relation="adapter",
        library="peft",
        use=[
            "from peft import AutoPeftModelForCausalLM",
            "",
            'model = AutoPeftModelForCausalLM.from_pretrained(".")',
        ],
    )


def read_peft(
    folder: Path | str, outline: Outline, *, base: str, digest: str | None = None
) -> Patch:
    """A LoRA adapter of a model's editable matrices as a patch.

    An adapter that Retcon wrote is the patch that it was, with its facts. Any other is one
    without, to be applied and undone as a whole.

    Args:
        base, digest: of the weights of the model that the adapter is for.

    Raises:
        InvalidAdapter: its files are missing or damaged, it is no LoRA, or changes what a patch
            does not hold.
    """
    folder = Path(folder)
    config = _read_config(folder / CONFIG)
    deltas, metadata = _read_factors(folder / WEIGHTS, config, outline)
    if "retcon" in metadata:
        own = _own_patch(folder / WEIGHTS, deltas, metadata, base)
        if own is not None:
            return own
    about = Provenance(
        model=outline.name,
        base=base,
        digest=digest,
        method="lora",
        layers=tuple(deltas),
        schedule="imported",
        settings=_settings(config),
        edits=(),
    )
    return Patch(deltas=deltas, about=about)


def _settings(config: _Config) -> dict[str, object]:
    """Settings of an adapter as a patch records them."""
    return config.model_dump(mode="json", include={*_Config.model_fields})


def _own_patch(
    file: Path, deltas: Mapping[int, LowRankDelta], metadata: Mapping[str, str], base: str
) -> Patch | None:
    """The patch that an adapter of Retcon's was; None where its rows are not those of the facts."""
    try:
        about = read_header(file, metadata)
        patch = Patch(deltas=deltas, about=about)
        facts = len(patch.edits)
    except (InvalidPatch, InvalidEdit) as error:
        raise InvalidAdapter(str(error)) from error
    if about.base != base:
        raise InvalidAdapter(
            f"{file} was written for a model with the fingerprint {about.base[:12]}…, not for this "
            f"one ({base[:12]}…). Name the base model that it was made for ({about.model!r})."
        )
    fits = about.layers == tuple(deltas) and all(d.rank == facts for d in deltas.values())
    return patch if fits else None


def _read_config(file: Path) -> _Config:
    if not file.is_file():
        raise InvalidAdapter(
            f"There is no {CONFIG} in {str(file.parent)!r}. Name the folder that PEFT's "
            f"save_pretrained has written."
        )
    if file.stat().st_size > _LARGEST_CONFIG:
        raise InvalidAdapter(f"{file} is larger than any configuration of an adapter.")
    try:
        config = _Config.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InvalidAdapter(f"{file}: {where}: {first['msg']}.") from error
    if config.peft_type != "LORA":
        raise InvalidAdapter(f"{file}: a patch can hold a LORA adapter, not {config.peft_type!r}.")
    if config.init_lora_weights not in (*_UNTOUCHED, None):
        raise InvalidAdapter(
            f"{file}: the adapter began as {config.init_lora_weights!r}, which takes a part of the "
            f"base model out and into the factors: they are a change of that other base, not of "
            f"this one. Have PEFT convert it: model.save_pretrained(FOLDER, "
            f"path_initial_model_for_weight_conversion=INITIAL), INITIAL being the adapter as it "
            f"was before training, and import FOLDER. What began on a quantised base (loftq) "
            f"cannot be converted."
        )
    for name, value in config.others.items():
        raise InvalidAdapter(
            f"{file}: the adapter sets {name} = {json.dumps(value)[:100]}, with which it is no sum "
            f"of two factors of one scale that always acts, as far as Retcon knows. A patch cannot "
            f"hold it. If PEFT can merge it (merge_and_unload), edit the merged model instead."
        )
    return config


def _read_factors(
    file: Path, config: _Config, outline: Outline
) -> tuple[dict[int, LowRankDelta], dict[str, str]]:
    """The change of each layer, and the file's metadata. Shapes are checked before reading."""
    if not file.is_file():
        raise InvalidAdapter(f"There is no {WEIGHTS} in {str(file.parent)!r}.")
    try:
        with safe_open(file, framework="pt") as stream:
            shapes: dict[str, tuple[int, ...]] = {}
            for name in stream.keys():  # noqa: SIM118
                piece = stream.get_slice(name)
                shapes[name] = tuple(piece.get_shape())
                if piece.get_dtype() not in _FLOATS:
                    raise InvalidAdapter(f"{file}: {name} holds {piece.get_dtype()}, no floats.")
            pairs = _pairs(file, shapes, outline)
            deltas = {
                layer: _delta(stream.get_tensor(pair.a), stream.get_tensor(pair.b), pair, config)
                for layer, pair in sorted(pairs.items())
            }
            metadata = dict(stream.metadata() or {})
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        raise InvalidAdapter(f"{file} is no safetensors file, or damaged: {error}") from error
    for layer, delta in deltas.items():
        if not (torch.isfinite(delta.left).all() and torch.isfinite(delta.right).all()):
            raise InvalidAdapter(f"{file}: the factors of layer {layer} are not finite.")
    return deltas, metadata


def _delta(a: torch.Tensor, b: torch.Tensor, pair: _Pair, config: _Config) -> LowRankDelta:
    scale = config.lora_alpha / (pair.rank**0.5 if config.use_rslora else pair.rank)
    left = b.float().mT.contiguous()
    return LowRankDelta(left=left if scale == 1 else left * scale, right=a.float())


def _pairs(file: Path, shapes: Mapping[str, tuple[int, ...]], outline: Outline) -> dict[int, _Pair]:
    """The two factors of each layer.

    Raises:
        InvalidAdapter: a tensor that is no factor of an editable matrix, or does not fit it.
    """
    homes = {
        _PREFIX + site.path.removesuffix(".weight"): site
        for site in outline.architecture.sites.values()
    }
    pairs: dict[int, _Pair] = {}
    for name in shapes:
        module, _, kind = name.rpartition(".lora_")
        if module not in homes or kind not in ("A.weight", "B.weight"):
            raise InvalidAdapter(
                f"{file} changes {name.removeprefix(_PREFIX)!r}. A patch holds changes of the "
                f"matrices {next(iter(homes)).removeprefix(_PREFIX)!r} and its like in other "
                f"layers; merge this adapter with PEFT instead."
            )
        site, a, b = homes[module], f"{module}.lora_A.weight", f"{module}.lora_B.weight"
        right, left = shapes.get(a, ()), shapes.get(b, ())
        fits = len(right) == len(left) == 2 and (right[1], left[0]) == (site.d_in, site.d_out)
        if not fits or right[0] != left[1] or right[0] < 1:
            raise InvalidAdapter(
                f"{file}: the factors {left} and {right} of layer {site.layer} do not fit its "
                f"matrix, which is {site.d_out} x {site.d_in}."
            )
        pairs[site.layer] = _Pair(a, b, right[0])
    if not pairs:
        raise InvalidAdapter(f"{file} holds no factors.")
    return pairs


@export_form("peft")
def peft(job: Job, *, dtype: str = "float32", max_rank: Rank = None) -> Exported:
    """A LoRA adapter for PEFT and vLLM.

    Args:
        dtype: of the factors.
        max_rank: the largest rank; by default all rows are kept.
    """
    kind, structure = find_dtype(dtype), job.outline()
    lora = lora_of(job.patch, structure, dtype=kind, max_rank=max_rank)
    write_peft(job.folder, job.patch, lora, structure, kind)
    if lora.vllm_rank is None:
        warning = f"vLLM serves ranks up to 512; this is {lora.rank}. --max-rank 512 cuts it down."
        return Exported(tables=[told(lora)], warnings=[warning], record=recorded(lora))
    note = f"vLLM: --enable-lora --max-lora-rank {lora.vllm_rank}"
    return Exported(tables=[told(lora)], notes=[note], record=recorded(lora))
