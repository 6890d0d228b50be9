"""`knn timeline`: the languages of long recordings over time, of each speaker by given turns or by diarization."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from knn_cli.cli import stopping
from knn_cli.cli.console import console, failed, leave
from knn_cli.cli.format_options import format_option
from knn_cli.cli.label_lists import parse_languages
from knn_cli.cli.limits import within
from knn_cli.cli.options import (
    SPEAKERS,
    AgainOption,
    BackupOption,
    BatchOption,
    ChannelOption,
    ChunkOption,
    Device,
    DeviceOption,
    FolderOption,
    ForceOption,
    JobsOption,
    JsonOption,
    LanguagesOption,
    ModelOption,
    NoUnknownOption,
    NoVadOption,
    NumSpeakersOption,
    PrecisionName,
    PrecisionOption,
    QuietOption,
    TextOption,
    TrackOption,
    TurnsOption,
    VerboseOption,
    check_text_output,
    epilog,
    note_classifier,
    note_model,
    refuse_together,
    refuse_without,
    sound_channel,
    switch,
    valued,
)
from knn_cli.cli.skipped import note_skipped
from knn_cli.cli.stdin import NameOption
from knn_cli.core.errors import KnnError

if TYPE_CHECKING:
    from pyannote.core import Annotation

    from knn_cli.cli.resuming import Resumption
    from knn_cli.recognition.classify_files import SpeakerTurns
    from knn_cli.recognition.language_timeline import LanguageTimeline

WINDOWS = "Windows"


class TimelineFormat(str, Enum):
    """Formats of timelines."""

    table = "table"
    json = "json"
    textgrid = "textgrid"
    audacity = "audacity"
    srt = "srt"
    vtt = "vtt"
    rttm = "rttm"


EPILOG = epilog(
    "knn timeline interview.mp3",
    "knn timeline interview.mp3 --diarize --num-speakers 2 -o interview.TextGrid",
    "knn timeline interview.mp3 --turns turns.rttm --format srt --out-dir subtitles/",
    formats=TimelineFormat,
)


def timeline(
    ctx: typer.Context,
    sources: Annotated[
        list[Path], typer.Argument(metavar="SOURCE", help="Audio files or folders of audio; - is stdin.")
    ],
    turns: TurnsOption = None,
    name: NameOption = None,
    channel: ChannelOption = "mix",
    track: TrackOption = None,
    no_vad: NoVadOption = False,
    out: TextOption = None,
    out_dir: FolderOption = None,
    format: Annotated[str | None, format_option(TimelineFormat, several=False)] = None,
    as_json: JsonOption = False,
    force: ForceOption = False,
    backup: BackupOption = False,
    again: AgainOption = False,
    model: ModelOption = None,
    device: DeviceOption = Device.auto,
    batch_seconds: BatchOption = 120.0,
    chunk: ChunkOption = None,
    precision: PrecisionOption = PrecisionName.auto,
    jobs: JobsOption = None,
    languages: LanguagesOption = "",
    no_unknown: NoUnknownOption = False,
    diarize: Annotated[
        bool, switch("--diarize", panel=SPEAKERS, help="Find the speakers first, as `knn diarize` does.")
    ] = False,
    num_speakers: NumSpeakersOption = None,
    window: Annotated[
        float,
        valued(
            "--window",
            metavar="SECONDS",
            callback=within(0.1, 3600),
            panel=WINDOWS,
            help="Score windows of this length.",
        ),
    ] = 4.0,
    step: Annotated[
        float,
        valued(
            "--step",
            metavar="SECONDS",
            callback=within(0.01, 3600),
            panel=WINDOWS,
            help="Start a window every this many seconds.",
        ),
    ] = 1.5,
    switch_probability: Annotated[
        float,
        valued(
            "--switch",
            metavar="PROBABILITY",
            callback=within(0, 1),
            panel=WINDOWS,
            help="Probability that the label changes within 1 s.",
        ),
    ] = 0.2,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Follow the language or dialect through long recordings.

    Each region of speech gets a label. With --diarize, or --turns from a file, each turn gets labels, and each speaker
    one label for all their turns.
    """
    from knn_cli.cli import beyond, progress, resuming, stdin
    from knn_cli.core.locks import locked_files
    from knn_cli.diarization.options import check_speakers
    from knn_cli.embedding.files import expand_folders
    from knn_cli.networks import bundle
    from knn_cli.networks.chunk_setting import parse_chunk
    from knn_cli.networks.precision import check_precision
    from knn_cli.recognition.classifier import Classifier
    from knn_cli.recognition.classify_files import language_timelines, speakers_from_rttm
    from knn_cli.recognition.timeline import TimelineOptions

    refuse_together(ctx, [("as_json", "format"), ("out", "out_dir"), ("turns", "diarize")])
    refuse_without(
        ctx,
        {
            "num_speakers": ("diarize",),
            "force": ("out", "out_dir"),
            "backup": ("out", "out_dir"),
            "again": ("out", "out_dir"),
        },
    )
    check_speakers(num_speakers, None, None)
    channel = sound_channel(channel, track)
    received = stdin.open_sources(ctx, sources, name)
    paths = expand_folders(received.paths)
    note_skipped(received.paths)
    read = [*paths, *([turns] if turns else [])]
    check_text_output(out, read)
    writer = _TimelineWriter(received.paths, paths, read, out, out_dir, _format(as_json, format, out))
    ctx.with_resource(locked_files(file for files in writer.files.values() for file in files))
    received.receive()
    classifier = Classifier(
        model,
        device=device.value,
        batch_seconds=batch_seconds,
        chunk=parse_chunk(chunk),
        precision=check_precision(precision.value),
        languages=parse_languages(languages),
        open_set=not no_unknown,
    )
    note_classifier(model, classifier)
    models = [classifier.bundle, *([bundle.find(), bundle.find_default(bundle.SEGMENTATION, segmenter=True)] * diarize)]
    writer.resumed = resumed = resuming.Resumption(ctx, writer.files, models, whole=[] if out is None else [out])
    if not resumed.left:
        leave(resumed.failures, done=resumed.finished)
        return
    options = TimelineOptions(window=window, step=step, switch=switch_probability, use_vad=not no_vad, channel=channel)
    speakers: SpeakerTurns | None = None
    if turns is not None:
        speakers = speakers_from_rttm(turns, paths)
    elif diarize:
        speakers = _diarizer(num_speakers, channel, device.value, batch_seconds)
    failures = resumed.failures
    passes = [progress.SEGMENTATION_PASS, progress.EMBEDDING_PASS] if diarize else []
    passes += [progress.SPEECH_PASS, progress.SCORING_PASS]
    with progress.over_files("Classifying", len(resumed.left), lambda path: passes) as finished:
        for path, result in language_timelines(paths, classifier, speakers, options, chosen=resumed.left, jobs=jobs):
            finished()
            if isinstance(result, KnnError):
                failures.append(failed(str(path), result))
            else:
                if turns is not None and speakers is not None:
                    beyond.note_beyond(
                        path, "file of turns", speakers(path, result.name).get_timeline(), result.seconds
                    )
                writer.write(path, result)
                _note_languages(path, result)
            stopping.advanced()
    leave(failures, done=len(paths) - len(failures))


