"""`retcon stats`."""

from retcon.cli.console import (
    Device,
    Dtype,
    JsonFile,
    Layer,
    Layers,
    Model,
    Revision,
    Set,
    bars,
    load_model,
    number,
    out,
    parse_layers,
    parse_settings,
    table,
    write_json,
)


def stats(
    model: Model,
    layer: Layer = None,
    layers: Layers = None,
    set: Set = None,
    revision: Revision = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    json: JsonFile = None,
) -> None:
    """Collect the second moments of some layers (all, if none is named) in one pass; cache them."""
    chosen, settings = parse_layers(layer, layers), parse_settings(set)
    with bars() as progress:
        handle = load_model(model, revision=revision, dtype=dtype, device=device, progress=progress)
        from retcon.activations.covariance import MomentOptions, describe, load_moments
        from retcon.algebra.metric import Metric
        from retcon.methods.registry import options_from

        options = options_from(MomentOptions(), settings)
        wanted = chosen if chosen is not None else tuple(sorted(handle.architecture.sites))
        rows: list[list[str]] = []
        tokens: dict[int, int] = {}
        # One matrix at a time: all of a large model's would not fit.
        for k, moment in load_moments(handle, wanted, options, progress):
            mean = moment.into_mean()
            diagonal = float(mean.diagonal().mean())
            metric = Metric.of(mean, jitter=options.jitter, overwrite=True)
            tokens[k] = moment.tokens
            rows.append(
                [
                    str(k),
                    str(moment.tokens),
                    number(moment.tokens / metric.width),
                    f"{diagonal:.3g}",
                    f"{float(metric.factor.diagonal().min() ** 2):.2g}",
                ]
            )
    columns = ["layer", "tokens", "tokens / d_in", "mean diagonal", "smallest pivot"]
    out.print(table(f"Second moments of {model} on {options.corpus}", columns, rows))
    write_json(
        json, {"model": model, "fingerprint": handle.fingerprint, **describe(options, tokens)}
    )
