"""What several commands take and say: options with their help, enumerations, a few sentences for stderr."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from knn_cli.cli.console import console
from knn_cli.core.errors import KnnError

if TYPE_CHECKING:
    from knn_cli.networks.bundle import Bundle


class Device(str, Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Level(str, Enum):
    group = "group"
    subgroup = "subgroup"
    speaker = "speaker"
    name = "name"


def quieter(value: bool) -> None:
    console.quiet = console.quiet or value


def louder(value: bool) -> None:
    console.verbose = console.verbose or value


QuietOption = Annotated[bool, typer.Option("-q", "--quiet", callback=quieter, help="Only errors on stderr.")]
VerboseOption = Annotated[bool, typer.Option("-v", "--verbose", callback=louder, help="More on stderr.")]
ModelOption = Annotated[str | None, typer.Option("--model", help="Model by name or folder; `knn info` lists them.")]
DeviceOption = Annotated[Device, typer.Option("--device", help="Where the network runs.")]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Replace stores, models and sound that exist; text is replaced anyway.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON lines.")]
ChannelOption = Annotated[str, typer.Option("--channel", help="mix, left, right, or a number from 1.")]
VadOption = Annotated[bool, typer.Option("--vad/--no-vad", help="Use speech only, or all of the sound.")]
BatchOption = Annotated[float, typer.Option("--batch-seconds", help="Sound that goes through the network at once.")]
SegmentOption = Annotated[
    float | None, typer.Option("--segment", help="A result every so many seconds instead of one a file.")
]


def given(ctx: typer.Context) -> set[str]:
    """The options that the command line says, rather than their defaults."""
    return {one for one in ctx.params if getattr(ctx.get_parameter_source(one), "name", "") == "COMMANDLINE"}


def flag(ctx: typer.Context, name: str) -> str:
    """How an option is written, such as --out-dir."""
    return next(max(one.opts, key=len) for one in ctx.command.params if one.name == name)


def refuse_together(ctx: typer.Context, groups: Iterable[Sequence[str]]) -> None:
    """KnnError where the command line says two options of a group."""
    said = given(ctx)
    for group in groups:
        if len(both := [flag(ctx, one) for one in group if one in said]) > 1:
            raise KnnError(f"{both[0]} and {both[1]} do not go together.", "Choose one of them.")


def refuse_without(ctx: typer.Context, needs: Mapping[str, Sequence[str]]) -> None:
    """KnnError where the command line says an option and none of those that it needs."""
    said = given(ctx)
    for name, needed in needs.items():
        if name in said and not said & set(needed):
            raise KnnError(f"{flag(ctx, name)} goes with {' or '.join(flag(ctx, one) for one in needed)}.", "Add it.")


def say_model(asked: str | None, found: Bundle, more: str) -> None:
    """Which model is at work: said of one that the user did not name, else only where details are wanted."""
    (console.detail if asked else console.note)(f"Model {found.fingerprint}, {more}.")


def say_silent(rows: int) -> None:
    if rows:
        console.note(f"Left out {rows} segments without enough speech.")


def parse_priors(text: str) -> dict[str, float] | None:
    """`cs=3,de=1` as numbers; None for an empty text. Raises KnnError for anything else."""
    priors: dict[str, float] = {}
    for one in filter(None, map(str.strip, text.split(","))):
        label, _, number = one.rpartition("=")
        try:
            priors[label] = float(number)
        except ValueError:
            label = ""
        if not label:
            raise KnnError(f"{one!r} is no label with its prior.", "Write them as cs=3,de=1.")
    return priors or None
