"""Print and write which facts would get into each other's way (`--interference`)."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from retcon.cli.choices import EditChoice, ModelChoice
from retcon.cli.console import bars, out, table, write_json
from retcon.environment import environment
from retcon.errors import InvalidSetting
from retcon.files import check_writable

if TYPE_CHECKING:
    from retcon.edits import Edit
    from retcon.run.interference import Interference

# So many pairs and facts are printed, and at most so many facts are drawn.
_PAIRS, _FACTS, _DRAWN = 12, 8, 100


def print_interference(
    source: ModelChoice,
    choice: EditChoice,
    edits: "Sequence[Edit]",
    target: str,
    json: Path | None = None,
) -> None:
    """Print the strongest pairs, and the facts that are disturbed most.

    Args:
        source: a model.
        choice: method, layers and settings.
        edits: the facts.
        target: a CSV file for every pair, beside which the heat map is drawn; `-`: none.
        json: file for all shares.

    Raises:
        InvalidSetting: the name of the file does not end in .csv.
    """
    file = None if target == "-" else Path(target)
    if file is not None and file.suffix != ".csv":
        raise InvalidSetting(
            f"--interference writes a table, and a heat map beside it: name a file that ends in "
            f".csv, or - to print only, not {target!r}."
        )
    check_writable(file)
    check_writable(json)
    with bars() as progress:
        model = source.load(progress)
        from retcon.run.interference import interference

        seen = interference(
            model,
            edits,
            method=choice.method,
            layers=choice.layers,
            settings=choice.settings,
            progress=progress,
        )
    names = dict(zip((edit.id for edit in edits), _names(edits), strict=True))
    _print(seen, names)
    if file is not None:
        _write(seen, names, file)
    write_json(json, {"model": source.name, **_described(seen), "versions": environment()})


def _print(seen: "Interference", names: dict[str, str]) -> None:
    pairs = [
        [names[p.writing.id], names[p.at.id], str(p.layer), f"{100 * p.share:.2f}"]
        for p in seen.pairs(_PAIRS)
    ]
    recipe = seen.recipe
    layers = ", ".join(map(str, recipe.layers))
    title = f"Each of {len(seen.edits)} facts written alone by {recipe.name} at layer {layers}"
    columns = ["writing", "adds at the key of", "layer", "% of its residual"]
    out.print(table(title, columns, pairs))
    moved = [[names[edit.id], f"{100 * size:.2f}"] for edit, size in seen.disturbed()[:_FACTS]]
    title = "Disturbed most: root of the sum of squares over all others"
    out.print(table(title, ["at the key of", "% of a residual"], moved))


def _write(seen: "Interference", names: dict[str, str], file: Path) -> None:
    """Write every pair as CSV, and draw the facts that are disturbed most."""
    from retcon.files import write_whole
    from retcon.report.charts.heat_map import heat_map
    from retcon.report.page import draw
    from retcon.report.tables import Table

    columns = ("layer", "writing", "at", "share", "writing_subject", "at_subject")
    rows = tuple(
        (str(p.layer), p.writing.id, p.at.id, f"{p.share:.6g}", p.writing.subject, p.at.subject)
        for p in seen.pairs()
    )
    text = Table("", "", columns, rows).csv()
    write_whole(file, lambda work: work.write_text(text, encoding="utf-8"))
    chosen = {edit.id for edit, _ in seen.disturbed()[:_DRAWN]}
    places = [i for i, edit in enumerate(seen.edits) if edit.id in chosen]
    note = f"The {_DRAWN} facts that are disturbed most." if len(chosen) < len(seen.edits) else ""
    shares = {layer: one[places][:, places].tolist() for layer, one in seen.shares.items()}
    shown = [names[seen.edits[i].id] for i in places]
    chart = heat_map(shown, shares, note)._replace(key=file.stem)
    drawn = draw(chart, file.parent)
    out.print(f"Saved {', '.join(map(str, [file, *drawn]))}.", soft_wrap=True, markup=False)


def _names(edits: "Sequence[Edit]") -> list[str]:
    """The subjects, with the id behind one that several facts have."""
    counts = Counter(edit.subject for edit in edits)
    return [
        edit.subject if counts[edit.subject] == 1 else f"{edit.subject} ({edit.id})"
        for edit in edits
    ]


def _described(seen: "Interference") -> dict[str, object]:
    return {
        "method": seen.recipe.name,
        "layers": list(seen.recipe.layers),
        "settings": seen.recipe.settings,
        "facts": [edit.id for edit in seen.edits],
        "shares": {str(layer): one.tolist() for layer, one in seen.shares.items()},
        "disturbance": {str(layer): seen.disturbance(layer).tolist() for layer in seen.shares},
    }
