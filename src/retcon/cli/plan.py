"""Print memory and time of edits (`--plan`), from the model's configuration alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from retcon.cli.choices import EditChoice, ModelChoice, told_layers
from retcon.cli.console import bars, out, quiet_libraries, table, write_json
from retcon.files import check_writable

if TYPE_CHECKING:
    from retcon.edits import Edit
    from retcon.run.cost import CostEstimate


def print_plan(
    model: ModelChoice,
    edit: EditChoice,
    edits: "int | Sequence[Edit]",
    *,
    gflops: float | None = None,
    json: Path | None = None,
) -> None:
    """Print what so many edits will need, before anything heavy is done.

    Args:
        model: which.
        edit: method, layers and settings.
        edits: the facts, or how many.
        gflops: of another machine; None: this one's is measured.
        json: file for the numbers, in bytes and seconds.
    """
    check_writable(json)
    quiet_libraries()
    from retcon.method.presets import resolve
    from retcon.model.load import find_dtype, outline
    from retcon.run.cost import measured_rate, plan
    from retcon.run.edit import asked_for

    size = find_dtype(model.dtype).itemsize
    with bars() as progress:
        structure = outline(model.name, revision=model.revision, progress=progress)
    method = edit.method
    if not isinstance(edits, int):
        if (method, edit.layers) == (None, None) and not edit.settings:
            method = asked_for(structure, edits, edit.schedule)
        edits = len(edits)
    recipe = resolve(structure, method=method, layers=edit.layers, settings=edit.settings)
    rate = measured_rate() if gflops is None else gflops * 1e9
    cost = plan(structure, recipe, edits, bytes_per_weight=size, rate=rate)
    where = f"at layer {told_layers(recipe.layers)}" if recipe.layers else "in no layer"
    title = f"Plan for {model.name}: {edits:,} facts by {recipe.name} {where}"
    out.print(table(title, ["memory", "estimate", "of what"], _memory(cost, model.dtype)))
    _print_times(cost, edits, given=gflops is not None)
    request = {
        "model": model.name,
        "dtype": model.dtype,
        "method": recipe.name,
        "layers": list(recipe.layers),
        "settings": recipe.settings,
        "edits": edits,
    }
    memory = {**cost.memory._asdict(), "together": cost.memory.together}
    write_json(json, {**request, **cost._asdict(), "memory": memory})


def _memory(cost: "CostEstimate", dtype: str) -> list[list[str]]:
    memory, count = cost.memory, cost.parameters
    # Where one is short of memory for the chosen dtype, the others are what one asks for next.
    others = {"float32": 4, "bfloat16": 2, "4 bits": 0.5}
    named = [f"{gibibytes(int(count * b))} in {n}" for n, b in others.items() if n != dtype]
    return [
        [
            "weights",
            gibibytes(memory.weights),
            f"{count / 1e6:,.0f} M in {dtype}; " + ", ".join(named),
        ],
        [
            "second moments",
            gibibytes(memory.moments),
            "in float64, all layers; the factor of each takes its memory",
        ],
        [
            "masters",
            gibibytes(memory.masters),
            "float32 copies where weights are narrower, and saved originals",
        ],
        ["solve", gibibytes(memory.solve), "all facts in one batch, in float64"],
        ["patch", gibibytes(memory.factors), "its factors; the size of its file"],
        ["activations", gibibytes(memory.activations), "of a pass, for the gradient of targets"],
        ["together", gibibytes(memory.together), "at most: not all are held at once"],
    ]


def _print_times(cost: "CostEstimate", edits: int, *, given: bool) -> None:
    """Seconds by what they go to, and the rate that they are for."""
    once = "once, then cached"
    wanted = "targets" if cost.corpus_tokens else "gradients"
    # A method that writes no weight makes none.
    spent = duration(cost.target_seconds) if cost.target_seconds else "none"
    rows = [
        [f"{wanted} of {edits:,}", spent, "with all their steps"],
        ["solves", duration(cost.solve_seconds), "all facts in one batch"],
    ]
    if cost.corpus_tokens:
        tokens = f"{cost.corpus_tokens:,} tokens; {once}"
        rows += [
            ["factors", duration(cost.factor_seconds), "of the second moments, in each run"],
            ["second moments", duration(cost.moment_seconds), tokens],
        ]
    if cost.sampling_seconds:
        rows.append(["sampling the corpus", duration(cost.sampling_seconds), once])
    source = "as given" if given else "a float32 product, measured here"
    title = f"At {cost.gflops:,.0f} GFLOP/s ({source}); an order-of-magnitude estimate"
    out.print(table(title, ["time", "estimate", "of what"], rows))


def gibibytes(size: int) -> str:
    """Bytes, as a reader wants them."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"


def duration(seconds: float) -> str:
    """Seconds, as a reader wants them."""
    if 0 < seconds < 1:
        return "< 1 s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 100 * 3600 else f"{seconds / 86400:,.0f} days"
