"""An edit at the width of Llama-3-8B on a GPU, and whether a GPU gives what the CPU gives.

    python benchmarks/gpu.py [--device cuda] [--size full] [--minutes 8] [--parts NAME ...]
                             [--json FILE]
    python benchmarks/gpu.py --device cpu --size two --minutes 60 --parts model keys edit

A model with the configuration of Llama-3-8B in bfloat16, of random weights: they take as long as
trained ones. Its tokenizer is made here, from the sentences of the toy world, whose facts are
edited. Nothing is downloaded, and neither polars nor rich is needed. Parts for which no time is
left are left out, and named. Writes benchmarks/results/gpu.json, or another file. The second line
edits two facts in a model of that size on a machine without a card, in 24 GB; wide.py does so with
most of the model on disk.

Parts: the card's own rates; equality, of pico models edited on both devices (scenarios of the
golden record); keys; second moments of one layer; an edit from facts to a file, undone bit for bit;
factor and solve in float64, and in float32 with refinement; targets, by the published rule and the
faster one, 25 steps each, whatever the loss.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

import retcon
from machine import Figures, print_figures, tests_on_path
from retcon.algebra.preservation import Preservation
from retcon.algebra.solve import write_keys
from retcon.edits import Edit
from retcon.features.contexts import ContextOptions
from retcon.features.keys import read_keys
from retcon.features.prefix_cache import DeltaPlace
from retcon.features.second_moments import collect_moments
from retcon.features.target_loss import TargetLoss
from retcon.features.targets import (
    TargetOptions,
    default_micro_batch,
    optimise_targets,
    pass_tokens,
)
from retcon.model.handle import ModelHandle
from retcon.toyworld.world import toy_cases, world
from solves import forget_peak, peak_bytes

with tests_on_path():
    from golden.record import difference, record_of
    from golden.runs import Workshop
    from golden.scenarios import pico_scenarios

PUBLISHED = TargetOptions(stop_below=0.0)
FASTER = replace(PUBLISHED, contexts_per_step=3, lr=1.0)
# As long as those that a trained model samples.
PREFIXES = (
    "", "The old town by the river was", "Therefore the guests came late and",
    "Because it had rained for days, the", "I think that most of them were",
    "You can see it from here and",
)  # fmt: skip
LLAMA_3_8B: dict[str, object] = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 8192, "rope_theta": 500000.0, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}  # fmt: skip
SMALL: dict[str, object] = {
    **LLAMA_3_8B, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 2048,
}  # fmt: skip
# Scenarios of the golden record that are always run.
ALWAYS = ("memit sequential-batch:2", "emmet sequential-batch:2", "rome sequential")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much of everything.

    product: the side of the matrices by which rates are measured. edit_steps: passes for a target
    in the part `edit`.
    """

    model: dict[str, object]
    layer: int
    edits: int
    steps: int
    tokens: int
    solve: int
    product: int
    scenarios: int
    edit_steps: int = 2


SIZES = {
    "full": Sizes(
        model=LLAMA_3_8B, layer=5, edits=256, steps=25, tokens=16384, solve=4096, product=8192,
        scenarios=100,
    ),
    "two": Sizes(
        model=LLAMA_3_8B, layer=5, edits=2, steps=4, tokens=14_592, solve=2, product=2048,
        scenarios=2, edit_steps=4,
    ),
    "least": Sizes(
        model=SMALL, layer=1, edits=3, steps=2, tokens=300, solve=8, product=64,
        scenarios=2,
    ),
}  # fmt: skip


PARTS = (
    "rates", "model", "keys", "moments", "edit", "solves", "small_passes", "targets", "equality",
)  # fmt: skip


