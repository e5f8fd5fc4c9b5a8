"""`retcon stats`."""

from retcon.cli import options
from retcon.cli.console import bars, number, out, table, write_json
from retcon.cli.options import ModelChoice, parse_layers, parse_settings
from retcon.storage import check_writable


def stats(
    model: options.Model,
    layer: options.Layer = None,
    layers: options.Layers = None,
    set: options.Set = None,
    revision: options.Revision = None,
    dtype: options.Dtype = "float32",
    device: options.Device = "cpu",
    json: options.Json = None,
) -> None:
    """Collect the second moments of some layers (all, if none is named) in one pass; cache them."""
    source = ModelChoice(name=model, revision=revision, dtype=dtype, device=device)
    chosen, settings = parse_layers(layer, layers), parse_settings(set)
    check_writable(json)
    with bars() as progress:
        handle = source.load(progress)
        from retcon.activations.covariance import MomentOptions, describe, load_moments
        from retcon.algebra.whitening import Cholesky
        from retcon.methods.registry import options_from

        moment_options = options_from(MomentOptions(), settings)
        wanted = chosen if chosen is not None else tuple(sorted(handle.architecture.sites))
        rows: list[list[str]] = []
        tokens: dict[int, int] = {}
        # One matrix at a time: all of a large model's would not fit.
        for k, moment in load_moments(handle, wanted, moment_options, progress):
            mean = moment.into_mean()
            diagonal = float(mean.diagonal().mean())
            found = Cholesky.of(mean, jitter=moment_options.jitter, overwrite=True)
            tokens[k] = moment.tokens
            rows.append(
                [
                    str(k),
                    str(moment.tokens),
                    number(moment.tokens / found.width),
                    f"{diagonal:.3g}",
                    f"{float(found.factor.diagonal().min() ** 2):.2g}",
                ]
            )
    columns = ["layer", "tokens", "tokens / d_in", "mean diagonal", "smallest pivot"]
    out.print(table(f"Second moments of {model} on {moment_options.corpus}", columns, rows))
    write_json(
        json,
        {"model": model, "fingerprint": handle.fingerprint, **describe(moment_options, tokens)},
    )