def _diarizer(num_speakers: int | None, channel: str, device: str, batch_seconds: float) -> SpeakerTurns:
    """Turns of recordings by the shipped models of `knn diarize` with its defaults."""
    from knn_cli.audio import fetched
    from knn_cli.diarization.options import DiarizationOptions
    from knn_cli.diarization.pipeline import diarize
    from knn_cli.diarization.segmentation import Segmenter
    from knn_cli.embedding.embedder import Embedder

    embedder = Embedder(None, device=device, batch_seconds=batch_seconds)
    segmenter = Segmenter(None, embedder=embedder)
    note_model(None, embedder.bundle, f"speech by {segmenter.bundle.fingerprint}, on {embedder.device}")
    options = DiarizationOptions(segmentation=segmenter)

    def turns(path: Path, name: str) -> Annotation:
        with fetched.opened(path) as file:
            found = diarize(file, num_speakers=num_speakers, model=embedder, options=options, channel=channel)
        return found.annotation

    return turns


def _format(as_json: bool, asked: str | None, out: Path | None) -> str | None:
    """Name of the format, None for that of the suffix; KnnError if --json and the suffix contradict each other."""
    from knn_cli.formats.span_formats import format_by_suffix

    if not as_json:
        return asked
    by_suffix = None if out is None else format_by_suffix("timeline", out)
    if by_suffix is not None and by_suffix.name != "json":
        raise KnnError(f"--json and the suffix of {out} cannot be combined.", "Choose one of them.")
    return "json"


