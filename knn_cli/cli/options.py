"""Options that several commands share, each with one meaning and one help text, and checks of options."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knn_cli.cli.console import console
from knn_cli.cli.limits import MOST_JOBS, MOST_SECONDS, MOST_SPEAKERS, MOST_TRACKS, within
from knn_cli.core.errors import KnnError

if TYPE_CHECKING:
    from knn_cli.networks.bundle import Bundle
    from knn_cli.recognition.classifier import Classifier
    from knn_cli.recognition.system_scores import SystemScores

# Panels of the help, in the order in which commands list their options.
INPUT, OUTPUT, MODEL, LABELS = "Input", "Output", "Model and device", "Labels"
SAMPLING, SPEAKERS = "Held-out data", "Speakers and turns"


class Device(str, Enum):
    """Where networks run."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class PrecisionName(str, Enum):
    """In which numbers networks compute."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    int8 = "int8"
    onnx = "onnx"


class Level(str, Enum):
    """Levels of the labels in a store."""

    group = "group"
    subgroup = "subgroup"
    speaker = "speaker"
    name = "name"


# ---- completion by the shell ----


def complete_models(incomplete: str) -> list[str]:
    """Return the names of the installed models that classify or embed."""
    from knn_cli.networks import bundle

    return sorted(name for name in bundle.available() if name.startswith(incomplete))


def complete_segmentation(incomplete: str) -> list[str]:
    """Return silero, and the names of the installed segmentation networks."""
    from knn_cli.networks import bundle

    names = ["silero", *sorted(bundle.available(segmenter=True))]
    return [name for name in names if name.startswith(incomplete)]


# ---- options ----


def switch(*flags: str, help: str, panel: str | None = None, **more: Any) -> Any:
    """An option without a value."""
    return typer.Option(*flags, help=help, rich_help_panel=panel, metavar="", **more)


def valued(*flags: str, metavar: str, help: str, panel: str | None = None, **more: Any) -> Any:
    """An option with a value; the metavar is its unit or kind."""
    return typer.Option(*flags, help=help, rich_help_panel=panel, metavar=metavar, **more)


def quieter(value: bool) -> None:
    console.quiet = console.quiet or value


def louder(value: bool) -> None:
    console.verbose = console.verbose or value


QUIET_HELP, VERBOSE_HELP = "Write only errors to stderr.", "Write more details to stderr."
# Also accepted after a command, but listed only in `knn --help`.
QuietOption = Annotated[bool, switch("-q", "--quiet", callback=quieter, hidden=True, help=QUIET_HELP)]
VerboseOption = Annotated[bool, switch("-v", "--verbose", callback=louder, hidden=True, help=VERBOSE_HELP)]

ClusterOption = Annotated[
    str | None,
    valued("--cluster", metavar="WHERE", panel=MODEL, help="Work on Dask: tcp://..., local:N, FILE."),
]
JobsOption = Annotated[
    int | None,
    valued(
        "--jobs", metavar="N", callback=within(1, MOST_JOBS), panel=MODEL,
        help="Use N processors; else all idle ones.",
    ),
]  # fmt: skip
NoVadOption = Annotated[bool, switch("--no-vad", panel=INPUT, help="Use all of the sound, not only the speech.")]
ChannelOption = Annotated[
    str,
    valued(
        "--channel",
        metavar="CHANNEL",
        panel=INPUT,
        help="Use mix, left, right, or a number from 1.",
        show_default=False,
    ),
]
TrackOption = Annotated[
    int | None,
    valued(
        "--track",
        metavar="N",
        callback=within(1, MOST_TRACKS),
        panel=INPUT,
        help="Read this audio track of films and such (1).",
        show_default=False,
    ),
]
SegmentOption = Annotated[
    float | None,
    valued(
        "--segment", metavar="SECONDS", panel=INPUT, callback=within(0.1, MOST_SECONDS),
        help="Cut recordings into segments of this length.",
    ),
]  # fmt: skip
LabelsOption = Annotated[
    str,
    valued(
        "--labels", metavar="RULE", panel=INPUT,
        help="Take labels from folder, group/speaker/file, a regular expression or a table (.csv).",
    ),
]  # fmt: skip
SpeechOption = Annotated[
    Path | None,
    valued(
        "--speech", metavar="FILE", panel=INPUT,
        help="Use only the speech in this list: RTTM, UEM, Kaldi segments, CSV.",
    ),
]  # fmt: skip
JsonOption = Annotated[bool, switch("--json", panel=OUTPUT, help="Write JSON lines.")]
ForceOption = Annotated[bool, switch("--force", panel=OUTPUT, help="Replace existing outputs, whoever wrote them.")]
BackupOption = Annotated[bool, switch("--backup", panel=OUTPUT, help="Keep others' or changed outputs as FILE.bak.")]
AgainOption = Annotated[bool, switch("--again", panel=OUTPUT, help="Do anew what an earlier run has finished.")]
TextOption = Annotated[
    Path | None, valued("-o", "--out", metavar="FILE", panel=OUTPUT, help="Write to this file instead of stdout.")
]
FolderOption = Annotated[
    Path | None,
    valued("--out-dir", metavar="FOLDER", panel=OUTPUT, help="Write one file per recording here."),
]
ModelOption = Annotated[
    str | None,
    valued(
        "--model", metavar="MODEL", panel=MODEL, autocompletion=complete_models,
        help="Use this model (`knn info` lists them).",
    ),
]  # fmt: skip
DeviceOption = Annotated[
    Device,
    valued(
        "--device", metavar="DEVICE", panel=MODEL, help="Run networks on auto, cpu, cuda or mps.", show_default=False
    ),
]
BatchOption = Annotated[
    float,
    valued(
        "--batch-seconds", metavar="SECONDS", callback=within(0.01, MOST_SECONDS), panel=MODEL, show_default=False,
        help="Hear this much at once (CPU 20, GPU 120).",
    ),
]  # fmt: skip
ChunkOption = Annotated[
    str | None,
    valued(
        "--chunk", metavar="SECONDS", panel=MODEL,
        help="Hear this much speech at once, or whole; else as the model says.",
    ),
]  # fmt: skip
PrecisionOption = Annotated[
    PrecisionName,
    valued(
        "--precision", metavar="NUMBERS", panel=MODEL, show_default=False,
        help="Compute in fp32, bf16, int8 or onnx; else as the model says.",
    ),
]  # fmt: skip
LevelOption = Annotated[
    Level,
    valued(
        "--level",
        metavar="LEVEL",
        panel=LABELS,
        help="Classes: group, subgroup (default), speaker, name.",
        show_default=False,
    ),
]
IgnoreOption = Annotated[
    str, valued("--ignore", metavar="LABELS", panel=LABELS, help="Leave these labels out, such as 5,7.")
]
PriorsOption = Annotated[
    str,
    valued(
        "--priors", metavar="WEIGHTS", panel=LABELS,
        help="Prior weights: cs=3,de=1 (others 1), model or empirical.",
    ),
]  # fmt: skip
LanguagesOption = Annotated[
    str,
    valued(
        "--languages", metavar="LANGUAGES", panel=LABELS,
        help="Answer with these labels only: codes or names, such as cs,Slovak,polski.",
    ),
]  # fmt: skip
NoUnknownOption = Annotated[
    bool, switch("--no-unknown", panel=LABELS, help="Always answer with a label, never unknown or no speech.")
]
TurnsOption = Annotated[
    Path | None, valued("--turns", metavar="PATH", panel=INPUT, help="Take the turns in this file or folder.")
]
NumSpeakersOption = Annotated[
    int | None,
    valued(
        "--num-speakers",
        metavar="N",
        callback=within(1, MOST_SPEAKERS),
        panel=SPEAKERS,
        help="Find exactly this many speakers.",
    ),
]
HeldOutOption = Annotated[
    float | None,
    valued(
        "--held-out", metavar="SHARE", panel=SAMPLING, show_default=False, callback=within(0, 1),
        help="Hold out this share of each class (0.2).",
    ),
]  # fmt: skip
UnitsOption = Annotated[
    Level | None,
    valued(
        "--units", metavar="LEVEL", panel=SAMPLING, show_default=False,
        help="Keep units such as speaker on one side (name).",
    ),
]  # fmt: skip
SplitOption = Annotated[
    Path | None,
    valued("--split", metavar="FILE", panel=SAMPLING, help="Use the split in this file of `knn split`."),
]
SeedOption = Annotated[
    int,
    valued(
        "--seed",
        metavar="N",
        callback=within(0, 2**32 - 1),
        panel=SAMPLING,
        help="Use this seed for all random draws.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    valued(
        "--set", metavar="NAME=VALUE", panel=MODEL,
        help="Change a setting (see below); repeatable.",
    ),
]  # fmt: skip


def sound_channel(channel: str, track: int | None) -> str:
    """Return the channel of an audio track as `audio.reading.read` names it: "2:left"; KnnError for no channel."""
    if ":" in channel:
        raise KnnError(f"There is no channel {channel!r}.", "Tracks are chosen by --track, channels by --channel.")
    return channel if track is None else f"{track}:{channel}"


def epilog(*examples: str, formats: type[Enum] | None = None, settings: type | None = None) -> str:
    """Return the end of a command's help: the formats of `--format`, the settings of `--set`, and examples."""
    lines = [] if formats is None else [f"Formats: {' '.join(format.value for format in formats)}."]
    if settings is not None:
        lines.append(f"Settings for --set: {_described(settings)}.")
    return "\n".join([*lines, "Examples:", *examples])