class Bench:
    """The device, what was measured on it, and how long it may still take."""

    def __init__(
        self, device: str, sizes: Sizes, minutes: float, parts: Sequence[str] = PARTS
    ) -> None:
        self.device, self.sizes, self.parts = torch.device(device), sizes, parts
        self.until = time.monotonic() + 60 * minutes
        self.figures: Figures = {}
        self.left_out: list[str] = []
        self.failed: list[str] = []

    def part(self, name: str, seconds: float, work: Callable[[], Figures]) -> None:
        """Do a part of the work that needs about so many seconds, if there are so many."""
        if name not in self.parts:
            return
        if time.monotonic() + seconds > self.until:
            self.left_out.append(name)
            return
        self.wait()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            forget_peak()
        started = time.perf_counter()
        try:
            figures = work()
        except Exception:  # the other parts should still be told of
            self.fail(name)
            return
        self.wait()
        took = time.perf_counter() - started
        if self.device.type == "cuda":
            figures[f"{name}_peak_gigabytes"] = torch.cuda.max_memory_allocated() / 1e9
        else:
            figures[f"{name}_peak_gigabytes"] = peak_bytes() / 1e9
        print(f"\n{name} ({took:.1f} s)", flush=True)
        print_figures(figures)
        self.figures |= figures

    def fail(self, name: str) -> None:
        """Tell that something has ended in an error, and which."""
        print(f"\n{name} FAILED", flush=True)
        traceback.print_exc(limit=-6)
        self.failed.append(name)

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object], repeats: int = 1) -> float:
        """Of one call, once the device is done with it; the least of some."""
        took: list[float] = []
        for _ in range(repeats):
            self.wait()
            started = time.perf_counter()
            work()
            self.wait()
            took.append(time.perf_counter() - started)
        return min(took)


