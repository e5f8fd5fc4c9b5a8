"""What `--plan` prints: memory and time, from the model's configuration alone."""

from retcon.cli.console import bars, out, quiet_libraries, table
from retcon.cli.options import EditChoice, ModelChoice


def print_plan(model: ModelChoice, edit: EditChoice, edits: int) -> None:
    """What so many edits will need, before anything heavy is done."""
    quiet_libraries()
    from retcon.editing.planning import plan
    from retcon.methods.presets import choose
    from retcon.model.load import find_dtype, outline

    size = find_dtype(model.dtype).itemsize
    with bars() as progress:
        found = outline(model.name, revision=model.revision, progress=progress)
    choice = choose(found, method=edit.method, layers=edit.layers, settings=edit.settings)
    made = plan(found, choice, edits, bytes_per_weight=size)
    weights = f"{gibibytes(made.weight_bytes)} ({made.parameters / 1e6:.0f} M in {model.dtype})"
    moments = f"{gibibytes(made.moment_bytes)} from {made.corpus_tokens:,} tokens"
    where = f"at layer {', '.join(map(str, choice.layers))}" if choice.layers else "in no layer"
    wanted = "targets" if made.corpus_tokens else "gradients"
    rows = [
        ["method", f"{choice.method.name} {where}"],
        ["weights", weights],
        ["second moments", moments if made.corpus_tokens else "none"],
        ["this machine", f"{made.gflops:.0f} GFLOP/s in a float32 product"],
        [f"{wanted} of {edits}", duration(made.target_seconds) if choice.layers else "none"],
    ]
    if made.corpus_tokens:
        rows += [
            ["second moments (once)", duration(made.moment_seconds)],
            ["sampling the corpus (once)", duration(made.sampling_seconds)],
        ]
    out.print(table(f"Plan for {model.name}", ["", "estimate"], rows))


def gibibytes(size: int) -> str:
    """Bytes, as a reader wants them."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"


def duration(seconds: float) -> str:
    """Seconds, as a reader wants them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