def _described(settings: type) -> str:
    return ", ".join(f"{field.name} ({field.metadata['help']})" for field in fields(settings))


# ---- combinations of options ----


def given(ctx: typer.Context) -> set[str]:
    """Return the names of the options that are given on the command line."""
    return {name for name in ctx.params if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"}


def flag(ctx: typer.Context, name: str) -> str:
    """Return an option as it is written, such as --out-dir."""
    return next(max(param.opts, key=len) for param in ctx.command.params if param.name == name)


def refuse_together(ctx: typer.Context, groups: Iterable[Sequence[str]]) -> None:
    """Raise KnnError if two options of a group are given."""
    names = given(ctx)
    for group in groups:
        if len(both := [flag(ctx, name) for name in group if name in names]) > 1:
            raise KnnError(f"{both[0]} and {both[1]} cannot be combined.", "Choose one of them.")


def refuse_without(ctx: typer.Context, needs: Mapping[str, Sequence[str]]) -> None:
    """Raise KnnError if an option is given without any of those that it requires."""
    names = given(ctx)
    for name, needed in needs.items():
        if name in names and not names & set(needed):
            raise KnnError(
                f"{flag(ctx, name)} requires {' or '.join(flag(ctx, other) for other in needed)}.", "Add it."
            )


def refuse_unless(ctx: typer.Context, choice: str, needs: Mapping[str, Iterable[str]]) -> None:
    """Raise KnnError if an option is given that does not apply to the value of the option `choice`.

    Parameters
    ----------
    ctx : typer.Context
    choice : str
        Name of the option that decides.
    needs : mapping
        Name of an option -> the values of `choice` to which it applies.
    """
    names, value = given(ctx), ctx.params[choice].value
    for name, values in needs.items():
        if name in names and value not in values:
            which = " or ".join(sorted(values))
            raise KnnError(f"{flag(ctx, name)} requires {flag(ctx, choice)} {which}, not {value}.", "Leave it out.")


def refuse_beside(ctx: typer.Context, name: str, allowed: Iterable[str], hint: str) -> None:
    """Raise KnnError if the option `name` is given together with one that is not among `allowed`."""
    names = given(ctx)
    others = [param.name for param in ctx.command.params if param.name in names - {name, *allowed}]
    if name in names and others:
        raise KnnError(f"{flag(ctx, str(others[0]))} cannot be combined with {flag(ctx, name)}.", hint)


def check_text_output(out: Path | None, sources: Sequence[Path]) -> None:
    """Raise KnnError if a text output would replace a source, or has the suffix of an audio file or a store."""
    from knn_cli.audio import reading
    from knn_cli.core.output_paths import check_output
    from knn_cli.store import hdf5

    check_output(out, sources)
    if out is not None and out.suffix.lower() in {*reading.SUFFIXES, *hdf5.SUFFIXES}:
        raise KnnError(f"{out} is not a name for a text file.", "Is it a recording? The output comes after the option.")


# ---- notes that several commands write ----


def note_model(asked: str | None, model: Bundle, more: str) -> None:
    """Report the model that is used: as a note if the user did not name one, else as a detail."""
    (console.detail if asked else console.note)(f"Model {model.fingerprint}, {more}.")


def note_left_out(systems: SystemScores, *, needs_truth: bool = True) -> None:
    """Report the rows of scores that are not used: those without speech, or without a true label that is needed."""
    if systems.left_out:
        console.note(f"Left out {counted(systems.left_out, 'row')} without speech.")
    if needs_truth and (unknown := int((systems.truth == "").sum())):
        console.note(f"Left out {counted(unknown, 'row')} without a true label.")


def note_classifier(asked: str | None, classifier: Classifier) -> None:
    """Report the classifier that is used, and which of its labels are possible if not all are."""
    known, possible = classifier.known_labels, classifier.labels
    some = f"{', '.join(possible[:-1])} and {possible[-1]}" if len(possible) <= 12 else len(possible)
    more = f"which knows {len(known)} labels" + (f", of which {some} are possible" if possible != known else "")
    note_model(asked, classifier.bundle, more)


def note_silent_rows(rows: int) -> None:
    """Report how many segments had too little speech."""
    if rows:
        console.note(f"Left out {rows} segments without enough speech.")


def counted(count: int, noun: str) -> str:
    """Return a number with its noun, such as "1 speaker" or "3 speakers"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