def rates(bench: Bench) -> Figures:
    """What the card's matrix products and copies reach."""
    figures: Figures = {}
    size, device = bench.sizes.product, bench.device
    for kind in (torch.bfloat16, torch.float32, torch.float64):
        a, b = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
        bench.seconds(lambda a=a, b=b: a @ b)
        took = bench.seconds(lambda a=a, b=b: a @ b, repeats=5)
        figures[f"{str(kind).removeprefix('torch.')}_teraflops"] = 2 * size**3 / took / 1e12
    source = torch.empty(size * size * 8, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    took = bench.seconds(lambda: target.copy_(source), repeats=5)
    figures["copy_gigabytes_per_second"] = 2 * source.nbytes / took / 1e9
    return figures


def equality(bench: Bench, folder: Path) -> Figures:
    """Scenarios of the golden record on the CPU and on the device: how far they are apart."""
    scenarios = pico_scenarios()
    step = max(1, len(scenarios) // bench.sizes.scenarios)
    chosen = [s for i, s in enumerate(scenarios) if i % step == 0 or s.name in ALWAYS]
    places = ("cpu", str(bench.device))
    shops = [Workshop(_made(folder / str(i)), place) for i, place in enumerate(places)]
    deltas, nats, answers, other = [0.0], [0.0], 0, 0
    for scenario in chosen[: bench.sizes.scenarios + len(ALWAYS)]:
        if time.monotonic() > bench.until:
            break
        try:
            old, new = (record_of(shop.run(scenario), full=True) for shop in shops)
        except Exception:
            bench.fail(scenario.name)
            continue
        found = difference(old, new)
        rounded = "=rect" in scenario.name or "=bfloat16" in scenario.name
        if found.other or found.nats > 1e-3 or found.patch > 1e-2 or found.said:
            print(f"  {scenario.name}: {found}", flush=True)
        if not rounded:
            deltas.append(found.patch)
            nats.append(found.nats)
        answers, other = answers + found.said, other + bool(found.other)
    return {
        "equality_scenarios": len(deltas) - 1,
        "equality_largest_change_of_patch": max(deltas),
        "equality_largest_nats": max(nats),
        "equality_answers_that_differ": answers,
        "equality_runs_that_decide_otherwise": other,
    }


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def tokenizer(size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of the toy world's sentences; what is left of its size is never used."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(size, 8000),
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(sentences(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def sentences() -> list[str]:
    """What the toy world tells, eight sentences a document."""
    told = [f"{text} {answer}." for text, answer in world().sentences()]
    return [" ".join(told[i : i + 8]) for i in range(0, len(told), 8)]


def build(bench: Bench) -> tuple[ModelHandle, Figures]:
    """The random model, and what it takes until it can be edited."""
    settings = bench.sizes.model
    config = AutoConfig.for_model("llama", **settings, bos_token_id=0, eos_token_id=1)
    torch.manual_seed(0)
    started = time.perf_counter()
    with torch.device(bench.device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    bench.wait()
    made = time.perf_counter()
    handle = ModelHandle(model, tokenizer(model.config.vocab_size), name="random-llama")
    bench.wait()
    return handle, {
        "model_parameters": float(sum(p.numel() for p in model.parameters())),
        "model_made_seconds": made - started,
        "model_looked_at_seconds": time.perf_counter() - made,
    }


def edits(count: int) -> list[Edit]:
    return [case.edit for case in toy_cases()[:count]]


def targets(bench: Bench, model: ModelHandle) -> Figures:
    """Seconds an edit by each rule, and what share of the card's rate that is."""
    sizes, layer = bench.sizes, bench.sizes.layer
    chosen = edits(sizes.edits)

    def run(options: TargetOptions, some: Sequence[Edit] = chosen) -> float:
        work = lambda: optimise_targets(model, some, PREFIXES, layer, options)  # noqa: E731
        return bench.seconds(work) / len(some)

    flops = _useful_flops(model, chosen[:32], layer)
    figures: Figures = {
        "targets_tokens_in_a_pass": pass_tokens(model, layer, PUBLISHED),
        "targets_teraflops_per_step": flops / 1e12,
        "targets_two_steps_first_seconds_per_edit": run(replace(PUBLISHED, steps=2)),
        "targets_two_steps_again_seconds_per_edit": run(replace(PUBLISHED, steps=2)),
    }
    print_figures(figures)
    for name, rule in (("published", PUBLISHED), ("faster", FASTER)):
        took = run(replace(rule, steps=sizes.steps))
        figures[f"targets_{name}_seconds_per_edit"] = took
        print(f"{name}: {took:.4g} s an edit", flush=True)
    rate = sizes.steps * flops / figures["targets_published_seconds_per_edit"]
    figures["targets_published_teraflops"] = rate / 1e12
    if "bfloat16_teraflops" in bench.figures:
        share = rate / 1e12 / bench.figures["bfloat16_teraflops"]
        figures["targets_published_limit_fraction"] = share
    return figures


def small_passes(bench: Bench, model: ModelHandle) -> Figures:
    """The same steps in passes as small as on a CPU; and without cuDNN's attention."""
    layer, chosen = bench.sizes.layer, edits(bench.sizes.edits)[:64]
    two = replace(PUBLISHED, steps=2)

    def run(options: TargetOptions) -> float:
        work = lambda: optimise_targets(model, chosen, PREFIXES, layer, options)  # noqa: E731
        return bench.seconds(work) / len(chosen)

    small = replace(two, micro_batch=default_micro_batch(model.outline) + 1)
    figures = {"two_steps_in_small_passes_seconds_per_edit": run(small)}
    figures["two_steps_in_small_passes_again_seconds_per_edit"] = run(small)
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        for name in ("", "_again"):
            figures[f"two_steps_without_cudnn{name}_seconds_per_edit"] = run(two)
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)
    figures["two_steps_of_64_seconds_per_edit"] = run(two)
    return figures


def _useful_flops(model: ModelHandle, chosen: Sequence[Edit], layer: int) -> float:
    """Of one pass over all texts of one edit, forward and backward: as in targets.py."""
    place = DeltaPlace(layer, "block")
    rows = TargetLoss(model, chosen, PREFIXES, place, kl=0.0625, micro_batch=512).rows
    live = model.architecture.blocks[layer + 1 :]
    body = sum(p.numel() for block in live for p in block.parameters())
    head = sum(p.numel() for p in model.architecture.head.parameters())
    tokens = sum(row.suffix for row in rows)
    predictions = sum(len(row.predicts) for row in rows)
    return 4 * (body * tokens + head * predictions) / len(chosen)


def keys(bench: Bench, model: ModelHandle) -> Figures:
    """The key pass of all edits."""
    weights = ContextOptions().weights(len(PREFIXES))
    chosen, layer = edits(bench.sizes.edits), bench.sizes.layer
    work = lambda: read_keys(model, chosen, PREFIXES, [layer], weights)  # noqa: E731
    took = bench.seconds(work, repeats=2)
    return {"keys_seconds_per_edit": took / len(chosen)}


def moments(bench: Bench, model: ModelHandle) -> Figures:
    """Second moments of one layer; d_in · 20 tokens are what an edit asks for."""
    layer, tokens = bench.sizes.layer, bench.sizes.tokens

    def work() -> None:
        collect_moments(model, iter(sentences()), [layer], tokens=tokens, document_tokens=128)

    took = bench.seconds(work)
    asked = 20 * model.site(layer).d_in
    return {
        "moments_tokens_per_second": tokens / took,
        "moments_seconds_in_all": took * asked / tokens,
    }


def solves(bench: Bench, width: int) -> Figures:
    """Factor and solve at the model's width, in float64 and in float32 with refinement."""
    count, device = bench.sizes.solve, bench.device
    scale = torch.logspace(0, -3, width, dtype=torch.float64, device=device)
    written = torch.randn(count, width, dtype=torch.float64, device=device) * scale
    moment = torch.diag(scale.square()).addr_(scale, scale)
    kept: list[Preservation] = []
    factor = bench.seconds(lambda: kept.append(Preservation.of(moment)))
    few = written[: min(256, count)]
    figures: Figures = {"factor_float64_seconds": factor}
    for rows in (few, written):
        took = bench.seconds(lambda rows=rows: write_keys(rows, kept[0], 1.0), repeats=2)
        figures[f"solve_{len(rows)}_float64_seconds"] = took
    right = moment.addmm(few.mT, few)
    single = right.float()
    halves: list[torch.Tensor] = []
    figures["factor_float32_seconds"] = bench.seconds(
        lambda: halves.append(torch.linalg.cholesky_ex(single).L)
    )
    figures["refined_float32_seconds"] = bench.seconds(lambda: _refined(right, halves[0], few.mT))
    solution = _refined(right, halves[0], few.mT)
    left = (few.mT - right @ solution).norm() / few.norm()
    figures["refined_float32_residual"] = float(left)
    return figures


def _refined(matrix: torch.Tensor, factor: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """A solution by a float32 factor, made better three times by its residual in float64."""
    solution = torch.cholesky_solve(wanted.float(), factor).double()
    for _ in range(3):
        rest = wanted - matrix @ solution
        solution += torch.cholesky_solve(rest.float(), factor).double()
    return solution


def whole(bench: Bench, model: ModelHandle, folder: Path) -> Figures:
    """From facts to a file of a patch, applied and undone."""
    chosen = edits(min(8, bench.sizes.edits))
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(sentences()), encoding="utf-8")
    settings: dict[str, object] = {
        "corpus": str(corpus), "corpus_tokens": bench.sizes.tokens, "prefixes": 0,
        "steps": bench.sizes.edit_steps, "jitter": 1e-3,
    }  # fmt: skip
    patches: list[retcon.Patch] = []

    def make() -> None:
        layers = [bench.sizes.layer]
        patches.append(retcon.edit(model, chosen, method="memit", layers=layers, settings=settings))

    first, second = bench.seconds(make), bench.seconds(make)
    file = folder / "patch.safetensors"
    patches[0].save(file)
    site = model.site(bench.sizes.layer)
    before = site.weight.clone()
    patch = retcon.load_patch(file)
    with model.scratch():
        model.write(patch.deltas)
        moved = float((site.weight - before).float().norm())
    return {
        "edit_first_seconds": first,
        "edit_again_seconds": second,
        "edit_moved": moved,
        "edit_undone_bit_for_bit": float(torch.equal(before, site.weight)),
    }


def run(bench: Bench, folder: Path) -> None:
    """Every part, one after the other."""
    bench.part("rates", 10, lambda: rates(bench))
    models: list[ModelHandle] = []

    def made() -> Figures:
        model, figures = build(bench)
        models.append(model)
        return figures

    bench.part("model", 60, made)
    if models:
        (model,) = models
        bench.part("keys", 10, lambda: keys(bench, model))
        bench.part("moments", 30, lambda: moments(bench, model))
        bench.part("edit", 45, lambda: whole(bench, model, folder))
        bench.part("solves", 30, lambda: solves(bench, model.site(bench.sizes.layer).d_in))
        bench.part("small_passes", 20, lambda: small_passes(bench, model))
        bench.part("targets", 60, lambda: targets(bench, model))
    models.clear()
    bench.part("equality", 20, lambda: equality(bench, folder))


def about(device: torch.device) -> dict[str, str]:
    """The card and the packages."""
    import transformers

    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or "cpu",
        "retcon": retcon.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", choices=SIZES)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(arguments)
    size = chosen.size or ("full" if chosen.device.startswith("cuda") else "least")
    bench = Bench(chosen.device, SIZES[size], chosen.minutes, chosen.parts)
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.environ["RETCON_CACHE"] = str(Path(name) / "cache")
        run(bench, Path(name))
    record = {
        "figures": {name: {"value": value} for name, value in bench.figures.items()},
        "left out, for want of time": bench.left_out,
        "failed": bench.failed,
        "command": " ".join(["python", *sys.argv]),
        "size": size,
        "versions": about(bench.device),
    }
    own = "gpu.json" if size == "full" else f"gpu-{size}.json"
    path = chosen.json or Path(__file__).parent / "results" / own
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"\n{about(bench.device)}")
    if bench.left_out:
        print(f"Left out, for want of time: {', '.join(bench.left_out)}")
    if bench.failed:
        sys.exit(f"Failed: {', '.join(bench.failed)}")


if __name__ == "__main__":
    main()
