"""`retcon probe`."""

from retcon.cli import choices
from retcon.cli.choices import ModelChoice
from retcon.cli.console import bars, out, quiet_libraries, table, write_json


def probe(
    model: choices.Model,
    revision: choices.Revision = None,
    dtype: choices.Dtype = "float32",
    device: choices.Device = "cpu",
    json: choices.Json = None,
) -> None:
    """Show what can be edited in a model: sites, widths, memory, and published settings.

    Where its weights are not on this machine, from the configuration alone.
    """
    source = ModelChoice(name=model, revision=revision, dtype=dtype, device=device)
    figures = _describe(source)
    rows = [[key, str(value)] for key, value in figures.items() if key != "presets"]
    out.print(table(model, ["", "found"], rows))
    presets = figures["presets"]
    assert isinstance(presets, list)
    if presets:
        cells = [[str(p["method"]), str(p["layers"]), str(p["source"])] for p in presets]
        out.print(table("Published settings", ["method", "layers", "source"], cells))
    else:
        out.print("No published settings for this model: name --method and --layer yourself.")
    write_json(json, figures)


def _describe(source: ModelChoice) -> dict[str, object]:
    quiet_libraries()
    from retcon.method.presets import describe
    from retcon.model.load import holds_weights, outline

    with bars() as progress:
        if holds_weights(source.name, revision=source.revision):
            return {**describe(source.load(progress).outline), "weights read": "yes"}
        structure = outline(
            source.name, revision=source.revision, dtype=source.dtype, progress=progress
        )
    unseen = "not measured without weights; taken to be added to the residual stream"
    return {
        **describe(structure),
        "MLP output": unseen,
        "weights read": "no: there are none here",
    }
