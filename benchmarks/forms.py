"""One patch in every form in which it ships: scores and sizes; and undoing a part of it.

    python benchmarks/forms.py [--facts 64] [--undo 8] [--json FILE]

Facts of CounterFact (the starter set where there is none), written into SmolLM2-135M by MEMIT in
one batch. Every form is scored on all prompts of the facts; log-probabilities are those of both
targets behind each, summed over tokens. llama.cpp reads the base as it is published, 4-bit weights
with 8-bit activations, so its own base is beside it: its noise is what the two bases differ in.
Without llama-cpp-python, and for other models, its rows are left out.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

from machine import cases as take_cases
from machine import parser_of, source
from retcon.cli.choices import parse_settings
from retcon.edits import Case
from retcon.model.checkpoint import CheckpointFiles
from retcon.model.handle import ModelHandle
from retcon.model.load import load
from retcon.model.smollm2 import ALIAS, gguf_file
from retcon.patch.export.gguf import FILE, write_gguf
from retcon.patch.export.lora import lora_of
from retcon.patch.export.peft import write_peft
from retcon.patch.export.whole import write_merged
from retcon.patch.ledger import Ledger
from retcon.patch.patch import Patch
from retcon.run.edit import edit
from retcon.run.undo import FORMS, check_undo, resolve
from retcon.scoring.metrics import summarise
from retcon.scoring.observations import Observation
from retcon.scoring.score import prompts, score_cases

FLOAT = torch.float32
SCORES = ("ES", "PS", "NS", "S")


class Form(NamedTuple):
    """What a form says, and how large its files are (None: it has none of its own)."""

    name: str
    rows: list[Observation]
    bytes: int | None
    beside: str


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


@contextmanager
def uncached() -> Generator[None, None, None]:
    """Scores are those of the weights as they are, whatever a model was loaded as."""
    os.environ["RETCON_CACHE_LIMIT"] = "0"
    try:
        yield
    finally:
        del os.environ["RETCON_CACHE_LIMIT"]


def served_by_peft(name: str, folder: Path, cases: Sequence[Case]) -> list[Observation]:
    """The adapter loaded by `load_adapter`, with peft."""
    served = load(name)
    served.model.load_adapter(str(folder))
    with uncached():
        return score_cases(served, cases, when="final")


def merged(
    name: str, folder: Path, patch: Patch, cases: Sequence[Case], dtype: torch.dtype
) -> list[Observation]:
    folder.mkdir()
    write_merged(folder, patch, CheckpointFiles.open(name), dtype)
    return score_cases(load(str(folder), dtype=str(dtype).split(".")[1]), cases, when="final")


def served_by_llama(
    base: ModelHandle, cases: Sequence[Case], lora: Path | None
) -> list[Observation]:
    """What llama.cpp gives the targets behind every prompt."""
    engine = import_module("llama_cpp").Llama(
        str(gguf_file()), n_ctx=256, logits_all=True, verbose=False, n_threads=2,
        lora_path=None if lora is None else str(lora),
    )  # fmt: skip

    def score(text: str, target: str) -> tuple[float, int, int]:
        ids, start = base.tokens.continuation(text, target)
        engine.reset()
        engine.eval(list(ids))
        logits = torch.tensor(engine.scores[start - 1 : len(ids) - 1])
        wanted = torch.tensor(ids[start:])
        logp = logits.log_softmax(-1).gather(1, wanted[:, None])
        return -float(logp.mean()), len(wanted), int((logits.argmax(-1) == wanted).sum())

    rows: list[Observation] = []
    for case in cases:
        for prompt in prompts(case):
            new, *rest = (score(prompt.text, target) for target in prompt.targets)
            old = rest[0] if rest else (None, None, None)
            about = (case.edit.id, case.relation, prompt.kind, prompt.index, "final", 1)
            rows.append(Observation(*about, *new, *old, None))
    return rows


def logps(rows: Sequence[Observation]) -> torch.Tensor:
    """Summed log-probabilities of both targets behind every prompt."""
    return torch.tensor(
        [[_logp(r.nll_new, r.n_new), _logp(r.nll_old, r.n_old)] for r in rows],
        dtype=torch.float64,
    )


def _logp(nll: float | None, tokens: int | None) -> float:
    """The log-probability of a target, from its mean NLL per token."""
    return -(nll or 0.0) * (tokens or 0)


def all_forms(base: ModelHandle, patch: Patch, cases: Sequence[Case], work: Path) -> list[Form]:
    before = score_cases(base, cases, when="pre")
    with patch.applied(base):
        native = score_cases(base, cases, when="final")
    patch.save(work / "facts.safetensors")
    lora = lora_of(patch, base.outline, dtype=FLOAT)
    for name in ("peft", "gguf"):
        (work / name).mkdir()
    write_peft(work / "peft", patch, lora, base.outline, FLOAT)
    write_gguf(work / "gguf", patch, lora, base.outline, FLOAT)
    forms = [
        Form("base", before, None, "base"),
        Form("native", native, (work / "facts.safetensors").stat().st_size, "native"),
        Form(
            "peft", served_by_peft(base.name, work / "peft", cases), size(work / "peft"), "native"
        ),
    ]
    for name, dtype in (("float32", FLOAT), ("bfloat16", torch.bfloat16)):
        folder = work / name
        rows = merged(base.name, folder, patch, cases, dtype)
        forms.append(Form(f"merged {name}", rows, size(folder), "native"))
    if base.name == ALIAS and find_spec("llama_cpp") is not None:
        plain = served_by_llama(base, cases, None)
        edited = served_by_llama(base, cases, work / "gguf" / FILE)
        forms += [
            Form("llama.cpp, base", plain, None, "base"),
            Form("llama.cpp, gguf adapter", edited, size(work / "gguf"), "native"),
        ]
    return forms


def print_forms(forms: Sequence[Form]) -> list[dict[str, Any]]:
    known = {form.name: logps(form.rows) for form in forms}
    told: list[dict[str, Any]] = []
    print("| form | MB | " + " | ".join(SCORES) + " | Δ log p, largest | mean |")
    print("|---|---:|" + "---:|" * (len(SCORES) + 2))
    for form in forms:
        moved = (known[form.name] - known[form.beside]).abs()
        scores = summarise(form.rows)
        said = {name: scores[name] for name in SCORES}
        told.append({"form": form.name, "bytes": form.bytes, **said, "beside": form.beside,
                     "largest": float(moved.max()), "mean": float(moved.mean())})  # fmt: skip
        megabytes = "–" if form.bytes is None else f"{form.bytes / 1e6:.2f}"
        cells = " | ".join(f"{said[name]:.1f}" for name in SCORES)
        print(f"| {form.name} | {megabytes} | {cells} | {moved.max():.1e} | {moved.mean():.1e} |")
    return told


def undo(base: ModelHandle, patch: Patch, cases: Sequence[Case], count: int, work: Path) -> dict:
    """Some facts taken back from a ledger, both ways; then all of them."""
    weights = {layer: digest(base, layer) for layer in patch.about.layers}
    ledger = Ledger(work / "ledger")
    ledger.add(patch, who="benchmark")
    taken = [record.id for record in patch.about.edits[:count]]
    undoing = ledger.choose(taken)
    found = check_undo(base, ledger, undoing, cases)
    told: dict[str, Any] = {"staying": found.staying, "taken": found.taken}
    for group, summary in (("facts that stay", found.staying), ("taken back", found.taken)):
        print(f"\n| {group} | " + " | ".join(SCORES[:3]) + " |\n|---|" + "---:|" * 3)
        for form in FORMS:
            print(f"| {form} | " + " | ".join(f"{summary[form][n]:.1f}" for n in SCORES[:3]) + " |")
    stay = [case for case in cases if case.edit.id not in taken]
    with patch.applied(base):
        now = score_cases(base, stay, when="final")
    for name, stack in (
        ("removed", ledger.after(undoing)),
        ("re-solved", ledger.after(undoing, resolve(base, ledger, undoing))),
    ):
        with stack.applied(base):
            rows = score_cases(base, stay, when="final")
        pairs = [(a, b) for a, b in zip(now, rows, strict=True) if a.kind == "rewrite"]
        moved = [_logp(a.nll_new, a.n_new) - _logp(b.nll_new, b.n_new) for a, b in pairs]
        flat = torch.tensor(moved).abs()
        told[name] = {"largest": float(flat.max()), "mean": float(flat.mean())}
        print(f"{name}: log p of the {len(stay)} targets that stay moves by {flat.mean():.4f} nats "
              f"on average, {flat.max():.4f} at most")  # fmt: skip
    ledger.undo(undoing, who="benchmark")
    ledger.back_to(0, who="benchmark")
    with ledger.applied(base):
        told["undone"] = all(digest(base, layer) == weights[layer] for layer in weights)
    print(f"all undone: the bytes of the edited matrices are the original ones: {told['undone']}")
    return told


def digest(base: ModelHandle, layer: int) -> str:
    return hashlib.sha256(base.site(layer).weight.detach().numpy().tobytes()).hexdigest()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--facts", type=int, default=64)
    parser.add_argument("--undo", type=int, default=8)
    parser.add_argument("--layers", type=int, nargs="+", help="those published, where not given")
    parser.add_argument("--set", action="append", help="a setting, as NAME=VALUE")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(arguments)
    cases = take_cases(chosen.facts, seed=0)
    base = load(chosen.model)
    edits, settings = [case.edit for case in cases], parse_settings(chosen.set)
    patch = edit(base, edits, method="memit", layers=chosen.layers, settings=settings)
    print(
        f"{len(cases)} facts of {source()}, layers {patch.about.layers}, {patch.about.settings}\n"
    )
    with tempfile.TemporaryDirectory() as name:
        forms = print_forms(all_forms(base, patch, cases, Path(name)))
        undone = undo(base, patch, cases, chosen.undo, Path(name))
    if chosen.json is not None:
        record = {"settings": patch.about.settings, "forms": forms, "undo": undone}
        chosen.json.write_text(json.dumps(record, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
