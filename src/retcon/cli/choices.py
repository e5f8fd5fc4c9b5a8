"""The options that commands share, and what belongs together of them.

Typer reads a command's options from its signature, so each command lists its own there, by the
short names of this page; a command then hands on a `ModelChoice` and an `EditChoice`.
"""

import getpass
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retcon.cli.console import quiet_libraries
from retcon.errors import InvalidSetting
from retcon.progress import Progress
from retcon.run.schedule import Schedule

if TYPE_CHECKING:
    from retcon.edits import Case
    from retcon.model.handle import ModelHandle

SOURCE = "A patch file, a ledger, or LEDGER@N (after event N)."
Source = Annotated[
    str,
    typer.Argument(metavar="PATCH", help=SOURCE, show_default=False),
]
# The model that a patch is for.
Base = Annotated[
    str | None,
    typer.Option("--model", metavar="MODEL", help="The base model.", show_default="the patch's"),
]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="smollm2-135m, a local folder, or a Hugging Face hub id.",
        show_default=False,
    ),
]
Revision = Annotated[
    str | None, typer.Option("--revision", help="Revision of a hub model.", show_default=False)
]
Dtype = Annotated[str, typer.Option("--dtype", help="float32, bfloat16, float16 or float64.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, or auto (accelerate).")]
Method = Annotated[
    str | None,
    typer.Option("--method", "-m", help="See `retcon methods`. Default: the model's preset."),
]
Layer = Annotated[int | None, typer.Option("--layer", help="The one layer to write.")]
Layers = Annotated[str | None, typer.Option("--layers", help="Several layers, as in 4,5,6 or 4-8.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting of the method, name=value. May be repeated."),
]
Fast = Annotated[
    bool,
    typer.Option("--fast", help="A quicker rule for targets of single edits, as --set rule=fast."),
]
DataOption = Annotated[
    list[str] | None,
    typer.Option("--option", help="An option of the data set, name=value. May be repeated."),
]
SkipBad = Annotated[
    bool,
    typer.Option("--skip-bad", help="Go on without records of which no fact can be made."),
]
Refresh = Annotated[
    str,
    typer.Option(help="When targets of carried edits are made anew: each-batch, never, stale:T."),
]
Guard = Annotated[
    str, typer.Option(help="Where the model does not hold up: off, warn, stop or rollback.")
]
Plan = Annotated[bool, typer.Option("--plan", help="Print memory and time, and stop.")]
Rate = Annotated[
    float | None,
    typer.Option(
        "--gflops",
        help="With --plan: the rate of another machine. Default: measured here.",
        min=1e-3,
        show_default=False,
    ),
]
Public = Annotated[bool, typer.Option("--public", help="Everybody may see what is uploaded.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show which files would be uploaded, and stop.")
]
Json = Annotated[Path | None, typer.Option("--json", help="Write the result to this file as JSON.")]

# No model has 10,000 layers, and a range that a slip of the finger made should not fill the memory.
_LAYERS = re.compile(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*")


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """A model as it was named, and how it is loaded."""

    name: str
    revision: str | None = None
    dtype: str = "float32"
    device: str = "cpu"

    def load(self, progress: Progress) -> "ModelHandle":
        """The model, loaded with everybody else silent."""
        quiet_libraries()
        from retcon.model.load import load

        progress("loading the model", 0, 1)
        handle = load(
            self.name,
            revision=self.revision,
            dtype=self.dtype,
            device=self.device,
            progress=progress,
        )
        progress("loading the model", 1, 1)
        return handle


@dataclass(frozen=True, kw_only=True)
class EditChoice:
    """Method, layers, settings and schedule, as far as they were given; None: the preset's."""

    method: str | None
    layers: tuple[int, ...] | None
    settings: Mapping[str, object]
    schedule: Schedule | None

    @classmethod
    def parse(
        cls,
        method: str | None,
        layer: int | None,
        layers: str | None,
        settings: Sequence[str] | None,
        schedule: str | None,
        refresh: str = "each-batch",
        guard: str = "off",
        fast: bool = False,
    ) -> "EditChoice":
        """The choice as typed.

        Raises:
            InvalidSetting, UnknownName: an option that cannot be read.
        """
        if schedule is None and (refresh, guard) != ("each-batch", "off"):
            raise InvalidSetting(
                "--refresh and --guard are about carried edits. Say how they are carried, as in "
                "--schedule sequential-batch:16."
            )
        plan = None if schedule is None else Schedule.parse(schedule, refresh, guard)
        return cls(
            method=method,
            layers=parse_layers(layer, layers),
            settings=({"rule": "fast"} if fast else {}) | parse_settings(settings),
            schedule=plan,
        )

    def watched(self, guard: str, cases: "Sequence[Case]") -> "EditChoice":
        """The choice with a guard over the probes of some cases too; without a schedule, one batch.

        Raises:
            InvalidSetting: there is no such guard.
        """
        if guard == "off":
            return self
        from retcon.run.harm import probes_of

        one_batch = Schedule.parse(f"sequential-batch:{len(cases)}", guard=guard)
        plan = self.schedule or one_batch
        watching = replace(plan.guard, probes=tuple(probes_of(cases)))
        return replace(self, schedule=replace(plan, guard=watching))

    @property
    def given(self) -> bool:
        """True if anything of editing was given."""
        return bool(self.settings) or (self.method, self.layers, self.schedule) != (None,) * 3


def parse_layers(layer: int | None, layers: str | None) -> tuple[int, ...] | None:
    """The layers that `--layer` or `--layers` name; None where neither is given."""
    if layer is not None and layers is not None:
        raise InvalidSetting("Give either --layer or --layers, not both.")
    if layer is not None:
        return (layer,)
    if layers is None:
        return None
    chosen: list[int] = []
    for part in layers.split(","):
        named = _LAYERS.fullmatch(part)
        if named is None:
            raise InvalidSetting(
                f"--layers takes numbers and ranges, as in 4,5,6 or 4-8: {layers!r}."
            )
        first, last = int(named[1]), int(named[2] or named[1])
        if last < first:
            raise InvalidSetting(
                f"--layers: the range {part.strip()!r} is empty. Did you mean {last}-{first}?"
            )
        chosen += range(first, last + 1)
    return tuple(chosen)


def told_layers(layers: Sequence[int]) -> str:
    """Layers as `--layers` takes them: 3,4,5 or, four or more in a row, 0-29."""
    if len(layers) > 3 and list(layers) == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}-{layers[-1]}"
    return ",".join(map(str, layers))


def parse_settings(pairs: Sequence[str] | None, option: str = "--set") -> dict[str, object]:
    """`--set name=value` as a mapping; or of another option of that form."""
    settings: dict[str, object] = {}
    for pair in pairs or ():
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not name:
            raise InvalidSetting(f"{option} takes name=value, not {pair!r}.")
        settings[name] = value
    return settings


def login() -> str:
    """The user's login, as far as the system tells."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # no such user, as in some containers
        return "unknown"
