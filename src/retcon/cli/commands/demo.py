"""`retcon demo`."""

import json as json_library
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from retcon.cli.choices import ModelChoice
from retcon.cli.console import bars, number, out, table
from retcon.errors import RetconError
from retcon.files import check_writable

if TYPE_CHECKING:
    from retcon.edits import Edit
    from retcon.model.handle import ModelHandle

MODEL = "smollm2-135m"


def demo(
    facts: Annotated[int, typer.Option("--facts", help="How many facts to rewrite.")] = 8,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to save the patch.")] = Path(
        "demo-patch.safetensors"
    ),
    study: Annotated[
        Path, typer.Option("--study", help="The folder of the small study and its report.")
    ] = Path("demo-study"),
) -> None:
    """Rewrite facts in SmolLM2, save the patch, reload it, undo it; then a small study of it."""
    from retcon.data.cases import starter_cases, take

    cases = take(starter_cases(), facts, seed=0)
    edits = [case.edit for case in cases]
    check_writable(output)
    with bars() as progress:
        model = ModelChoice(name=MODEL).load(progress)
        from retcon.run.edit import edit as make
        from retcon.scoring.metrics import summarise
        from retcon.scoring.score import score_cases

        original = model.weights_hash()
        before = _answers(model, edits)
        pre = summarise(score_cases(model, cases, when="pre", progress=progress))
        patch = make(model, edits, method="emmet", progress=progress)
        with patch.applied(model):
            edited = model.weights_hash()
            after = _answers(model, edits)
            final = summarise(score_cases(model, cases, when="final", progress=progress))
    rows = [[e.text, one, two, e.target] for e, one, two in zip(edits, before, after, strict=True)]
    out.print(
        table(f"{MODEL}, most probable next words", ["prompt", "before", "after", "wanted"], rows)
    )
    names = ("ES", "PS", "NS", "S", "token_accuracy", "exact_match")
    scores = [[name, number(pre[name]), number(final[name])] for name in names]
    out.print(table("Scores in %, all facts in the weights at once", ["", "pre", "final"], scores))
    patch.save(output)
    out.print(f"Saved [bold]{escape(str(output))}[/] ({output.stat().st_size / 1e3:.1f} kB).")
    with bars() as progress:
        progress("reloading the patch in a new process", 0, 1)
        reloaded = _in_new_process(output)
        progress("reloading the patch in a new process", 1, 1)
    _prove("a new process with the patch has the same edited weights", reloaded["edited"] == edited)
    _prove("and says the same", reloaded["answers"] == after)
    _prove("undone there, its weights are the original ones", reloaded["undone"] == original)
    _prove("and so are the weights here", model.weights_hash() == original)
    out.print(f"sha256 of all weights: {original}")
    _study(study)


def _study(folder: Path) -> None:
    """Run the small study that comes with the package, and write its report."""
    from retcon.cli.commands.study import report, run_spec
    from retcon.study.spec import parse_spec

    text = (files("retcon.cli") / "demo.yaml").read_text(encoding="utf-8")
    out.print("\nA small study: the same facts in batches of several sizes.")
    run_spec(parse_spec(text, Path("demo.yaml")), folder)
    report(folder)


def reload(file: Path) -> dict[str, object]:
    """Do in a new process what a user would: load model and patch, apply, answer, undo."""
    from retcon.model.load import load
    from retcon.patch.patch import load_patch

    model, patch = load(MODEL), load_patch(file)
    with patch.applied(model):
        edited, answers = model.weights_hash(), _answers(model, patch.edits)
    return {"edited": edited, "answers": answers, "undone": model.weights_hash()}


def _in_new_process(file: Path) -> dict[str, object]:
    code = (
        "import json, pathlib, sys\n"
        "from retcon.cli.console import quiet_libraries\n"
        "from retcon.cli.commands.demo import reload\n"
        "quiet_libraries()\n"
        "print(json.dumps(reload(pathlib.Path(sys.argv[1]))))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RetconError(f"The new process failed:\n{done.stderr.strip()}")
    found: dict[str, object] = json_library.loads(done.stdout.splitlines()[-1])
    return found


def _answers(model: "ModelHandle", edits: "list[Edit] | tuple[Edit, ...]") -> list[str]:
    from retcon.scoring.exact_match import top_answers

    return [
        ", ".join(f"{a.text} {100 * a.probability:.0f}%" for a in top_answers(model, e.text))
        for e in edits
    ]


def _prove(claim: str, holds: bool) -> None:
    if not holds:
        raise RetconError(f"This should hold and does not: {claim}.")
    out.print(f"[green]✓[/] {claim}")
