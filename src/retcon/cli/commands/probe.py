"""`retcon probe`."""

from retcon.cli.console import (
    Device,
    Dtype,
    JsonFile,
    Model,
    Revision,
    bars,
    load_model,
    out,
    table,
    write_json,
)


def probe(
    model: Model,
    revision: Revision = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    json: JsonFile = None,
) -> None:
    """Show what can be edited in a model: sites, widths, memory, and published settings."""
    with bars() as progress:
        handle = load_model(model, revision=revision, dtype=dtype, device=device, progress=progress)
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