class _TimelineWriter:
    """Writes timelines to stdout, to a file, or to one file per recording; the outputs are checked beforehand.

    Attributes
    ----------
    files : dict of Path to list of Path
        The files of each recording in a folder.
    resumed : Resumption or None
        What makes the files.
    """

    def __init__(
        self,
        sources: list[Path],
        paths: list[Path],
        read: list[Path],
        out: Path | None,
        out_dir: Path | None,
        format: str | None,
    ) -> None:
        from knn_cli.core.output_paths import make_output_folder
        from knn_cli.formats.rttm import check_names
        from knn_cli.formats.span_formats import find_format
        from knn_cli.store import labels

        if out is not None and len(paths) > 1:
            raise KnnError("-o is for a single recording.", "Give --out-dir and --format for several.")
        if format is None and out is None:
            format = "table"
        self._format = find_format("timeline", format, out)
        if self._format.name == "rttm":
            check_names(labels.recording_names(paths), "recordings")
        self._several = len(paths) > 1 and out_dir is None
        self._header = True
        if self._several and not self._format.multiple:
            message = f"Several recordings in one {self._format.name} file could not be distinguished."
            raise KnnError(message, "Give --out-dir for one file per recording.")
        self._targets = dict.fromkeys(paths, out)
        self.files: dict[Path, list[Path]] = {path: [] for path in paths}
        self.resumed: Resumption | None = None
        if out_dir is not None:
            places = labels.output_places(sources, paths)
            targets = [out_dir / f"{places[path]}{self._format.suffix}" for path in paths]
            self._targets = dict(zip(paths, targets, strict=True))
            self.files = {path: [target] for path, target in zip(paths, targets, strict=True)}
            make_output_folder(out_dir, targets, read)

    def write(self, path: Path, result: LanguageTimeline) -> None:
        from knn_cli.formats import span_formats, span_tables
        from knn_cli.recognition.timeline_smoothing import ALTERNATIVES

        target = self._targets[path]
        document = result.document()
        if target is not None:
            span_formats.write(
                document, target, self._format.name, task=None if self.resumed is None else self.resumed.task(path)
            )
        elif self._several and self._format.name == "table":
            span_tables.write_timeline_tsv(document, sys.stdout, header=self._header, alternatives=ALTERNATIVES)
            self._header = False
        else:
            self._format.write(document, sys.stdout)


def _note_languages(path: Path, result: LanguageTimeline) -> None:
    from knn_cli.core.display_names import is_uncertain, named

    parts = ", ".join(f"{named(label, result.names)} {seconds:.0f} s" for label, seconds in result.durations.items())
    console.note(f"{path}: {parts or 'no speech'}.")
    guessed = [span for span in result.spans if is_uncertain(span.probability)]
    if guessed:
        seconds = sum(span.end - span.start for span in guessed)
        console.note(f"{path}: {seconds:.0f} s of that are uncertain, with a probability under 50 %.")
    starts = {(span.start, span.label) for span in guessed}
    for change in result.switches:
        facts = [change.speaker] if change.speaker else []
        facts += ["uncertain"] if (change.time, change.after) in starts else []
        of = f" ({', '.join(facts)})" if facts else ""
        before, after = named(change.before, result.names), named(change.after, result.names)
        console.note(f"{path}: at {change.time:.1f} s from {before} to {after}{of}.")
    for speaker in result.speakers:
        perhaps = "perhaps, uncertain, " if is_uncertain(speaker.probability) else ""
        share = f"{speaker.probability:.0%}, {speaker.scored_seconds:.0f} s scored"
        label = named(speaker.label, result.names)
        console.note(f"{path}: {speaker.speaker} over all turns: {perhaps}{label} ({share}).")
    overall = {speaker.speaker: speaker.label for speaker in result.speakers}
    others = sum(span.tier in overall and span.label != overall[span.tier] for span in result.spans)
    if others:
        differ = "1 turn has" if others == 1 else f"{others} turns have"
        console.note(f"{path}: {differ} another label than the speaker over all turns.")
