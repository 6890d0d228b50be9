"""Options of `knn diarize` alone, and the choices that they offer."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from knn_cli.cli.limits import MOST_SECONDS, MOST_SPEAKERS, within
from knn_cli.cli.options import INPUT, MODEL, OUTPUT, SPEAKERS, complete_segmentation, switch, valued

EDITING, CORRECTIONS = "Speaker removal", "Corrections"


class ClusteringMethod(str, Enum):
    """How embeddings are clustered."""

    ahc = "ahc"
    spectral = "spectral"
    vbx = "vbx"
    hdbscan = "hdbscan"


class TurnFormat(str, Enum):
    """Formats of turns."""

    rttm = "rttm"
    csv = "csv"
    knn_proj = "knn-proj"
    json = "json"
    textgrid = "textgrid"
    audacity = "audacity"
    srt = "srt"
    vtt = "vtt"
    eaf = "eaf"
    png = "png"
    html = "html"


class Overlap(str, Enum):
    """What is done to overlapped speech."""

    keep = "keep"
    mute = "mute"
    cut = "cut"


def _complete_presets(incomplete: str) -> list[str]:
    from knn_cli.diarization.presets import PRESETS

    return [name for name in PRESETS if name.startswith(incomplete)]


SourcesArgument = Annotated[
    list[Path], typer.Argument(metavar="SOURCE", help="Audio files, URLs, folders, kept analyses, or -.")
]
RttmOption = Annotated[
    Path | None,
    valued("--rttm", metavar="FILE", panel=OUTPUT, help="Write RTTM to this file, with any suffix."),
]
SaveEmbeddingsOption = Annotated[
    Path | None,
    valued("--save-embeddings", metavar="STORE", panel=OUTPUT, help="Save the speaker embeddings here."),
]
KeepOption = Annotated[
    Path | None,
    valued("--keep", metavar="PATH", panel=OUTPUT, help="Keep what takes time, for other options."),
]
MergeOption = Annotated[
    list[str] | None,
    valued("--merge", metavar="A=B", panel=CORRECTIONS, help="Make speaker A part of B (repeatable)."),
]
SplitSpeakerOption = Annotated[
    list[str] | None, valued("--split", metavar="A", panel=CORRECTIONS, help="Make speaker A two, by their voices.")
]
RenameOption = Annotated[
    list[str] | None, valued("--rename", metavar="A=NAME", panel=CORRECTIONS, help="Give speaker A a name.")
]
CorrectionsOption = Annotated[
    list[Path] | None,
    valued("--corrections", metavar="FILE", panel=CORRECTIONS, help="Make the corrections of an HTML player."),
]
MinSpeakersOption = Annotated[
    int | None,
    valued(
        "--min-speakers",
        metavar="N",
        callback=within(1, MOST_SPEAKERS),
        panel=SPEAKERS,
        help="Find at least this many speakers.",
    ),
]
MaxSpeakersOption = Annotated[
    int | None,
    valued(
        "--max-speakers",
        metavar="N",
        callback=within(1, MOST_SPEAKERS),
        panel=SPEAKERS,
        help="Find at most this many speakers.",
    ),
]
SpeakersOption = Annotated[
    Path | None,
    valued("--speakers", metavar="PATH", panel=INPUT, help="Recognise enrolled speakers (clips or a store)."),
]
LinkSpeakersOption = Annotated[
    bool, switch("--link-speakers", panel=SPEAKERS, help="Keep one label per speaker in all files.")
]
PerChannelOption = Annotated[
    bool, switch("--per-channel", panel=SPEAKERS, help="Look for separate speakers in every channel.")
]
MinTurnOption = Annotated[
    float | None,
    valued(
        "--min-turn",
        metavar="SECONDS",
        callback=within(0, MOST_SECONDS),
        panel=SPEAKERS,
        help="Drop shorter turns (default 0.1).",
        show_default=False,
    ),
]
MaxGapOption = Annotated[
    float | None,
    valued(
        "--max-gap",
        metavar="SECONDS",
        callback=within(0, MOST_SECONDS),
        panel=SPEAKERS,
        help="Fill shorter pauses of a speaker (0.4).",
        show_default=False,
    ),
]
MarginOption = Annotated[
    float | None,
    valued(
        "--margin",
        metavar="SECONDS",
        callback=within(0, MOST_SECONDS),
        panel=SPEAKERS,
        help="Keep this much silence after turns (0.2).",
        show_default=False,
    ),
]
UnwantedOption = Annotated[
    str | None,
    valued("--unwanted", metavar="SPEAKERS", panel=EDITING, help="List these (a,b or least: who speaks least)."),
]
MuteOption = Annotated[bool, switch("--mute", panel=EDITING, help="Write the audio with these speakers muted.")]
CutOption = Annotated[bool, switch("--cut", panel=EDITING, help="Write the audio with these speakers cut out.")]
OverlapOption = Annotated[
    Overlap | None,
    valued("--overlap", metavar="HOW", panel=EDITING, help="Keep, mute or cut all overlapped speech."),
]
MaxSilenceOption = Annotated[
    float | None,
    valued(
        "--max-silence",
        metavar="SECONDS",
        callback=within(0, MOST_SECONDS),
        panel=EDITING,
        help="Shorten silences longer than this to 0.2 s.",
    ),
]
ReferenceOption = Annotated[
    Path | None,
    valued("--reference", metavar="PATH", panel=INPUT, help="Score against these reference turns."),
]
UemOption = Annotated[
    Path | None, valued("--uem", metavar="FILE", panel=INPUT, help="Score only the regions in this file.")
]
SegmentationOption = Annotated[
    str | None,
    valued(
        "--segmentation",
        metavar="MODEL",
        panel=MODEL,
        autocompletion=complete_segmentation,
        help="Use this network, or silero (no overlap).",
    ),
]
ClustererOption = Annotated[
    ClusteringMethod | None,
    valued(
        "--clusterer",
        metavar="METHOD",
        panel=MODEL,
        help=f"Cluster by {', '.join(method.value for method in ClusteringMethod)}.",
        show_default=False,
    ),
]
PresetOption = Annotated[
    str | None,
    valued(
        "--preset",
        metavar="NAME",
        panel=MODEL,
        autocompletion=_complete_presets,
        help="As pyannote-3.1, -community-1, or FILE.",
    ),
]
