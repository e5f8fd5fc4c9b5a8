"""`retcon probe`."""

from retcon.cli import options
from retcon.cli.console import bars, out, table, write_json
from retcon.cli.options import ModelChoice


def probe(
    model: options.Model,
    revision: options.Revision = None,
    dtype: options.Dtype = "float32",
    device: options.Device = "cpu",
    json: options.Json = None,
) -> None:
    """Show what can be edited in a model: sites, widths, memory, and published settings."""
    source = ModelChoice(name=model, revision=revision, dtype=dtype, device=device)
    with bars() as progress:
        handle = source.load(progress)
    from retcon.methods.presets import describe

    found = describe(handle.outline)
    rows = [[key, str(value)] for key, value in found.items() if key != "presets"]
    out.print(table(model, ["", "found"], rows))
    presets = found["presets"]
    assert isinstance(presets, list)
    if presets:
        cells = [[str(p["method"]), str(p["layers"]), str(p["source"])] for p in presets]
        out.print(table("Published settings", ["method", "layers", "source"], cells))
    else:
        out.print("No published settings for this model: name --method and --layer yourself.")
    write_json(json, found)
